"""Serdes: what each type looks like as bytes, and what is refused, with literal values."""

import dataclasses
import enum
import pickle
import typing
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, NotRequired, TypedDict
from uuid import UUID

import attrs
import pytest

from famulus.models import DecodeError, EncodeError, FieldError, Record, codecs, field, key_serde, value_serde


class Item(Record):
    sku: str
    price: float


class Order(Record):
    account: str
    items: list[Item]
    paid: bool = False
    notes: dict[str, str] = field(factory=dict)


class Refund(Record):
    account: str
    why: str


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Bits(enum.Flag):
    A = 1
    B = 2


class Corner(enum.Enum):
    ORIGIN = (0, 0)
    ONE = (1, 1)


class Lenient(enum.Enum):
    X = "x"

    @classmethod
    def _missing_(cls, value: object) -> "Lenient":
        if value == "X":
            return cls.X
        raise ValueError(value)


class Point(NamedTuple):
    x: int
    y: int = 0


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Sku(str):
    __slots__ = ()


@dataclasses.dataclass
class Data:
    n: int
    tags: list[str] = dataclasses.field(default_factory=list)
    _private: int = 0
    kind: str = dataclasses.field(default="k", kw_only=True)


@attrs.define
class Plain:
    n: int
    data: Data | None = None
    tags: list[int] = attrs.field(factory=list)


UserId = NewType("UserId", int)


def decode_error(tp: Any, data: bytes) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        value_serde(tp).loads(data)
    return caught.value


@pytest.mark.parametrize(
    ("tp", "value", "data"),
    [
        (int, 5, b"5"),
        (float, 5.0, b"5.0"),
        (str, "ä", '"ä"'.encode()),
        (bool, True, b"true"),
        (bytes, b"\x00\xff", b"\x00\xff"),
        (list[int], [1, 2], b"[1,2]"),
        (list, [1, "a", None], b'[1,"a",null]'),
        (list[list[bool]], [[True], []], b"[[true],[]]"),
        (Sequence[int], [1], b"[1]"),
        (tuple[int, str], (1, "a"), b'[1,"a"]'),
        (tuple[int, ...], (1, 2, 3), b"[1,2,3]"),
        (tuple[()], (), b"[]"),
        (tuple, (1, "a"), b'[1,"a"]'),
        (set[int], {1}, b"[1]"),
        (frozenset[str], frozenset({"a"}), b'["a"]'),
        (deque[int], deque([1, 2]), b"[1,2]"),
        (dict[str, int], {"a": 1}, b'{"a":1}'),
        (dict, {"a": [1]}, b'{"a":[1]}'),
        (Mapping[str, Any], {"a": None}, b'{"a":null}'),
        (dict[int, str], {1: "a"}, b'{"1":"a"}'),
        (dict[float, int], {1.5: 1}, b'{"1.5":1}'),
        (dict[bool, int], {True: 1}, b'{"true":1}'),
        (dict[Level, int], {Level.HIGH: 1}, b'{"2":1}'),
        (dict[Colour, int], {Colour.RED: 1}, b'{"red":1}'),
        (dict[date, int], {date(2026, 1, 2): 1}, b'{"2026-01-02":1}'),
        (dict[Decimal, int], {Decimal("1.5"): 1}, b'{"1.5":1}'),
        (dict[UUID, int], {UUID(int=1): 1}, b'{"00000000-0000-0000-0000-000000000001":1}'),
        (int | None, 5, b"5"),
        (int | str, "a", b'"a"'),
        (list[int | str | None], [1, "a", None], b'[1,"a",null]'),
        (int | list[int], [1], b"[1]"),
        (bool | int, True, b"true"),
        (Literal["a", 1], 1, b"1"),
        (Colour, Colour.BLUE, b'"blue"'),
        (Level, Level.HIGH, b"2"),
        (Bits, Bits.A | Bits.B, b"3"),
        (Corner, Corner.ONE, b"[1,1]"),
        (Literal[Colour.RED], Colour.RED, b'"red"'),
        (datetime, datetime(2026, 1, 2, 3, 4, 5, 6, timezone.utc), b'"2026-01-02T03:04:05.000006+00:00"'),  # noqa: UP017
        (datetime, datetime(2026, 1, 2), b'"2026-01-02T00:00:00"'),
        (date, date(2026, 1, 2), b'"2026-01-02"'),
        (time, time(1, 2, 3), b'"01:02:03"'),
        (UUID, UUID(int=5), b'"00000000-0000-0000-0000-000000000005"'),
        (Decimal, Decimal("1.10"), b'"1.10"'),
        (Point, Point(1, 2), b"[1,2]"),
        (Movie, {"title": "M", "year": 1931}, b'{"title":"M","year":1931}'),
        (Movie, {"title": "M"}, b'{"title":"M"}'),
        (Data, Data(1, ["a"], 2), b'{"n":1,"tags":["a"],"_private":2,"kind":"k"}'),
        (Plain, Plain(1, Data(2)), b'{"n":1,"data":{"n":2,"tags":[],"_private":0,"kind":"k"},"tags":[]}'),
        (list[Item], [Item("a", 1.5)], b'[{"sku":"a","price":1.5}]'),
        (Item | Refund, Refund("a", "b"), b'{"account":"a","why":"b"}'),
        (Item | None, Item("a", 1.5), b'{"sku":"a","price":1.5}'),
        (Annotated[int, "cents"], 5, b"5"),
        (Annotated[list[int], []], [5], b"[5]"),
        (UserId, UserId(5), b"5"),
        (list[UserId], [UserId(5)], b"[5]"),
        (Sku, Sku("a"), b'"a"'),
        (Path, Path("/a"), b'"/a"'),
        (defaultdict[str, int], defaultdict(int, {"a": 1}), b'{"a":1}'),
        (None, {"a": 1}, b'{"a":1}'),
        (Any, [1, None], b"[1,null]"),
        (object, "x", b'"x"'),
    ],
)
def test_a_value_and_its_bytes(tp: Any, value: Any, data: bytes) -> None:
    serde = value_serde(tp)
    assert serde.dumps(value) == data
    back = serde.loads(data)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("tp", [None, Any, int, bytes, Order, list[int], Movie, int | None, Plain])
@pytest.mark.parametrize("make", [value_serde, key_serde])
def test_none_is_a_tombstone_for_every_type(tp: Any, make: Callable[[Any], Any]) -> None:
    assert make(tp).loads(None) is None
    assert make(tp).dumps(None) is None


@pytest.mark.parametrize(
    ("tp", "data", "message"),
    [
        (int, b'"12"', "$: expected int, got '12' (str)"),
        (int, b"1.5", "$: expected int, got 1.5 (float)"),
        (int, b"1.0", "$: expected int, got 1.0 (float)"),
        (int, b"true", "$: expected int, got True (bool)"),
        (float, b"true", "$: expected float, got True (bool)"),
        (bool, b"1", "$: expected bool, got 1 (int)"),
        (str, b"1", "$: expected str, got 1 (int)"),
        (str, b"null", "$: expected str, got None (NoneType)"),
        (Order, b"null", "$: expected Order, got None (NoneType)"),
        (Order, b"[1]", "$: expected Order, got [1] (list)"),
        (list[int], b'"abc"', "$: expected list[int], got 'abc' (str)"),
        (list[str], b'"abc"', "$: expected list[str], got 'abc' (str)"),
        (list[int], b"{}", "$: expected list[int], got {} (dict)"),
        (list[int], b'[1,"2"]', "$[1]: expected int, got '2' (str)"),
        (dict[str, int], b"[]", "$: expected dict[str, int], got [] (list)"),
        (dict[str, int], b'{"a b":"x"}', "$['a b']: expected int, got 'x' (str)"),
        (dict[int, int], b'{"x":1}', "$['x']: expected key int, got 'x' (str)"),
        (tuple[int, str], b"[1]", "$: expected tuple[int, str], got [1] (list): expected 2 items, got 1"),
        (tuple[int, str], b'["a","b"]', "$[0]: expected int, got 'a' (str)"),
        (set[int], b"[null]", "$[0]: expected int, got None (NoneType)"),
        (deque[int], b'["x"]', "$[0]: expected int, got 'x' (str)"),
        (Literal[1], b"true", "$: expected 1, got True (bool)"),
        (Literal["a"], b"[]", "$: expected 'a', got [] (list)"),
        (Colour, b'"green"', "$: expected Colour ('red', 'blue'), got 'green' (str)"),
        (Level, b"true", "$: expected Level (1, 2), got True (bool)"),
        (Lenient, b'"y"', "$: expected Lenient ('x'), got 'y' (str)"),
        (int | str, b"1.5", "$: expected int or str, got 1.5 (float)"),
        (Item | Refund, b"5", "$: expected Item or Refund, got 5 (int)"),
        (Item | Refund, b'{"account":"a","why":5}', "$.why: expected str, got 5 (int)"),
        (int | Item, b'{"sku":"a"}', "$.price: expected float, got nothing: the field is missing"),
        (Point, b'["a"]', "$.x: expected int, got 'a' (str)"),
        (Movie, b"{}", "$.title: expected str, got nothing: the field is missing"),
        (Movie, b'{"title":"M","year":"x"}', "$.year: expected int, got 'x' (str)"),
        (Data, b'{"n":"1"}', "$.n: expected int, got '1' (str)"),
        (Plain, b'{"n":1,"data":{"n":2,"tags":[1]}}', "$.data.tags[0]: expected str, got 1 (int)"),
        (
            Order,
            b'{"account":"a","items":[{"sku":"x","price":1},{"sku":"y","price":"abc"}]}',
            "$.items[1].price: expected float, got 'abc' (str)",
        ),
        (Order, b'{"items":[]}', "$.account: expected str, got nothing: the field is missing"),
        (
            datetime,
            b'"soon"',
            "$: expected datetime, got 'soon' (str): Invalid isoformat string: 'soon'",
        ),
        (UUID, b'"x"', "$: expected UUID, got 'x' (str): badly formed hexadecimal UUID string"),
        (Decimal, b'"x"', "$: expected Decimal, got 'x' (str)"),
        (
            Decimal,
            b"1.5",
            "$: expected Decimal, got 1.5 (float): a JSON number with a fraction has lost digits; send it as a string",
        ),
        (defaultdict[str, int], b'{"a":"x"}', "$['a']: expected int, got 'x' (str)"),
        (Order, b"\xff", "$: expected Order, got b'\\xff' (bytes): not JSON: "),
        (None, b"", "$: expected JSON data, got b'' (bytes): not JSON: "),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_place(tp: Any, data: bytes, message: str) -> None:
    error = decode_error(tp, data)
    assert str(error).startswith(message)
    assert len(error.errors) == 1


def test_undecodable_bytes_say_where_the_codec_stopped() -> None:
    error = decode_error(Order, b'{"a":\n 1,}')
    assert (error.path, error.expected) == ("$", "Order")
    assert error.reason.startswith("not JSON: ")
    assert " at line 2, column " in error.reason


def test_all_bad_fields_are_told_and_the_first_is_the_message() -> None:
    error = decode_error(Order, b'{"account":1,"items":[{"sku":"x","price":"p"},7],"paid":"no"}')
    assert [e.path for e in error.errors] == ["$.account", "$.items[0].price", "$.items[1]", "$.paid"]
    assert str(error) == "$.account: expected str, got 1 (int) (and 3 more)"
    assert error.errors[0] == FieldError("$.account", "str", "1 (int)")
    assert (error.path, error.expected, error.got, error.reason) == ("$.account", "str", "1 (int)", "")


def test_a_large_value_is_shortened() -> None:
    assert len(decode_error(int, b'"' + b"x" * 100_000 + b'"').got) < 80


def test_errors_can_be_pickled() -> None:
    error = decode_error(Order, b"{}")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    encode = EncodeError("int", "'x' (str)", "why")
    assert str(pickle.loads(pickle.dumps(encode))) == "cannot encode 'x' (str) as int: why"


def test_unknown_fields_are_ignored() -> None:
    assert value_serde(Item).loads(b'{"sku":"a","price":1,"colour":"red"}') == Item("a", 1.0)
    assert value_serde(Movie).loads(b'{"title":"M","colour":"red"}') == {"title": "M"}


def test_an_int_for_a_float_becomes_one() -> None:
    assert type(value_serde(float).loads(b"1")) is float
    assert type(value_serde(Item).loads(b'{"sku":"a","price":1}').price) is float  # type: ignore[union-attr]  # loaded
    assert type(value_serde(float | None).loads(b"1")) is float
    assert type(value_serde(float | str).loads(b"1")) is float


def test_the_member_of_a_union_with_most_fields_in_common_is_taken() -> None:
    class Small(Record):
        a: int

    class Large(Record):
        a: int
        b: int

    assert value_serde(Small | Large).loads(b'{"a":1,"b":2}') == Large(1, 2)
    assert value_serde(Large | Small).loads(b'{"a":1}') == Small(1)


def test_a_deeply_nested_message_is_an_error_not_a_crash() -> None:
    class Node(Record):
        next: "Node | None" = None

    assert decode_error(Node, b'{"next":' * 200 + b"7" + b"}" * 200).path == "$" + ".next" * 200
    for depth in (1000, 5000):  # beyond Python's recursion limit, beyond orjson's
        with pytest.raises(DecodeError):
            value_serde(Node).loads(b'{"next":' * depth + b"7" + b"}" * depth)


# ---- keys and raw


@pytest.mark.parametrize(
    ("tp", "value", "data"),
    [
        (None, b"k", b"k"),
        (bytes, b"k", b"k"),
        (str, "ä", "ä".encode()),
        (int, 42, b"42"),
        (int, -1, b"-1"),
        (float, 1.5, b"1.5"),
        (bool, True, b"true"),
        (Item, Item("a", 1.0), b'{"sku":"a","price":1.0}'),
        (UUID, UUID(int=5), b'"00000000-0000-0000-0000-000000000005"'),
        (tuple[str, int], ("a", 1), b'["a",1]'),
    ],
)
def test_a_key_and_its_bytes(tp: Any, value: Any, data: bytes) -> None:
    assert key_serde(tp).dumps(value) == data
    assert key_serde(tp).loads(data) == value


def test_an_untyped_key_encodes_by_its_value() -> None:
    dumps = key_serde(None).dumps
    assert [dumps(v) for v in (b"a", "a", 1, 1.5, True, Item("a", 1.0))] == [
        b"a",
        b"a",
        b"1",
        b"1.5",
        b"true",
        b'{"sku":"a","price":1.0}',
    ]


def test_a_raw_key_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DecodeError, match=r"\$: expected int, got b'x' \(bytes\)"):
        key_serde(int).loads(b"x")
    with pytest.raises(DecodeError, match=r"not UTF-8 at byte 1"):
        key_serde(str).loads(b"a\xff")
    for tp, value in ((int, "1"), (int, True), (str, 1), (bytes, 1), (str, b"x")):
        with pytest.raises(EncodeError, match=f"as {tp.__name__}"):
            key_serde(tp).dumps(value)


def test_a_key_with_a_named_serializer_uses_it() -> None:
    assert key_serde(str, "json").dumps("a") == b'"a"'
    assert key_serde(str, default="json").dumps("a") == b'"a"'


def test_values_may_be_raw() -> None:
    assert value_serde(str, "raw").loads(b"a") == "a"
    assert value_serde(None, "raw").loads(b"a") == b"a"
    assert value_serde(Item, default="raw").dumps(Item("a", 1.0)) == b'{"sku":"a","price":1.0}'
    with pytest.raises(TypeError, match=r"the raw codec has no form for list\[int\]"):
        value_serde(list[int], "raw")


def test_bytes_with_a_named_serializer_are_base64_in_json() -> None:
    serde = value_serde(bytes, "json")
    assert serde.dumps(b"\xff") == b'"/w=="'
    assert serde.loads(b'"/w=="') == b"\xff"
    with pytest.raises(DecodeError, match="expected bytes"):
        serde.loads(b'"!"')


# ---- encoding


def test_untyped_values_pass_bytes_and_encode_the_rest() -> None:
    dumps = value_serde(None).dumps
    assert dumps(b"already") == b"already"
    assert dumps(Order("a", [Item("x", 1.0)])) == (
        b'{"account":"a","items":[{"sku":"x","price":1.0}],"paid":false,"notes":{}}'
    )


@pytest.mark.parametrize(
    ("tp", "value", "message"),
    [
        (None, object, "cannot encode .* as a value: "),
        (int, 2**70, "as int: Integer exceeds 64-bit range"),
        (str, "\ud800", "as str: .*surrogates"),
        (Item, Item("a", object()), r"as Item: builtins.object is not a type that can be encoded"),  # type: ignore[arg-type]
        (Item, "text", r"cannot encode 'text' \(str\) as Item: it is no Item"),
        (Item, {"sku": 1}, r"as Item: it is no Item"),
        (Item, b"bytes", r"as Item: it is no Item"),
        (dict[str, Any], {"a": object()}, r"as dict\[str, Any\]: builtins.object is not"),
    ],
)
def test_what_cannot_be_encoded_is_named(tp: Any, value: Any, message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        value_serde(tp).dumps(value)


def test_a_dict_that_readers_can_decode_is_taken_for_a_record() -> None:
    assert value_serde(Item).dumps({"sku": "a", "price": 1}) == b'{"sku":"a","price":1}'  # type: ignore[arg-type]


def test_a_subclass_keeps_all_its_fields() -> None:
    class Big(Item):
        size: int = 9

    assert value_serde(Item).dumps(Big("a", 1.0)) == b'{"sku":"a","price":1.0,"size":9}'
    assert value_serde(list[Item]).dumps([Big("a", 1.0)]) == b'[{"sku":"a","price":1.0,"size":9}]'


# ---- codecs, caching, declaration errors


class Reversed:
    """A codec for plain data only: its own representation, backwards."""

    def dumps(self, obj: Any) -> bytes:
        return repr(obj)[::-1].encode()

    def loads(self, data: bytes) -> Any:
        return eval(data.decode()[::-1])


class Stamped(Record):
    at: datetime
    price: Decimal
    parts: tuple[Item, ...]


def test_other_codecs_get_plain_data_and_may_be_named_or_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "_codecs", dict(codecs._codecs))
    codecs.register("reversed", Reversed())
    value = Stamped(datetime(2026, 1, 2), Decimal("1.5"), (Item("a", 1.0),))

    class Own(Stamped, serializer="reversed"):
        pass

    for serde in (value_serde(Stamped, "reversed"), value_serde(Stamped, Reversed())):
        data = serde.dumps(value)
        assert data is not None
        assert data.startswith(b"}]}0.1 :'ecirp'")
        assert serde.loads(data) == value
    own = Own(*value.asdict().values())
    assert own.dumps() == value_serde(None).dumps(own) == value_serde(Own).dumps(own)
    assert key_serde(None).dumps(own) == own.dumps()
    assert own.dumps().startswith(b"}]}0.1")
    assert value_serde(None, "json").dumps(own) == own.dumps(serializer="json")
    assert Own.loads(own.dumps()) == own
    with pytest.raises(DecodeError, match=r"\$: expected Own, got"):
        Own.loads(b"(")


def test_codecs_are_looked_up_by_name_with_a_clear_error() -> None:
    assert codecs.get_codec("json").loads(b"1") == 1
    assert codecs.get_codec("raw").dumps("a") == b"a"
    with pytest.raises(LookupError, match="unknown codec 'jsno': expected one of binary, gzip, json"):
        codecs.get_codec("jsno")
    with pytest.raises(LookupError, match="unknown codec 5"):
        codecs.get_codec(5)  # type: ignore[arg-type]  # that is the test
    with pytest.raises(TypeError, match=r"codec 'x' needs the methods dumps\(obj\) and loads\(bytes\)"):
        codecs.register("x", object())  # type: ignore[arg-type]  # that is the test
    with pytest.raises(TypeError, match="name is a non-empty str"):
        codecs.register("", codecs.RawCodec())


def test_a_serde_is_built_once() -> None:
    assert value_serde(Order) is value_serde(Order)
    assert value_serde(list[int]) is value_serde(list[int])
    assert value_serde(list[int]) is not value_serde(list[bool])
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        value_serde(Order).loads = None  # type: ignore  # that is the test


@pytest.mark.parametrize("tp", [Callable[[], None], type(lambda: None), typing.TypeVar])
def test_a_type_that_cannot_be_decoded_is_refused_when_declared(tp: Any) -> None:
    with pytest.raises(TypeError, match="is not a type that values can be decoded to"):
        value_serde(tp)


@pytest.mark.parametrize("microsecond", [1, 9_999, 10_000, 99_999, 100_000])
def test_times_keep_their_microseconds(microsecond: int) -> None:
    clock = time(1, 2, 3, microsecond)
    assert value_serde(time).loads(value_serde(time).dumps(clock)) == clock
