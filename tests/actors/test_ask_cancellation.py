"""Calls of agents, cancelled at every moment: no task, no reply slot and no buffer is left over.

First the caller is cancelled, then the actor that answers: by a rebalance that cannot wait, and by a restart.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.actors.replies import Replies
from famulus.channels.memory import MemoryBroker
from famulus.supervision import current_child
from famulus.testing.cancellation import MOST, CancelAt, each_step

Doubling = famulus.Agent[int, int]

# The agent answers a number with its double, and then with one more.


async def ask(double: Doubling, number: int) -> None:
    assert await double.ask(number) == 2 * number


async def ask_within_deadlines(double: Doubling, number: int) -> None:
    with trio.move_on_after(0.05):
        await double.ask(number)
    with trio.fail_after(1):
        assert await double.ask(number) == 2 * number


async def ask_again_under_the_same_id(double: Doubling, number: int) -> None:
    for patience in (0.05, 0.15, 1):
        with trio.move_on_after(patience):
            assert await double.ask(number, correlation_id=f"request {number}") == 2 * number


async def three_at_once(double: Doubling, number: int) -> None:
    async with trio.open_nursery() as nursery:
        for value in range(number, number + 3):
            nursery.start_soon(ask, double, value)


async def ask_nowait(double: Doubling, number: int) -> None:
    promise = await double.ask_nowait(number)
    other = await double.ask_nowait(number + 1)
    assert await promise == 2 * number
    assert await promise == 2 * number
    assert await other == 2 * number + 2


async def ask_nowait_and_leave(double: Doubling, number: int) -> None:
    await double.ask_nowait(number)


async def ask_stream(double: Doubling, number: int) -> None:
    assert [part async for part in double.ask_stream(number)] == [2 * number, 2 * number + 1]


async def ask_stream_and_leave(double: Doubling, number: int) -> None:
    async with double.ask_stream(number) as parts:
        assert await anext(parts) == 2 * number


async def map_(double: Doubling, number: int) -> None:
    values = [number, number + 1, number + 2]
    async with double.map(values, window=2) as results:
        found = [(results.index, answer) async for answer in results]
    assert sorted(found) == [(n, 2 * value) for n, value in enumerate(values)]


async def map_and_leave(double: Doubling, number: int) -> None:
    async for answer in double.map(range(number, number + 5), window=3):
        assert answer in range(2 * number, 2 * number + 10)
        break


async def kvmap(double: Doubling, number: int) -> None:
    async with double.kvmap([("a", number), ("b", number + 1)]) as results:
        assert sorted([answer async for answer in results]) == [2 * number, 2 * number + 2]


async def join(double: Doubling, number: int) -> None:
    values = range(number, number + 4)
    assert await double.join(values, window=3) == [2 * value for value in values]


async def kvjoin(double: Doubling, number: int) -> None:
    assert await double.kvjoin([("a", number), ("b", number + 1)]) == [2 * number, 2 * number + 2]


CALLS: dict[str, Callable[[Doubling, int], Awaitable[None]]] = {
    "ask": ask,
    "ask within deadlines": ask_within_deadlines,
    "ask again": ask_again_under_the_same_id,
    "three asks at once": three_at_once,
    "ask_nowait": ask_nowait,
    "ask_nowait and leave": ask_nowait_and_leave,
    "ask_stream": ask_stream,
    "ask_stream and leave": ask_stream_and_leave,
    "map": map_,
    "map and leave": map_and_leave,
    "kvmap": kvmap,
    "join": join,
    "kvjoin": kvjoin,
}


def app_on(broker: MemoryBroker, **settings: Any) -> famulus.App:
    return famulus.App("calls", broker=f"memory://{broker.name}", broker_commit_interval=0.5, **settings)


def channel_of(app: famulus.App, name: str, local: bool) -> famulus.Channel[int]:
    return app.channel(name, value_type=int) if local else app.topic(name, value_type=int, partitions=2)


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


def check_nothing_left(running: famulus.RunningApp, broker: MemoryBroker, *topics: str) -> None:
    """Everything is answered or dropped; call it when nothing is under way any more."""
    run = running._run
    assert Replies.of(run).waiting == 0
    assert run.producer.buffered == 0
    for agent_run in running._agents.values():
        subscription: Any = agent_run.subscription
        assert subscription._inbox.buffered == 0
    for topic in topics:
        for log in broker.topics[topic].logs:
            assert broker.group("calls").committed.get(log.tp, 0) == log.end


@pytest.mark.parametrize("local", [False, True], ids=["topic", "channel"])
@pytest.mark.parametrize("name", CALLS)
async def test_a_caller_that_is_cancelled_leaves_nothing_behind(broker: MemoryBroker, name: str, local: bool) -> None:
    app = app_on(broker)

    @app.agent(channel_of(app, "asks", local))
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(0.1)
            yield 2 * number
            yield 2 * number + 1

    if not local:
        broker.faults.delay_produce(0.05)
    async with famulus.open_app(app) as running:
        await ask(double, 1)
        before = tasks()

        async def call(number: int) -> None:
            await CALLS[name](double, number)

        assert await each_step(call)
        gc.collect()  # an iterator that was left by a cancellation, and not by its context, goes with the garbage
        assert Replies.of(running._run).waiting == 0
        await ask(double, 4)
        await trio.sleep(100)
        await running.commit()
        assert tasks() == before
        check_nothing_left(running, broker, *([] if local else ["asks"]))
        assert running.statistics().replies_dropped > 0  # of callers that had left, or second ones


@pytest.mark.parametrize("local", [False, True], ids=["topic", "channel"])
async def test_answers_to_many_come_once_each_however_often_the_wait_for_them_is_cancelled(
    broker: MemoryBroker, local: bool
) -> None:
    app = app_on(broker, producer_buffer_maxsize=1)

    @app.agent(channel_of(app, "asks", local), concurrency=3)
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(number % 3 / 10)
            yield 2 * number

    async with famulus.open_app(app) as running:
        got: list[tuple[int, int]] = []
        async with double.map(range(200), window=4) as results:

            async def call(number: int) -> None:
                for _ in range(3):
                    got.append((results.index, await anext(results)))
                    got[-1] = (results.index, got[-1][1])

            await each_step(call)
            with trio.fail_after(1000):
                async for answer in results:
                    got.append((results.index, answer))
        assert sorted(got) == [(number, 2 * number) for number in range(200)]
        assert Replies.of(running._run).waiting == 0


@pytest.mark.parametrize("local", [False, True], ids=["topic", "channel"])
async def test_parts_of_an_answer_come_once_each_however_often_the_wait_for_them_is_cancelled(
    broker: MemoryBroker, local: bool
) -> None:
    app = app_on(broker)

    @app.agent(channel_of(app, "asks", local))
    async def count(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            for each in range(number):
                await trio.sleep(each % 3 / 10)
                yield each

    async with famulus.open_app(app) as running:
        got: list[int] = []
        async with count.ask_stream(200) as parts:

            async def call(number: int) -> None:
                for _ in range(3):
                    got.append(await anext(parts))

            await each_step(call)
            with trio.fail_after(1000):
                got += [part async for part in parts]
        assert got == [*range(200)]
        assert Replies.of(running._run).waiting == 0


@pytest.mark.parametrize("local", [False, True], ids=["topic", "channel"])
async def test_a_run_that_is_cancelled_with_asks_open_leaves_nothing_behind(broker: MemoryBroker, local: bool) -> None:
    """All calls of one run at once; the run and its callers are cancelled after its first, second … step."""
    app = app_on(broker)

    @app.agent(channel_of(app, "asks", local), concurrency=2)
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for numbers in stream.take(2, within=0.05):
            for number in numbers:
                await trio.sleep(0.01)
                yield 2 * number

    outcomes: list[str] = []

    async def call(name: str, number: int) -> None:
        try:
            await CALLS[name](double, number)
            outcomes.append("answered")
        except famulus.AgentError:
            outcomes.append("refused")

    before = tasks()
    runs: list[Any] = []
    moments = range(1, 3 * MOST, 7)
    for number in moments:
        scope = trio.CancelScope()
        watcher = CancelAt(None, number, scope)
        with scope:
            trio.lowlevel.add_instrument(watcher)
            try:
                async with famulus.open_app(app) as running, trio.open_nursery() as nursery:
                    runs.append(running._run)
                    for name in ("ask", "ask_nowait", "map", "join", "kvjoin"):
                        nursery.start_soon(call, name, number)
            finally:
                trio.lowlevel.remove_instrument(watcher)
        assert tasks() == before, f"a task is left after {number} steps"
        assert not broker.group("calls").members, f"a member is left after {number} steps"
        if not watcher.fired:
            break
    else:
        raise AssertionError("it ends without end")
    assert all(Replies.of(run).waiting == 0 and run.producer.buffered == 0 for run in runs)
    assert outcomes.count("answered") >= 5


async def test_a_promise_that_was_given_up_does_not_take_the_answer_of_the_next_under_its_id(
    broker: MemoryBroker,
) -> None:
    app = app_on(broker)

    @app.agent(channel_of(app, "asks", local=False))
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(0.3)
            yield 2 * number

    async with famulus.open_app(app) as running:
        answer = None
        with trio.fail_after(10):
            while answer is None:
                promise = await double.ask_nowait(21, correlation_id="again")
                with trio.move_on_after(0.2):
                    answer = await promise
        assert answer == 42
        await trio.sleep(10)
        assert Replies.of(running._run).waiting == 0


@pytest.mark.parametrize("nowait", [False, True], ids=["ask", "ask_nowait"])
async def test_an_answer_that_comes_while_its_caller_still_waits_to_send_and_leaves_is_counted(
    broker: MemoryBroker, nowait: bool
) -> None:
    """Asked again under the same id: the answer is the first request's."""
    app = app_on(broker, producer_buffer_maxsize=1)
    topic = app.topic("other", value_type=int, partitions=1)

    @app.agent(channel_of(app, "asks", local=False))
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(1)
            yield 2 * number

    async with famulus.open_app(app) as running:
        with trio.move_on_after(0.5):
            await double.ask(21, correlation_id="again")
        broker.faults.delay_produce(100)
        await topic.send(1)  # there is no room for more
        with trio.move_on_after(2) as scope:
            await (double.ask_nowait if nowait else double.ask)(21, correlation_id="again")
        assert scope.cancelled_caught
        assert Replies.of(running._run).waiting == 0
        assert running.statistics().replies_dropped == 1
        broker.faults.clear()


# The side that answers.


async def interrupt(running: famulus.RunningApp, child: Any) -> None:
    """What a rebalance does that cannot wait any longer for the event in hand."""
    for actor in running._agents["double"].actors:
        actor._interrupt()


async def restart(running: famulus.RunningApp, child: Any) -> None:
    await child.restart()


async def rebalance(running: famulus.RunningApp, child: Any) -> None:
    MemoryBroker.named(running.settings.broker.removeprefix("memory://")).faults.rebalance("calls")


class AtWait(trio.abc.Instrument):
    """Calls a function at the n-th wait of a task, once that is known."""

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        self.task: trio.lowlevel.Task | None = None
        self.left = number
        self.act = act

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task and self.left > 0:
            self.left -= 1
            if self.left == 0:
                self.act()


@pytest.mark.parametrize("local", [False, True], ids=["topic", "channel"])
@pytest.mark.parametrize("how", [interrupt, restart, rebalance])
@pytest.mark.parametrize("name", ["three asks at once", "ask_stream", "join"])
async def test_an_actor_that_is_cancelled_while_it_answers_answers_all_the_same(
    broker: MemoryBroker, name: str, how: Callable[[famulus.RunningApp, Any], Awaitable[None]], local: bool
) -> None:
    app = app_on(broker, stream_drain_timeout=0.01, agent_drain_timeout=0.01)
    out = app.topic("out", value_type=int, partitions=1)
    watcher: AtWait | None = None
    children: list[Any] = []

    @app.agent(channel_of(app, "inner", local), name="inner")
    async def inner(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(0.1)
            yield number + 1

    @app.agent(channel_of(app, "asks", local), name="double", sink=[out])
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        children.append(current_child())
        async for number in stream:
            if watcher is not None and watcher.task is None:
                watcher.task = trio.lowlevel.current_task()
            await trio.sleep(0.1)
            answer = await inner.ask(2 * number) - 1
            yield answer
            yield answer + 1

    async with famulus.open_app(app) as running, trio.open_nursery() as nursery:
        await ask(double, 1)
        before, number = tasks(), 0
        for number in range(1, MOST):
            watcher = AtWait(number, lambda: nursery.start_soon(how, running, children[-1]))
            trio.lowlevel.add_instrument(watcher)
            try:
                with trio.fail_after(100):
                    await CALLS[name](double, number)
                await trio.sleep(20)
            finally:
                trio.lowlevel.remove_instrument(watcher)
            assert Replies.of(running._run).waiting == 0, f"cancelled at wait {number}"
            if watcher.left:
                break
        await running.commit()
        assert number > 3
        assert tasks() == before
        check_nothing_left(running, broker, *([] if local else ["inner", "asks"]))
