"""Avro by a schema registry on a real Kafka, together with Confluent's own clients."""

import uuid
from typing import Any

import confluent_kafka as confluent
import pytest
import trio
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry import avro as confluent_avro
from confluent_kafka.serialization import MessageField, SerializationContext

import famulus
from famulus.testing import StubRegistry
from famulus.testing.kafka import RunningKafka

pytestmark = [pytest.mark.slow, pytest.mark.real_time, pytest.mark.hard_timeout(120)]

AVRO: Any = confluent_avro  # its classes are made in a way that type checkers do not follow
NAME = f"registry-{uuid.uuid4().hex[:8]}"


class Order(famulus.Record):
    account: str
    cents: int
    note: str | None = None


class Total(famulus.Record):
    account: str
    cents: int


async def test_confluents_clients_and_ours_read_each_other_and_a_registry_that_is_away_is_waited_for(
    kafka_broker: RunningKafka, caplog: pytest.LogCaptureFixture
) -> None:
    app = famulus.App(f"{NAME}-app", broker=kafka_broker.url)
    sums: dict[str, int] = {}
    with StubRegistry() as stub, SchemaRegistryClient({"url": stub.url}) as client:
        codec = famulus.SchemaRegistry(stub.url).avro(namespace="shop")
        orders = app.topic(NAME, key_type=str, value_type=Order, value_serializer=codec, partitions=2)
        totals = app.topic(f"{NAME}-totals", key_type=str, value_type=Total, value_serializer=codec, partitions=1)

        @app.agent(orders)
        async def tally(stream: famulus.Stream[Order]) -> None:
            async for order in stream.group_by(Order.account):
                sums[order.account] = sums.get(order.account, 0) + order.cents
                await totals.send(Total(order.account, sums[order.account]), key=order.account)

        setup = famulus.App(f"{NAME}-setup", broker=kafka_broker.url)
        async with famulus.open_app(setup):
            for topic in (orders, totals):
                await setup.topic(topic.name, partitions=topic.partitions).maybe_declare()
        await trio.to_thread.run_sync(_write_orders, kafka_broker.address, client)
        stub.stop()
        async with famulus.open_app(app) as running:
            while "waits for its server" not in caplog.text:
                await trio.sleep(0.02)
            assert not sums
            stub.start()
            for number in range(10):
                await orders.send(Order("ada", number), key="ada")
            while sums != {"ada": 45, "bob": 145}:
                await trio.sleep(0.02)
            assert running.statistics().decode_errors == 0
        last = await trio.to_thread.run_sync(_read_totals, kafka_broker.address, client)
    assert last == {"ada": 45, "bob": 145}
    assert sorted(stub.subjects) == [f"{NAME}-totals-value", f"{NAME}-value"]


def _write_orders(address: str, client: SchemaRegistryClient) -> None:
    """Ten orders by Confluent's client, in a schema of its own."""
    schema = """{"type": "record", "name": "Order", "namespace": "com.shop", "fields": [
        {"name": "cents", "type": "int"}, {"name": "extra", "type": ["null", "string"], "default": null},
        {"name": "account", "type": "string"}]}"""
    serialize = AVRO.AvroSerializer(client, schema)
    context = SerializationContext(NAME, MessageField.VALUE)
    producer = confluent.Producer({"bootstrap.servers": address})
    for number in range(10):
        producer.produce(NAME, serialize({"cents": number + 10, "extra": "x", "account": "bob"}, context), key=b"bob")
    assert producer.flush(60) == 0


def _read_totals(address: str, client: SchemaRegistryClient) -> dict[str, int]:
    """The newest total of each account, as Confluent's client reads them."""
    deserialize = AVRO.AvroDeserializer(client)
    context = SerializationContext(f"{NAME}-totals", MessageField.VALUE)
    settings = {"bootstrap.servers": address, "group.id": f"{NAME}-check", "auto.offset.reset": "earliest"}
    consumer = confluent.Consumer(settings)
    consumer.subscribe([f"{NAME}-totals"])
    found: dict[str, int] = {}
    read = 0
    while read < 20:
        message = consumer.poll(1)
        if message is not None and message.error() is None:
            value = deserialize(message.value(), context)
            found[value["account"]] = value["cents"]
            read += 1
    consumer.close()
    return found
