"""Calls of agents, cancelled at every moment: no task, no reply slot and no buffer is left over.

First the caller is cancelled, then the actor that answers: by a rebalance that cannot wait, and by a restart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.actors.replies import Replies
from famulus.channels.memory import MemoryBroker
from famulus.supervision import current_child
from famulus.testing.cancellation import MOST, each_step

Doubling = famulus.Agent[int, int]


async def ask(double: Doubling, number: int) -> None:
    assert await double.ask(number) == 2 * number


async def ask_within_deadlines(double: Doubling, number: int) -> None:
    with trio.move_on_after(0.05):
        await double.ask(number)
    with trio.fail_after(1):
        assert await double.ask(number) == 2 * number


async def three_at_once(double: Doubling, number: int) -> None:
    async with trio.open_nursery() as nursery:
        for value in range(number, number + 3):
            nursery.start_soon(ask, double, value)


CALLS: dict[str, Callable[[Doubling, int], Awaitable[None]]] = {
    "ask": ask,
    "ask within deadlines": ask_within_deadlines,
    "three asks at once": three_at_once,
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

    if not local:
        broker.faults.delay_produce(0.05)
    async with famulus.open_app(app) as running:
        await ask(double, 1)
        before = tasks()

        async def call(number: int) -> None:
            await CALLS[name](double, number)

        ended = await each_step(call)
        assert len(ended) > 1
        assert Replies.of(running._run).waiting == 0
        await ask(double, 4)
        await trio.sleep(100)
        await running.commit()
        assert tasks() == before
        check_nothing_left(running, broker, *([] if local else ["asks"]))
        assert running.statistics().replies_dropped > 0  # of callers that had left


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
async def test_an_actor_that_is_cancelled_while_it_answers_answers_all_the_same(
    broker: MemoryBroker, how: Callable[[famulus.RunningApp, Any], Awaitable[None]], local: bool
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
            yield await inner.ask(2 * number) - 1

    async with famulus.open_app(app) as running, trio.open_nursery() as nursery:
        await ask(double, 1)
        before = tasks()
        for number in range(1, MOST):
            watcher = AtWait(number, lambda: nursery.start_soon(how, running, children[-1]))
            trio.lowlevel.add_instrument(watcher)
            try:
                with trio.fail_after(100):
                    await three_at_once(double, number)
                await trio.sleep(20)
            finally:
                trio.lowlevel.remove_instrument(watcher)
            assert Replies.of(running._run).waiting == 0, f"cancelled at wait {number}"
            if watcher.left:
                break
        await running.commit()
        assert number > 5
        assert tasks() == before
        check_nothing_left(running, broker, *([] if local else ["inner", "asks"]))
