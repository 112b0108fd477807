"""Every call, cancelled at every wait: no slot, no task and no buffer is left over (law 5)."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.actors import requests
from famulus.actors.replies import Replies
from famulus.app import connecting
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.testing.cancellation import each_wait

Count = famulus.Agent[int, int]


class Wire(MemoryTransport):
    crosses_processes = True


async def ask(count: Count) -> None:
    assert await count.ask(3) == 0


async def ask_nowait(count: Count) -> None:
    promise = await count.ask_nowait(3)
    assert await promise == 0


async def ask_stream(count: Count) -> None:
    assert [part async for part in count.ask_stream(3)] == [0, 1, 2]


async def map_all(count: Count) -> None:
    assert [answer async for answer in count.map([1, 2, 3], window=2)] == [0, 0, 0]


async def join(count: Count) -> None:
    assert await count.join(range(1, 5), window=2) == [0, 0, 0, 0]


@pytest.mark.parametrize("way", ["channel", "topic", "wire"])
@pytest.mark.parametrize("call", [ask, ask_nowait, ask_stream, map_all, join])
async def test_a_call_that_is_cancelled_at_any_wait_leaves_nothing(
    call: Callable[[Count], Awaitable[None]], way: str, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "wire":
        monkeypatch.setattr(connecting, "load_transport", Wire)
        monkeypatch.setattr(requests, "replies_at", lambda address: None)
    app = famulus.App("calls", broker=f"memory://{broker.name}", reply_buffer_maxsize=1, broker_commit_interval=0.1)
    channel: Any = app.channel(value_type=int) if way == "channel" else app.topic("t", value_type=int, partitions=1)

    @app.agent(channel)
    async def count(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            for each in range(number):
                await trio.sleep(0.01)
                yield each

    async with famulus.open_app(app) as running:
        replies = Replies.of(running._run)
        await call(count)
        await trio.sleep(1)
        before = trio.lowlevel.current_statistics().tasks_living

        async def cancelled(number: int) -> None:
            try:
                await call(count)
            finally:
                left.append(replies.waiting)

        left: list[int] = []
        ended = await each_wait(cancelled)
        assert not all(ended)
        assert ended[-1]
        await trio.sleep(10)
        assert replies.waiting == 0
        assert trio.lowlevel.current_statistics().tasks_living == before
        await call(count)
        await trio.sleep(1)
        assert running._run.producer.buffered == 0
        if call is ask:
            assert set(left) == {0}
        if way != "channel":
            await running.commit()
            assert running.statistics().lag == 0


async def test_an_iteration_that_was_cancelled_goes_on_where_it_was() -> None:
    app = famulus.App("goes-on")

    @app.agent(app.channel(value_type=int))
    async def slow(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            for _ in range(2):
                await trio.sleep(1)
                yield number

    async with famulus.open_app(app):
        answers: list[int] = []
        results, parts = slow.map(range(5), window=2), slow.ask_stream(7)
        for iterator in (results, parts):
            while True:
                with trio.move_on_after(0.3):
                    try:
                        answers.append(await anext(iterator))
                    except StopAsyncIteration:
                        break
        assert answers == [0, 1, 2, 3, 4, 7, 7]
