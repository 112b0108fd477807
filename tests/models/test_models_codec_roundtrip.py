"""What goes out comes back, for types times codecs, as values and as keys; and no bytes fail in another way."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from famulus.models import CodecLimits, DecodeError, Record, field, key_serde, value_serde

short_run = settings(deadline=None, max_examples=25)
shorter_run = settings(deadline=None, max_examples=8)  # YAML in pure Python is slow

SERIALIZERS = ["json", "msgpack", "yaml", "pickle", "json|gzip", "json|zlib|binary", "msgpack|gzip", "pickle|zlib"]
LIMITS = CodecLimits(allow_pickle=True)


class Leaf(Record, include_metadata=True):
    sku: str
    price: Decimal = field(input_name="the price")


class Twig(Leaf):
    when: datetime | None = None


class Branch(Record):
    text: str
    number: int
    ratio: float
    blob: bytes
    day: date
    ident: UUID
    leaves: list[Leaf]
    by_name: dict[str, Leaf | None]
    both: tuple[int, bytes]
    unique: set[int]
    either: int | str | list[bytes] | None = None
    anything: Any = None


ints = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
blobs = st.binary(max_size=8)
decimals = st.decimals(allow_nan=False)
leaves = st.builds(Leaf, texts, decimals) | st.builds(Twig, texts, decimals, st.datetimes() | st.none())
plain_values = st.recursive(
    st.none() | st.booleans() | ints | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
branches = st.builds(
    Branch,
    texts,
    ints,
    floats,
    blobs,
    st.dates(),
    st.uuids(),
    st.lists(leaves, max_size=2),
    st.dictionaries(texts, leaves | st.none(), max_size=2),
    st.tuples(ints, blobs),
    st.sets(ints, max_size=3),
    ints | texts | st.lists(blobs, max_size=2) | st.none(),
    plain_values,
)


@shorter_run
@given(branches)
@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_a_record_comes_back_equal_from_every_codec(serializer: str, value: Branch) -> None:
    for make in (value_serde, key_serde):
        serde = make(Branch, serializer, limits=LIMITS)
        assert serde.loads(serde.dumps(value)) == value


@shorter_run
@given(data=st.data())
@pytest.mark.parametrize("serializer", ["msgpack", "yaml", "pickle", "json|gzip", "msgpack|zlib|binary"])
@pytest.mark.parametrize(
    ("tp", "values"),
    [
        (int, ints),
        (float, floats),
        (str, texts),
        (bytes, blobs),
        (list[bytes], st.lists(blobs)),
        (dict[int, list[str]], st.dictionaries(ints, st.lists(texts))),
        (dict[UUID, bytes], st.dictionaries(st.uuids(), blobs)),
        (set[Decimal], st.sets(decimals)),
        (datetime, st.datetimes()),
        (list[Leaf], st.lists(leaves)),
        (Twig | int | None, st.builds(Twig, texts, decimals) | ints),
        (None, plain_values),
    ],
)
def test_each_type_comes_back_equal_from_every_codec(
    serializer: str, data: st.DataObject, tp: Any, values: Any
) -> None:
    value = data.draw(values)
    serde = value_serde(tp, serializer, limits=LIMITS)
    assert serde.loads(serde.dumps(value)) == value


@short_run
@given(blobs | texts | ints | floats)
@pytest.mark.parametrize("serializer", ["raw", "binary", "gzip", "zlib|binary"])
def test_raw_forms_come_back_equal_through_transforms(serializer: str, value: Any) -> None:
    serde = value_serde(type(value), serializer)
    assert serde.loads(serde.dumps(value)) == value


@short_run
@given(st.binary(max_size=30))
@pytest.mark.parametrize("serializer", ["msgpack", "yaml", "pickle", "json|gzip", "binary", "zlib", "msgpack|binary"])
def test_any_bytes_give_a_value_or_a_decode_error_with_a_path(serializer: str, data: bytes) -> None:
    transform = serializer in ("binary", "zlib")
    for tp in (bytes,) if transform else (None, Branch, list[Leaf], int):
        paths: list[str] = []
        try:
            value_serde(tp, serializer).loads(data)
        except DecodeError as error:
            paths = [e.path for e in error.errors]
        assert all(path.startswith("$") for path in paths)
