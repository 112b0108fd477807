"""`agent.cancel()` and `agent.restart()`: of the agent's actors in one run; what becomes of events, asks and offsets."""

from __future__ import annotations

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
    for value in values:
        broker.append(TP(topic, value % partitions), [ProducerRecord(None, str(value).encode())])


async def test_a_restart_finishes_the_event_in_hand_where_that_is_quick(broker: MemoryBroker) -> None:
    app = famulus.App("quick", broker=f"memory://{broker.name}")
    put(broker, "numbers", 1, 2, 3)
    seen: list[tuple[int, int]] = []
    starts = 0

    @app.agent(app.topic("numbers", value_type=int), name="quick")
    async def quick(stream: famulus.Stream[int]) -> None:
        nonlocal starts
        starts += 1
        async for event in stream.events():
            await trio.sleep(2)
            seen.append((event.value, event.attempt))

    async with famulus.open_app(app) as running:
        await trio.sleep(1)
        await quick.restart()
        assert (starts, seen) == (2, [(1, 1)])
        assert running.agent(quick).info().actors[0].incarnation == 2
        agents = next(node for node in running.tree().children if node.name == "agents")
        assert agents.children[0].children[0].restarts == 0  # no crash, and not counted as one
        await trio.sleep(10)
    assert seen == [(1, 1), (2, 1), (3, 1)]
    assert broker.group("quick").committed == {TP("numbers", 0): 3}


async def test_a_restart_cancels_what_takes_too_long_and_delivers_it_again_first(broker: MemoryBroker) -> None:
    app = famulus.App("long", broker=f"memory://{broker.name}", broker_commit_interval=1.0)
    put(broker, "numbers", 1, 2, 3)
    seen: list[tuple[int, int]] = []
    patience = trio.Event()

    @app.agent(app.topic("numbers", value_type=int), on_failure="retry", max_attempts=2)
    async def long(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            seen.append((event.value, event.attempt))
            if event.value == 2:
                await patience.wait()

    async with famulus.open_app(app):
        await trio.sleep(1)
        before = trio.current_time()
        await long.restart()
        assert trio.current_time() - before == 5
        await long.restart()
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [(1, 1), (2, 1), (2, 1), (2, 1)]  # no attempt was counted
        await trio.sleep(3)
        assert broker.group("long").committed == {TP("numbers", 0): 1}
        patience.set()
        await trio.sleep(3)
        assert broker.group("long").committed == {TP("numbers", 0): 3}
    assert seen[4:] == [(3, 1)]


async def test_a_restart_that_is_cancelled_goes_on_by_itself() -> None:
    app = famulus.App("goes-on")

    @app.agent(concurrency=3)
    async def slow(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(number)
            yield number

    async with famulus.open_app(app):
        await slow.send(1000)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await slow.restart()
        assert scope.cancelled_caught
        await trio.sleep(10)
        assert [actor.incarnation for actor in slow.info().actors] == [2, 2, 2]
        assert await slow.ask(2) == 2


async def test_an_agent_may_restart_itself() -> None:
    app = famulus.App("itself")
    seen: list[int] = []

    @app.agent()
    async def renews(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            seen.append(number)
            if number == 2:
                await renews.restart()  # it does not wait for its own end
            yield number

    async with famulus.open_app(app):
        with trio.fail_after(4):
            assert [await renews.ask(number) for number in (1, 2, 3)] == [1, 2, 3]
        assert renews.info().actors[0].incarnation == 2
    assert seen == [1, 2, 3]


async def test_a_restart_ends_the_backoff_of_an_actor_that_has_crashed(broker: MemoryBroker) -> None:
    app = famulus.App("backs-off", broker=f"memory://{broker.name}")
    put(broker, "numbers", 1, 2)
    seen: list[int] = []

    @app.agent(app.topic("numbers", value_type=int), backoff=25)
    async def fragile(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 1:
                raise ValueError
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(1)
        assert fragile.info().actors[0].state == "backoff"
        await fragile.restart()
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [2]


@pytest.mark.parametrize("strategy", [famulus.OneForAllSupervisor, famulus.OneForOneSupervisor])
async def test_streams_that_an_actor_makes_go_on_after_a_restart(
    broker: MemoryBroker, strategy: type[famulus.OneForAllSupervisor]
) -> None:
    app = famulus.App("makes", broker=f"memory://{broker.name}")
    put(broker, "numbers", 1)
    put(broker, "others", 10)
    others = app.topic("others", value_type=int)
    seen: list[int] = []

    @app.agent(app.topic("numbers", value_type=int), concurrency=2, supervisor_strategy=strategy)
    async def makes(stream: famulus.Stream[int]) -> None:
        async for number in stream & others.stream():
            if number == 2:
                raise ValueError(number)
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(1)
        put(broker, "numbers", 2)  # a crash, and with one-for-all its sibling's restart
        await trio.sleep(5)
        put(broker, "others", 20)
        await trio.sleep(5)
        await makes.restart()
        put(broker, "numbers", 3)
        put(broker, "others", 30)
        await trio.sleep(5)
    assert sorted(seen) == [1, 3, 10, 20, 30]


async def test_a_cancelled_agent_ends_for_the_rest_of_the_run(broker: MemoryBroker) -> None:
    app = famulus.App("cancelled", broker=f"memory://{broker.name}", broker_commit_interval=1.0)
    put(broker, "numbers", 1, 2, 3)
    seen: list[int] = []

    @app.agent(app.topic("numbers", value_type=int), name="ends")
    async def ends(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(1 if number < 2 else 1000)
            seen.append(number)

    async with famulus.open_app(app) as running:
        await trio.sleep(2)
        before = trio.current_time()
        await ends.cancel()
        assert trio.current_time() - before == 5
        await ends.cancel()  # again does nothing
        assert (ends.info().state, [actor.state for actor in ends.info().actors]) == ("cancelled", ["stopped"])
        assert ends.actor_tracebacks() == {}
        with pytest.raises(famulus.AgentError, match="was cancelled"):
            await ends.restart()
        await trio.sleep(5)
        assert broker.group("cancelled").committed == {TP("numbers", 0): 1}  # what it had in hand is not done
        assert running.statistics().events_failed == 0
    async with famulus.open_app(app):  # with the next run it is there again
        await trio.sleep(1)
        assert ends.info().actors[0].offset == 1
        assert ends.info().state == "running"


async def test_a_cancelled_agent_s_partitions_go_to_other_workers(broker: MemoryBroker) -> None:
    app = famulus.App("hands-over", broker=f"memory://{broker.name}")
    put(broker, "numbers", *range(100), partitions=4)
    seen: list[int] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def shared(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(1)
            seen.append(number)

    async with famulus.open_app(app) as first, famulus.open_app(app):
        await trio.sleep(2)
        await first.agent(shared).cancel()
        await trio.sleep(200)
    assert sorted(seen) == list(range(100))
    assert sum(broker.group("hands-over").committed.values()) == 100


async def test_others_who_read_the_topic_do_not_wait_for_a_cancelled_agent(broker: MemoryBroker) -> None:
    app = famulus.App("goes-by", broker=f"memory://{broker.name}", stream_buffer_maxsize=4)
    topic = app.topic("numbers", value_type=int)
    put(broker, "numbers", *range(100))
    seen: list[int] = []

    @app.agent(topic)
    async def stuck(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep_forever()

    @app.agent(topic)
    async def well(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(5)
        assert len(seen) < 10
        await stuck.cancel()
        await trio.sleep(5)
    assert seen == list(range(100))
    assert broker.group("goes-by").committed == {TP("numbers", 0): 100}


@pytest.mark.parametrize("local", [False, True], ids=["topic", "local channel"])
async def test_asks_fail_when_the_agent_is_cancelled(local: bool) -> None:
    app = famulus.App("asked")

    @app.agent(app.channel(value_type=int) if local else None, name="asked")
    async def asked(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(1000)
            yield number

    failures: list[str] = []

    async def ask() -> None:
        with pytest.raises(famulus.AgentError) as caught:
            await asked.ask(1)
        failures.append(caught.value.reason)

    async with famulus.open_app(app), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await trio.sleep(1)
        with trio.fail_after(6):
            await asked.cancel()
    assert failures == ["it was cancelled before it answered"] * 3


async def test_of_two_runs_only_one_is_meant() -> None:
    app = famulus.App("two-runs")

    @app.agent()
    async def echo(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield number

    async with famulus.open_app(app) as first, famulus.open_app(app) as second:
        await first.agent(echo).cancel()
        await second.agent(echo).restart()
        assert [running.agent(echo).info().state for running in (first, second)] == ["cancelled", "running"]
        assert second.agent(echo).info().actors[0].incarnation == 2
    with pytest.raises(famulus.AppNotRunning):
        await echo.restart()
    with pytest.raises(famulus.AppNotRunning):
        echo.info()


async def test_a_late_agent_can_be_cancelled_too() -> None:
    async with famulus.open_app() as app:

        @app.agent(concurrency=5)
        async def late(stream: famulus.Stream[int]) -> None:
            async for _ in stream:
                pass

        await late.cancel()
        assert late.info().state == "cancelled"
        assert [actor.state for actor in late.info().actors] == ["stopped"] * 5


async def test_a_stopping_run_says_so(broker: MemoryBroker) -> None:
    app = famulus.App("stopping", broker=f"memory://{broker.name}")
    put(broker, "numbers", 1)
    told: list[str] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def other(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    @app.agent(app.topic("numbers", value_type=int))
    async def last(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep(1)  # the run ends meanwhile
            for verb in (other.restart, other.cancel):
                try:
                    await verb()
                except famulus.AppNotRunning as error:
                    told.append(str(error))

    async with famulus.open_app(app):
        await trio.testing.wait_all_tasks_blocked()
    assert len(told) == 2
    assert all("stopp" in each for each in told)
