"""A partition whose log is damaged on the broker: it is named and waits, the others are read, and nothing loops."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from aiokafka import errors as kafka_errors
from aiokafka.consumer.fetcher import FetchError

import famulus
from famulus.channels.message import TP, Message
from famulus.channels.transport import ConsumerOptions, TopicSpec
from famulus.kafka import KafkaTransport
from famulus.kafka.records import Unpacker
from famulus.testing.contract import GroupMember, Recorder
from famulus.testing.contract_kit import Changes, numbered, produce, values
from famulus.testing.kafka import RunningKafka
from famulus.testing.kafka_broker import KafkaBroker

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(120)]


@pytest.fixture(autouse=True)
def _no_client_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "aiokafka")
    caplog.set_level(logging.INFO, "famulus")


@asynccontextmanager
async def member(url: str, group: str, topic: str) -> AsyncIterator[GroupMember]:
    transport, recorder = KafkaTransport(url), Recorder(Changes())
    async with transport.open(), transport.open_consumer(ConsumerOptions(group=group), recorder) as consumer:
        await consumer.subscribe([topic])
        yield GroupMember(transport, consumer, recorder)


def told(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [message for message in caplog.messages if text in message]


async def flip(broker: KafkaBroker, tp: TP, found: bytes, replacement: bytes) -> None:
    """Change the log on disk, as a failing disk does; the broker is stopped meanwhile."""
    await trio.to_thread.run_sync(broker.stop_process)
    assert broker.home is not None
    (segment,) = (broker.home / "data" / f"{tp.topic}-{tp.partition}").glob("*.log")
    path = trio.Path(segment)
    content = await path.read_bytes()
    assert content.count(found) == 1
    await path.write_bytes(content.replace(found, replacement))
    await trio.to_thread.run_sync(broker.start_process)


async def test_a_damaged_partition_is_named_and_the_others_are_read(
    own_kafka_broker: KafkaBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker, bad, good = own_kafka_broker, TP("damaged", 0), TP("damaged", 1)
    transport = KafkaTransport(broker.url)
    async with transport.open():
        await transport.create_topic(TopicSpec(name=bad.topic, partitions=2))
        for start in (1000, 1010, 1020):  # three batches
            await produce(transport, {bad: numbered(start, start + 10), good: numbered(start, start + 10)})
    await flip(broker, bad, b"1013", b"1x13")
    async with member(broker.url, "reads-damaged", bad.topic) as reader:
        with trio.fail_after(60):
            messages = await reader.read(40)
            assert values([m for m in messages if m.tp == good]) == [b"%d" % n for n in range(1000, 1030)]
            assert values([m for m in messages if m.tp == bad]) == [b"%d" % n for n in range(1000, 1010)]
            await reader.reads_nothing(3.5)
            assert reader.consumer.position(bad) == 10
        problems = told(caplog, "reading damaged-0@10: ")
        assert 1 <= len(problems) < 8  # each wait is twice the last: 8 would take two minutes
        assert "its log is damaged on the broker" in problems[0]
        assert "tried again in 1 s, while other partitions go on" in problems[0]
        await flip(broker, bad, b"1x13", b"1013")
        with trio.fail_after(60):
            messages = await reader.read(20)
        assert values(messages) == [b"%d" % n for n in range(1010, 1030)]
        assert told(caplog, "reading damaged-0@10 goes on")


async def test_a_log_that_the_broker_itself_cannot_read_is_not_asked_for_without_pause(
    own_kafka_broker: KafkaBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "aiokafka")
    broker, bad, good = own_kafka_broker, TP("unreadable", 0), TP("unreadable", 1)
    transport = KafkaTransport(broker.url)
    async with transport.open():
        await transport.create_topic(TopicSpec(name=bad.topic, partitions=2))
        for start in (1000, 1010):
            await produce(transport, {bad: numbered(start, start + 10), good: numbered(start, start + 10)})
    assert broker.home is not None
    (segment,) = (broker.home / "data" / "unreadable-0").glob("*.log")
    path = trio.Path(segment)
    whole = await path.read_bytes()
    size = 12 + int.from_bytes(whole[8:12], "big")  # of the first batch; the next one's length comes 8 bytes later
    await path.write_bytes(whole[: size + 8] + (5).to_bytes(4, "big") + whole[size + 12 :])
    try:
        async with member(broker.url, "reads-unreadable", bad.topic) as reader:
            with trio.fail_after(60):
                messages = await reader.read(30)
                assert values([m for m in messages if m.tp == good]) == [b"%d" % n for n in range(1000, 1020)]
                await reader.reads_nothing(3.0)
            assert told(caplog, "reading unreadable-0@10: ")
            assert len(told(caplog, "Unexpected error while fetching")) < 10
            await path.write_bytes(whole)
            with trio.fail_after(60):
                assert values(await reader.read(10)) == [b"%d" % n for n in range(1010, 1020)]
    finally:
        await path.write_bytes(whole)  # the broker would not start with the other


async def test_an_app_goes_on_with_what_it_can_read(
    own_kafka_broker: KafkaBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker, bad, good = own_kafka_broker, TP("app-damaged", 0), TP("app-damaged", 1)
    transport = KafkaTransport(broker.url)
    async with transport.open():
        await transport.create_topic(TopicSpec(name=bad.topic, partitions=2))
        await produce(transport, {bad: numbered(1000, 1010), good: numbered(1000, 1010)})
    await flip(broker, bad, b"1003", b"1x03")
    app = famulus.App("reads-what-it-can", broker=broker.url)
    seen: list[int] = []

    @app.agent(app.topic(bad.topic, value_type=int))
    async def read(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app) as running, transport.open():
        with trio.fail_after(60):
            while len(seen) < 10:
                await trio.sleep(0.05)
            await produce(transport, {good: numbered(1010, 1020)})
            while len(seen) < 20 or not told(caplog, "reading app-damaged-0@0"):
                await trio.sleep(0.05)
        assert seen == list(range(1000, 1020))
        assert running.statistics().partitions[bad].lag == 10
        assert running.statistics().rebalances == 1


@pytest.mark.parametrize(
    "error", [kafka_errors.CorruptRecordException("faked"), kafka_errors.RecordTooLargeError("faked")]
)
async def test_what_the_client_reports_of_one_partition_concerns_that_one(
    kafka_broker: RunningKafka, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """The result of a fetch is put where the client puts it, since no broker gives it to order."""
    bad, good = TP(f"reported-{type(error).__name__}", 0), TP(f"reported-{type(error).__name__}", 1)
    async with member_of_new_topic(kafka_broker, bad.topic) as reader:
        inside: Any = reader.consumer.inside  # type: ignore[attr-defined]  # a KafkaConsumer's
        if isinstance(error, kafka_errors.RecordTooLargeError):
            inside._state(bad).consumed_to(1)  # as the client does
        inside._fetcher._records[bad] = FetchError(error=error, backoff=0)
        await produce(reader.transport, {good: numbered(0, 3)})
        with trio.fail_after(30):
            assert values(await reader.read(3)) == [b"0", b"1", b"2"]
            assert len(told(caplog, f"reading {bad}@0: ")) == 1
            assert reader.consumer.position(bad) == 0
            await produce(reader.transport, {bad: numbered(0, 3)})
            assert values(await reader.read(3)) == [b"0", b"1", b"2"]


async def test_a_batch_that_cannot_be_unpacked_is_damage_too(
    kafka_broker: RunningKafka, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksum is right, and its contents are not what its header says: whatever the client raises then."""
    tp = TP("not-unpacked", 0)
    unpack = Unpacker._messages

    def fail(self: Unpacker, records: Iterable[Any]) -> list[Message]:
        messages = unpack(self, records)
        if messages and messages[0].offset == 5:
            raise IndexError("bytes are missing")
        return messages

    async with member_of_new_topic(kafka_broker, tp.topic) as reader:
        with monkeypatch.context() as patched, trio.fail_after(30):
            patched.setattr(Unpacker, "_messages", fail)
            await produce(reader.transport, {tp: numbered(0, 5)})
            await produce(reader.transport, {tp: numbered(5, 10)})
            assert values(await reader.read(5)) == [b"%d" % number for number in range(5)]
            await reader.reads_nothing(1.0)
            assert told(caplog, "IndexError('bytes are missing')")
            assert reader.consumer.position(tp) == 5
        with trio.fail_after(30):
            assert values(await reader.read(5)) == [b"%d" % number for number in range(5, 10)]


@asynccontextmanager
async def member_of_new_topic(broker: RunningKafka, topic: str) -> AsyncIterator[GroupMember]:
    transport = KafkaTransport(broker.url)
    async with transport.open():
        await transport.create_topic(TopicSpec(name=topic, partitions=2))
    async with member(broker.url, f"reads-{topic}", topic) as reader:
        yield reader
