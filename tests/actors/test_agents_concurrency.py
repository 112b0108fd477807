"""Several actors share an agent's stream: the idle one takes the next event, and each has its own place and fate."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord


def put(broker: MemoryBroker, topic: str, *values: int, partitions: int = 1) -> None:
    if topic not in broker.topics:
        broker.create_topic(topic, partitions)
    for partition in range(partitions):
        records = [ProducerRecord(None, str(value).encode()) for value in values if value % partitions == partition]
        broker.append(TP(topic, partition), records)


@pytest.mark.hard_timeout(120)
async def test_a_thousand_actors_process_each_of_100_000_events_once(broker: MemoryBroker) -> None:
    app = famulus.App("thousand", broker=f"memory://{broker.name}")
    put(broker, "numbers", *range(100_000), partitions=4)
    seen: Counter[int] = Counter()
    at_once = most = 0

    @app.agent(app.topic("numbers", value_type=int), concurrency=1000)
    async def busy(stream: famulus.Stream[int]) -> None:
        nonlocal at_once, most
        async for number in stream:
            at_once += 1
            most = max(most, at_once)
            if number < 5_000:
                await trio.sleep(1)
            at_once -= 1
            seen[number] += 1

    async with famulus.open_app(app) as running:
        while running.statistics().messages_acked < 100_000:
            await trio.sleep(1)
        states = Counter(actor.state for actor in busy.info().actors)
        assert states == {"waiting": 1000}
    assert seen == Counter(range(100_000))
    assert most == 1000
    assert sum(broker.group("thousand").committed.values()) == 100_000


@pytest.mark.real_time
async def test_starting_and_stopping_actors_is_not_quadratic() -> None:
    async def time_of(count: int) -> float:
        app = famulus.App(f"of-{count}")

        @app.agent(concurrency=count)
        async def idle(stream: famulus.Stream[int]) -> None:
            async for _ in stream:
                pass

        best = 1e9
        for _ in range(2):
            began = time.process_time()
            async with famulus.open_app(app):
                await idle.restart()
            best = min(best, time.process_time() - began)
        return best

    few, many = await time_of(100), await time_of(800)
    assert many < few * 8 * 4  # eight times as many: quadratic would be 64 times as long


async def test_each_actor_has_its_place_in_the_tree_and_its_incarnation(broker: MemoryBroker) -> None:
    app = famulus.App("places", broker=f"memory://{broker.name}")
    put(broker, "numbers", 1, 2, 3)

    @app.agent(app.topic("numbers", value_type=int), name="shop.tally", concurrency=3, backoff=5)
    async def tally(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 2:
                raise ValueError(number)
            await trio.sleep(1000)

    async with famulus.open_app(app) as running:
        await trio.sleep(1)
        agents = next(node for node in running.tree().children if node.name == "agents")
        (node,) = agents.children
        assert (node.name, [child.name for child in node.children]) == (
            "shop.tally",
            ["shop.tally[0]", "shop.tally[1]", "shop.tally[2]"],
        )
        assert sorted(child.state for child in node.children) == ["backoff", "running", "running"]
        await trio.sleep(10)
        found = {actor.name: (actor.incarnation, actor.state) for actor in tally.info().actors}
        assert sorted(found.values()) == [(1, "working"), (1, "working"), (2, "waiting")]


async def test_with_retry_only_the_failed_event_waits_and_holds_the_commit(broker: MemoryBroker) -> None:
    app = famulus.App("waits", broker=f"memory://{broker.name}", broker_commit_interval=1.0)
    put(broker, "numbers", *range(30))
    seen: list[tuple[int, int, int]] = []
    backoff = famulus.Backoff(min=10, max=10, jitter=0)

    @app.agent(app.topic("numbers", value_type=int), concurrency=3, on_failure="retry", backoff=backoff)
    async def parallel(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            seen.append((round(trio.current_time() - start), event.value, event.attempt))
            if event.value == 4 and event.attempt < 3:
                raise ValueError("not yet")
            await trio.sleep(0.5)

    start = trio.current_time()
    async with famulus.open_app(app):
        await trio.sleep(9)
        assert {value for _, value, _ in seen} == set(range(30))  # the others went on
        assert broker.group("waits").committed == {TP("numbers", 0): 4}
        await trio.sleep(20)
        assert broker.group("waits").committed == {TP("numbers", 0): 30}
    assert [(when, attempt) for when, value, attempt in seen if value == 4] == [(0, 1), (10, 2), (20, 3)]
    assert Counter(value for _, value, _ in seen) == Counter([*range(30), 4, 4])


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_with_one_actor_order_is_kept_during_retry_and_backoff(broker: MemoryBroker, concurrency: int) -> None:
    app = famulus.App("order", broker=f"memory://{broker.name}")
    put(broker, "numbers", *range(12))
    seen: list[tuple[int, int]] = []

    @app.agent(
        app.topic("numbers", value_type=int), concurrency=concurrency, on_failure="retry", max_attempts=3, backoff=2
    )
    async def flaky(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            seen.append((event.value, event.attempt))
            await trio.sleep(0.1)
            if event.value % 5 == 2 and event.attempt < 3:
                raise ValueError("not yet")

    async with famulus.open_app(app):
        await trio.sleep(60)
        assert broker.group("order").committed == {TP("numbers", 0): 12}
    expected = [(n, attempt) for n in range(12) for attempt in range(1, 4 if n % 5 == 2 else 2)]
    assert sorted(seen) == expected
    if concurrency == 1:
        assert seen == expected


@pytest.mark.parametrize(
    "strategy", [famulus.OneForOneSupervisor, famulus.OneForAllSupervisor, famulus.RestForOneSupervisor]
)
async def test_a_storm_of_crashes_loses_and_doubles_nothing(
    broker: MemoryBroker, strategy: type[famulus.OneForOneSupervisor]
) -> None:
    app = famulus.App("storm", broker=f"memory://{broker.name}")
    put(broker, "numbers", *range(400), partitions=4)
    done: Counter[int] = Counter()
    attempts: dict[int, int] = {}

    @app.agent(
        app.topic("numbers", value_type=int),
        concurrency=20,
        on_failure="retry",
        max_attempts=1000,
        supervisor_strategy=strategy(max_restarts=float("inf")),
    )
    async def stormy(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            await trio.sleep(0.01 * (event.value % 7))
            attempts[event.value] = event.attempt
            if event.value % 3 == 0 and event.attempt <= 2:
                raise ValueError(event.value)
            done[event.value] += 1

    async with famulus.open_app(app) as running:
        with trio.fail_after(5000):
            while running.statistics().messages_acked < 400:
                await trio.sleep(10)
        info = stormy.info()
        assert {actor.state for actor in info.actors} == {"waiting"}
        assert info.failed == info.retried == 2 * 134
    assert done == Counter(range(400))
    assert {value: attempt for value, attempt in attempts.items() if attempt > 1} == dict.fromkeys(range(0, 400, 3), 3)


async def test_asks_go_to_whichever_actor_is_idle() -> None:
    app = famulus.App("idle")

    @app.agent(concurrency=2)
    async def wait(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for seconds in stream:
            await trio.sleep(seconds)
            yield seconds

    async with famulus.open_app(app), trio.open_nursery() as nursery:
        nursery.start_soon(wait.ask, 100)
        await trio.sleep(1)
        with trio.fail_after(5):
            assert [await wait.ask(1) for _ in range(3)] == [1, 1, 1]
        nursery.cancel_scope.cancel()
