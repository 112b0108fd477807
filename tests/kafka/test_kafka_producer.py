"""Writing to Kafka where the contract of transports says nothing: what is too large, late, compressed or repeated."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

import famulus
from famulus.channels.errors import BrokerUnavailable, ProduceError, TransportError, UnknownTopic
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


async def test_with_every_compression_an_app_writes_and_reads_its_own(kafka_broker: RunningKafka) -> None:
    for compression in ("gzip", "snappy", "lz4", "zstd"):
        app = famulus.App(f"compresses-{compression}", broker=f"{kafka_broker.url}?compression={compression}")

        @app.agent(name="doubles")
        async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for number in stream:
                yield 2 * number

        async with famulus.open_app(app):
            with trio.fail_after(20):
                assert [await double.ask(number) for number in range(5)] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("acks", ["0", "1", "-1", "most"])
def test_a_write_that_not_all_replicas_confirm_is_refused(acks: str) -> None:
    with pytest.raises(
        famulus.ImproperlyConfigured, match=rf"option acks='{acks}': expected all: .*min.insync.replicas"
    ):
        KafkaTransport(f"kafka://localhost?acks={acks}")


async def test_who_awaits_a_message_that_the_broker_refuses_is_told_what_to_do(kafka_broker: RunningKafka) -> None:
    app = famulus.App("refused", broker=f"{kafka_broker.url}?acks=all")
    small, missing = app.topic("takes-little", value_type=str), app.topic("takes-nothing", value_type=str)
    transport = KafkaTransport(kafka_broker.url)
    async with transport.open():
        await new_partition(transport, "takes-little", **{"max.message.bytes": "1000"})
    async with famulus.open_app(app):
        with pytest.raises(
            ProduceError, match=r"takes-little.*takes no more at once than the topic.s max.message.bytes"
        ):
            await (await small.send("x" * 5000))
        with pytest.raises(
            UnknownTopic, match=r"`famulus --broker 'kafka://\S+' topics create takes-nothing --partitions N`"
        ):
            await (await missing.send("x"))
        await (await small.send("x"))


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


@pytest.mark.parametrize("given_up", [1, 3, 4, 5])
async def test_a_repetition_without_what_was_given_up_meanwhile_writes_no_second_copy(
    own_kafka_broker: KafkaBroker, given_up: int
) -> None:
    transport = KafkaTransport(f"{own_kafka_broker.url}?produce_timeout=0.5&request_timeout=30")
    async with transport.open():
        tp = await new_partition(transport, f"given-up-{given_up}")
        await transport.produce({tp: numbered(0, 1)})
        records = numbered(1, 6)
        own_kafka_broker.suspend()
        try:
            outcome = (await transport.produce({tp: records[:4]}))[tp]
            assert isinstance(outcome, BrokerUnavailable)
            assert outcome.in_doubt
        finally:
            own_kafka_broker.resume()
        rest = records[given_up:]  # of what was given up, all is written too: that was in doubt
        final: object = None
        while not isinstance(final, ProduceResult):
            final = (await transport.produce({tp: rest or numbered(6, 7)}))[tp]
        if rest:
            assert final == ProduceResult(1 + given_up)
        assert (await transport.produce({tp: numbered(7, 8)}))[tp] == ProduceResult(6)
        expected = [b"%d" % number for number in range(6 if rest else 5)]
        if not rest:
            expected.append(b"6")
        assert await read(transport, tp, 7) == [*expected, b"7"]


async def deliver(topic: famulus.Topic[int], number: int) -> None:
    """Send until one is delivered: a broker that has just come back may take no writes for longer than we allow it."""
    delivered = False
    while not delivered:
        with contextlib.suppress(ProduceError):
            await (await topic.send(number))
            delivered = True


async def test_a_message_that_may_still_be_written_says_so_when_it_is_given_up(own_kafka_broker: KafkaBroker) -> None:
    url = f"{own_kafka_broker.url}?produce_timeout=0.3&request_timeout=30"
    app = famulus.App("doubts", broker=url, producer_delivery_timeout=1.0)
    topic = app.topic("in-doubt", value_type=int)
    transport = KafkaTransport(own_kafka_broker.url)
    async with transport.open():
        tp = await new_partition(transport, "in-doubt")
        async with famulus.open_app(app):
            await (await topic.send(0))
            own_kafka_broker.suspend()
            try:
                promise = await topic.send(1)
                with pytest.raises(
                    ProduceError, match=r"not confirmed within 1 s, but may be written; last: .*no answer"
                ) as told:
                    await promise
                assert told.value.in_doubt
            finally:
                own_kafka_broker.resume()
            await deliver(topic, 2)
        assert await read(transport, tp, 3) == [b"0", b"1", b"2"]  # it was


async def test_a_message_that_was_never_sent_is_not_in_doubt(own_kafka_broker: KafkaBroker) -> None:
    url = f"{own_kafka_broker.url}?produce_timeout=0.3&request_timeout=1"
    app = famulus.App("certain", broker=url, producer_delivery_timeout=1.0)
    topic = app.topic("not-in-doubt", value_type=int)
    transport = KafkaTransport(own_kafka_broker.url)
    async with transport.open():
        tp = await new_partition(transport, "not-in-doubt")
        async with famulus.open_app(app):
            await trio.to_thread.run_sync(own_kafka_broker.stop_process)
            try:
                with pytest.raises(ProduceError, match="not delivered within 1 s; last: ") as told:
                    await (await topic.send(1))
                assert not told.value.in_doubt
            finally:
                await trio.to_thread.run_sync(own_kafka_broker.start_process)
            await deliver(topic, 2)
        assert await read(transport, tp, 1) == [b"2"]


def resident() -> int:
    """Bytes of memory that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.hard_timeout(120)
async def test_while_the_broker_is_away_senders_wait_memory_is_bounded_and_nothing_is_lost_or_doubled(
    own_kafka_broker: KafkaBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "aiokafka")  # what is captured is kept, with the frames of its exceptions
    number_of_messages, padding = 40_000, "x" * 1000
    app = famulus.App("outage", broker=own_kafka_broker.url, producer_buffer_maxsize=2_000)
    topic = app.topic("through-the-outage", value_type=str)
    sent, is_down = 0, False

    async def send() -> None:
        nonlocal sent
        for number in range(number_of_messages):
            await topic.send(f"{number} {padding}", key=b"%d" % (number % 16))
            sent += 1
            if sent > 5_000 and not is_down:
                await trio.sleep(0.001)  # however long the broker takes to stop, there is more to send

    transport = KafkaTransport(own_kafka_broker.url)
    async with transport.open():
        await transport.create_topic(TopicSpec(name="through-the-outage", partitions=4))
    async with famulus.open_app(app) as running, trio.open_nursery() as nursery:
        await (await topic.send("warm"))
        nursery.start_soon(send)
        while sent < 5_000:
            await trio.sleep(0.01)
        before = resident()
        await trio.to_thread.run_sync(own_kafka_broker.stop_process)
        is_down = True
        try:
            stood_at, still = -1, 0
            while still < 30:  # it waits, and goes on waiting
                await trio.sleep(0.1)
                still = still + 1 if sent == stood_at else 0
                stood_at = sent
            assert sent < number_of_messages
            statistics = running.statistics()
            assert statistics.messages_sent - statistics.messages_delivered <= 2_000
            gc.collect()
            assert resident() - before < 40_000_000
        finally:
            await trio.to_thread.run_sync(own_kafka_broker.start_process)
    assert sent == number_of_messages
    async with transport.open():
        recorder = Recorder(Changes())
        async with transport.open_consumer(ConsumerOptions(group="after-the-outage"), recorder) as consumer:
            await consumer.subscribe(["through-the-outage"])
            messages = await GroupMember(transport, consumer, recorder).read(number_of_messages + 1)
            ends = sum(consumer.highwater(tp) for tp in consumer.assignment.partitions)
    assert len(messages) == ends == number_of_messages + 1
    by_key: dict[bytes | None, list[int]] = {}
    for message in messages:
        if message.key is not None:
            by_key.setdefault(message.key, []).append(int((message.value or b"").strip(b'"').split()[0]))
    assert all(numbers == sorted(set(numbers)) for numbers in by_key.values())
    assert sum(map(len, by_key.values())) == number_of_messages


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
