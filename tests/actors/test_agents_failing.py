"""Agents that fail or return, with isolated partitions and under trees of the user's; who is told of it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord
from famulus.supervision import OneForOneSupervisor


def fill(broker: MemoryBroker, topic: str, count: int, partitions: int = 2) -> None:
    broker.create_topic(topic, partitions)
    for partition in range(partitions):
        records = [ProducerRecord(None, str(1000 * partition + n).encode()) for n in range(count)]
        broker.append(TP(topic, partition), records)


@pytest.mark.parametrize("is_async", [False, True])
async def test_on_error_is_told_the_agent_and_the_error(broker: MemoryBroker, is_async: bool) -> None:
    app = famulus.App("told", broker=f"memory://{broker.name}")
    fill(broker, "numbers", 3, partitions=1)
    told: list[tuple[str, str]] = []

    def plain(agent: famulus.Agent[Any, Any], error: BaseException) -> None:
        told.append((agent.name, str(error)))

    async def waits(agent: famulus.Agent[Any, Any], error: BaseException) -> None:
        await trio.sleep(1)
        told.append((agent.name, str(error)))

    @app.agent(app.topic("numbers", value_type=int), name="fails", on_error=waits if is_async else plain)
    async def fails(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 1:
                raise ValueError("one")

    async with famulus.open_app(app):
        await trio.sleep(10)
    assert told == [("fails", "one")]
    assert broker.group("told").committed == {TP("numbers", 0): 3}


async def test_an_on_error_that_raises_is_logged_and_changes_nothing(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app = famulus.App("raises", broker=f"memory://{broker.name}")
    fill(broker, "numbers", 3, partitions=1)
    seen: list[int] = []

    def on_error(agent: famulus.Agent[Any, Any], error: BaseException) -> None:
        raise LookupError("its own")

    @app.agent(app.topic("numbers", value_type=int), name="fails", on_error=on_error)
    async def fails(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 1:
                raise ValueError("one")
            seen.append(number)

    with caplog.at_level(logging.ERROR):
        async with famulus.open_app(app):
            await trio.sleep(10)
    assert seen == [0, 2]
    assert "on_error of agent fails raised" in caplog.text


async def test_pain_11_an_actor_of_a_partition_that_returns_is_started_again(broker: MemoryBroker) -> None:
    app = famulus.App("returns", broker=f"memory://{broker.name}")
    fill(broker, "numbers", 3)
    seen: list[int] = []

    @app.agent(app.topic("numbers", value_type=int), isolated_partitions=True)
    async def one(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)
            return

    async with famulus.open_app(app):
        await trio.sleep(60)
        assert {actor.incarnation for actor in one.info().actors} == {4}
    assert sorted(seen) == [0, 1, 2, 1000, 1001, 1002]


async def test_pain_3_a_failed_event_of_a_partition_is_dead_lettered_and_the_others_go_on(broker: MemoryBroker) -> None:
    app = famulus.App("buries", broker=f"memory://{broker.name}")
    fill(broker, "numbers", 4)
    seen: list[int] = []

    @app.agent(
        app.topic("numbers", value_type=int), isolated_partitions=True, on_failure="retry", max_attempts=2, backoff=1
    )
    async def picky(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 1001:
                raise ValueError(number)
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(20)
        assert picky.info().dead_lettered == 1
    assert sorted(seen) == [0, 1, 2, 3, 1000, 1002, 1003]
    assert [letter.value for letter in broker.messages("numbers.dead-letter")] == [b"1001"]
    assert broker.group("buries").committed == {TP("numbers", 0): 4, TP("numbers", 1): 4}


async def test_pain_9_a_partition_that_crashes_in_a_loop_ends_the_run(broker: MemoryBroker) -> None:
    app = famulus.App("loops", broker=f"memory://{broker.name}")
    fill(broker, "numbers", 10)
    strategy = OneForOneSupervisor(max_restarts=3, within=60)

    @app.agent(app.topic("numbers", value_type=int), isolated_partitions=True, supervisor_strategy=strategy)
    async def loops(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number >= 1000:
                raise RuntimeError(number)
            await trio.sleep(1000)

    with pytest.raises(ExceptionGroup) as caught:
        async with famulus.open_app(app):
            await trio.sleep_forever()
    assert caught.group_contains(famulus.SupervisorFailed)


async def test_an_agent_with_isolated_partitions_stands_in_a_declared_tree(broker: MemoryBroker) -> None:
    tree = famulus.tree(
        famulus.tree(famulus.leaf("tally", shutdown=1.0), name="group", strategy=OneForOneSupervisor(max_restarts=9)),
        strategy=OneForOneSupervisor(),
    )
    app = famulus.App("placed", broker=f"memory://{broker.name}", tree=tree)
    fill(broker, "numbers", 6)
    seen: list[int] = []

    @app.agent(
        app.topic("numbers", value_type=int),
        name="tally",
        isolated_partitions=True,
        on_failure="retry",
        supervisor_strategy=OneForOneSupervisor(max_restarts=0),
    )
    async def tally(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            if event.value == 1003 and event.attempt == 1:
                raise ValueError("its supervisor gives up, and the one above starts it again")
            await trio.sleep(1)
            seen.append(event.value)

    async with famulus.open_app(app) as running:
        await trio.sleep(30)
        (top,) = [node for node in running.tree().children if node.name == "tree"]
        (group,) = top.children
        (node,) = group.children
        assert [child.name for child in node.children] == ["tally[assignment]", "tally[p0]", "tally[p1]"]
        assert node.restarts == 1
        before = trio.current_time()
        await tally.restart()
        await tally.cancel()
        assert trio.current_time() == before
    assert sorted(seen) == [1000 * p + n for p in range(2) for n in range(6)]
    assert broker.group("placed").committed == {TP("numbers", p): 6 for p in range(2)}


@pytest.mark.parametrize("isolated", [False, True])
async def test_many_actors_do_not_slow_a_rebalance(broker: MemoryBroker, isolated: bool) -> None:
    app = famulus.App("many", broker=f"memory://{broker.name}", stream_drain_timeout=3.0)
    partitions = 200 if isolated else 4
    fill(broker, "numbers", 1000 // partitions, partitions=partitions)
    options: dict[str, Any] = {"isolated_partitions": True} if isolated else {"concurrency": 500}
    done = 0

    @app.agent(app.topic("numbers", value_type=int), **options)
    async def slow(stream: famulus.Stream[int]) -> None:
        nonlocal done
        async for _ in stream:
            await trio.sleep(1)
            done += 1

    async with famulus.open_app(app):
        await trio.sleep(0.5)
        async with famulus.open_app(app):
            await trio.sleep(60)
    assert done == 1000
    assert sum(broker.group("many").committed.values()) == 1000
