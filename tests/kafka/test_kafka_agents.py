"""Agents on a real Kafka: isolated partitions that move between two members of a group, and a cancelled member's share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from uuid import uuid4

import pytest
import trio

import famulus
from famulus.testing.kafka import RunningKafka

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(120)]


async def until(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    with trio.move_on_after(60):
        while not condition():
            await trio.sleep(0.05)
        return
    pytest.fail(f"waited 60 s: {what()}")


async def test_isolated_partitions_move_between_two_members(kafka_broker: RunningKafka) -> None:
    name = f"isolated-{uuid4().hex[:8]}"
    app = famulus.App(name, broker=kafka_broker.url, broker_commit_interval=0.2)
    topic = app.topic(f"{name}-numbers", value_type=int, partitions=4, internal=True)
    seen: dict[int, list[int]] = defaultdict(list)
    of_task: dict[object, set[int]] = defaultdict(set)

    @app.agent(topic, name="tally", isolated_partitions=True)
    async def tally(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            seen[event.message.partition].append(event.value)
            of_task[trio.lowlevel.current_task()].add(event.message.partition)

    def partitions(running: famulus.RunningApp) -> set[int]:
        return {actor.index for actor in running.agent(tally).info().actors}

    sent = 0

    async def send(running: famulus.RunningApp, count: int) -> None:
        nonlocal sent
        with running.current():
            for number in range(sent, sent + count):
                await topic.send(number, partition=number % 4)
        sent += count
        await until(lambda: sum(map(len, seen.values())) >= sent, lambda: {p: len(n) for p, n in seen.items()})

    async with famulus.open_app(app) as first:
        assert partitions(first) == {0, 1, 2, 3}
        await send(first, 200)
        async with famulus.open_app(app) as second:
            await until(
                lambda: len(partitions(first)) == len(partitions(second)) == 2,
                lambda: (partitions(first), partitions(second)),
            )
            assert partitions(first) | partitions(second) == {0, 1, 2, 3}
            await send(second, 200)
            # A member whose agent is cancelled gives its partitions up: the other one has them all.
            await second.agent(tally).cancel()
            await until(lambda: partitions(first) == {0, 1, 2, 3}, lambda: partitions(first))
            await send(first, 200)
        await send(first, 200)
    for partition, numbers in seen.items():
        assert sorted(set(numbers)) == list(range(partition, sent, 4))
        assert numbers == sorted(numbers)
    assert all(len(of_one) == 1 for of_one in of_task.values())
