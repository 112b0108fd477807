"""Every operator once on a real Kafka, which creates no topics by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
import trio

import famulus
from famulus.channels.message import TP, Message, ProducerRecord
from famulus.channels.transport import Assignment, ConsumerOptions, TopicSpec
from famulus.kafka import KafkaTransport
from famulus.testing.kafka import RunningKafka

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(120)]

SETTINGS: dict[str, Any] = {"broker_commit_interval": 0.1, "topic_trim_interval": 1000.0}


class Order(famulus.Record):
    account: str
    cents: int


class Silent:
    async def on_assigned(self, assignment: Assignment) -> None:
        pass

    async def on_revoked(self, revoked: frozenset[TP], *, lost: bool) -> None:
        pass


class Broker:
    """The broker seen from outside."""

    def __init__(self, transport: KafkaTransport, name: str) -> None:
        self._transport = transport
        self.name = name

    async def create(self, topic: str, partitions: int) -> None:
        await self._transport.create_topic(TopicSpec(name=topic, partitions=partitions))

    async def write(self, topic: str, partition: int, *records: ProducerRecord) -> None:
        await self._transport.produce({TP(topic, partition): list(records)})

    async def partitions(self, topic: str) -> int:
        return await self._transport.partition_count(topic)

    async def read(self, topic: str) -> list[Message]:
        """All that is in a topic now."""
        found: list[Message] = []
        options = ConsumerOptions(group=f"{topic}-{uuid4().hex}")
        async with self._transport.open_consumer(options, Silent()) as reader:
            await reader.subscribe([topic])
            tps = reader.assignment.partitions
            ends = {tp: reader.highwater(tp) for tp in tps}
            while room := {tp: 1000 for tp in tps if reader.position(tp) < ends[tp]}:
                for batch in await reader.fetch(room):
                    found += batch.messages
        return found

    async def wait_committed(self, topic: str, count: int) -> None:
        """Wait until the app has committed so many messages of a topic."""
        partitions = [TP(topic, number) for number in range(await self.partitions(topic))]
        async with self._transport.open_consumer(ConsumerOptions(group=self.name), Silent()) as observer:
            with trio.fail_after(60):
                while sum(offset or 0 for offset in (await observer.committed(partitions)).values()) < count:
                    await trio.sleep(0.05)


@pytest.fixture
async def broker(kafka_broker: RunningKafka) -> AsyncIterator[Broker]:
    transport = KafkaTransport(kafka_broker.url)
    async with transport.open():
        yield Broker(transport, f"streams-{uuid4().hex[:8]}")


@asynccontextmanager
async def opened(app: famulus.App) -> AsyncIterator[famulus.RunningApp]:
    failure: Exception | None = None
    with trio.fail_after(100):
        async with famulus.open_app(app) as running:
            try:
                yield running
            except Exception as error:
                failure = error
    if failure is not None:
        raise failure


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.02)


def cents_of(order: Order) -> int:
    return order.cents


async def test_through_group_by_and_take_with_a_crash_in_the_middle(kafka_broker: RunningKafka, broker: Broker) -> None:
    name = broker.name
    app = famulus.App(name, broker=kafka_broker.url, **SETTINGS)
    orders = app.topic(f"{name}-orders", key_type=str, value_type=Order)
    via = f"{name}-via"
    await broker.create(orders.name, 3)
    done: list[tuple[str, int]] = []
    sizes: list[int] = []

    @app.agent(orders, on_failure="retry")
    async def work(stream: famulus.Stream[Order]) -> None:
        regrouped = stream.filter(lambda order: order.cents >= 0).through(via).group_by(Order.account, partitions=5)
        async for events in regrouped.take_events(10, within=0.2):
            if any(event.value.cents == 33 and event.attempt == 1 for event in events):
                raise ValueError("33, at the first attempt")
            sizes.append(len(events))
            done.extend((event.value.account, event.value.cents) for event in events)

    async with opened(app):
        for number in range(-5, 60):
            await orders.send(Order(f"a{number % 4}", number), key="all")
        await until(lambda: len(set(done)) == 60)
        await broker.wait_committed(orders.name, 65)
        await broker.wait_committed(via, 60)
        await broker.wait_committed(f"{name}-{via}-account-repartition", 60)
    assert await broker.partitions(via) == 3
    assert await broker.partitions(f"{name}-{via}-account-repartition") == 5
    assert max(sizes) <= 10
    for account in range(4):
        mine = [cents for owner, cents in done if owner == f"a{account}"]
        assert mine == sorted(set(mine))


async def test_raw_bytes_go_on_identical_and_a_question_is_answered_once(
    kafka_broker: RunningKafka, broker: Broker
) -> None:
    name = broker.name
    app = famulus.App(name, broker=kafka_broker.url, **SETTINGS)
    orders = app.topic(f"{name}-orders", key_type=str, value_type=Order)
    topics = [f"{name}-{kind}" for kind in ("echo", "other-echo", "forward", "through", "changed")]
    echo, other_echo, forward, through, changed = topics
    for topic in (orders.name, *topics):
        await broker.create(topic, 1)
    value = b'{ "cents": 1,  "account":"ada" , "unknown": null }'
    headers = (("h", b"\x00\xff"), ("h", b"again"), ("empty", b""))
    record = ProducerRecord(b"\xc3\xa4", value, headers, timestamp=1_600_000_000.25)
    await broker.write(orders.name, 0, record)

    @app.agent(orders)
    async def work(stream: famulus.Stream[Order]) -> AsyncIterator[int]:
        async for event in (
            stream.echo(echo, app.topic(other_echo, key_type=str, value_type=Order)).through(through).events()
        ):
            await event.forward(forward)
            await event.forward(changed, value=Order("bob", 2), headers={"n": b"1"}, timestamp=5.0)
            yield event.value.cents

    async with opened(app):
        assert await work.ask(Order("ada", 7), key="k") == 7
        await broker.wait_committed(orders.name, 2)
        await broker.wait_committed(through, 2)
    for topic in (echo, other_echo, through, forward):
        first, asked = await broker.read(topic)
        assert (first.key, first.value, first.headers) == (record.key, record.value, record.headers), topic
        assert first.timestamp == record.timestamp, topic
        assert (asked.key, asked.value) == (b"k", b'{"account":"ada","cents":7}'), topic
        assert bool(asked.headers) == (topic in (through, forward)), topic  # who asks is known to the last stage alone
    (first, _) = await broker.read(changed)
    assert (first.key, first.value, first.headers) == (record.key, b'{"account":"bob","cents":2}', (("n", b"1"),))
    assert first.timestamp == 5.0


async def test_two_topics_as_one_and_a_stream_made_at_run_time(kafka_broker: RunningKafka, broker: Broker) -> None:
    name = broker.name
    app = famulus.App(name, broker=kafka_broker.url, **SETTINGS)
    left, right, late = (app.topic(f"{name}-{side}", value_type=int) for side in ("left", "right", "late"))
    for topic, partitions in ((left, 2), (right, 3), (late, 2)):
        await broker.create(topic.name, partitions)
    seen: list[int] = []
    texts: list[tuple[int, str]] = []

    @app.agent(left)
    async def both(stream: famulus.Stream[int]) -> None:
        async for number in stream.map(lambda number: -number) & right.stream():
            seen.append(number)

    def as_text(number: int) -> str:
        return f"n{number}"

    async with opened(app) as running:
        for number in range(1, 51):
            await left.send(number)
            await right.send(number)
        await until(lambda: len(seen) >= 100)
        before = running.statistics().rebalances
        for number in range(4):
            await late.send(number)
        stream = late.stream().map(as_text)
        pairs = stream.enumerate(1)
        for _ in range(4):
            texts.append(await anext(pairs))
        with trio.move_on_after(0.5):
            await anext(stream)
        assert running.statistics().rebalances > before
        await broker.wait_committed(late.name, 4)
        stream.close()
        await left.send(51)
        await until(lambda: -51 in seen)
        await broker.wait_committed(left.name, 51)
        await broker.wait_committed(right.name, 50)
    assert sorted(set(seen)) == sorted([*range(-51, 0), *range(1, 51)])
    assert sorted(text for _, text in texts) == ["n0", "n1", "n2", "n3"]
    assert [count for count, _ in texts] == [1, 2, 3, 4]
