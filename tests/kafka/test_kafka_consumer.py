"""Members of Kafka groups where the contract of transports says nothing: static ones, and what is cancelled."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import GroupLoadInProgressError
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchResponse_v3

from famulus.channels.errors import CommitRefused, MemberReplaced, UnknownTopic
from famulus.channels.message import TP
from famulus.channels.transport import ConsumerOptions, TopicSpec, TransportOptions
from famulus.kafka import KafkaTransport
from famulus.testing.contract import GroupMember, Recorder
from famulus.testing.contract_kit import Changes, numbered, values
from famulus.testing.kafka import RunningKafka
from famulus.testing.kafka_broker import KafkaBroker

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(60)]


async def test_of_two_static_members_with_one_id_the_older_ends(kafka_broker: RunningKafka) -> None:
    changes = Changes()
    options = ConsumerOptions(group="one-id", instance_id="a", session_timeout=2.0, rebalance_timeout=5.0)
    tp = TP("one-id", 0)
    told: list[str] = []
    both = trio.Event()

    async def older(*, task_status: trio.TaskStatus[None]) -> None:
        transport, recorder = KafkaTransport(kafka_broker.url), Recorder(changes)
        with pytest.raises(MemberReplaced, match=r"'a'.*only one process") as caught:
            async with transport.open(), transport.open_consumer(options, recorder) as consumer:
                await consumer.subscribe([tp.topic])
                task_status.started()
                await trio.sleep_forever()
        assert not caught.value.retriable
        assert recorder.revoked == [(frozenset({tp}), True)]
        told.append("ended")
        both.set()

    transport, recorder = KafkaTransport(kafka_broker.url), Recorder(changes)
    async with transport.open():
        await transport.create_topic(TopicSpec(name=tp.topic, partitions=1))
        await transport.produce({tp: numbered(0, 3)})
        async with trio.open_nursery() as nursery:
            await nursery.start(older)
            async with transport.open_consumer(options, recorder) as consumer:
                await consumer.subscribe([tp.topic])
                await both.wait()
                member = GroupMember(transport, consumer, recorder)
                assert values(await member.read(3)) == [b"0", b"1", b"2"]
                await member.commit({tp: 3})  # the newer one was not evicted in turn
                assert recorder.revoked == []
    assert told == ["ended"]


async def test_a_missing_topic_is_named_with_what_creates_it(kafka_broker: RunningKafka) -> None:
    transport = KafkaTransport(kafka_broker.url)
    async with transport.open(), transport.open_consumer(ConsumerOptions(group="m"), Recorder(Changes())) as consumer:
        with pytest.raises(UnknownTopic, match=r"topics create not-there"):
            await consumer.subscribe(["not-there"])


async def test_a_coordinator_that_is_loading_is_not_taken_for_a_group_without_commits(
    kafka_broker: RunningKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer holds no partitions then, only an error of the group."""
    transport, recorder = KafkaTransport(kafka_broker.url), Recorder(Changes())
    tp = TP("loading", 0)
    async with transport.open():
        await transport.create_topic(TopicSpec(name=tp.topic, partitions=1))
        await transport.produce({tp: numbered(0, 5)})
        async with transport.open_consumer(ConsumerOptions(group="loading"), recorder) as consumer:
            await consumer.subscribe([tp.topic])
            await consumer.commit({tp: 3}, generation=consumer.assignment.generation)
        send, asked = AIOKafkaClient.send, 0

        async def loading(client: AIOKafkaClient, node: object, request: object, **more: Any) -> object:
            nonlocal asked
            if isinstance(request, OffsetFetchRequest):
                asked += 1
                if asked % 3:
                    return OffsetFetchResponse_v3(0, [], GroupLoadInProgressError.errno)
            return await send(client, node, request, **more)

        monkeypatch.setattr(AIOKafkaClient, "send", loading)
        async with transport.open_consumer(ConsumerOptions(group="loading"), recorder) as consumer:
            assert await consumer.committed([tp]) == {tp: 3}
            await consumer.subscribe([tp.topic])
            assert consumer.position(tp) == 3
        assert asked == 6


async def test_no_topics_at_all_gives_everything_up(kafka_broker: RunningKafka) -> None:
    transport, recorder = KafkaTransport(kafka_broker.url), Recorder(Changes())
    async with transport.open(), transport.open_consumer(ConsumerOptions(group="none"), recorder) as consumer:
        tp = TP("given-up", 0)
        await transport.create_topic(TopicSpec(name=tp.topic, partitions=1))
        await consumer.subscribe([tp.topic])
        generation = consumer.assignment.generation
        await consumer.subscribe([])
        assert consumer.assignment.partitions == frozenset()
        assert recorder.revoked == [(frozenset({tp}), False)]
        with pytest.raises(CommitRefused):
            await consumer.commit({tp: 1}, generation=generation)
        await consumer.subscribe([tp.topic])
        assert consumer.assignment.partitions == frozenset({tp})


async def test_a_consumer_that_is_cancelled_anywhere_works_on(kafka_broker: RunningKafka) -> None:
    """Whatever call is cancelled, and when: the next one finds the client as it should be."""
    transport, recorder = KafkaTransport(kafka_broker.url), Recorder(Changes())
    tp = TP("cancelled-anywhere", 0)
    async with transport.open():
        await transport.create_topic(TopicSpec(name=tp.topic, partitions=1))
        async with transport.open_consumer(ConsumerOptions(group="anywhere"), recorder) as consumer:
            for attempt in range(10):
                with trio.move_on_after(attempt / 200):
                    await consumer.subscribe([tp.topic])
            await consumer.subscribe([tp.topic])
            member = GroupMember(transport, consumer, recorder)
            for attempt in range(30):
                await transport.produce({tp: numbered(attempt, attempt + 1)})
                for call in (lambda: consumer.committed([tp]), lambda: consumer.fetch({})):
                    with trio.move_on_after(attempt / 5000):
                        await call()
                (message,) = await member.read(1)
                assert message.offset == attempt
                with trio.move_on_after(attempt / 5000):
                    await member.commit({tp: attempt + 1})
            await member.commit({tp: 30})
            assert await consumer.committed([tp]) == {tp: 30}


async def test_a_full_stream_does_not_lose_its_place_in_the_group(kafka_broker: RunningKafka) -> None:
    transport, recorder = KafkaTransport(kafka_broker.url), Recorder(Changes())
    options = ConsumerOptions(group="full", session_timeout=1.0, rebalance_timeout=2.0)
    tp = TP("full-stream", 0)
    async with transport.open():
        await transport.create_topic(TopicSpec(name=tp.topic, partitions=1))
        await transport.produce({tp: numbered(0, 10)})
        async with transport.open_consumer(options, recorder) as consumer:
            await consumer.subscribe([tp.topic])
            member = GroupMember(transport, consumer, recorder)
            await member.read(2, {tp: 2})
            with trio.move_on_after(2.5):  # more than the session, less than nothing is fetched
                await consumer.fetch({})
            assert recorder.revoked == []
            await member.commit({tp: 2})
            assert values(await member.read(8)) == [b"%d" % number for number in range(2, 10)]


async def test_closing_while_a_rebalance_is_drained_waits_for_the_drain(kafka_broker: RunningKafka) -> None:
    changes = Changes()
    options = ConsumerOptions(group="drained", session_timeout=2.0, rebalance_timeout=5.0)
    tp = TP("drained", 0)
    one, two = (KafkaTransport(kafka_broker.url, TransportOptions(client_id=name)) for name in ("one", "two"))
    draining, drained = trio.Event(), trio.Event()
    recorder = Recorder(changes)

    async def drain(revoked: frozenset[TP], lost: bool) -> None:
        draining.set()
        await drained.wait()
        await first.commit({tp: 2}, generation=first.assignment.generation)

    recorder.before_revoked_returns = drain
    async with one.open(), two.open(), trio.open_nursery() as nursery:
        await one.create_topic(TopicSpec(name=tp.topic, partitions=1))
        await one.produce({tp: numbered(0, 3)})
        async with two.open_consumer(options, Recorder(changes)) as second:
            async with one.open_consumer(options, recorder) as first:
                await first.subscribe([tp.topic])
                nursery.start_soon(second.subscribe, [tp.topic])
                await draining.wait()
                nursery.start_soon(_set_later, drained)
            with trio.fail_after(20):
                await second.subscribe([tp.topic])
                assert second.position(tp) == 2
        assert recorder.revoked == [(frozenset({tp}), False)]


async def _set_later(event: trio.Event) -> None:
    await trio.testing.wait_all_tasks_blocked(0.05)
    event.set()


async def test_a_broker_that_is_away_is_said_once(
    own_kafka_broker: KafkaBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "famulus.kafka")
    transport, recorder = KafkaTransport(own_kafka_broker.url), Recorder(Changes())
    tp = TP("away", 0)

    def said(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records if record.name == "famulus.kafka")

    async def until_said(text: str) -> None:
        while not said(text):
            await trio.sleep(0.05)

    try:
        async with transport.open(), transport.open_consumer(ConsumerOptions(group="away"), recorder) as consumer:
            await transport.create_topic(TopicSpec(name=tp.topic, partitions=1))
            await consumer.subscribe([tp.topic])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(GroupMember(transport, consumer, recorder).pump)
                await trio.to_thread.run_sync(own_kafka_broker.stop_process)
                await until_said("waits for the broker")
                await trio.sleep(2.5)  # more would be said by now
                await trio.to_thread.run_sync(own_kafka_broker.start_process)
                await until_said("goes on")
                nursery.cancel_scope.cancel()
        assert (said("waits for the broker"), said("goes on")) == (1, 1)
    finally:
        await trio.to_thread.run_sync(own_kafka_broker.start_process)
