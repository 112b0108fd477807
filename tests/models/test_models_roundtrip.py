"""What goes out comes back, for every supported type; and no bytes make a serde fail in another way."""

import dataclasses
import enum
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import attrs
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from famulus.models import DecodeError, Record, field, key_serde, value_serde

short_run = settings(deadline=None, max_examples=60)


class Suit(enum.Enum):
    HEARTS = "h"
    SPADES = 4
    PAIR = (1, 2)


class Pair(NamedTuple):
    left: int
    right: str | None = None


class Address(TypedDict):
    street: str
    number: int | None


@attrs.define
class Attrs:
    name: str
    scores: dict[str, float]


@dataclasses.dataclass
class Data:
    flag: bool
    inner: Attrs | None = None


class Leaf(Record):
    sku: str
    price: Decimal


class Branch(Record):
    text: str
    number: int
    ratio: float
    flag: bool
    blob: bytes
    when: datetime
    day: date
    clock: time
    ident: UUID
    suit: Suit
    kind: Literal["a", 2, None]
    pair: Pair
    address: Address
    data: Data
    leaves: list[Leaf]
    by_number: dict[int, Leaf | None]
    either: int | str | list[int] | None
    both: tuple[int, str]
    many: tuple[bool, ...] = ()
    unique: set[str] = field(factory=set)
    frozen: frozenset[int] = frozenset()
    any: Any = None
    parent: "Branch | None" = None


ints = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
zones = st.sampled_from([None, timezone.utc, timezone(timedelta(hours=-5, minutes=-30))])  # noqa: UP017
datetimes = st.datetimes(timezones=zones)
decimals = st.decimals(allow_nan=False)
leaves = st.builds(Leaf, texts, decimals)
plain_values = st.recursive(
    st.none() | st.booleans() | ints | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
attrs_values = st.builds(Attrs, texts, st.dictionaries(texts, floats, max_size=2))
branches = st.builds(
    Branch,
    texts,
    ints,
    floats,
    st.booleans(),
    st.binary(max_size=8),
    datetimes,
    st.dates(),
    st.times(),
    st.uuids(),
    st.sampled_from(Suit),
    st.sampled_from(["a", 2, None]),
    st.builds(Pair, ints, texts | st.none()),
    st.fixed_dictionaries({"street": texts, "number": ints | st.none()}),
    st.builds(Data, st.booleans(), attrs_values | st.none()),
    st.lists(leaves, max_size=2),
    st.dictionaries(ints, leaves | st.none(), max_size=2),
    ints | texts | st.lists(ints, max_size=2) | st.none(),
    st.tuples(ints, texts),
    st.lists(st.booleans(), max_size=3).map(tuple),
    st.sets(texts, max_size=3),
    st.frozensets(ints, max_size=3),
    plain_values,
)


@short_run
@given(branches, st.none() | branches)
def test_a_record_of_everything_comes_back_equal(value: Branch, parent: Branch | None) -> None:
    value.parent = parent
    assert Branch.loads(value.dumps()) == value


@short_run
@given(branches)
def test_the_plain_representation_is_what_json_says(value: Branch) -> None:
    for name in ("unique", "frozen"):  # sets have no order to compare
        setattr(value, name, type(getattr(value, name))())
    assert orjson.loads(orjson.dumps(value.to_representation())) == orjson.loads(value.dumps())


@short_run
@given(data=st.data())
@pytest.mark.parametrize(
    ("tp", "values"),
    [
        (int, ints),
        (float, floats),
        (str, texts),
        (bool, st.booleans()),
        (bytes, st.binary()),
        (list[int], st.lists(ints)),
        (dict[str, float], st.dictionaries(texts, floats)),
        (dict[int, list[str]], st.dictionaries(ints, st.lists(texts))),
        (dict[float, int], st.dictionaries(floats, ints)),
        (dict[Decimal, int], st.dictionaries(decimals, ints)),
        (dict[UUID, int], st.dictionaries(st.uuids(), ints)),
        (set[Decimal], st.sets(decimals)),
        (Decimal, decimals),
        (UUID, st.uuids()),
        (datetime, datetimes),
        (date, st.dates()),
        (Suit, st.sampled_from(Suit)),
        (Pair, st.builds(Pair, ints, texts)),
        (Attrs, attrs_values),
        (int | str | None, ints | texts),
        (None, st.booleans() | ints | texts | st.lists(ints)),
    ],
)
def test_each_type_comes_back_equal_as_value_and_as_key(data: st.DataObject, tp: Any, values: Any) -> None:
    value = data.draw(values)
    assert value_serde(tp).loads(value_serde(tp).dumps(value)) == value
    if tp is not None:  # untyped keys are bytes
        assert key_serde(tp).loads(key_serde(tp).dumps(value)) == value


@short_run
@given(plain_values.map(orjson.dumps) | st.binary(max_size=20))
@pytest.mark.parametrize("tp", [Branch, Attrs, Data, Pair, Address, Suit, int | str, list[Leaf], dict[int, Leaf]])
def test_any_bytes_give_a_value_or_a_decode_error_with_a_path(tp: Any, data: bytes) -> None:
    paths: list[str] = []
    value = None
    try:
        value = value_serde(tp).loads(data)
    except DecodeError as error:
        paths = [e.path for e in error.errors]
    assert all(path.startswith("$") for path in paths)
    assert paths or value_serde(tp).loads(value_serde(tp).dumps(value)) == value
