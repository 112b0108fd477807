"""When a message is done: by whom it is held, in which order it may be acknowledged, and what an actor's end does to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord


def fill(broker: MemoryBroker, count: int, *, partitions: int = 1) -> None:
    broker.create_topic("numbers", partitions)
    for number in range(count):
        broker.append(TP("numbers", number % partitions), [ProducerRecord(None, b"%d" % number)])


def app_on(broker: MemoryBroker, **settings: Any) -> famulus.App:
    settings = {"broker_commit_interval": 1.0, **settings}
    return famulus.App("life", broker=f"memory://{broker.name}", **settings)


def committed(broker: MemoryBroker) -> int:
    return sum(offset for tp, offset in broker.group("life").committed.items() if tp.topic == "numbers")


@pytest.mark.parametrize("how", ["sink", "group_by", "through", "echo", "a task of the agent's", "take"])
async def test_every_kind_of_output_holds_the_offset_until_it_is_delivered(broker: MemoryBroker, how: str) -> None:
    app = app_on(broker)
    out = app.topic("out", value_type=int, partitions=1)
    fill(broker, 5)
    hold = broker.faults.hold_produce(topic="out")
    onward: dict[str, Callable[[famulus.Stream[int]], famulus.Stream[int]]] = {
        "group_by": lambda stream: stream.group_by(str, name="text", topic=out),
        "through": lambda stream: stream.through(out),
        "echo": lambda stream: stream.echo(out),
    }

    async def work(stream: famulus.Stream[int]) -> None:
        if how == "take":
            async for numbers in stream.take(5):
                for number in numbers:
                    await out.send(number)
            return
        operate = onward.get(how)
        async for number in stream if operate is None else operate(stream):
            if how == "a task of the agent's":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(out.send, number)

    async def answer(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield number

    sinks = [out] if how == "sink" else []
    app.agent(app.topic("numbers", value_type=int), name="work", sink=sinks)(answer if sinks else work)
    async with famulus.open_app(app):
        await trio.sleep(10)
        assert committed(broker) == 0
        hold.release()
        await trio.sleep(10)
        assert committed(broker) == 5


async def test_actors_finish_out_of_order_and_the_slowest_holds_the_offset(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, 6)
    finished: list[int] = []

    @app.agent(app.topic("numbers", value_type=int), concurrency=3)
    async def work(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(100 if number == 1 else 1)
            finished.append(number)

    async with famulus.open_app(app):
        await trio.sleep(50)
        assert sorted(finished) == [0, 2, 3, 4, 5]
        assert committed(broker) == 1
        await trio.sleep(60)
        assert committed(broker) == 6


async def test_a_revocation_commits_what_is_done_however_long_the_interval(broker: MemoryBroker) -> None:
    app = app_on(broker, broker_commit_interval=10_000.0)
    fill(broker, 10, partitions=2)
    seen: list[int] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def work(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(5)
        assert committed(broker) == 0
        async with famulus.open_app(app):
            assert committed(broker) == 10
    assert sorted(seen) == list(range(10))


async def test_the_event_of_an_actor_that_is_stopped_alone_is_finished_and_of_one_that_is_cancelled_comes_first(
    broker: MemoryBroker,
) -> None:
    app = app_on(broker)
    fill(broker, 4)
    begun: list[tuple[int, int]] = []
    finished: list[int] = []
    pause = 2.0

    @app.agent(app.topic("numbers", value_type=int), name="work")
    async def work(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            begun.append((event.value, event.attempt))
            await trio.sleep(pause)
            finished.append(event.value)

    async with famulus.open_app(app) as running:
        assert running._run.root is not None
        actor = running._run.root.children["agents"].supervisor.children["work"].supervisor.children["work[0]"]
        await trio.sleep(1)
        pause = 100.0  # longer than a drain
        await actor.restart()
        assert finished == [0]
        await trio.sleep(1)
        await actor.restart()
        assert finished == [0]
        await trio.sleep(3)
        assert committed(broker) == 1
        pause = 1.0
        await actor.restart()
        await trio.sleep(20)
    assert finished == [0, 1, 2, 3]
    assert begun == [(0, 1), (1, 1), (1, 1), (1, 1), (2, 1), (3, 1)]
    assert committed(broker) == 4


async def test_an_event_that_is_kept_and_acknowledged_after_its_partition_was_lost_changes_nothing(
    broker: MemoryBroker,
) -> None:
    app = app_on(broker)
    fill(broker, 4, partitions=2)
    kept: list[famulus.Event[int]] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def keep(stream: famulus.Stream[int]) -> None:
        async for event in stream.noack().events():
            kept.append(event)

    async with famulus.open_app(app) as running:
        await trio.sleep(2)
        assert len(kept) == 4
        broker.faults.lose_member("life", running.settings.client_id or "life")
        await trio.sleep(30)
        assert len(kept) == 8
        for event in kept[:4]:
            event.ack()
        await running.commit()
        assert committed(broker) == 0
        for event in kept[4:]:
            event.ack()
        await running.commit()
        assert committed(broker) == 4


async def test_two_streams_in_one_task_hold_what_is_sent_for_both(broker: MemoryBroker) -> None:
    app = app_on(broker)
    out = app.topic("out", value_type=int, partitions=1)
    pipe = app.topic("pipe", value_type=int, partitions=1)
    fill(broker, 1)
    hold = broker.faults.hold_produce(topic="out")

    @app.agent(app.topic("numbers", value_type=int))
    async def both(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            async for other in pipe.stream():
                await out.send(number + other)
                break

    async with famulus.open_app(app):
        await trio.sleep(3)
        await pipe.send(7)
        await trio.sleep(10)
        assert committed(broker) == 0
        hold.release()
        await trio.sleep(10)
        assert committed(broker) == 1
    assert [message.value for message in broker.messages("out")] == [b"7"]
