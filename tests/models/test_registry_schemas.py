"""Avro schemas that are derived from types, and what stands in them."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID

import fastavro
import pytest

import famulus
from famulus import AvroType, avro_schema

T = TypeVar("T")
Account = NewType("Account", str)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Spoken(Enum):
    DARK = "dark blue"


class Level(IntEnum):
    LOW = 1


class Node(famulus.Record):
    name: str
    children: "list[Node]"
    parent: "Node | None" = None


class Box(famulus.Record, Generic[T]):
    content: T


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.5
    tags: list[str] = dataclasses.field(default_factory=list)


class Pair(TypedDict):
    left: int
    right: int


class Spot(NamedTuple):
    x: int


@pytest.mark.parametrize(
    ("tp", "schema"),
    [
        (int, "long"),
        (float, "double"),
        (bool, "boolean"),
        (str, "string"),
        (bytes, "bytes"),
        (None, "null"),
        (Account, "string"),
        (Decimal, "string"),
        (datetime, {"type": "long", "logicalType": "timestamp-micros"}),
        (date, {"type": "int", "logicalType": "date"}),
        (time, {"type": "long", "logicalType": "time-micros"}),
        (UUID, {"type": "string", "logicalType": "uuid"}),
        (list[int], {"type": "array", "items": "long"}),
        (set[str], {"type": "array", "items": "string"}),
        (tuple[int, ...], {"type": "array", "items": "long"}),
        (Sequence[float], {"type": "array", "items": "double"}),
        (dict[str, list[int]], {"type": "map", "values": {"type": "array", "items": "long"}}),
        (Mapping[UUID, bool], {"type": "map", "values": "boolean"}),
        (int | str, ["long", "string"]),
        (Literal["a", "b"], "string"),
        (Level, "long"),
        (Spoken, "string"),
        (Colour, {"type": "enum", "name": "Colour", "symbols": ["red", "blue"]}),
        (Annotated[int, AvroType("int")], "int"),
    ],
    ids=str,
)
def test_a_type_has_its_schema(tp: Any, schema: Any) -> None:
    assert avro_schema(tp) == schema
    fastavro.parse_schema(avro_schema(tp))


def test_a_record_keeps_its_defaults_and_an_optional_field_begins_with_that_of_its_default() -> None:
    class Order(famulus.Record):
        account: str
        note: str | None = None
        limit: int | None = 5
        paid: bool = False
        colour: Colour = Colour.BLUE
        items: list[int] = famulus.field(factory=list)
        counts: dict[str, int] = famulus.field(factory=dict)
        since: date = date(2024, 1, 1)

    assert avro_schema(Order, namespace="shop.v1") == {
        "type": "record",
        "name": "Order",
        "namespace": "shop.v1",
        "fields": [
            {"name": "account", "type": "string"},
            {"name": "note", "type": ["null", "string"], "default": None},
            {"name": "limit", "type": ["long", "null"], "default": 5},
            {"name": "paid", "type": "boolean", "default": False},
            {
                "name": "colour",
                "type": {"type": "enum", "name": "Colour", "namespace": "shop.v1", "symbols": ["red", "blue"]},
                "default": "blue",
            },
            {"name": "items", "type": {"type": "array", "items": "long"}, "default": []},
            {"name": "counts", "type": {"type": "map", "values": "long"}, "default": {}},
            {"name": "since", "type": {"type": "int", "logicalType": "date"}},
        ],
    }
    fastavro.parse_schema(avro_schema(Order, namespace="shop.v1"))


def test_a_record_within_itself_is_defined_once_and_then_named() -> None:
    assert avro_schema(Node) == {
        "type": "record",
        "name": "Node",
        "fields": [
            {"name": "name", "type": "string"},
            {"name": "children", "type": {"type": "array", "items": "Node"}},
            {"name": "parent", "type": ["null", "Node"], "default": None},
        ],
    }


def test_dataclasses_typed_dicts_and_generic_records_are_records() -> None:
    assert avro_schema(Point)["fields"][1:] == [
        {"name": "y", "type": "double", "default": 0.5},
        {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
    ]
    assert avro_schema(Pair)["fields"] == [{"name": "left", "type": "long"}, {"name": "right", "type": "long"}]
    assert avro_schema(Box[int])["name"] == "Box_int"
    assert avro_schema(Box[int])["fields"] == [{"name": "content", "type": "long"}]


def test_a_type_without_a_form_is_named_with_its_path_and_what_to_do() -> None:
    class Line(famulus.Record):
        extra: dict[str, Any]

    class Order(famulus.Record):
        lines: list[Line]

    with pytest.raises(TypeError, match=r"\$\.lines\[\]\.extra\{\}: Any has no Avro form: .*AvroType.*avro\(schema="):
        avro_schema(Order)
    for tp in (Spot, tuple[int, str], list, object):
        with pytest.raises(TypeError, match="has no Avro form"):
            avro_schema(tp)


def test_two_types_that_avro_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(TypeError, match="an Avro union cannot hold two types that are both array"):
        avro_schema(list[int] | list[str])

    def other() -> type:
        class Node(famulus.Record):
            x: int

        return Node

    class Both(famulus.Record):
        one: Node
        two: other()  # type: ignore[valid-type]

    with pytest.raises(TypeError, match=r"\$\.two: Node and another type are both named Node"):
        avro_schema(Both)


@pytest.mark.parametrize(("precision", "scale"), [(0, 0), (3, 4), (3, -1)])
def test_a_decimal_needs_room_for_its_scale(precision: int, scale: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= scale <= precision"):
        AvroType.decimal(precision=precision, scale=scale)
