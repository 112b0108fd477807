"""Faults ordered from the memory broker do what they say, and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from famulus.channels.errors import (
    BrokerUnavailable,
    CommitRefused,
    ProduceError,
    TransportError,
)
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import (
    Assignment,
    Consumer,
    ConsumerOptions,
    ProduceResult,
    TopicSpec,
)

T0 = TP("t", 0)


class Listener:
    def __init__(self) -> None:
        self.assigned: list[Assignment] = []
        self.revoked: list[tuple[frozenset[TP], bool]] = []

    async def on_assigned(self, assignment: Assignment) -> None:
        self.assigned.append(assignment)

    async def on_revoked(self, revoked: frozenset[TP], *, lost: bool) -> None:
        self.revoked.append((revoked, lost))


def records(count: int) -> list[ProducerRecord]:
    return [ProducerRecord(None, b"%d" % number) for number in range(count)]


@asynccontextmanager
async def transport_with_topic(broker: MemoryBroker | None = None) -> AsyncIterator[MemoryTransport]:
    transport = MemoryTransport(broker=broker)
    async with transport.open():
        await transport.create_topic(TopicSpec(name="t", partitions=1))
        yield transport


@asynccontextmanager
async def consumer_of(transport: MemoryTransport) -> AsyncIterator[Consumer]:
    async with transport.open_consumer(ConsumerOptions(group="g"), Listener()) as consumer:
        await consumer.subscribe(["t"])
        yield consumer


async def test_commits_are_refused_until_it_is_lifted() -> None:
    async with transport_with_topic() as transport, consumer_of(transport) as consumer:
        generation = consumer.assignment.generation
        transport.broker.faults.refuse_commits(None)
        for _ in range(5):
            with pytest.raises(CommitRefused):
                await consumer.commit({T0: 0}, generation=generation)
        with pytest.raises(CommitRefused):
            await transport.transact({}, {T0: 0}, group="g", generation=generation)
        transport.broker.faults.clear()
        await consumer.commit({T0: 0}, generation=generation)


async def test_fetches_fail_and_move_nothing() -> None:
    async with transport_with_topic() as transport, consumer_of(transport) as consumer:
        await transport.produce({T0: records(3)})
        transport.broker.faults.fail_fetches(2)
        for _ in range(2):
            with pytest.raises(TransportError, match="ordered fault"):
                await consumer.fetch({T0: 1})
        assert (await consumer.fetch({T0: 1}))[0].next_offset == 1


async def test_writes_are_delayed_held_and_failed_with_the_error_given() -> None:
    async with transport_with_topic() as transport:
        faults = transport.broker.faults
        faults.delay_produce(5.0, times=1)
        before = trio.current_time()
        await transport.produce({T0: records(1)})
        assert trio.current_time() - before == 5.0
        faults.fail_produce(1, BrokerUnavailable("gone"), topic="t", partition=0)
        assert isinstance((await transport.produce({T0: records(1)}))[T0], BrokerUnavailable)
        async with trio.open_nursery() as nursery:
            with faults.hold_produce(topic="t") as hold:
                nursery.start_soon(transport.produce, {T0: records(1)})
                await hold.reached()
                assert hold.waiting == 1
                assert len(transport.broker.messages("t")) == 1
        assert len(transport.broker.messages("t")) == 2
        faults.fail_produce(None)
        with pytest.raises(ProduceError):
            await transport.transact({T0: records(1)}, {}, group="g", generation=0)
        faults.clear()
        assert isinstance((await transport.produce({T0: records(1)}))[T0], ProduceResult)


async def test_nobody_gets_an_answer_from_a_stopped_broker() -> None:
    async with transport_with_topic() as transport, consumer_of(transport) as consumer:
        transport.broker.faults.stop()
        generation = consumer.assignment.generation
        assert isinstance((await transport.produce({T0: records(1)}))[T0], BrokerUnavailable)
        for call in (
            lambda: transport.list_topics(),
            lambda: transport.partition_count("t"),
            lambda: transport.transact({T0: records(1)}, {}, group="g", generation=0),
            lambda: consumer.commit({T0: 0}, generation=generation),
            lambda: consumer.committed([T0]),
        ):
            with pytest.raises(BrokerUnavailable):
                await call()
        with trio.move_on_after(1000) as scope:
            await consumer.subscribe(["other"])
        assert scope.cancelled_caught
        assert transport.broker.messages("t") == []


async def test_a_rebalance_waits_while_the_broker_is_away() -> None:
    broker = MemoryBroker()
    other = MemoryTransport(broker=broker)
    async with transport_with_topic(broker) as transport, other.open(), consumer_of(transport) as first:
        before = first.assignment
        broker.faults.rebalance("g")
        broker.faults.stop()
        await trio.sleep(1000)
        assert first.assignment.generation == before.generation
        broker.faults.start()
        async with consumer_of(other) as second:
            assert second.assignment.generation > before.generation


async def test_a_lost_member_goes_on_fetching_until_it_touches_the_group_or_a_heartbeat() -> None:
    for touch in (False, True):
        listener = Listener()
        options = ConsumerOptions(group="g", session_timeout=30.0)
        async with (
            transport_with_topic() as transport,
            transport.open_consumer(options, listener) as consumer,
        ):
            await consumer.subscribe(["t"])
            generation = consumer.assignment.generation
            await consumer.commit({T0: 0}, generation=generation)
            transport.broker.faults.lose_member("g", "famulus")
            await transport.produce({T0: records(1)})
            await trio.sleep(9.9)
            assert len((await consumer.fetch({T0: 1}))[0].messages) == 1
            assert listener.revoked == []
            if touch:
                with pytest.raises(CommitRefused, match="session has expired"):
                    await consumer.commit({T0: 1}, generation=generation)
                await trio.sleep(0.01)
            else:
                await trio.sleep(0.2)
            assert listener.revoked == [(frozenset({T0}), True)]
            assert consumer.assignment.generation > generation
            assert consumer.position(T0) == 0


async def test_a_member_to_lose_must_exist() -> None:
    async with transport_with_topic() as transport, consumer_of(transport):
        with pytest.raises(KeyError, match="nobody"):
            transport.broker.faults.lose_member("g", "nobody")
