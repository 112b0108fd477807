"""Streams that come and go, and agents that crash for days, leave nothing behind in the run."""

import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

import famulus
from famulus.channels.hand import Hand

MANY = 30


def kept(running: famulus.RunningApp) -> dict[str, int]:
    """How much the run keeps of its streams."""
    run = running._run
    conductor = run.conductor
    hands = [actor._hand for agent_run in running._agents.values() for actor in agent_run.actors]
    readers = [run._states[key] for key in run._states if isinstance(key, tuple) and key[0] == "readers"]
    return {
        "states": len(run._states),
        "readers": sum(map(len, readers)),
        "inboxes": len(conductor._readers._interests),
        "cursors": len(conductor._draining.cursors),
        "services": len(run.services.children) if run.services is not None else 0,
        "declared": len(run.producer.declare),
        "in hands": sum(map(_held, hands)),
        "of agents": sum(
            len(agent_run.subscription._cursors)
            + len(agent_run.subscription.derived)
            + len(agent_run.subscription.combinations)
            for agent_run in running._agents.values()
        ),
    }


def _held(hand: Hand) -> int:
    return len(hand._cursors) + len(hand._made) + len(hand._spare)


async def items() -> AsyncIterator[int]:
    for number in range(3):
        yield number


Make = Callable[[famulus.RunningApp, famulus.Topic[int], famulus.Channel[int]], famulus.Stream[Any]]

STREAMS: dict[str, Make] = {
    "topic": lambda app, topic, local: topic.stream(),
    "local": lambda app, topic, local: local.stream(),
    "iterable": lambda app, topic, local: app.stream([1, 2, 3]),
    "async iterable": lambda app, topic, local: app.stream(items()),
    "combined": lambda app, topic, local: topic.stream() & local.stream() & app.stream([1]),
    "echo": lambda app, topic, local: app.stream([1]).echo("copies"),
    "group_by": lambda app, topic, local: local.stream().group_by(str, name="text"),
    "through": lambda app, topic, local: topic.stream().through("onward"),
}


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_that_is_closed_leaves_nothing_behind(kind: str) -> None:
    app = famulus.App("short")
    topic, local = app.topic("numbers", value_type=int), app.channel(value_type=int)
    async with famulus.open_app(app) as running:

        async def use_and_close() -> None:
            stream = STREAMS[kind](running, topic, local)
            with trio.move_on_after(0.1):
                async for _ in stream:
                    await topic.send(1)
                    break
            stream.close()

        for _ in range(3):
            await use_and_close()
        before = kept(running)
        for _ in range(MANY):
            await use_and_close()
        await trio.sleep(5)
        after = kept(running)
    assert all(after[name] <= before[name] for name in before), (before, after)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_an_agent_that_crashes_again_and_again_leaves_nothing_behind(concurrency: int) -> None:
    app = famulus.App("crashing")
    numbers, others = app.topic("numbers", value_type=int), app.topic("others", value_type=int)
    local = app.channel(value_type=int)
    crashes = 0

    @app.agent(numbers, concurrency=concurrency, supervisor_strategy=famulus.OneForOneSupervisor(max_restarts=math.inf))
    async def crashing(stream: famulus.Stream[int]) -> None:
        nonlocal crashes
        regrouped = (stream & others.stream()).through("via").group_by(str, name="text")
        async for numbers in regrouped.take(2, 0.1):
            crashes += 1
            inside = (others.stream() & local.stream()).group_by(str, name="inside").echo("copies")
            with trio.move_on_after(0.05):
                async for _ in inside:
                    break
            raise ValueError(numbers)

    async with famulus.open_app(app) as running:

        async def crash(until: int) -> None:
            while crashes < until:
                await numbers.send(crashes, key=str(crashes))
                await trio.sleep(0.5)

        async def calm() -> None:
            """What is in the topics goes on to crash actors, which come back after half a minute."""
            seen = -1
            while seen < crashes:
                seen = crashes
                await trio.sleep(100)

        await crash(10)
        await calm()
        before = kept(running)
        await crash(10 + MANY)
        await calm()
        after = kept(running)
    assert all(after[name] <= before[name] for name in before), (before, after)
