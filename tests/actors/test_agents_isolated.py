"""Agents with isolated partitions: an actor for each assigned partition, in order within it, come and gone with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord

PARTITIONS = 4


def fill(broker: MemoryBroker, topic: str, count: int, partitions: int = PARTITIONS) -> None:
    """`count` numbers in each partition: 1000 * partition + n."""
    if topic not in broker.topics:
        broker.create_topic(topic, partitions)
    for partition in range(partitions):
        records = [ProducerRecord(None, str(1000 * partition + n).encode()) for n in range(count)]
        broker.append(TP(topic, partition), records)


def actor_names(running: famulus.RunningApp, agent: famulus.Agent[int, None]) -> list[str]:
    agents = next(node for node in running.tree().children if node.name == "agents")
    (node,) = [node for node in agents.children if node.name == agent.name]
    return sorted(child.name for child in node.children if child.state == "running")


async def test_each_assigned_partition_has_an_actor_and_its_order(broker: MemoryBroker) -> None:
    app = famulus.App("isolated", broker=f"memory://{broker.name}")
    fill(broker, "numbers", 50)
    seen: dict[int, list[int]] = defaultdict(list)
    tasks: dict[int, set[object]] = defaultdict(set)

    @app.agent(app.topic("numbers", value_type=int), name="tally", isolated_partitions=True)
    async def tally(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            assert famulus.current_agent() is tally
            assert famulus.current_event() is event
            seen[event.message.partition].append(event.value)
            tasks[event.message.partition].add(trio.lowlevel.current_task())
            await trio.sleep(event.value % 3)

    async with famulus.open_app(app) as running:
        assert actor_names(running, tally) == ["tally[assignment]", *(f"tally[p{n}]" for n in range(PARTITIONS))]
        info = tally.info()
        assert [actor.name for actor in info.actors] == [f"tally[p{n}]" for n in range(PARTITIONS)]
        assert info.partitions == frozenset(range(PARTITIONS))
        await trio.sleep(200)
        assert tally.info().taken == 50 * PARTITIONS
    assert seen == {p: [1000 * p + n for n in range(50)] for p in range(PARTITIONS)}
    assert len({task for each in tasks.values() for task in each}) == PARTITIONS
    assert broker.group("isolated").committed == {TP("numbers", p): 50 for p in range(PARTITIONS)}


async def test_a_slow_partition_does_not_hold_the_others(broker: MemoryBroker) -> None:
    app = famulus.App("slow", broker=f"memory://{broker.name}", stream_buffer_maxsize=8, broker_commit_interval=1.0)
    fill(broker, "numbers", 200)
    seen: dict[int, int] = defaultdict(int)

    @app.agent(app.topic("numbers", value_type=int), isolated_partitions=True)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            if event.message.partition == 1:
                await trio.sleep_forever()
            seen[event.message.partition] += 1

    async with famulus.open_app(app):
        await trio.sleep(60)
        assert dict(seen) == {0: 200, 2: 200, 3: 200}
        assert broker.group("slow").committed == {TP("numbers", p): 200 for p in (0, 2, 3)}


async def test_a_retried_event_stops_its_own_partition_only(broker: MemoryBroker) -> None:
    app = famulus.App("retries", broker=f"memory://{broker.name}", broker_commit_interval=1.0)
    fill(broker, "numbers", 4, partitions=2)
    seen: list[tuple[float, int, int]] = []

    @app.agent(
        app.topic("numbers", value_type=int),
        isolated_partitions=True,
        on_failure="retry",
        max_attempts=3,
        backoff=famulus.Backoff(min=10, max=10, jitter=0),
        name="picky",
    )
    async def picky(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            await trio.sleep(1)
            seen.append((trio.current_time() - start, event.value, event.attempt))
            if event.value == 1001 and event.attempt < 3:
                raise ValueError("not yet")

    start = trio.current_time()
    async with famulus.open_app(app) as running:
        await trio.sleep(15)
        assert broker.group("retries").committed == {TP("numbers", 0): 4, TP("numbers", 1): 1}
        info = picky.info()
        assert [(actor.name, actor.incarnation, actor.state) for actor in info.actors] == [
            ("picky[p0]", 1, "waiting"),
            ("picky[p1]", 2, "backoff"),
        ]
        await trio.sleep(45)
        assert running.statistics().events_retried == picky.info().retried == 2
    assert [(value, attempt) for _, value, attempt in seen if value < 1000] == [(n, 1) for n in range(4)]
    assert max(time for time, value, _ in seen if value < 1000) < 5
    of_one = [(round(time), value - 1000, attempt) for time, value, attempt in seen if value >= 1000]
    assert of_one == [(1, 0, 1), (2, 1, 1), (13, 1, 2), (24, 1, 3), (25, 2, 1), (26, 3, 1)]
    assert broker.group("retries").committed == {TP("numbers", p): 4 for p in range(2)}


async def test_actors_come_and_go_with_the_partitions(broker: MemoryBroker) -> None:
    app = famulus.App("moves", broker=f"memory://{broker.name}")
    fill(broker, "numbers", 1)
    seen: list[int] = []
    entered: dict[int, int] = defaultdict(int)

    @app.agent(app.topic("numbers", value_type=int), name="moves", isolated_partitions=True)
    async def moves(stream: famulus.Stream[int]) -> None:
        mine: set[int] = set()
        async for event in stream.events():
            seen.append(event.value)
            mine.add(event.message.partition)
            assert len(mine) == 1
            entered[event.message.partition] += 1

    def partitions(running: famulus.RunningApp) -> set[int]:
        return {actor.index for actor in running.agent(moves).info().actors}

    async with famulus.open_app(app) as first:
        await trio.sleep(1)
        assert partitions(first) == {0, 1, 2, 3}
        async with famulus.open_app(app) as second:
            await trio.sleep(1)
            assert partitions(first) | partitions(second) == {0, 1, 2, 3}
            assert partitions(first) & partitions(second) == set()
            assert len(partitions(first)) == 2
            stayed = {name for name in actor_names(first, moves) if name != "moves[assignment]"}
            assert stayed == {f"moves[p{n}]" for n in partitions(first)}
            incarnations = {actor.incarnation for actor in first.agent(moves).info().actors}
            assert incarnations == {1}  # those that came back have kept their place
            fill(broker, "numbers", 3)
            await trio.sleep(1)
        await trio.sleep(1)
        assert partitions(first) == {0, 1, 2, 3}
        fill(broker, "numbers", 2)
        await trio.sleep(1)
    assert len(seen) == PARTITIONS * (1 + 3 + 2)
    assert broker.group("moves").committed == {TP("numbers", p): 6 for p in range(PARTITIONS)}


async def test_a_revoked_partition_drains_within_its_time_and_no_event_is_lost(broker: MemoryBroker) -> None:
    app = famulus.App("drains", broker=f"memory://{broker.name}", stream_drain_timeout=2.0)
    fill(broker, "numbers", 5)
    finished: list[int] = []
    begun: list[int] = []

    @app.agent(app.topic("numbers", value_type=int), isolated_partitions=True)
    async def drains(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            begun.append(event.value)
            await trio.sleep(1 if event.value < 1000 else 100)
            finished.append(event.value)

    async with famulus.open_app(app):
        await trio.sleep(0.5)
        with trio.fail_after(20):  # two drains of 2 s, and 5 s for the end of the second run's actors
            async with famulus.open_app(app):
                await trio.sleep(4)
    # Events of 1 s were finished, those of 100 s cancelled, and begun again where the partition went.
    assert finished == sorted(set(finished))
    assert {value for value in begun if begun.count(value) > 1} <= {1000, 2000, 3000}
    committed = broker.group("drains").committed
    assert committed.get(TP("numbers", 0), 0) == len(finished)
    assert all(committed.get(TP("numbers", p), 0) == 0 for p in (1, 2, 3))


async def test_topics_that_are_partitioned_alike_go_together(broker: MemoryBroker) -> None:
    app = famulus.App("together", broker=f"memory://{broker.name}")
    fill(broker, "left", 10)
    fill(broker, "right", 10, partitions=2)
    tasks: dict[int, set[object]] = defaultdict(set)
    count = 0

    @app.agent(app.topic("left", "right", value_type=int), name="both", isolated_partitions=True)
    async def both(stream: famulus.Stream[int]) -> None:
        nonlocal count
        async for event in stream.events():
            count += 1
            tasks[event.message.partition].add(trio.lowlevel.current_task())

    async with famulus.open_app(app):
        await trio.sleep(1)
        assert [actor.index for actor in both.info().actors] == [0, 1, 2, 3]
    assert count == 60
    assert all(len(each) == 1 for each in tasks.values())


async def test_it_shares_a_topic_with_other_agents(broker: MemoryBroker) -> None:
    app = famulus.App("shares", broker=f"memory://{broker.name}")
    fill(broker, "numbers", 100)
    topic = app.topic("numbers", value_type=int)
    seen: list[tuple[str, int]] = []

    @app.agent(topic, isolated_partitions=True)
    async def by_partition(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(("one by one", number))

    @app.agent(topic)
    async def whole(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(("whole", number))

    async with famulus.open_app(app) as running:

        @running.agent(topic, isolated_partitions=True)
        async def late(stream: famulus.Stream[int]) -> None:
            async for number in stream:
                seen.append(("late", number))

        await trio.sleep(1)
        fill(broker, "numbers", 10)
        await trio.sleep(1)
    for who, count in (("one by one", 110), ("whole", 110), ("late", 10)):
        assert len([1 for name, _ in seen if name == who]) >= count * PARTITIONS
    assert broker.group("shares").committed == {TP("numbers", p): 110 for p in range(PARTITIONS)}


async def test_take_works_by_partition(broker: MemoryBroker) -> None:
    app = famulus.App("takes", broker=f"memory://{broker.name}")
    fill(broker, "numbers", 7)
    batches: list[list[int]] = []

    @app.agent(app.topic("numbers", value_type=int), isolated_partitions=True)
    async def takes(stream: famulus.Stream[int]) -> None:
        async for batch in stream.take(3, within=1):
            batches.append(batch)

    async with famulus.open_app(app):
        await trio.sleep(5)
    assert sorted(batches) == sorted(
        [1000 * p + n for n in range(first, min(first + 3, 7))] for p in range(PARTITIONS) for first in (0, 3, 6)
    )


@pytest.mark.parametrize("verb", ["group_by", "through"])
async def test_regrouping_is_refused_with_what_to_do(broker: MemoryBroker, verb: str) -> None:
    app = famulus.App("regroups", broker=f"memory://{broker.name}")
    fill(broker, "numbers", 1)

    @app.agent(app.topic("numbers", value_type=int), isolated_partitions=True)
    async def regroups(stream: famulus.Stream[int]) -> None:
        made = stream.group_by(lambda n: n, name="itself") if verb == "group_by" else stream.through("other")
        async for _ in made:
            pass

    with pytest.raises(ExceptionGroup) as caught:
        async with famulus.open_app(app):
            await trio.sleep(1)
    assert caught.group_contains(famulus.ImproperlyConfigured, match=f"{verb} would spread its events")


async def test_asks_are_answered_by_the_actor_of_their_partition() -> None:
    app = famulus.App("answers")

    @app.agent(isolated_partitions=True, partitions=3)
    async def where(stream: famulus.Stream[int]) -> AsyncIterator[str]:
        async for event in stream.events():
            yield f"{event.value} in {event.message.partition}"

    async with famulus.open_app(app):
        with trio.fail_after(5):
            assert [await where.ask(n, partition=n) for n in range(3)] == ["0 in 0", "1 in 1", "2 in 2"]


async def test_a_crash_restarts_one_for_all_with_what_follows_the_assignment(broker: MemoryBroker) -> None:
    app = famulus.App("all-at-once", broker=f"memory://{broker.name}")
    fill(broker, "numbers", 6)
    seen: list[int] = []
    strategy = famulus.OneForAllSupervisor()

    @app.agent(app.topic("numbers", value_type=int), isolated_partitions=True, supervisor_strategy=strategy)
    async def fragile(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(1)
            if number == 2001:
                raise ValueError(number)
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(60)
        assert [actor.state for actor in fragile.info().actors] == ["waiting"] * PARTITIONS
    assert sorted(seen) == [1000 * p + n for p in range(PARTITIONS) for n in range(6) if (p, n) != (2, 1)]
    assert broker.group("all-at-once").committed == {TP("numbers", p): 6 for p in range(PARTITIONS)}


async def test_restart_and_cancel_of_an_agent_with_isolated_partitions(broker: MemoryBroker) -> None:
    app = famulus.App("restarts", broker=f"memory://{broker.name}", broker_commit_interval=0.5)
    fill(broker, "numbers", 3)
    seen: list[int] = []

    @app.agent(app.topic("numbers", value_type=int), isolated_partitions=True)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(2)
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(1)
        await slow.restart()
        assert sorted(seen) == [0, 1000, 2000, 3000]  # each finished the event in hand
        assert [actor.incarnation for actor in slow.info().actors] == [2] * PARTITIONS
        await trio.sleep(1)
        await slow.cancel()
        assert len(seen) == 2 * PARTITIONS
        assert slow.info().state == "cancelled"
        await trio.sleep(30)
    assert len(seen) == 2 * PARTITIONS
    assert broker.group("restarts").committed == {TP("numbers", p): 2 for p in range(PARTITIONS)}


async def test_what_an_ended_actor_leaves_of_a_shared_stream_goes_to_the_others(broker: MemoryBroker) -> None:
    app = famulus.App("leaves", broker=f"memory://{broker.name}", stream_drain_timeout=1.0)
    broker.create_topic("numbers", 2)
    commands = app.channel("commands", value_type=int)
    begun: list[int] = []
    finished: list[int] = []
    patience = 1000.0

    @app.agent(app.topic("numbers", value_type=int), isolated_partitions=True)
    async def both(stream: famulus.Stream[int]) -> None:
        async for number in stream & commands.stream():
            begun.append(number)
            await trio.sleep(patience)
            finished.append(number)

    async with famulus.open_app(app) as first:
        with first.current():
            for number in range(2):
                await commands.send(number)
            await trio.sleep(1)
            assert sorted(begun) == [0, 1]
            async with famulus.open_app(app) as second:
                await trio.sleep(2)
                patience = 0.0
                await trio.sleep(10)
                assert len(second.agent(both).info().actors) == 1
                (left,) = first.agent(both).info().actors
                assert left.state == "working"
                assert len(finished) == 0
                await first.agent(both).restart()
                await trio.sleep(1)
                assert sorted(finished) == [0, 1]
