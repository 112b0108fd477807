"""What a stream has not finished when its reader leaves it: others get it, or no longer wait for it. Nothing is stuck."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import trio

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP

FOR_EVER = famulus.OneForOneSupervisor(max_restarts=math.inf)


def app_of(broker: MemoryBroker, **settings: Any) -> famulus.App:
    for topic in ("starts", "numbers", "out"):
        broker.create_topic(topic, 1)
    return famulus.App("left", broker=f"memory://{broker.name}", broker_commit_interval=0.5, **settings)


async def test_an_output_that_fails_after_its_stream_was_closed_holds_up_no_other_reader(broker: MemoryBroker) -> None:
    app = app_of(broker, producer_delivery_timeout=20.0)
    starts, numbers = app.topic("starts", value_type=int), app.topic("numbers", value_type=int)
    out = app.topic("out", value_type=int)
    others: list[int] = []
    crashes = 0

    @app.agent(numbers)
    async def other(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            others.append(number)

    @app.agent(starts, on_failure="retry")
    async def passing(stream: famulus.Stream[int]) -> None:
        nonlocal crashes
        async for start in stream:
            if crashes:
                continue
            async for number in numbers.stream():
                if number == 2:
                    crashes += 1
                    raise ValueError(start)
                await out.send(number)

    broker.faults.fail_produce(topic="out", times=None, error=famulus.BrokerUnavailable("away"))
    async with famulus.open_app(app) as running:
        await starts.send(0)
        await trio.sleep(30)  # the new stream makes a rebalance
        for number in (1, 2, 3):
            await numbers.send(number)
        await trio.sleep(5)
        assert crashes == 1
        assert broker.group("left").committed.get(TP("numbers", 0), 0) == 0  # the output may still be delivered
        await trio.sleep(30)
        assert running.statistics().deliveries_failed == 1
        assert broker.group("left").committed[TP("numbers", 0)] == 3
    assert others == [1, 2, 3]


Derive = Callable[[famulus.Stream[int], famulus.Stream[int]], famulus.Stream[Any]]

STREAMS: dict[str, Derive] = {
    "alone": lambda own, made: made,
    "regrouped": lambda own, made: made.group_by(str, name="text"),
    "combined": lambda own, made: own & made,
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("comes", ["before", "after"])
async def test_another_actor_gets_what_a_crashed_one_does_not_come_back_to(
    broker: MemoryBroker, kind: str, comes: str
) -> None:
    """It may not be at its stream yet."""
    app = app_of(broker)
    starts, numbers = app.topic("starts", value_type=int), app.topic("numbers", value_type=int)
    seen: list[int] = []
    crashed = trio.Event()

    @app.agent(starts, concurrency=2, on_failure="retry", supervisor_strategy=FOR_EVER)
    async def passing(stream: famulus.Stream[int]) -> None:
        async for start in stream:
            if start == 2 and crashed.is_set():
                continue
            made = STREAMS[kind](stream, numbers.stream())
            if start == 1:
                if comes == "after":
                    await crashed.wait()
                async for number in made:
                    if number == 10 and not crashed.is_set():
                        await crashed.wait()
                    seen.append(number)
            else:
                async for number in made:
                    crashed.set()
                    raise ValueError(number)

    async with famulus.open_app(app):
        for start in (1, 2):
            await starts.send(start)
            await trio.sleep(60)  # the new stream makes a rebalance
        for number in (10, 11, 12):
            await numbers.send(number)
        await trio.sleep(60)
        assert crashed.is_set()
    assert {10, 11, 12} <= set(seen)
    assert broker.group("left").committed[TP("numbers", 0)] == 3
