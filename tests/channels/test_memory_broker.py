"""What is the memory broker's own: names, retention, and how it says no."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from famulus.channels.errors import (
    CommitRefused,
    ImproperlyConfigured,
    TransportError,
    UnknownTopic,
)
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.memory_group import assign
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import (
    Assignment,
    Consumer,
    ConsumerOptions,
    ProduceResult,
    TopicSpec,
    TransportOptions,
    load_transport,
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
async def transport_with_topic(broker: MemoryBroker | None = None, **config: str) -> AsyncIterator[MemoryTransport]:
    transport = MemoryTransport(broker=broker)
    async with transport.open():
        await transport.create_topic(TopicSpec(name="t", partitions=1, config=config))
        yield transport


@asynccontextmanager
async def consumer_of(
    transport: MemoryTransport, group: str = "g", instance_id: str | None = None
) -> AsyncIterator[Consumer]:
    options = ConsumerOptions(group=group, instance_id=instance_id)
    async with transport.open_consumer(options, Listener()) as consumer:
        await consumer.subscribe(["t"])
        yield consumer


# -- names and lifetimes -----------------------------------------------------------------------------------


def test_memory_is_found_by_its_scheme() -> None:
    transport = load_transport("memory://", TransportOptions())
    assert isinstance(transport, MemoryTransport)
    assert transport.owns_topics
    assert not transport.crosses_processes


@pytest.mark.parametrize("url", ["memory://a/b", "memory://a?b=c", "memory:///a", "kafka://a", "memory://a#b"])
def test_a_url_that_is_no_memory_url_is_refused(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="expected memory://"):
        MemoryTransport(url)


async def test_a_private_broker_belongs_to_one_transport() -> None:
    assert MemoryTransport("memory://").broker is not MemoryTransport("memory://").broker


async def test_a_named_broker_keeps_its_data_from_run_to_run_until_forgotten() -> None:
    try:
        async with MemoryTransport("memory://kept").open():
            MemoryBroker.named("kept").create_topic("t", 2)
        again = MemoryTransport("memory://kept")
        async with again.open():
            assert await again.list_topics() == ["t"]
    finally:
        MemoryBroker.forget("kept")
    assert MemoryTransport("memory://kept").broker.topics == {}
    MemoryBroker.forget("kept")


def test_a_name_is_registered_once() -> None:
    broker = MemoryBroker("taken").register()
    try:
        assert broker.register() is broker
        with pytest.raises(ValueError, match="'taken'"):
            MemoryBroker("taken").register()
        with pytest.raises(ValueError, match="''"):
            MemoryBroker().register()
    finally:
        MemoryBroker.forget("taken")


async def test_a_broker_is_not_shared_by_threads() -> None:
    broker = MemoryBroker()
    caught: list[BaseException] = []

    async def other_run() -> None:
        async with MemoryTransport(broker=broker).open():
            raise AssertionError

    def other_thread() -> None:
        try:
            trio.run(other_run)
        except RuntimeError as error:
            caught.append(error)

    async with MemoryTransport(broker=broker).open():
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert "another trio run" in str(caught[0])


async def test_a_transport_serves_one_run_at_a_time() -> None:
    transport = MemoryTransport()
    with pytest.raises(trio.ClosedResourceError):
        await transport.list_topics()
    async with transport.open():
        with pytest.raises(RuntimeError, match="open already"):
            async with transport.open():
                raise AssertionError
    with pytest.raises(trio.ClosedResourceError):
        await transport.produce({T0: records(1)})


async def test_one_consumer_per_group_and_transport() -> None:
    async with transport_with_topic() as transport, consumer_of(transport):
        with pytest.raises(RuntimeError, match="'g' already"):
            async with consumer_of(transport):
                raise AssertionError


async def test_a_closed_consumer_says_so_to_those_who_still_wait() -> None:
    async with transport_with_topic() as transport, trio.open_nursery() as nursery:
        closed = trio.Event()

        async def fetch(consumer: Consumer) -> None:
            with pytest.raises(trio.ClosedResourceError):
                while True:
                    await consumer.fetch({T0: 1})
            closed.set()

        async with consumer_of(transport) as consumer:
            nursery.start_soon(fetch, consumer)
            await trio.testing.wait_all_tasks_blocked()
        await closed.wait()
        with pytest.raises(CommitRefused):
            await consumer.commit({T0: 1}, generation=1)


async def test_missing_topics_are_created_with_the_default_or_named() -> None:
    options = TransportOptions(default_partitions=3)
    transport = MemoryTransport("memory://", options)
    async with transport.open(), transport.open_consumer(ConsumerOptions(group="g"), Listener()) as consumer:
        await consumer.subscribe(["new"])
        assert await transport.partition_count("new") == 3
        transport.broker.auto_create = False
        with pytest.raises(UnknownTopic, match=r"create_topic\(TopicSpec\(name='other'"):
            await consumer.subscribe(["new", "other"])
        assert {tp.topic for tp in consumer.assignment.partitions} == {"new"}


async def test_subscribing_inside_a_callback_is_refused() -> None:
    class Subscriber(Listener):
        async def on_assigned(self, assignment: Assignment) -> None:
            with pytest.raises(RuntimeError, match="wait for itself"):
                await consumer.subscribe(["other"])
            await super().on_assigned(assignment)

    listener = Subscriber()
    async with (
        transport_with_topic() as transport,
        transport.open_consumer(ConsumerOptions(group="g"), listener) as consumer,
    ):
        await consumer.subscribe(["t"])
    assert len(listener.assigned) == 1


async def test_a_second_member_with_the_same_instance_id_ends_the_first() -> None:
    broker = MemoryBroker()
    second = MemoryTransport(broker=broker)
    async with transport_with_topic(broker) as first:
        with trio.fail_after(60), pytest.raises(TransportError, match="taken over its instance_id 'a'"):
            async with (
                second.open(),
                consumer_of(first, instance_id="a"),
                consumer_of(second, instance_id="a"),
            ):
                await trio.sleep_forever()


async def test_deleting_a_topic_takes_its_partitions_and_commits_away() -> None:
    async with transport_with_topic() as transport, consumer_of(transport) as consumer:
        await transport.produce({T0: records(5)})
        await consumer.commit({T0: 5}, generation=consumer.assignment.generation)
        await transport.delete_topic("t")
        while consumer.assignment.partitions:
            await consumer.fetch({T0: 1})
        await transport.create_topic(TopicSpec(name="t", partitions=1))
        while not consumer.assignment.partitions:
            await consumer.fetch({T0: 1})
        assert await consumer.committed([T0]) == {T0: None}


def test_topics_of_the_same_members_are_co_partitioned() -> None:
    wants = {"b": ["x", "y"], "a": ["x", "y"], "c": ["y", "x"]}
    shares = assign(wants, {"x": 6, "y": 4})
    for share in shares.values():
        numbers = {tp.partition for tp in share if tp.topic == "x"}
        assert {tp.partition for tp in share if tp.topic == "y"} <= numbers
    assert shares["a"] == {TP("x", 0), TP("x", 3), TP("y", 0), TP("y", 3)}


# -- retention ---------------------------------------------------------------------------------------------


async def test_a_private_broker_drops_what_all_groups_have_committed() -> None:
    async with (
        transport_with_topic() as transport,
        consumer_of(transport, "one") as one,
        consumer_of(transport, "two") as two,
    ):
        log = transport.broker.log(T0)
        await transport.produce({T0: records(5000)})
        await one.commit({T0: 4000}, generation=one.assignment.generation)
        assert log.start == 0
        await two.commit({T0: 3000}, generation=two.assignment.generation)
        assert log.start == 3000
        assert len(log._entries) < 3100
        assert transport.broker.statistics().trimmed == 3000
        batches = await one.fetch({T0: 10})
        assert batches[0].messages[0].offset == 3000


async def test_a_compacted_topic_and_a_named_broker_keep_everything() -> None:
    for broker, config in ((None, {"cleanup.policy": "compact"}), (MemoryBroker(), {})):
        async with transport_with_topic(broker, **config) as transport, consumer_of(transport) as consumer:
            await transport.produce({T0: records(50)})
            await consumer.commit({T0: 50}, generation=consumer.assignment.generation)
            assert len(transport.broker.messages("t")) == 50


async def test_max_records_spares_what_a_group_has_yet_to_commit() -> None:
    broker = MemoryBroker(max_records=10)
    async with transport_with_topic(broker) as transport:
        await transport.produce({T0: records(25)})
        assert [message.offset for message in broker.messages("t")] == list(range(15, 25))
        async with consumer_of(transport) as consumer:
            await consumer.commit({T0: 20}, generation=consumer.assignment.generation)
            await transport.produce({T0: records(25)})
            assert broker.log(T0).start == 20


def test_a_broker_with_senseless_settings_is_refused() -> None:
    with pytest.raises(ValueError, match="max_records=0"):
        MemoryBroker(max_records=0)
    with pytest.raises(ValueError, match="keep='some'"):
        MemoryBroker(keep="some")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match="partitions=0"):
        MemoryBroker().create_topic("t", 0)


async def test_the_brokers_clock_stamps_what_has_no_time_or_everything() -> None:
    stamped = [ProducerRecord(None, b"a", timestamp=5.0), ProducerRecord(None, b"b")]
    broker = MemoryBroker(clock=lambda: 99.0)
    async with transport_with_topic(broker) as transport:
        assert await transport.produce({T0: stamped}) == {T0: ProduceResult(0, 99.0)}
        assert await transport.produce({T0: stamped[:1]}) == {T0: ProduceResult(2, None)}
        broker.create_topic("log", 1, config={"message.timestamp.type": "LogAppendTime"})
        assert await transport.produce({TP("log", 0): stamped[:1]}) == {TP("log", 0): ProduceResult(0, 99.0)}
    times = [(message.timestamp, message.timestamp_type) for message in broker.messages("t")]
    assert times == [(5.0, 0), (99.0, 0), (5.0, 0)]
    assert [(message.timestamp, message.timestamp_type) for message in broker.messages("log")] == [(99.0, 1)]
