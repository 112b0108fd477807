"""JSON Schema and Protobuf by a schema registry, and the registry itself: its URL, credentials, and when it is away."""

import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry import json_schema as confluent_json
from confluent_kafka.schema_registry import protobuf as confluent_protobuf
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

import famulus
from famulus import SchemaRegistry
from famulus.models import NotReady, Unavailable, value_serde
from famulus.testing import StubRegistry
from famulus.testing.schema_registry import ready

CONFLUENT_JSON: Any = confluent_json  # their classes are made in a way that type checkers do not follow
CONFLUENT_PROTOBUF: Any = confluent_protobuf
CONTEXT: Any = SerializationContext("orders", MessageField.VALUE)


class Order(famulus.Record):
    account: str
    cents: int


SCHEMA = {
    "title": "shop.Order",
    "type": "object",
    "properties": {"account": {"type": "string"}, "cents": {"type": "integer", "minimum": 0}},
    "required": ["account", "cents"],
}


@pytest.fixture
def stub() -> Iterator[StubRegistry]:
    with StubRegistry() as stub:
        yield stub


@pytest.fixture
def registry(stub: StubRegistry) -> SchemaRegistry:
    return SchemaRegistry(stub.url)


# -- JSON Schema ---------------------------------------------------------------------------------------------


def test_json_is_written_after_the_id_of_its_schema_and_read_by_confluents_client(
    stub: StubRegistry, registry: SchemaRegistry
) -> None:
    serde = value_serde(Order, registry.json_schema(SCHEMA), topic="orders")
    data = ready(lambda: serde.dumps(Order("ada", 5)))
    assert data == b'\0\0\0\0\1{"account":"ada","cents":5}'
    assert stub.subjects == {"orders-value": [SCHEMA]}
    with SchemaRegistryClient({"url": stub.url}) as client:
        text = ready(lambda: registry.schema(1)).text
        read: Any = CONFLUENT_JSON.JSONDeserializer(text, schema_registry_client=client)(data, CONTEXT)
        theirs: Any = CONFLUENT_JSON.JSONSerializer(text, client)({"account": "bob", "cents": 6}, CONTEXT)
    assert read == {"account": "ada", "cents": 5}
    assert serde.loads(theirs) == Order("bob", 6)


def test_json_that_breaks_its_schema_is_neither_written_nor_read(registry: SchemaRegistry) -> None:
    serde = value_serde(Order, registry.json_schema(SCHEMA), topic="orders")
    with pytest.raises(famulus.EncodeError, match=r"\$\.cents: -1 is less than the minimum of 0"):
        ready(lambda: serde.dumps(Order("ada", -1)))
    with pytest.raises(famulus.DecodeError, match=r"\$\.cents: -1 is less than the minimum of 0"):
        serde.loads(b'\0\0\0\0\1{"account":"ada","cents":-1}')
    with pytest.raises(famulus.EncodeError, match="give the codec one, json_schema"):
        value_serde(Order, registry.json_schema(), topic="orders").dumps(Order("ada", 1))


def test_a_json_schema_may_be_the_subjects_latest_and_refer_to_others(
    stub: StubRegistry, registry: SchemaRegistry
) -> None:
    stub.register("cents", '{"type": "integer", "minimum": 0}', "JSON")
    stub.register(
        "orders-value",
        '{"properties": {"cents": {"$ref": "cents.json"}}}',
        "JSON",
        references=[{"name": "cents.json", "subject": "cents", "version": 1}],
    )
    serde = value_serde(Order, registry.json_schema(write="latest"), topic="orders")
    assert ready(lambda: serde.dumps(Order("ada", 5))) == b'\0\0\0\0\2{"account":"ada","cents":5}'
    with pytest.raises(famulus.EncodeError, match="less than the minimum"):
        serde.dumps(Order("ada", -1))


# -- Protobuf ------------------------------------------------------------------------------------------------


def _messages() -> dict[str, Any]:
    """Generated classes, as protoc would make them of two files."""
    pool: Any = DescriptorPool()
    money = FileDescriptorProto(name="money.proto", package="shop", syntax="proto3")
    money.message_type.add(name="Money").field.add(name="cents", number=1, type=3, label=1)
    order = FileDescriptorProto(name="order.proto", package="shop", syntax="proto3", dependency=["money.proto"])
    order.message_type.add(name="Order").field.add(name="account", number=1, type=9, label=1)
    payment = order.message_type.add(name="Payment")
    payment.nested_type.add(name="Empty")
    inner = payment.nested_type.add(name="Part")
    inner.field.add(name="sum", number=1, type=11, label=1, type_name=".shop.Money")
    for file in (money, order):
        pool.Add(file)
    names = ("shop.Money", "shop.Order", "shop.Payment.Part")
    return {name: GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}


MESSAGES = _messages()


@pytest.mark.parametrize("name", ["shop.Order", "shop.Payment.Part"])
def test_protobuf_is_written_as_confluents_serializer_does(
    stub: StubRegistry, registry: SchemaRegistry, name: str
) -> None:
    cls: Any = MESSAGES[name]
    message = cls(account="ada") if name == "shop.Order" else cls(sum=MESSAGES["shop.Money"](cents=5))
    serde = value_serde(cls, registry.protobuf(cls), topic="orders")
    data = ready(lambda: serde.dumps(message))
    assert data is not None
    assert data[5:] == (b"\0\x0a\x03ada" if name == "shop.Order" else b"\x04\x02\x02\x0a\x02\x08\x05")
    with SchemaRegistryClient({"url": stub.url}) as client:
        options: Any = {"use.deprecated.format": False}
        assert CONFLUENT_PROTOBUF.ProtobufSerializer(cls, client, options)(message, CONTEXT) == data
        assert CONFLUENT_PROTOBUF.ProtobufDeserializer(cls, options, client)(data, CONTEXT) == message
    assert serde.loads(data) == message
    assert [len(versions) for versions in stub.versions().values()] == [1, 1]


def test_bytes_and_values_of_no_such_message_are_refused(registry: SchemaRegistry) -> None:
    order = MESSAGES["shop.Order"]
    serde = value_serde(None, registry.protobuf(order), topic="orders")
    with pytest.raises(famulus.EncodeError, match="it is no Order"):
        serde.dumps({"account": "ada"})
    for data, reason in (
        (b"\0\0\0\0\1", "expected the indexes"),
        (b"\0\0\0\0\1\0\x0a\x05a", "no Order"),
        (b"\0\0\0\0\1\xff\xff\xff\xff\xff\xff\xff", "expected the indexes"),
    ):
        with pytest.raises(famulus.DecodeError, match=reason):
            serde.loads(data)
    with pytest.raises(TypeError, match="expected a class of messages"):
        registry.protobuf(Order)
    with pytest.raises(TypeError, match="the codec is for Order"):
        value_serde(str, registry.protobuf(order), topic="orders")


# -- the registry --------------------------------------------------------------------------------------------


def test_credentials_in_the_url_or_as_arguments_are_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with StubRegistry(credentials=("ada", "s:ecret/ö")) as stub:
        address = stub.url.removeprefix("http://")
        for registry in (
            SchemaRegistry(f"http://ada:s%3Aecret%2F%C3%B6@{address}"),
            SchemaRegistry(stub.url, username="ada", password="s:ecret/ö"),
        ):
            serde = value_serde(Order, registry.avro(), topic="orders")
            assert ready(partial(serde.dumps, Order("ada", 5))) == b"\0\0\0\0\1\x06ada\x0a"
            assert "ecret" not in repr(registry) + repr(serde) + caplog.text


def test_wrong_credentials_refuse_a_write_but_lose_no_message_that_is_read() -> None:
    with StubRegistry(credentials=("ada", "secret")) as stub:
        serde = value_serde(Order, SchemaRegistry(stub.url).avro(), topic="orders")
        with pytest.raises(famulus.EncodeError, match="Unauthorized"):
            ready(lambda: serde.dumps(Order("ada", 5)))
        with pytest.raises(Unavailable, match="Unauthorized"):
            ready(lambda: serde.loads(b"\0\0\0\0\1\x06ada\x0a"))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_registry_in_trouble_is_asked_again(stub: StubRegistry, registry: SchemaRegistry, status: int) -> None:
    serde = value_serde(Order, registry.avro(), topic="orders")
    stub.fail(1, status)
    with pytest.raises(Unavailable, match=f"HTTP status code {status}"):
        ready(lambda: serde.dumps(Order("ada", 5)))
    assert ready(lambda: serde.dumps(Order("ada", 5))) == b"\0\0\0\0\1\x06ada\x0a"


def test_a_registry_that_refuses_connections_or_does_not_answer_is_asked_again(stub: StubRegistry) -> None:
    serde = value_serde(Order, SchemaRegistry(stub.url, timeout=0.2).avro(), topic="orders")
    with stub.hanging(), pytest.raises(Unavailable, match="timed out"):
        ready(lambda: serde.dumps(Order("ada", 5)))
    stub.stop()
    with pytest.raises(Unavailable, match="refused"):
        ready(lambda: serde.dumps(Order("ada", 5)))
    stub.start()
    assert ready(lambda: serde.dumps(Order("ada", 5))) == b"\0\0\0\0\1\x06ada\x0a"


def test_another_server_behind_the_url_loses_no_message(stub: StubRegistry) -> None:
    serde = value_serde(Order, SchemaRegistry(f"{stub.url}/elsewhere").avro(), topic="orders")
    with pytest.raises(Unavailable, match="HTTP 404 Not Found"):
        ready(lambda: serde.loads(b"\0\0\0\0\1\x06ada\x0a"))


def test_tls_trusts_whom_it_is_told_to_and_nobody_else(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with StubRegistry(ssl_context=context) as stub:
        serde = value_serde(Order, SchemaRegistry(stub.url, ca=str(tmp_path / "ca.pem")).avro(), topic="orders")
        assert ready(lambda: serde.dumps(Order("ada", 5))) == b"\0\0\0\0\1\x06ada\x0a"
        stranger = value_serde(Order, SchemaRegistry(stub.url).avro(), topic="orders")
        with pytest.raises(Unavailable, match="certificate verify failed"):
            ready(lambda: stranger.dumps(Order("ada", 5)))


def test_a_second_registry_is_asked_when_the_first_is_away(stub: StubRegistry) -> None:
    with StubRegistry() as gone:
        pass
    serde = value_serde(Order, SchemaRegistry(f"{gone.url},{stub.url}").avro(), topic="orders")
    assert ready(lambda: serde.dumps(Order("ada", 5))) == b"\0\0\0\0\1\x06ada\x0a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "localhost:8081"}, "url='localhost:8081': expected http://host:port"),
        ({"url": "http://ada:secret@"}, "url='http:': expected|url='http://': expected"),
        ({"url": "http://ada@host"}, "expected username:password before the @"),
        ({"url": "http://host", "username": "ada"}, "expected username and password, or neither"),
        ({"url": "http://a:b@host", "username": "a", "password": "b"}, "in the URL or as arguments, not both"),
        ({"url": "http://host", "timeout": 0}, "timeout=0: expected seconds, more than 0"),
    ],
    ids=str,
)
def test_a_wrong_registry_says_what_was_expected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        SchemaRegistry(**arguments)
    assert "secret" not in str(raised.value)


def test_a_wrong_codec_says_what_was_expected(registry: SchemaRegistry) -> None:
    wrong: Any = "sometimes"
    with pytest.raises(ValueError, match="write='sometimes': expected 'register', 'existing' or 'latest'"):
        registry.avro(write=wrong)
    with pytest.raises(
        ValueError, match="subject='sometimes': expected 'topic', 'record', 'topic_record' or a function"
    ):
        registry.avro(subject=wrong)
    with pytest.raises(ValueError, match=r"avro\(schema=...\): expected an Avro schema"):
        registry.avro('{"type": "rekord"}')
    with pytest.raises(ValueError, match=r"json_schema\(schema=...\): expected a JSON Schema"):
        registry.json_schema({"type": 5})


@pytest.mark.parametrize(
    ("missing", "make", "extra"),
    [
        ("fastavro", "avro", "avro"),
        ("jsonschema", "json_schema", "jsonschema"),
        ("google.protobuf", "protobuf", "protobuf"),
        ("confluent_kafka.schema_registry", "avro", "avro"),
    ],
)
def test_without_the_extra_it_says_how_to_install_it(
    registry: SchemaRegistry, monkeypatch: pytest.MonkeyPatch, missing: str, make: str, extra: str
) -> None:
    real = __import__("importlib").import_module

    def without(name: str, package: str | None = None) -> Any:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(ModuleNotFoundError, match=rf"{missing} is not installed: pip install 'famulus\[{extra}\]'"):
        getattr(registry, make)(*[MESSAGES["shop.Order"]] * (make == "protobuf"))


def test_a_declaration_asks_nothing_and_loads_no_library() -> None:
    registry = SchemaRegistry("http://localhost:1")
    with pytest.raises(NotReady):
        registry.schema(1)
