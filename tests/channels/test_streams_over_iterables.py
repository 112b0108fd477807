"""`app.stream(...)` over iterables, async iterables and generators."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
import trio.testing

import famulus


class Pairs:
    """An async iterable that is no generator."""

    def __init__(self, *items: Any) -> None:
        self.items = list(items)

    def __aiter__(self) -> Pairs:
        return self

    async def __anext__(self) -> Any:
        await trio.sleep(0.1)
        if not self.items:
            raise StopAsyncIteration
        return self.items.pop(0)


async def counted() -> AsyncIterator[int]:
    for number in range(3):
        await trio.sleep(1)
        yield number


@pytest.mark.parametrize(
    "make",
    [lambda: [0, 1, 2], lambda: range(3), lambda: (n for n in range(3)), lambda: Pairs(0, 1, 2), counted],
    ids=["list", "range", "generator", "async iterable", "async generator"],
)
async def test_all_its_items_come_in_order_and_then_the_end(make: Any) -> None:
    app = famulus.App("iterables")
    async with famulus.open_app(app):
        stream: famulus.Stream[int] = app.stream(make())
        assert [number async for number in stream] == [0, 1, 2]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert [number async for number in app.stream(make(), processors=[str, lambda text: text * 2])] == [
            "00",
            "11",
            "22",
        ]


async def test_its_events_have_no_key_and_no_offset() -> None:
    app = famulus.App("events")
    async with famulus.open_app(app):
        (event,) = [event async for event in app.stream(["x"]).events()]
        assert (event.key, event.value, event.headers, event.message.offset) == (None, "x", (), -1)
        assert [pair async for pair in app.stream("ab").items()] == [(None, "a"), (None, "b")]


async def test_an_endless_iterable_lets_others_run_and_can_be_cancelled() -> None:
    app = famulus.App("endless")
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await trio.lowlevel.checkpoint()

    async with famulus.open_app(app):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            async for number in app.stream(itertools.count()):
                if number == 1000:
                    nursery.cancel_scope.cancel()
                    break
        with trio.CancelScope() as scope:
            async for number in app.stream(itertools.count()):
                if number == 5:
                    scope.cancel()
        assert scope.cancelled_caught
    assert others > 10


@pytest.mark.parametrize("error", [ValueError("bad"), trio.ClosedResourceError("closed"), trio.EndOfChannel("end")])
async def test_what_a_generator_raises_is_raised_after_the_items_before(error: Exception) -> None:
    app = famulus.App("raising")

    def plain() -> Iterator[int]:
        yield 1
        raise error

    async def over_time() -> AsyncIterator[int]:
        yield 1
        await trio.sleep(1)
        raise error

    async with famulus.open_app(app):
        taken: list[AsyncIterator[Any]] = [app.stream(source()).take(1) for source in (plain, over_time)]
        processed = app.stream([1, 2]).map(lambda n: plain() if n == 1 else (_ for _ in ()).throw(error)).take(1)
        for stream in (app.stream(plain()), app.stream(over_time()), *taken, processed):
            assert await anext(stream)
            with pytest.raises(type(error), match=str(error)):
                await anext(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)


async def test_an_async_iterable_is_read_ahead_no_further_than_the_bound() -> None:
    app = famulus.App("ahead", stream_buffer_maxsize=5)
    given = 0

    async def source() -> AsyncIterator[int]:
        nonlocal given
        while True:
            given += 1
            yield given
            await trio.lowlevel.checkpoint()

    async with famulus.open_app(app):
        stream = app.stream(source())
        assert await anext(stream) == 1
        await trio.testing.wait_all_tasks_blocked()
        assert given <= 7
        assert [await anext(stream) for _ in range(20)] == list(range(2, 22))


async def test_cancelling_the_wait_for_an_item_loses_none_and_does_not_end_the_generator() -> None:
    app = famulus.App("cancels")
    async with famulus.open_app(app):
        stream = app.stream(counted())
        got: list[int] = []
        while len(got) < 3:
            with trio.move_on_after(0.3):
                got.append(await anext(stream))
        assert got == [0, 1, 2]


@pytest.mark.parametrize("how", ["closed", "the run ends"])
async def test_the_generator_is_finalised_when_its_stream_goes(how: str) -> None:
    app = famulus.App("finalised")
    ended: list[str] = []

    async def source() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await trio.sleep(1)
        finally:
            ended.append("closed")

    async with famulus.open_app(app):
        stream = app.stream(source())
        assert await anext(stream) == 1
        if how == "closed":
            stream.close()
            await trio.testing.wait_all_tasks_blocked()
            assert ended == ["closed"]
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
    assert ended == ["closed"]


async def test_an_agent_may_read_items_beside_its_messages_and_crash_over_them() -> None:
    app = famulus.App("beside")
    pipe = app.channel("pipe", value_type=int)
    shared = iter(range(6))
    seen: list[int] = []

    @app.agent(pipe)
    async def both(stream: famulus.Stream[int]) -> None:
        async for number in stream & app.stream(shared):
            if number == 3:
                raise ValueError("three")
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(60)
        await pipe.send(100)
        await trio.sleep(60)
    assert seen == [0, 1, 2, 4, 5, 100]


async def test_items_go_through_a_topic_and_groups() -> None:
    app = famulus.App("operated")
    async with famulus.open_app(app):
        stream = app.stream(range(10)).filter(lambda n: n % 2 == 0).echo("copies").through("via")
        got = [await anext(stream) for _ in range(5)]
        assert sorted(got) == [0, 2, 4, 6, 8]
        grouped = app.stream(range(10)).group_by(lambda n: n % 3, name="rest")
        assert sorted([await anext(grouped) for _ in range(10)]) == list(range(10))
