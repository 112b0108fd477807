"""Avro by a schema registry: bytes, ids, subjects, and what happens when schemas change."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry import avro as confluent
from confluent_kafka.serialization import MessageField, SerializationContext

import famulus
from famulus import AvroType, SchemaRegistry, avro_schema
from famulus.models import NotReady, Serde, key_serde, value_serde
from famulus.testing import StubRegistry
from famulus.testing.schema_registry import ready

CONFLUENT: Any = confluent  # its classes are made in a way that type checkers do not follow


class Kind(Enum):
    BOOK = "book"
    FOOD = "food"


class Item(famulus.Record):
    sku: str
    price: Annotated[Decimal, AvroType.decimal(precision=9, scale=2)]


class Order(famulus.Record):
    id: UUID
    account: str
    items: list[Item]
    at: datetime
    day: date
    hour: time
    kind: Kind
    weight: float
    exact: Decimal
    digest: bytes
    counts: dict[str, int]
    first: Item | None = None
    note: str | None = None
    paid: bool = False
    tags: list[str] = famulus.field(factory=list)


ORDER = Order(
    id=UUID("12345678-1234-5678-1234-567812345678"),
    account="ada",
    items=[Item("a", Decimal("1.50")), Item("b", Decimal("-2"))],
    at=datetime(2024, 5, 17, 12, 0, 0, 5, tzinfo=UTC),
    day=date(1969, 7, 20),
    hour=time(23, 59, 59, 999_999),
    kind=Kind.FOOD,
    weight=1.25,
    exact=Decimal("12345678901234567890.123456789"),
    digest=b"\x00\xff",
    counts={"a": 2**40},
    first=Item("c", Decimal("0.01")),
)


class Payment(famulus.Record):
    account: str
    cents: int


class Refund(famulus.Record):
    account: str
    why: str


@pytest.fixture
def stub() -> Iterator[StubRegistry]:
    with StubRegistry() as stub:
        yield stub


@pytest.fixture
def registry(stub: StubRegistry) -> SchemaRegistry:
    return SchemaRegistry(stub.url)


def serde(type: Any, codec: Any, topic: str = "orders") -> Serde[Any]:
    return value_serde(type, codec, topic=topic)


def written(type: Any, codec: Any, value: Any, topic: str = "orders") -> bytes:
    data: bytes | None = ready(lambda: serde(type, codec, topic).dumps(value))
    assert data is not None
    return data


# -- bytes ---------------------------------------------------------------------------------------------------


def test_a_record_with_every_kind_of_field_goes_there_and_back(registry: SchemaRegistry) -> None:
    data = written(Order, registry.avro(), ORDER)
    elsewhere = SchemaRegistry(registry.where)
    assert ready(lambda: serde(Order, elsewhere.avro()).loads(data)) == ORDER


def test_a_message_is_a_zero_the_id_in_four_bytes_and_the_avro_payload(
    stub: StubRegistry, registry: SchemaRegistry
) -> None:
    for number in range(300):
        stub.register(f"other-{number}", f'{{"type": "fixed", "name": "F", "size": {number + 1}}}')
    assert written(Payment, registry.avro(), Payment("ada", 3)) == b"\x00\x00\x00\x01\x2d" + b"\x06ada" + b"\x06"


def test_confluents_serializer_writes_the_same_bytes_for_the_same_schema(
    stub: StubRegistry, registry: SchemaRegistry
) -> None:
    ours = written(Order, registry.avro(), ORDER)
    schema = ready(lambda: registry.schema(1)).text
    with SchemaRegistryClient({"url": stub.url}) as client:
        plain = {
            **{name: getattr(ORDER, name) for name in Order.__annotations__},
            "items": [{"sku": item.sku, "price": item.price} for item in ORDER.items],
            "kind": "food",
            "exact": str(ORDER.exact),
            "first": {"sku": "c", "price": Decimal("0.01")},
        }
        context: Any = SerializationContext("orders", MessageField.VALUE)
        theirs = CONFLUENT.AvroSerializer(client, schema)(plain, context)
        assert ours == theirs
        read: Any = CONFLUENT.AvroDeserializer(client)(ours, context)
    assert read == plain


def test_data_of_another_writer_is_decoded_by_its_own_schema(stub: StubRegistry, registry: SchemaRegistry) -> None:
    schema = """{"type": "record", "name": "Zahlung", "namespace": "de.bank", "fields": [
        {"name": "extra", "type": "string"}, {"name": "cents", "type": "int"}, {"name": "account", "type": "string"}]}"""
    with SchemaRegistryClient({"url": stub.url}) as client:
        context: Any = SerializationContext("payments", MessageField.VALUE)
        value = {"extra": "x", "cents": 5, "account": "bob"}
        data = CONFLUENT.AvroSerializer(client, schema)(value, context)
    assert ready(lambda: serde(Payment, registry.avro()).loads(data)) == Payment("bob", 5)
    assert ready(lambda: serde(None, registry.avro()).loads(data)) == value


def test_none_is_a_tombstone_and_asks_nothing(stub: StubRegistry, registry: SchemaRegistry) -> None:
    assert serde(Payment, registry.avro()).dumps(None) is None
    assert serde(Payment, registry.avro()).loads(None) is None
    assert stub.requests == []


class Shape(famulus.Record, include_metadata=True, namespace="shape-of-registry-tests"):
    name: str = famulus.field(output_name="label", input_name="label")
    secret: str = famulus.field(default="", exclude=True)


class Circle(Shape, namespace="circle-of-registry-tests"):
    radius: float = 0.0


def test_fields_are_written_as_the_record_says_and_a_tag_tells_the_subclass(registry: SchemaRegistry) -> None:
    codec = registry.avro(subject="record")
    for shape in (Shape("dot", "hidden"), Circle("hole", radius=2.0)):
        data = written(Shape, codec, shape)
        assert b"hidden" not in data
        shape.secret = ""
        assert ready(partial(serde(Shape, codec).loads, data)) == shape
    names = [field["name"] for field in avro_schema(Circle)["fields"]]
    assert names == ["__famulus", "label", "radius"]


# -- what is asked, and how often ----------------------------------------------------------------------------


def test_the_registry_is_asked_once_for_each_schema(stub: StubRegistry, registry: SchemaRegistry) -> None:
    codec = registry.avro()
    for topic in ("orders", "orders", "returns"):
        for number in range(3):
            data = written(Payment, codec, Payment("ada", number), topic)
            assert ready(partial(serde(Payment, codec).loads, data)) == Payment("ada", number)
    assert stub.requests == [
        "POST /subjects/orders-value/versions",
        "GET /schemas/ids/1",
        "POST /subjects/returns-value/versions",
    ]


def test_a_codec_says_what_it_is_missing_and_does_nothing_itself(stub: StubRegistry, registry: SchemaRegistry) -> None:
    with pytest.raises(NotReady, match=f"schema 7 of {stub.url}$"):
        serde(Payment, registry.avro()).loads(b"\0\0\0\0\7...")
    with pytest.raises(NotReady, match="the id of the schema of subject 'orders-value' at http"):
        serde(Payment, registry.avro()).dumps(Payment("ada", 1))
    assert stub.requests == []


# -- subjects ------------------------------------------------------------------------------------------------


def test_keys_and_values_have_subjects_of_their_own(stub: StubRegistry, registry: SchemaRegistry) -> None:
    codec = registry.avro()
    key = key_serde(int, codec, topic="orders")
    assert ready(lambda: key.dumps(5)) == b"\0\0\0\0\1\x0a"
    assert ready(lambda: key.loads(b"\0\0\0\0\1\x0a")) == 5
    written(Payment, codec, Payment("ada", 1))
    assert list(stub.subjects) == ["orders-key", "orders-value"]
    assert stub.subjects["orders-key"] == ["long"]


def test_named_after_records_several_types_share_a_topic(stub: StubRegistry, registry: SchemaRegistry) -> None:
    for name, subjects in (
        ("record", ["shop.Payment", "shop.Refund"]),
        ("topic_record", ["orders-shop.Payment", "orders-shop.Refund"]),
    ):
        codec = registry.avro(subject=name, namespace="shop")  # type: ignore[arg-type]
        for value in (Payment("ada", 1), Refund("ada", "broken")):
            data = written(Payment | Refund, codec, value)
            assert ready(partial(serde(Payment | Refund, codec).loads, data)) == value
        assert list(stub.subjects)[-2:] == subjects


def test_subjects_can_be_named_by_a_function(stub: StubRegistry, registry: SchemaRegistry) -> None:
    codec = registry.avro(subject=lambda topic, is_key, record: f"{topic}/{is_key}/{record}")
    written(Payment, codec, Payment("ada", 1))
    assert list(stub.subjects) == ["orders/False/Payment"]


def test_without_a_topic_only_records_name_a_subject(registry: SchemaRegistry) -> None:
    with pytest.raises(famulus.EncodeError, match='needs a topic: send through one, or use subject="record"'):
        value_serde(Payment, registry.avro()).dumps(Payment("ada", 1))
    by_record = value_serde(Payment, registry.avro(subject="record"))
    assert ready(lambda: by_record.dumps(Payment("ada", 1))) == b"\0\0\0\0\1\x06ada\x02"


def test_only_schemas_that_exist_are_written_with_when_so_asked(stub: StubRegistry, registry: SchemaRegistry) -> None:
    codec = registry.avro(write="existing")
    with pytest.raises(famulus.EncodeError, match=r"subject 'orders-value' at http.*Subject 'orders-value' not found"):
        written(Payment, codec, Payment("ada", 1))
    written(Payment, SchemaRegistry(stub.url).avro(), Payment("ada", 1))
    assert written(Payment, SchemaRegistry(stub.url).avro(write="existing"), Payment("a", 1)) == b"\0\0\0\0\1\x02a\x02"


# -- schemas that change -------------------------------------------------------------------------------------

V1 = {"type": "record", "name": "Order", "fields": [{"name": "account", "type": "string"}]}
V2 = {"type": "record", "name": "Order", "fields": [
    {"name": "customer", "type": "string", "aliases": ["account"]},
    {"name": "cents", "type": "long", "default": 7},
]}  # fmt: skip


def test_a_given_schema_reads_what_older_and_newer_ones_wrote_by_avros_rules(registry: SchemaRegistry) -> None:
    old = written(None, registry.avro(V1), {"account": "ada"})
    new = written(None, registry.avro(V2), {"customer": "bob", "cents": 1})
    assert ready(lambda: serde(None, registry.avro(V2)).loads(old)) == {"customer": "ada", "cents": 7}
    assert ready(lambda: serde(None, registry.avro(V2)).loads(new)) == {"customer": "bob", "cents": 1}


def test_schemas_that_do_not_fit_are_a_decode_error_that_names_the_id(registry: SchemaRegistry) -> None:
    data = written(None, registry.avro(V1), {"account": "ada"})
    other = {"type": "record", "name": "Order", "fields": [{"name": "count", "type": "long"}]}
    with pytest.raises(famulus.DecodeError, match=r"not what schema 1 of http://.* says: .*count"):
        ready(lambda: serde(None, registry.avro(other)).loads(data))


def test_a_type_reads_older_and_newer_versions_of_itself(registry: SchemaRegistry) -> None:
    class New(famulus.Record):
        account: str
        cents: int = 0
        note: str | None = None

    old = written(Payment, registry.avro(), Payment("ada", 3))
    new = written(New, registry.avro(), New("bob", 4, "quick"))
    assert ready(lambda: serde(New, registry.avro()).loads(old)) == New("ada", 3)
    assert ready(lambda: serde(Payment, registry.avro()).loads(new)) == Payment("bob", 4)


def test_the_subjects_latest_schema_can_be_written_with_whatever_it_is(
    stub: StubRegistry, registry: SchemaRegistry
) -> None:
    stub.register("orders-value", '{"type": "record", "name": "Old", "fields": []}')
    stub.register(
        "orders-value",
        """{"type": "record", "name": "P", "fields": [
        {"name": "cents", "type": "int"}, {"name": "why", "type": "string", "default": "?"},
        {"name": "account", "type": ["null", "string"]}]}""",
    )
    data = written(Payment, registry.avro(write="latest"), Payment("ada", 3))
    assert data == b"\0\0\0\0\2" + b"\x06" + b"\x02?" + b"\x02\x06ada"
    assert stub.requests == ["GET /subjects/orders-value/versions/latest"]


def test_a_schema_may_refer_to_those_of_other_subjects(stub: StubRegistry, registry: SchemaRegistry) -> None:
    stub.register(
        "money", '{"type": "record", "name": "Money", "namespace": "m", "fields": [{"name": "c", "type": "int"}]}'
    )
    stub.register(
        "line",
        '{"type": "record", "name": "Line", "namespace": "m", "fields": [{"name": "sum", "type": "m.Money"}]}',
        references=[{"name": "m.Money", "subject": "money", "version": 1}],
    )
    references = [
        {"name": "m.Line", "subject": "line", "version": 1},
        {"name": "m.Money", "subject": "money", "version": 1},
    ]
    for schema, value in (
        ('{"type": "array", "items": "m.Line"}', [{"sum": {"c": 5}}]),
        ('["m.Line", "m.Money"]', {"c": 5}),
        (
            """{"type": "record", "name": "Two", "fields": [
            {"name": "one", "type": "m.Money"}, {"name": "two", "type": "m.Line"}]}""",
            {"one": {"c": 1}, "two": {"sum": {"c": 2}}},
        ),
    ):
        stub.register("orders-value", schema, references=references)
        codec = SchemaRegistry(stub.url).avro(write="latest")
        data = written(None, codec, value)
        reader = serde(None, SchemaRegistry(stub.url).avro())
        assert ready(partial(reader.loads, data)) == value


# -- what does not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"at": datetime(2024, 5, 17)}, r"\$\.at: expected datetime, got .*: it has no time zone"),
        ({"items": [ORDER.items[0], Item("x", Decimal("1.005"))]}, r"\$\.items\[1\]\.price: expected Decimal of 9 dig"),
        ({"items": [Item("x", Decimal("12345678.00"))]}, r"\$\.items\[0\]\.price: expected Decimal of 9 digits"),
        (
            {"counts": {"a": 2**63}},
            r"\$\.counts\['a'\]: expected long, got 9223372036854775808 \(int\): it has 64 bits",
        ),
        ({"paid": 1}, r"\$\.paid: expected boolean, got 1 \(int\)"),
        ({"weight": "heavy"}, r"\$\.weight: expected number, got 'heavy'"),
        ({"kind": "drink"}, r"\$\.kind: expected Kind \(book, food\), got 'drink'"),
        ({"first": Payment("ada", 1)}, r"\$\.first\.sku: the schema's Item has this field"),
        ({"note": 5}, r"\$\.note: expected string, got 5 \(int\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_that_does_not_fit_is_an_encode_error_with_its_path(
    registry: SchemaRegistry, change: dict[str, Any], reason: str
) -> None:
    values = {name: getattr(ORDER, name) for name in Order.__annotations__}
    with pytest.raises(famulus.EncodeError, match=reason):
        written(Order, registry.avro(), Order(**{**values, **change}))


def test_a_field_that_the_schema_has_not_is_not_lost_silently(registry: SchemaRegistry) -> None:
    with pytest.raises(famulus.EncodeError, match=r"\$\.why: the schema's Order has no such field"):
        written(None, registry.avro(V1), {"account": "ada", "why": "x"})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": 1}', r"not in the wire format of a schema registry: expected a byte 0"),
        (b"\0\0\0", r"not in the wire format"),
        (b"\0\0\0\0\1\x06ad", r"not what schema 1 of http://.* says"),
        (b"\0\0\0\0\1\x06ada\x02?", r"1 bytes too many for schema 1 of http"),
        (b"\0\0\0\0\x63\x06ada", r"schema 99 of http://.*: the registry answers: Schema 99 not found"),
    ],
)
def test_bytes_that_do_not_fit_are_a_decode_error(registry: SchemaRegistry, data: bytes, reason: str) -> None:
    written(Payment, registry.avro(), Payment("ada", 1))
    with pytest.raises(famulus.DecodeError, match=reason):
        ready(lambda: serde(Payment, registry.avro()).loads(data))


def test_a_schema_of_another_kind_is_a_decode_error(stub: StubRegistry, registry: SchemaRegistry) -> None:
    stub.register("orders-value", '{"type": "object"}', "JSON")
    with pytest.raises(famulus.DecodeError, match=r"schema 1 of http://.* is not Avro but JSON"):
        ready(lambda: serde(Payment, registry.avro()).loads(b"\0\0\0\0\1{}"))


def test_what_the_registry_refuses_is_remembered_for_a_while(stub: StubRegistry, registry: SchemaRegistry) -> None:
    stub.refuse("orders-value", 409)
    for _ in range(3):
        with pytest.raises(famulus.EncodeError, match=r"orders-value.*incompatible \(HTTP status code 409"):
            written(Payment, registry.avro(), Payment("ada", 1))
    assert len(stub.requests) == 1
