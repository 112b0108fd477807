"""Agents where several things happen to them at once, or at the wrong moment."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator
from math import inf
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord

T = TypeVar("T")


def fill(broker: MemoryBroker, topic: str, count: int, partitions: int) -> None:
    if topic not in broker.topics:
        broker.create_topic(topic, partitions)
    for partition in range(partitions):
        records = [ProducerRecord(None, str(1000 * partition + n).encode()) for n in range(count)]
        broker.append(TP(topic, partition), records)


async def test_a_late_agent_whose_start_failed_can_be_cancelled_and_says_why_it_cannot_be_restarted(
    broker: MemoryBroker,
) -> None:
    app = famulus.App("late", broker=f"memory://{broker.name}")
    broker.create_topic("numbers", 2)
    async with famulus.open_app(app) as running:

        @running.agent(famulus.Topic(app, "numbers", value_type=int, value_serializer="pickle"), name="late")
        async def late(stream: famulus.Stream[int]) -> None:
            async for _ in stream:
                pass

        await trio.sleep(1)
        assert late.info().state == "stopped"
        with trio.fail_after(100):
            with pytest.raises(famulus.AgentError, match=r"could not be started.*pickle"):
                await late.restart()
            await late.cancel()
        assert late.info().state == "cancelled"


async def test_a_restart_that_comes_behind_a_cancel_says_that_it_was_cancelled(broker: MemoryBroker) -> None:
    app = famulus.App("behind", broker=f"memory://{broker.name}")
    fill(broker, "numbers", 3, 1)

    @app.agent(app.topic("numbers", value_type=int), name="slow")
    async def slow(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep(2)

    async with famulus.open_app(app):
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.cancel)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(famulus.AgentError, match="cancelled"):
                await slow.restart()
        await slow.cancel()
        assert slow.info().state == "cancelled"


@pytest.mark.parametrize("isolated", [False, True])
async def test_a_cancelled_agent_stays_so_when_what_it_stands_under_is_restarted(
    broker: MemoryBroker, isolated: bool
) -> None:
    group = famulus.tree(
        famulus.leaf("gone"),
        famulus.leaf("other"),
        name="group",
        strategy=famulus.OneForAllSupervisor(max_restarts=0),
    )
    tree = famulus.tree(group, strategy=famulus.OneForOneSupervisor())
    app = famulus.App("stays", broker=f"memory://{broker.name}", tree=tree)
    fill(broker, "numbers", 1, 2)
    seen: list[int] = []
    crash = True

    @app.agent(app.topic("numbers", value_type=int), name="gone", isolated_partitions=isolated)
    async def gone(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    @app.agent(name="other", supervisor_strategy=famulus.OneForOneSupervisor(max_restarts=0))
    async def other(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        nonlocal crash
        async for number in stream:
            if crash:
                crash = False
                raise ValueError(number)
            yield number

    async with famulus.open_app(app):
        await trio.sleep(1)
        await gone.cancel()
        fill(broker, "numbers", 1, 2)
        with pytest.raises(famulus.AgentError):
            await other.ask(1)
        await trio.sleep(100)
        assert await other.ask(2) == 2
        assert gone.info().state == "cancelled"
        assert all(actor.state in ("stopped", "waiting", "starting") for actor in gone.info().actors)
    assert sorted(seen) == [0, 1000]


async def test_a_partition_comes_back_to_life_that_returned_while_its_actor_was_being_ended(
    broker: MemoryBroker,
) -> None:
    """What follows the assignment is restarted itself in the middle of ending an actor, and the partition returns."""
    fill(broker, "numbers", 1, 2)
    app = famulus.App("returns", broker=f"memory://{broker.name}", consumer_group_instance_id=None)
    seen: list[int] = []

    def declare(app: famulus.App, mine: bool) -> famulus.Agent[int, None]:
        @app.agent(
            app.topic("numbers", value_type=int),
            name="tally",
            isolated_partitions=True,
            supervisor_strategy=famulus.OneForAllSupervisor(
                max_restarts=inf, backoff=famulus.Backoff(min=10, jitter=0)
            ),
        )
        async def tally(stream: famulus.Stream[int]) -> None:
            async for event in stream.events():
                seen.append(event.value)
                event.ack()
                if mine and event.message.offset == 0:
                    await trio.sleep(4)  # done with the event, but not with what it does
                if mine and event.message.offset == 1:
                    raise ValueError("the whole group is restarted")

        return tally

    agent = declare(app, True)
    other = famulus.App("returns", broker=f"memory://{broker.name}")
    declare(other, False)
    async with famulus.open_app(app):
        await trio.sleep(1)
        assert sorted(seen) == [0, 1000]
        async with famulus.open_app(other):
            kept = agent.info().partitions
            assert kept is not None
            (partition,) = kept
            await trio.sleep(1)
            broker.append(TP("numbers", partition), [ProducerRecord(None, b"7")])
            await trio.sleep(2.6)
        await trio.sleep(30)
        broker.append(TP("numbers", 0), [ProducerRecord(None, b"8")])
        broker.append(TP("numbers", 1), [ProducerRecord(None, b"9")])
        await trio.sleep(30)
        assert {actor.state for actor in agent.info().actors} == {"waiting"}, agent.info()
    assert {8, 9} <= set(seen)


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


async def test_an_event_that_can_neither_be_encoded_nor_shown_is_buried_all_the_same(broker: MemoryBroker) -> None:
    app = famulus.App("words", broker=f"memory://{broker.name}")
    seen: list[Any] = []

    @app.agent(app.channel("things"), name="picky", on_failure="dead_letter")
    async def picky(stream: famulus.Stream[Any]) -> None:
        async for thing in stream:
            seen.append(thing)
            raise ValueError("no")

    async with famulus.open_app(app) as running:
        await picky.send(Unspeakable())
        await picky.send({1: object(), "a": {1, 2}})
        await trio.sleep(10)
        assert running.statistics().dead_letters == 2
    assert len(seen) == 2


def test_a_type_variable_is_no_value_type() -> None:
    app = famulus.App("generic")

    def make(name: str) -> famulus.Agent[Any, None]:
        @app.agent(name=name)
        async def generic(stream: famulus.Stream[T]) -> None:
            async for _ in stream:
                pass

        return generic

    assert make("a").channel.schema.value_type is None


async def test_letters_do_not_pile_up_without_bound_while_their_topic_cannot_be_written(broker: MemoryBroker) -> None:
    app = famulus.App("piles", broker=f"memory://{broker.name}", producer_buffer_maxsize=20)
    broker.create_topic("things.dead-letter", 1)
    failed = 0

    @app.agent(
        app.channel("things", value_type=int, maxsize=20),
        name="picky",
        on_failure="dead_letter",
        supervisor_strategy=famulus.OneForOneSupervisor(max_restarts=inf, backoff=famulus.Backoff(min=0.01, max=0.01)),
    )
    async def picky(stream: famulus.Stream[int]) -> None:
        nonlocal failed
        async for _ in stream:
            failed += 1
            raise ValueError("no")

    async with famulus.open_app(app) as running:
        broker.faults.stop()
        with trio.move_on_after(50):
            while True:
                await picky.send(1)
        assert failed <= 25
        sent = running.statistics().messages_sent
        broker.faults.start()
        await trio.sleep(200)
        assert failed > sent
        assert running.statistics().dead_letters == failed


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("by", ["agent", "channel"])
async def test_an_agent_that_pours_into_its_own_full_channel_is_told_so(concurrency: int, by: str) -> None:
    app = famulus.App("circle")
    channel = app.channel("circle", value_type=int, maxsize=2)
    errors: list[BaseException] = []
    seen = 0

    @app.agent(
        channel,
        name="circle",
        concurrency=concurrency,
        supervisor_strategy=famulus.OneForOneSupervisor(max_restarts=inf),
        on_error=lambda _, error: errors.append(error),
    )
    async def circle(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        nonlocal seen
        async for number in stream:
            seen += 1
            await trio.sleep(1)
            if number < 5:
                yield number + 1

    circle.add_sink(circle if by == "agent" else channel)
    async with famulus.open_app(app), trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(circle.send, 0)
        await trio.sleep(300)
        assert {actor.state for actor in circle.info().actors} == {"waiting"}
    assert seen >= 12 + 5
    assert errors
    assert all("is its own sink, and its channel is full" in str(error) for error in errors)


async def test_an_instance_whose_method_is_an_agent_lives_as_long_as_the_run_that_it_was_declared_on() -> None:
    app = famulus.App("instance")

    class Counter:
        async def counts(self, stream):  # type: ignore[no-untyped-def]
            async for number in stream:
                yield number

    counter = Counter()
    alive = weakref.ref(counter)
    async with famulus.open_app(app) as running:
        agent = running.agent(name="counts")(counter.counts)
        del counter
        assert await agent.ask(1) == 1
        assert alive() is not None
    del agent, running
    gc.collect()
    assert alive() is None
