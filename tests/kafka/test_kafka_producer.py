"""Writing to Kafka where the contract of transports says nothing: what is too large, late, compressed or repeated."""

from __future__ import annotations

import pytest
import trio

from famulus.channels.errors import BrokerUnavailable, ProduceError, TransportError
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import ConsumerOptions, ProduceResult, TopicSpec, Transport, TransportOptions
from famulus.kafka import KafkaTransport
from famulus.testing.contract import Recorder
from famulus.testing.contract_kit import Changes, GroupMember, numbered, values
from famulus.testing.kafka import RunningKafka
from famulus.testing.kafka_broker import KafkaBroker

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(60)]


async def read(transport: Transport, tp: TP, number: int) -> list[bytes | None]:
    """The first so many values of a partition."""
    recorder = Recorder(Changes())
    async with transport.open_consumer(ConsumerOptions(group=f"read-{tp}-{number}"), recorder) as consumer:
        await consumer.subscribe([tp.topic])
        member = GroupMember(transport, consumer, recorder)
        return values(await member.read(number, {tp: number}))


async def new_partition(transport: Transport, name: str, **config: str) -> TP:
    await transport.create_topic(TopicSpec(name=name, partitions=1, config=config))
    return TP(name, 0)


async def test_a_batch_that_is_too_large_fails_alone_and_the_next_is_written(kafka_broker: RunningKafka) -> None:
    transport = KafkaTransport(kafka_broker.url)
    async with transport.open():
        small = await new_partition(transport, "too-large", **{"max.message.bytes": "1000"})
        other = await new_partition(transport, "large-enough")
        await transport.produce({small: numbered(0, 1)})
        large = [ProducerRecord(None, bytes(5000))]
        outcome = await transport.produce({small: large, other: large})
        assert isinstance(outcome[small], ProduceError)
        assert "max.message.bytes" in str(outcome[small])
        assert isinstance(outcome[other], ProduceResult)
        for number in (1, 2):  # the sequence numbers of the idempotent producer are still right
            assert (await transport.produce({small: numbered(number, number + 1)}))[small] == ProduceResult(number)
        assert await read(transport, small, 3) == [b"0", b"1", b"2"]


async def test_a_partition_that_does_not_exist_is_named(kafka_broker: RunningKafka) -> None:
    transport = KafkaTransport(kafka_broker.url)
    async with transport.open():
        tp = await new_partition(transport, "one-partition")
        outcome = (await transport.produce({tp._replace(partition=1): numbered(0, 1)}))[tp._replace(partition=1)]
        assert isinstance(outcome, ProduceError)
        assert "'one-partition' has 1 partitions" in str(outcome)
        await transport.add_partitions("one-partition", 2)
        outcome = (await transport.produce({tp._replace(partition=1): numbered(0, 1)}))[tp._replace(partition=1)]
        assert outcome == ProduceResult(0)


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_what_is_compressed_is_read_again(kafka_broker: RunningKafka, compression: str) -> None:
    if compression != "gzip":
        pytest.importorskip("cramjam")
    transport = KafkaTransport(f"{kafka_broker.url}?compression={compression}")
    async with transport.open():
        tp = await new_partition(transport, f"compressed-{compression}")
        assert (await transport.produce({tp: numbered(0, 500)}))[tp] == ProduceResult(0)
        assert await read(transport, tp, 500) == [b"%d" % number for number in range(500)]


async def test_the_broker_s_time_is_told_where_it_gives_one(kafka_broker: RunningKafka) -> None:
    transport = KafkaTransport(kafka_broker.url)
    async with transport.open():
        tp = await new_partition(transport, "log-append-time", **{"message.timestamp.type": "LogAppendTime"})
        result = (await transport.produce({tp: [ProducerRecord(None, b"", timestamp=1.0)]}))[tp]
        assert isinstance(result, ProduceResult)
        assert result.timestamp is not None
        assert result.timestamp > 1_000_000_000


async def test_a_write_that_gets_no_answer_is_repeated_without_a_second_copy(own_kafka_broker: KafkaBroker) -> None:
    transport = KafkaTransport(f"{own_kafka_broker.url}?produce_timeout=0.5&request_timeout=30")
    async with transport.open():
        tp = await new_partition(transport, "repeated")
        assert (await transport.produce({tp: numbered(0, 1)}))[tp] == ProduceResult(0)
        records = numbered(1, 4)
        own_kafka_broker.suspend()
        try:
            outcome = (await transport.produce({tp: records}))[tp]
            assert isinstance(outcome, BrokerUnavailable)
            later = (await transport.produce({tp: [*records, *numbered(4, 5)]}))[tp]
            assert isinstance(later, BrokerUnavailable)
        finally:
            own_kafka_broker.resume()
        final: object = None
        more = numbered(4, 6)
        while not isinstance(final, ProduceResult):
            final = (await transport.produce({tp: [*records, *more]}))[tp]
        assert final == ProduceResult(1)
        assert (await transport.produce({tp: numbered(6, 7)}))[tp] == ProduceResult(6)
        assert await read(transport, tp, 7) == [b"%d" % number for number in range(7)]


async def test_a_cancelled_write_is_repeated_without_a_second_copy(own_kafka_broker: KafkaBroker) -> None:
    transport = KafkaTransport(own_kafka_broker.url)
    async with transport.open():
        tp = await new_partition(transport, "cancelled-and-repeated")
        await transport.produce({tp: numbered(0, 1)})
        records = numbered(1, 4)
        own_kafka_broker.suspend()
        try:
            with trio.move_on_after(0.2) as waiting:
                await transport.produce({tp: records})
            assert waiting.cancelled_caught
        finally:
            own_kafka_broker.resume()
        assert (await transport.produce({tp: records}))[tp] == ProduceResult(1)
        assert (await transport.produce({tp: numbered(4, 5)}))[tp] == ProduceResult(4)


async def test_closing_with_a_write_under_way_and_no_broker_is_bounded(own_kafka_broker: KafkaBroker) -> None:
    transport = KafkaTransport(f"{own_kafka_broker.url}?produce_timeout=0.5", TransportOptions(shutdown_timeout=1.0))
    try:
        with trio.fail_after(20):
            async with transport.open():
                tp = await new_partition(transport, "no-broker-at-the-end")
                await transport.produce({tp: numbered(0, 1)})
                await trio.to_thread.run_sync(own_kafka_broker.stop_process)
                for number in (1, 2):
                    outcome = (await transport.produce({tp: numbered(number, number + 1)}))[tp]
                    assert isinstance(outcome, TransportError)
                    assert outcome.retriable
    finally:
        await trio.to_thread.run_sync(own_kafka_broker.start_process)
