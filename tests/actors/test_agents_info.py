"""What an agent tells of itself: `info()`, `actor_tracebacks()`, `current_agent()`, `current_event()`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

import famulus
from famulus.actors.info import ActorInfo
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord


def put(broker: MemoryBroker, topic: str, *values: bytes) -> None:
    if topic not in broker.topics:
        broker.create_topic(topic, 1)
    for value in values:
        broker.append(TP(topic, 0), [ProducerRecord(None, value)])


async def test_info_tells_what_each_actor_does(broker: MemoryBroker) -> None:
    app = famulus.App("tells", broker=f"memory://{broker.name}")
    put(broker, "numbers", b"1", b"2", b"3", b"4")

    @app.agent(app.topic("numbers", value_type=int), name="tells", concurrency=2)
    async def tells(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep(10)

    async with famulus.open_app(app):
        await trio.sleep(5)
        info = tells.info()
        assert (info.name, info.channel, info.topics, info.state) == ("tells", "numbers", ("numbers",), "running")
        assert (info.concurrency, info.partitions, info.buffered, info.taken) == (2, None, 2, 2)
        assert info.actors == (
            ActorInfo(
                name="tells[0]",
                index=0,
                incarnation=1,
                state="working",
                partition=TP("numbers", 0),
                offset=info.actors[0].offset,
                attempt=1,
            ),
            ActorInfo(
                name="tells[1]",
                index=1,
                incarnation=1,
                state="working",
                partition=TP("numbers", 0),
                offset=info.actors[1].offset,
                attempt=1,
            ),
        )
        assert {actor.offset for actor in info.actors} == {0, 1}
        await trio.sleep(20)
        info = tells.info()
        assert [actor.state for actor in info.actors] == ["waiting", "waiting"]
        assert (info.buffered, info.taken) == (0, 4)


@pytest.mark.real_time
async def test_info_tells_how_long_an_actor_has_had_its_event(broker: MemoryBroker) -> None:
    app = famulus.App("how-long", broker=f"memory://{broker.name}")
    put(broker, "numbers", *[b"1"] * 100, b"2")
    begun = 0.0
    hold = trio.Event()
    there = trio.Event()

    @app.agent(app.topic("numbers", value_type=int))
    async def holds(stream: famulus.Stream[int]) -> None:
        nonlocal begun
        async for number in stream:
            if number == 2:
                begun = trio.current_time()
                there.set()
                await hold.wait()

    async with famulus.open_app(app):
        await there.wait()
        await trio.sleep(0.3)
        before = trio.current_time() - begun
        (actor,) = holds.info().actors
        after = trio.current_time() - begun
        assert actor.in_hand is not None
        assert before <= actor.in_hand <= after + 0.05
        hold.set()


@pytest.mark.parametrize("policy", ["ack", "retry", "dead_letter"])
async def test_info_counts_what_failed(broker: MemoryBroker, policy: str) -> None:
    app = famulus.App("counts", broker=f"memory://{broker.name}")
    put(broker, "numbers", b"1", b"2", b"3")

    @app.agent(app.topic("numbers", value_type=int), on_failure=policy, max_attempts=3)  # type: ignore[arg-type]
    async def fails(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 2:
                raise ValueError(number)

    async with famulus.open_app(app):
        await trio.sleep(30)
        info = fails.info()
    counts = {"ack": (1, 0, 0), "retry": (3, 2, 1), "dead_letter": (1, 0, 1)}
    assert (info.failed, info.retried, info.dead_lettered) == counts[policy]
    assert info.taken == 3


async def test_info_of_an_agent_on_a_local_channel() -> None:
    app = famulus.App("local")
    channel = app.channel("here", value_type=int)

    @app.agent(channel)
    async def reads(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep_forever()

    async with famulus.open_app(app):
        for number in range(3):
            await channel.send(number)
        await trio.testing.wait_all_tasks_blocked()
        info = reads.info()
        assert (info.channel, info.topics, info.taken, info.buffered) == ("here", (), None, 2)
        assert (info.actors[0].state, info.actors[0].offset) == ("working", -1)


async def test_an_agent_that_has_not_come_to_its_stream_is_starting() -> None:
    async with famulus.open_app() as app:

        @app.agent()
        async def slow(stream: famulus.Stream[int]) -> None:
            await trio.sleep(10)
            async for _ in stream:
                pass

        assert slow.info().state == "starting"
        assert slow.info().actors[0].incarnation == 0
        await trio.sleep(5)
        assert slow.info().actors[0].state == "starting"
        await trio.sleep(6)
        assert (slow.info().state, slow.info().actors[0].state) == ("running", "waiting")


async def deep_wait() -> None:
    await trio.sleep_forever()


class Parts:
    async def parts(self) -> AsyncIterator[int]:
        yield 1
        await deep_wait()


async def test_tracebacks_show_nested_awaits_generators_and_the_tasks_of_nurseries() -> None:
    app = famulus.App("stacks")

    async def helper() -> None:
        await deep_wait()

    @app.agent(name="nested")
    async def nested(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            async for _ in Parts().parts():
                pass
            yield number

    @app.agent(name="group", concurrency=2)
    async def group(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(helper, name="helper of the group")

    async with famulus.open_app(app):
        await nested.send(1)
        await group.send(1)
        await trio.sleep(1)
        stacks = nested.actor_tracebacks()
        assert list(stacks) == ["nested[0]"]
        lines = stacks["nested[0]"].splitlines()
        assert [line.split(" in ")[1].split(":")[0].rpartition(".")[2] for line in lines] == [
            "nested",
            "parts",
            "deep_wait",
        ]
        assert lines[0].endswith("async for _ in Parts().parts():")
        of_group = group.actor_tracebacks()
        assert list(of_group) == ["group[0]", "group[1]"]
        busy, idle = sorted(of_group.values(), key=lambda text: "helper" not in text)
        assert "in its nursery, helper of the group:" in busy
        assert busy.count("deep_wait") == 2  # who awaits it, and itself
        assert "async for _ in stream" in idle
        assert "helper" not in idle


async def test_the_stack_of_an_actor_that_waits_for_its_restart_is_not_there(broker: MemoryBroker) -> None:
    app = famulus.App("gone", broker=f"memory://{broker.name}")
    put(broker, "numbers", b"1")

    @app.agent(app.topic("numbers", value_type=int), backoff=25)
    async def fragile(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            raise ValueError(number)

    async with famulus.open_app(app):
        await trio.sleep(1)
        assert fragile.actor_tracebacks() == {}
        assert fragile.info().actors[0].state == "backoff"


async def test_the_current_agent_and_event_are_known_in_tasks_that_an_actor_starts() -> None:
    app = famulus.App("inside")
    seen: list[tuple[object, object]] = []

    async def look() -> None:
        event = famulus.current_event()
        seen.append((famulus.current_agent(), None if event is None else event.value))

    @app.agent()
    async def starts(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look)
            yield number

    async with famulus.open_app(app):
        await starts.ask(7)
        await look()
    assert seen == [(starts, 7), (None, None)]
