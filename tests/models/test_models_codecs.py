"""Codecs: what each writes, what it refuses to read, chains, and how others are added."""

from __future__ import annotations

import base64
import builtins
import gzip
import importlib.metadata
import os
import pickle
import random
import time
import zlib
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from famulus.models import CodecLimits, DecodeError, EncodeError, Record, codecs, encodings, key_serde, value_serde


class Item(Record):
    sku: str
    price: Decimal
    blob: bytes = b""
    when: datetime | None = None


ITEM = Item("a", Decimal("1.50"), b"\x00\xff", datetime(2026, 1, 2, 3, 4, 5))
ALLOWED = CodecLimits(allow_pickle=True)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(codecs, "_codecs", dict(codecs._codecs))
    return iter([None])


# ---- each codec


@pytest.mark.parametrize(
    ("serializer", "tp", "value", "data"),
    [
        ("binary", bytes, b"\x00\xff", b"AP8="),
        ("binary", None, b"\x00\xff", b"AP8="),
        ("binary", str, "a", b"YQ=="),
        ("binary", int, 12, b"MTI="),
        ("json|binary", list[int], [1], b"WzFd"),
        ("raw|binary|binary", bytes, b"\xff", b"L3c9PQ=="),
        ("msgpack", dict[str, int], {"a": 1}, b"\x81\xa1a\x01"),
        ("msgpack", bytes, b"a", b"\xc4\x01a"),
        ("msgpack", None, b"a", b"\xc4\x01a"),
        (
            "msgpack",
            Item,
            Item("a", Decimal(1), b"\xff"),
            b"\x84\xa3sku\xa1a\xa5price\xa11\xa4blob\xc4\x01\xff\xa4when\xc0",
        ),
        ("yaml", dict[str, list[int]], {"b": [1], "a": []}, b"b:\n- 1\na: []\n"),
        ("yaml", str, "2026-01-02", b"'2026-01-02'\n"),
        ("yaml", bytes, b"\xff", b"!!binary |\n  /w==\n"),
        ("json | gzip", int, 1, gzip.compress(b"1", mtime=0)),
        ("json|zlib", int, 1, zlib.compress(b"1")),
    ],
)
def test_a_value_and_its_bytes(serializer: str, tp: Any, value: Any, data: bytes) -> None:
    serde = value_serde(tp, serializer)
    assert serde.dumps(value) == data
    assert serde.loads(data) == value


@pytest.mark.parametrize("serializer", ["msgpack", "yaml", "json|gzip", "msgpack|zlib|binary", "json|binary"])
def test_records_keep_their_types_in_every_codec(serializer: str) -> None:
    class Own(Item, serializer=serializer):
        pass

    own = Own(*ITEM.asdict().values())
    assert Own.loads(own.dumps()) == own
    assert Item.loads(ITEM.dumps(serializer=serializer), serializer=serializer) == ITEM
    assert value_serde(None).dumps(own) == own.dumps()
    assert value_serde(list[Item], serializer).loads(value_serde(list[Item], serializer).dumps([ITEM])) == [ITEM]


@pytest.mark.parametrize("serializer", ["json", "binary", "msgpack", "yaml", "json|gzip", "zlib", "pickle"])
def test_none_is_a_tombstone_in_every_codec(serializer: str) -> None:
    for serde in (value_serde(None, serializer), value_serde(bytes, serializer), key_serde(bytes, serializer)):
        assert serde.dumps(None) is None
        assert serde.loads(None) is None


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml", "json|gzip", "msgpack|zlib"])
def test_errors_name_the_place_in_every_codec(serializer: str) -> None:
    data = value_serde(None, serializer).dumps({"sku": "a", "price": "1", "when": 5})
    assert data is not None
    with pytest.raises(DecodeError) as caught:
        Item.loads(data, serializer=serializer)
    assert str(caught.value) == "$.when: expected datetime, got 5 (int)"


@pytest.mark.parametrize(
    ("serializer", "data", "message"),
    [
        ("binary", b"?", r"got b'\?' \(bytes\)"),
        ("json|gzip", b"plain text", "incorrect header"),
        ("json|gzip", gzip.compress(b"1")[:-4], "the data ends early"),
        ("json|gzip", b"", "the data ends early"),
        ("json|zlib", zlib.compress(b"1") + b"x", "1 bytes follow its end"),
        ("json|gzip", gzip.compress(b"{"), "not JSON"),
        ("msgpack", b"\xc1", "msgpack"),
        ("msgpack", b"\x01\x01", "extra data"),
        ("yaml", b"{", "expected"),
        ("yaml", b"!!python/object/apply:os.system [echo]", "could not determine a constructor"),
    ],
)
def test_undecodable_bytes_are_a_decode_error(serializer: str, data: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=f"(?i){message}") as caught:
        value_serde(int if "json" in serializer else None, serializer).loads(data)
    assert caught.value.path == "$"


def test_a_gzip_message_may_have_several_members_and_padding() -> None:
    data = gzip.compress(b"[1,") + gzip.compress(b"2]") + b"\0\0"
    assert value_serde(list[int], "json|gzip").loads(data) == [1, 2]


def test_bytes_without_a_type_are_bytes_again_where_the_codec_has_bytes() -> None:
    for serializer in ("msgpack", "yaml"):
        serde = value_serde(None, serializer)
        assert serde.loads(serde.dumps({"a": [b"\xff"]})) == {"a": [b"\xff"]}
        assert serde.loads(serde.dumps(b"\xff")) == b"\xff"
    assert value_serde(None, "json").dumps(b"[1]") == b"[1]"  # JSON has none: they are taken to be encoded


def test_what_a_codec_has_no_form_for_is_an_encode_error() -> None:
    for serializer in ("msgpack", "yaml", "json|gzip"):
        with pytest.raises(EncodeError, match="object is not a type that can be encoded"):
            value_serde(None, serializer).dumps({"a": object()})
    with pytest.raises(TypeError, match="the raw codec has no form for Item"):
        value_serde(Item, "gzip")


# ---- bounds


def test_a_decompression_bomb_is_refused_before_it_fills_the_memory() -> None:
    bomb = zlib.compress(b"\0" * 70_000_000)
    with pytest.raises(DecodeError, match="more than 67108864 bytes when decompressed; setting codec_max_decompressed"):
        value_serde(bytes, "zlib").loads(bomb)


@pytest.mark.parametrize("kind", ["gzip", "zlib"])
def test_the_limit_is_exact(kind: str) -> None:
    serde = value_serde(bytes, kind, limits=CodecLimits(max_decompressed=1000))
    assert serde.loads(serde.dumps(b"a" * 1000)) == b"a" * 1000
    with pytest.raises(DecodeError, match="more than 1000 bytes"):
        serde.loads(serde.dumps(b"a" * 1001))


def test_the_limit_holds_for_all_members_together_and_in_each_step_of_a_chain() -> None:
    limits = CodecLimits(max_decompressed=1000)
    with pytest.raises(DecodeError, match="more than 1000 bytes"):
        value_serde(bytes, "gzip", limits=limits).loads(gzip.compress(b"a" * 600) * 2)
    with pytest.raises(DecodeError, match="more than 1000 bytes"):
        value_serde(bytes, "gzip|zlib", limits=limits).loads(zlib.compress(gzip.compress(b"a" * 1001)))


def test_yaml_aliases_are_refused() -> None:
    laughs = b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    with pytest.raises(DecodeError, match=r"alias \(\*name\)"):
        value_serde(None, "yaml").loads(laughs)
    shared = [1]
    serde = value_serde(None, "yaml")
    assert serde.loads(serde.dumps([shared, shared])) == [[1], [1]]


# ---- pickle


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def test_pickles_are_not_loaded_and_the_error_says_why_and_how() -> None:
    for data in (value_serde(Item, "pickle").dumps(ITEM), value_serde(None, "pickle").dumps(Evil())):
        assert data is not None
        for tp in (Item, None):
            with pytest.raises(DecodeError) as caught:
                value_serde(tp, "pickle").loads(data)
            assert caught.value.path == "$"
            for part in ("can run any program", "codec_allow_pickle=True", "allow_pickle=True", "json or msgpack"):
                assert part in caught.value.reason
    with pytest.raises(DecodeError):
        value_serde(None, "pickle|gzip").loads(gzip.compress(b""))
    with pytest.raises(codecs.UnsafeCodec):
        codecs.loads("pickle", codecs.dumps("pickle", 1))


def test_pickles_are_loaded_where_that_was_allowed() -> None:
    data = ITEM.dumps(serializer="pickle")
    assert Item.loads(data, serializer="pickle", allow_pickle=True) == ITEM
    with pytest.raises(DecodeError):  # for that call alone
        Item.loads(data, serializer="pickle")
    assert value_serde(Item, "pickle|gzip", limits=ALLOWED).loads(value_serde(Item, "pickle|gzip").dumps(ITEM)) == ITEM
    assert codecs.loads("pickle", codecs.dumps("pickle", {1}), allow_pickle=True) == {1}

    class Own(Item, serializer="pickle"):
        pass

    own = Own("a", Decimal(1))
    assert Own.loads(own.dumps(), allow_pickle=True) == own
    with pytest.raises(DecodeError):
        Own.loads(own.dumps())


def test_a_pickle_of_a_record_is_plain_data_in_base64() -> None:
    assert pickle.loads(base64.b64decode(ITEM.dumps(serializer="pickle"))) == ITEM.to_representation()


def test_untyped_values_are_pickled_as_they_are() -> None:
    serde = value_serde(None, "pickle", limits=ALLOWED)
    for value in ({1, 2}, datetime(2026, 1, 2), b"\xff", (1, [2]), ITEM, {1: ITEM}):
        assert serde.loads(serde.dumps(value)) == value


def test_a_pickle_of_something_else_than_the_type_is_a_decode_error() -> None:
    serde = value_serde(Item, "pickle", limits=ALLOWED)
    with pytest.raises(DecodeError, match=r"\$\.price: expected Decimal"):
        serde.loads(base64.b64encode(pickle.dumps({"sku": "a"})))
    with pytest.raises(DecodeError, match=r"\$: expected Item"):
        serde.loads(b"AAAA")


# ---- names, chains, extras, plug-ins


def test_a_chain_runs_from_left_to_right_and_back(registry: None) -> None:
    class Mark:
        def __init__(self, mark: bytes) -> None:
            self.mark = mark

        def dumps(self, obj: Any) -> bytes:
            return bytes(obj) + self.mark

        def loads(self, data: bytes) -> bytes:
            assert data.endswith(self.mark)
            return data.removesuffix(self.mark)

    codecs.register("a", Mark(b"a"))
    codecs.register("b", Mark(b"b"))
    serde = value_serde(list[int], "json|a|b")
    assert serde.dumps([1]) == b"[1]ab"
    assert serde.loads(b"[1]ab") == [1]
    assert value_serde(list[int], codecs.chain(codecs.get_codec("json|a"), Mark(b"c"))).dumps([1]) == b"[1]ac"
    assert repr(codecs.get_codec("gzip|binary")) == "<codec raw|gzip|binary>"


@pytest.mark.parametrize("name", ["json|", "|gzip", "json|nope", ""])
def test_a_chain_with_an_unknown_part_names_it(name: str) -> None:
    with pytest.raises(LookupError, match=r"unknown codec .*expected one of binary, gzip, json.* a chain of them"):
        codecs.get_codec(name)


def test_names_that_could_not_be_asked_for_are_refused() -> None:
    for name in ("a|b", " a"):
        with pytest.raises(TypeError, match=r"has no '\|' in it"):
            codecs.register(name, codecs.JSONCodec())


def test_a_codec_that_is_registered_again_counts_for_serdes_made_later(registry: None) -> None:
    codecs.register("mine", codecs.JSONCodec())
    before = value_serde(list[int], "mine")
    codecs.register("mine", codecs.MsgpackCodec())
    assert before.dumps([1]) == b"[1]"
    assert value_serde(list[int], "mine").dumps([1]) == b"\x91\x01"


@pytest.mark.parametrize(("codec", "module"), [("msgpack", "msgpack"), ("yaml", "yaml")])
def test_a_missing_library_is_told_with_the_extra_that_brings_it(
    codec: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    imports = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imports(name, *args, **kwargs)

    def not_there(name: str) -> Any:
        return without(name)

    monkeypatch.setattr(encodings, "import_module", not_there)
    encodings._installed.cache_clear()
    try:
        with pytest.raises(LookupError, match=rf"codec {codec} needs .* pip install 'famulus\[{codec}\]'"):
            value_serde(int, f"{codec}|gzip")
        with pytest.raises(LookupError, match="pip install"):

            class Own(Record, serializer=codec):
                n: int

    finally:
        encodings._installed.cache_clear()


class Upper:
    """A codec as a package would bring it."""

    def dumps(self, obj: Any) -> bytes:
        return str(obj).upper().encode()

    def loads(self, data: bytes) -> Any:
        return data.decode().lower()


def test_packages_bring_codecs_by_entry_points(registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    group = importlib.metadata.EntryPoints(
        [
            importlib.metadata.EntryPoint("upper", f"{__name__}:Upper", "famulus.codecs"),
            importlib.metadata.EntryPoint("broken", f"{__name__}:ALLOWED", "famulus.codecs"),
        ]
    )

    def entry_points(**wanted: Any) -> Any:
        return group.select(**wanted)

    monkeypatch.setattr(codecs, "entry_points", entry_points)
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    assert value_serde(str, "upper").dumps("a") == b"A"
    assert value_serde(str, "upper").loads(b"AB") == "ab"
    assert "upper" in codecs.names()
    with pytest.raises(LookupError, match=r"'broken': entry point .*:ALLOWED' is no codec"):
        codecs.get_codec("broken")


def test_serdes_of_equal_codecs_are_one() -> None:
    assert value_serde(Item, "json|gzip") is value_serde(Item, "json|gzip")
    assert value_serde(Item, "pickle") is not value_serde(Item, "pickle", limits=ALLOWED)
    assert value_serde(Item, "json|gzip") is not value_serde(Item, "json|gzip", limits=CodecLimits(max_decompressed=5))


def test_many_empty_members_do_not_take_long() -> None:
    data = gzip.compress(b"") * 50_000 + gzip.compress(b"end")
    began = time.thread_time()
    assert codecs.loads("gzip", data) == b"end"
    assert time.thread_time() - began < 1  # seconds of this thread; it was more than that, and grew with the square


@pytest.mark.parametrize("kind", ["gzip", "zlib"])
@pytest.mark.parametrize("size", [16_383, 16_384, 16_385, 100_000])
def test_data_of_any_size_comes_back(kind: str, size: int) -> None:
    data = random.Random(size).randbytes(size)  # which cannot be compressed
    packed = codecs.dumps(kind, data)
    assert codecs.loads(kind, packed) == data
    with pytest.raises(ValueError, match="the data ends early"):
        codecs.loads(kind, packed[:-1])


def test_untyped_keys_of_any_class_of_bytes_are_those_bytes() -> None:
    dumps = key_serde(None).dumps
    assert [dumps(key) for key in (b"k", bytearray(b"k"), memoryview(b"k"))] == [b"k"] * 3
