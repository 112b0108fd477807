"""What other clients write, Famulus reads, and the other way round: Kafka's own in Java, and confluent-kafka (librdkafka)."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import confluent_kafka as confluent
import pytest
import trio

import famulus
from famulus.channels.errors import ProduceError
from famulus.channels.message import TP, Message, ProducerRecord
from famulus.channels.partitioner import partition_for
from famulus.channels.transport import ConsumerOptions, ProduceResult, TopicSpec
from famulus.kafka import KafkaTransport
from famulus.testing.contract import Recorder
from famulus.testing.contract_kit import Changes, GroupMember
from famulus.testing.kafka import RunningKafka
from famulus.testing.kafka_jars import find_java

pytestmark = [pytest.mark.slow, pytest.mark.real_time, pytest.mark.hard_timeout(120)]

COMPRESSIONS = ["none", "gzip", "snappy", "lz4", "zstd"]
CLIENTS = ["java", "confluent"]


@attrs.frozen
class Record:
    """What has to arrive. `at` is in milliseconds."""

    at: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


RECORDS = [
    Record(1_700_000_000_123, b"key", b"value"),
    Record(1_700_000_000_124, None, b"without a key"),
    Record(1_700_000_000_999, b"deleted", None),
    Record(1_699_999_999_001, b"", b""),  # empty is not null; nor do times have to rise
    Record(1, "ключ".encode(), bytes(range(256))),
    Record(1_700_000_001_000, None, None, (("a", b"1"), ("b", b""), ("a", b"2"), ("ü", b"\xff\x00"))),
    *(Record(1_700_000_002_000 + number, b"%d" % number, b"compressible " * 40) for number in range(200)),
]


class Client(Protocol):
    """Another client of Kafka. Its methods block."""

    def write(
        self, topic: str, records: Sequence[Record], *, compression: str = "none", partition: int | None = 0
    ) -> list[TP]:
        """Where they went; None leaves the partition to the client."""
        ...

    def read(self, topic: str) -> list[Record]:
        """All that is committed, of each partition in order."""
        ...


def optional(converted: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else converted(value)


@attrs.frozen
class JavaClient:
    """KafkaClient.java beside this file."""

    address: str
    command: Sequence[str]

    def run(self, *arguments: str, given: str = "") -> list[list[str]]:
        done = subprocess.run(
            [*self.command, *arguments], input=given, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stderr
        return [line.split(" ") for line in done.stdout.splitlines()]

    def write(
        self, topic: str, records: Sequence[Record], *, compression: str = "none", partition: int | None = 0
    ) -> list[TP]:
        def word(value: bytes | None) -> str:
            return "null" if value is None else value.hex()

        lines = [
            " ".join(
                [
                    "any" if partition is None else str(partition),
                    *(str(record.at), word(record.key), word(record.value)),
                    *(f"{name.encode().hex()}={word(value)}" for name, value in record.headers),
                ]
            )
            for record in records
        ]
        told = self.run("write", self.address, topic, compression, given="\n".join(lines))
        return [TP(topic, int(chosen)) for chosen, _ in told]

    def read(self, topic: str) -> list[Record]:
        def value(word: str) -> bytes | None:
            return None if word == "null" else bytes.fromhex(word)

        def header(word: str) -> tuple[str, bytes | None]:
            name, _, content = word.partition("=")
            return bytes.fromhex(name).decode(), value(content)

        return [
            Record(int(at), value(key), value(content), tuple(map(header, headers)))
            for _, at, key, content, *headers in self.run("read", self.address, topic)
        ]


@attrs.frozen
class ConfluentClient:
    address: str

    def write(
        self, topic: str, records: Sequence[Record], *, compression: str = "none", partition: int | None = 0
    ) -> list[TP]:
        written: dict[int, TP] = {}
        producer = confluent.Producer(
            {
                "bootstrap.servers": self.address,
                "compression.type": compression,
                "enable.idempotence": True,
                "linger.ms": 50,
                "partitioner": "murmur2_random",  # as Java's and ours; librdkafka's own default is another
            }
        )
        for index, record in enumerate(records):

            def receive(error: Any, message: Any, index: int = index) -> None:
                assert error is None
                written[index] = TP(message.topic(), message.partition())

            producer.produce(
                topic,
                record.value,
                record.key,
                timestamp=record.at,
                headers=list(record.headers),
                partition=-1 if partition is None else partition,  # RD_KAFKA_PARTITION_UA
                on_delivery=receive,
            )
        assert producer.flush(60) == 0
        return [written[index] for index in range(len(records))]

    def read(self, topic: str) -> list[Record]:
        consumer = self.consumer(f"reads-{topic}", **{"enable.partition.eof": True})
        try:
            count = len(consumer.list_topics(topic, 20).topics[topic].partitions)
            consumer.assign([confluent.TopicPartition(topic, number, 0) for number in range(count)])
            records: list[Record] = []
            ended: set[int] = set()
            while len(ended) < count:
                message = consumer.poll(20)
                assert message is not None
                if message.error() is not None:
                    assert message.error().code() == confluent.KafkaError._PARTITION_EOF, message.error()
                    ended.add(message.partition())
                else:
                    headers = tuple(message.headers() or ())
                    records.append(Record(message.timestamp()[1], message.key(), message.value(), headers))
            return records
        finally:
            consumer.close()

    def consumer(self, group: str, **more: Any) -> Any:
        return confluent.Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                **more,
            }
        )

    def committed(self, group: str, tp: TP) -> int:
        """Negative: nothing."""
        consumer = self.consumer(group)
        try:
            (found,) = consumer.committed([confluent.TopicPartition(*tp)], timeout=20)
            return int(found.offset)
        finally:
            consumer.close()


@pytest.fixture(scope="module")
def java(kafka_broker: RunningKafka, kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> JavaClient:
    machine = find_java()
    compiler = machine.resolve().with_name("javac")
    if not compiler.exists():
        pytest.skip(f"{compiler} is not there: install a JDK, as openjdk-17-jdk-headless")
    classes = tmp_path_factory.mktemp("java")
    jars = f"{kafka_jars}{os.sep}*"
    source = Path(__file__).with_name("KafkaClient.java")
    subprocess.run([compiler, "-cp", jars, "-d", classes, source], check=True)
    quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m"]
    return JavaClient(kafka_broker.address, [str(machine), *quick, "-cp", f"{classes}:{jars}", "KafkaClient"])


@pytest.fixture
def client(request: pytest.FixtureRequest, kafka_broker: RunningKafka) -> Client:
    if request.param == "confluent":
        return ConfluentClient(kafka_broker.address)
    java: JavaClient = request.getfixturevalue("java")
    return java


@pytest.fixture(scope="module")
def confluent_client(kafka_broker: RunningKafka) -> ConfluentClient:
    return ConfluentClient(kafka_broker.address)


async def create(url: str, topic: str, partitions: int = 1, *, config: Mapping[str, str] | None = None) -> None:
    """Make a topic; what is old stays in it, else the broker would delete the records of `RECORDS` now and then."""
    transport = KafkaTransport(url)
    async with transport.open():
        spec = TopicSpec(name=topic, partitions=partitions, config={"retention.ms": "-1", **(config or {})})
        await transport.create_topic(spec)


def to_produce(records: Sequence[Record]) -> list[ProducerRecord]:
    return [
        ProducerRecord(
            record.key, record.value, tuple((name, value or b"") for name, value in record.headers), record.at / 1000
        )
        for record in records
    ]


def as_record(message: Message) -> Record:
    return Record(round(message.timestamp * 1000), message.key, message.value, message.headers)


async def read(url: str, tp: TP, number: int, group: str | None = None) -> list[Message]:
    transport, recorder = KafkaTransport(url), Recorder(Changes())
    async with (
        transport.open(),
        transport.open_consumer(ConsumerOptions(group=group or f"reads-{tp}"), recorder) as consumer,
    ):
        await consumer.subscribe([tp.topic])
        return await GroupMember(transport, consumer, recorder).read(number)


# Keys, values, headers and times, with each compression.


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("client", CLIENTS, indirect=True)
async def test_what_others_write_we_read(kafka_broker: RunningKafka, client: Client, compression: str) -> None:
    topic = f"{type(client).__name__}-wrote-{compression}"
    await create(kafka_broker.url, topic)
    await trio.to_thread.run_sync(lambda: client.write(topic, RECORDS, compression=compression))
    messages = await read(kafka_broker.url, TP(topic, 0), len(RECORDS))
    assert [as_record(message) for message in messages] == RECORDS
    assert [message.offset for message in messages] == list(range(len(RECORDS)))


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_what_we_write_in_batches_others_read(
    kafka_broker: RunningKafka, java: JavaClient, confluent_client: ConfluentClient, compression: str
) -> None:
    tp = TP(f"batch-{compression}", 0)
    await create(kafka_broker.url, tp.topic)
    transport = KafkaTransport(f"{kafka_broker.url}?compression={compression}")
    async with transport.open():
        assert (await transport.produce({tp: to_produce(RECORDS)}))[tp] == ProduceResult(0)
    assert await trio.to_thread.run_sync(java.read, tp.topic) == RECORDS
    assert await trio.to_thread.run_sync(confluent_client.read, tp.topic) == RECORDS


async def test_what_an_app_sends_others_read(
    kafka_broker: RunningKafka, java: JavaClient, confluent_client: ConfluentClient
) -> None:
    await create(kafka_broker.url, "sent")
    app = famulus.App("sends", broker=f"{kafka_broker.url}?compression=lz4")
    topic = app.topic("sent", key_serializer="raw", value_serializer="raw")
    async with famulus.open_app(app):
        for record in to_produce(RECORDS):
            await topic.send(record.value, key=record.key, timestamp=record.timestamp, headers=record.headers)
    assert await trio.to_thread.run_sync(java.read, "sent") == RECORDS
    assert await trio.to_thread.run_sync(confluent_client.read, "sent") == RECORDS


@pytest.mark.parametrize("client", ["confluent"], indirect=True)
async def test_an_agent_sees_what_others_wrote(kafka_broker: RunningKafka, client: Client) -> None:
    await create(kafka_broker.url, "seen")
    await trio.to_thread.run_sync(client.write, "seen", RECORDS)
    app = famulus.App("sees", broker=kafka_broker.url)
    seen: list[Record] = []
    done = trio.Event()

    @app.agent(app.topic("seen", key_serializer="raw", value_serializer="raw"))
    async def watch(stream: famulus.Stream[bytes]) -> None:
        async for event in stream.events():
            seen.append(as_record(event.message))
            if len(seen) == len(RECORDS):
                done.set()

    async with famulus.open_app(app):
        with trio.fail_after(30):
            await done.wait()
    assert seen == RECORDS


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
async def test_a_header_that_is_null_is_read_as_empty(kafka_broker: RunningKafka, client: Client) -> None:
    topic = f"null-header-{type(client).__name__}"
    await create(kafka_broker.url, topic)
    await trio.to_thread.run_sync(client.write, topic, [Record(1, b"k", b"v", (("null", None), ("empty", b"")))])
    (message,) = await read(kafka_broker.url, TP(topic, 0), 1)
    assert message.headers == (("null", b""), ("empty", b""))


# Partitions.


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
async def test_a_key_is_on_the_partition_that_others_choose(
    kafka_broker: RunningKafka, client: Client, seed: int
) -> None:
    chance = random.Random(seed)
    keys = [f"{word}-{number}".encode() for number in range(60) for word in ("order", "ключ", "鍵", "🗝")]
    keys += [chance.randbytes(length) for length in range(1, 60) for _ in range(4)]
    topic, count = f"keys-{type(client).__name__}", 7
    await create(kafka_broker.url, topic, count)
    records = [Record(1_700_000_000_000, key, b"") for key in keys]
    theirs = await trio.to_thread.run_sync(lambda: client.write(topic, records, partition=None))
    assert [TP(topic, partition_for(key, count)) for key in keys] == theirs
    assert {tp.partition for tp in theirs} == set(range(count))

    app = famulus.App(f"keys-{type(client).__name__}", broker=kafka_broker.url)
    sends = app.topic(topic, key_serializer="raw", value_serializer="raw")
    async with famulus.open_app(app):
        receipts = [await sends.send(b"", key=key) for key in keys]
        assert [TP(topic, (await receipt).partition) for receipt in receipts] == theirs


# Groups.


async def test_offsets_that_we_commit_others_go_on_from_and_back(
    kafka_broker: RunningKafka, confluent_client: ConfluentClient
) -> None:
    topic, group = "handed-over", "takes-turns"
    tp = TP(topic, 0)
    await create(kafka_broker.url, topic)
    records = [Record(1, None, b"%d" % number) for number in range(9)]
    await trio.to_thread.run_sync(confluent_client.write, topic, records)

    transport, recorder = KafkaTransport(kafka_broker.url), Recorder(Changes())
    async with transport.open(), transport.open_consumer(ConsumerOptions(group=group), recorder) as consumer:
        await consumer.subscribe([topic])
        member = GroupMember(transport, consumer, recorder)
        await member.read(3, {tp: 3})
        await member.commit({tp: 3})

    def theirs() -> list[bytes]:
        consumer = confluent_client.consumer(group)
        try:
            consumer.subscribe([topic])
            found = [consumer.poll(30) for _ in range(3)]
            consumer.commit(offsets=[confluent.TopicPartition(topic, 0, 6)], asynchronous=False)
            return [message.value() for message in found]
        finally:
            consumer.close()

    assert await trio.to_thread.run_sync(theirs) == [b"3", b"4", b"5"]
    messages = await read(kafka_broker.url, tp, 3, group)
    assert [message.value for message in messages] == [b"6", b"7", b"8"]


# Transactions, and other reasons for offsets that are missing.


def transactions(address: str, topic: str) -> None:
    """An aborted one, a committed one, and another aborted one at the end."""
    producer = confluent.Producer({"bootstrap.servers": address, "transactional.id": f"writes-{topic}"})
    producer.init_transactions(30)
    for values, end in (("xyz", "abort"), ("ab", "commit"), ("z", "abort"), ("c", "commit"), ("zz", "abort")):
        producer.begin_transaction()
        for value in values:
            producer.produce(topic, value.encode(), partition=0)
        producer.flush(30)
        if end == "commit":
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)


async def test_what_a_transaction_aborts_is_not_seen_and_the_commit_passes_its_marks(
    kafka_broker: RunningKafka, confluent_client: ConfluentClient
) -> None:
    topic = "transactional"
    await create(kafka_broker.url, topic)
    await trio.to_thread.run_sync(transactions, kafka_broker.address, topic)
    seen: list[tuple[int, bytes]] = []
    done = trio.Event()
    app = famulus.App("reads-transactions", broker=kafka_broker.url)

    @app.agent(app.topic(topic, value_serializer="raw"))
    async def watch(stream: famulus.Stream[bytes]) -> None:
        async for event in stream.events():
            seen.append((event.message.offset, event.value))
            if len(seen) == 4:
                done.set()

    async with famulus.open_app(app):
        await trio.to_thread.run_sync(confluent_client.write, topic, [Record(1, None, b"d")])
        with trio.fail_after(30):
            await done.wait()
    # x y z, abort, a b, commit, z, abort, c, commit, z z, abort, d
    assert seen == [(4, b"a"), (5, b"b"), (9, b"c"), (14, b"d")]
    assert await trio.to_thread.run_sync(confluent_client.committed, "reads-transactions", TP(topic, 0)) == 15


async def test_a_topic_that_ends_with_marks_is_read_and_committed_to_its_end(
    kafka_broker: RunningKafka, confluent_client: ConfluentClient
) -> None:
    tp, group = TP("ends-with-marks", 0), "to-the-end"
    await create(kafka_broker.url, tp.topic)
    await trio.to_thread.run_sync(transactions, kafka_broker.address, tp.topic)
    seen: list[bytes] = []
    done = trio.Event()
    app = famulus.App(group, broker=kafka_broker.url, broker_commit_interval=0.1)

    @app.agent(app.topic(tp.topic, value_serializer="raw"))
    async def watch(stream: famulus.Stream[bytes]) -> None:
        async for value in stream:
            seen.append(value)
            if len(seen) == 3:
                done.set()

    async with famulus.open_app(app):
        with trio.fail_after(30):
            await done.wait()
    assert seen == [b"a", b"b", b"c"]
    assert await trio.to_thread.run_sync(confluent_client.committed, group, tp) == 14


async def test_gaps_of_a_compacted_topic_are_passed(
    kafka_broker: RunningKafka, confluent_client: ConfluentClient
) -> None:
    topic = "compacted"
    config = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01", "segment.ms": "100"}
    await create(kafka_broker.url, topic, config=config)
    now = round(time.time() * 1000)
    records = [Record(now - 100_000 + number * 50, b"%d" % (number % 3), b"%d" % number) for number in range(30)]

    def write_and_wait() -> list[Record]:
        last = Record(now, b"last", b"closes the segment")
        confluent_client.write(topic, records)
        confluent_client.write(topic, [last])
        left: list[Record] = []
        while not 0 < len(left) < len(records):  # the test's own limit ends this
            confluent_client.write(topic, [last])
            time.sleep(0.3)
            left = confluent_client.read(topic)
        return left

    await trio.to_thread.run_sync(write_and_wait)
    theirs = await trio.to_thread.run_sync(confluent_client.read, topic)
    messages = await read(kafka_broker.url, TP(topic, 0), 4)
    assert [(message.key, message.value) for message in messages][:3] == [(b"0", b"27"), (b"1", b"28"), (b"2", b"29")]
    assert [message.offset for message in messages][:3] == [27, 28, 29]
    assert messages[3].key == b"last"
    assert messages[3].offset >= 30
    assert len(theirs) >= 4


async def test_the_broker_s_time_counts_where_the_topic_says_so(
    kafka_broker: RunningKafka, confluent_client: ConfluentClient
) -> None:
    topic = "broker-s-time"
    await create(kafka_broker.url, topic, config={"message.timestamp.type": "LogAppendTime"})
    before = time.time()
    await trio.to_thread.run_sync(lambda: confluent_client.write(topic, RECORDS, compression="zstd"))
    messages = await read(kafka_broker.url, TP(topic, 0), len(RECORDS))
    assert {message.timestamp_type for message in messages} == {1}
    assert all(before - 1 <= message.timestamp <= time.time() + 1 for message in messages)
    theirs = await trio.to_thread.run_sync(confluent_client.read, topic)
    assert [round(message.timestamp * 1000) for message in messages] == [record.at for record in theirs]


# Large messages.


async def test_a_message_that_the_topic_does_not_take_fails_and_names_the_setting(kafka_broker: RunningKafka) -> None:
    await create(kafka_broker.url, "one-megabyte")
    app = famulus.App("too-large", broker=kafka_broker.url)
    topic = app.topic("one-megabyte", value_serializer="raw")
    async with famulus.open_app(app):
        large = await topic.send(os.urandom(2_000_000))
        small = await topic.send(b"small")
        with pytest.raises(ProduceError, match=r"topic's max\.message\.bytes"):
            await large
        assert (await small).offset == 0


async def test_small_messages_that_are_too_many_at_once_are_written_one_by_one(kafka_broker: RunningKafka) -> None:
    await create(kafka_broker.url, "one-kilobyte", config={"max.message.bytes": "1000"})
    app = famulus.App("too-many", broker=kafka_broker.url)
    topic = app.topic("one-kilobyte", value_serializer="raw")
    for most in (1_000_000, 900):
        async with famulus.open_app(app, producer_max_batch_bytes=most):
            sent = [topic.send_soon(os.urandom(100)) for _ in range(100)]
            offsets = [(await receipt).offset for receipt in sent]
            assert len({(receipt.partition, offset) for receipt, offset in zip(sent, offsets, strict=True)}) == 100


@pytest.mark.parametrize("fetched", [1_048_576, 1000])
async def test_a_large_message_goes_through_where_the_topic_takes_it(
    kafka_broker: RunningKafka, confluent_client: ConfluentClient, fetched: int
) -> None:
    tp = TP(f"ten-megabytes-{fetched}", 0)
    await create(kafka_broker.url, tp.topic, config={"max.message.bytes": "10000000"})
    large = [Record(1, b"k", os.urandom(3_000_000)), Record(1, b"k", b"small")]
    transport = KafkaTransport(kafka_broker.url)
    async with transport.open():
        assert (await transport.produce({tp: to_produce(large)}))[tp] == ProduceResult(0)
    messages = await read(f"{kafka_broker.url}?partition_fetch_bytes={fetched}", tp, 2)
    assert [as_record(message) for message in messages] == large
    assert await trio.to_thread.run_sync(confluent_client.read, tp.topic) == large
