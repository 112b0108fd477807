"""`map`, `join`, `ask_stream`, promises: several answers at once, or later. In one process."""

import gc
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import trio
import trio.testing

import famulus
from famulus.actors.replies import Replies


def replies_of(running: famulus.RunningApp) -> Replies:
    return Replies.of(running._run)


def doubling(app: famulus.App, *, concurrency: int = 1, local: bool = True) -> famulus.Agent[int, int]:
    """An agent that doubles, taking longer for odd numbers, and fails on -1."""

    @app.agent(app.channel(value_type=int) if local else None, name="double", concurrency=concurrency)
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            if number == -1:
                raise ValueError("minus one")
            if concurrency > 1:
                await trio.sleep(number % 2)
            yield 2 * number

    return double


async def countdown(most: int) -> AsyncIterator[int]:
    for number in range(most):
        await trio.sleep(0.1)
        yield number


@pytest.mark.parametrize("local", [True, False])
async def test_join_gives_the_answers_in_the_order_of_the_values(local: bool) -> None:
    app = famulus.App("join")
    double = doubling(app, concurrency=10, local=local)
    async with famulus.open_app(app) as running:
        with trio.fail_after(100):
            assert await double.join(range(100)) == [2 * number for number in range(100)]
            assert await double.join([]) == []
            assert await double.join(countdown(5), key=b"k") == [0, 2, 4, 6, 8]
            assert await double.kvjoin((str(number), number) for number in range(5)) == [0, 2, 4, 6, 8]
            assert await running.agent(double).join([1, 2]) == [2, 4]
        assert replies_of(running).waiting == 0


async def test_map_gives_each_answer_as_it_comes_and_says_whose_it_is() -> None:
    app = famulus.App("map")
    double = doubling(app, concurrency=4)
    values = [1, 2, 3, 4]
    async with famulus.open_app(app):
        results = double.map(values)
        pairs = [(values[results.index], answer) async for answer in results]
        assert sorted(pairs[:2]) == [(2, 4), (4, 8)]
        assert sorted(pairs) == [(1, 2), (2, 4), (3, 6), (4, 8)]
        assert [answer async for answer in double.kvmap([("a", 2)])] == [4]
        assert sorted([answer async for answer in double.map(countdown(3))]) == [0, 2, 4]


async def test_a_failure_in_join_leaves_it_and_one_in_map_is_one_result() -> None:
    app = famulus.App("fails")
    double = doubling(app)
    async with famulus.open_app(app) as running:
        with trio.fail_after(60), pytest.raises(famulus.AgentError, match="minus one"):
            await double.join([1, -1, 2])
        assert replies_of(running).waiting == 0
        answers: list[object] = []
        async with double.map([1, -1, 2]) as results:
            while True:
                try:
                    answers.append(await anext(results))
                except famulus.AgentError as error:
                    answers.append(error.remote_message)
                except StopAsyncIteration:
                    break
        assert answers == [2, "minus one", 4]


async def test_no_more_requests_wait_than_the_window_has() -> None:
    app = famulus.App("window", reply_window=7)
    seen: list[int] = []
    double = doubling(app)
    async with famulus.open_app(app) as running:
        most = 0

        def values() -> object:
            nonlocal most
            for number in range(100):
                most = max(most, replies_of(running).waiting)
                yield number

        assert len(await double.join(values())) == 100  # type: ignore[arg-type]  # a generator
        assert most <= 7
        assert len(await double.join(values(), window=3)) == 100  # type: ignore[arg-type]  # a generator
        for window in (0, "many"):
            with pytest.raises(ValueError, match="window="):
                double.map([1], window=window)  # type: ignore[arg-type]  # that is the point
        with pytest.raises(TypeError, match="expected an iterable"):
            await double.join(3)  # type: ignore[arg-type]  # that is the point
    assert not seen


@pytest.mark.slow
async def test_pain_19_a_join_of_a_hundred_thousand_values_is_bounded_by_its_window() -> None:
    app = famulus.App("large")
    double = doubling(app)
    most = 0
    async with famulus.open_app(app) as running:
        results = double.map(range(100_000))
        total = 0
        async for answer in results:
            total += answer
            most = max(most, replies_of(running).waiting)
        assert total == 100_000 * 99_999
        assert most <= 1000
        assert replies_of(running).waiting == 0


async def test_a_map_that_is_left_leaves_nothing() -> None:
    app = famulus.App("left")
    double = doubling(app, concurrency=3)
    async with famulus.open_app(app) as running:
        async with aclosing(double.map(range(100))) as results:
            async for _ in results:
                break
            assert replies_of(running).waiting > 0
        assert replies_of(running).waiting == 0
        async for _ in double.map(range(100)):
            break
        gc.collect()
        assert replies_of(running).waiting == 0
        assert await double.ask(4) == 8


async def test_a_promise_is_awaited_later_by_several() -> None:
    app = famulus.App("promise")
    double = doubling(app, concurrency=2)
    answers: list[int] = []

    async def wait(promise: famulus.ReplyPromise[int]) -> None:
        answers.append(await promise)

    async with famulus.open_app(app) as running:
        promise = await double.ask_nowait(3, correlation_id="three")
        assert (promise.correlation_id, promise.done()) == ("three", False)
        with pytest.raises(trio.WouldBlock):
            promise.result()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, promise)
            nursery.start_soon(wait, promise)
        assert answers == [6, 6]
        assert (promise.done(), promise.result(), await promise) == (True, 6, 6)
        failing = await running.agent(double).ask_nowait(-1)
        with pytest.raises(famulus.AgentError, match="minus one"):
            await failing


async def test_a_promise_that_is_dropped_or_given_up_leaves_no_slot() -> None:
    app = famulus.App("dropped")
    double = doubling(app, concurrency=2)
    async with famulus.open_app(app) as running:
        promise = await double.ask_nowait(1)
        assert replies_of(running).waiting == 1
        del promise
        assert replies_of(running).waiting == 0
        promise = await double.ask_nowait(1)
        with trio.move_on_after(0.1):
            await promise
        assert replies_of(running).waiting == 0
        with pytest.raises(famulus.AgentError, match="was cancelled: ask again"):
            await promise
        await trio.sleep(5)
        assert running.statistics().replies_dropped == 2


async def test_one_id_cannot_wait_twice_at_once() -> None:
    app = famulus.App("twice")
    double = doubling(app, concurrency=2)
    async with famulus.open_app(app):
        promise = await double.ask_nowait(1, correlation_id="q")
        with pytest.raises(ValueError, match="correlation_id='q'"):
            await double.ask(1, correlation_id="q")
        assert await promise == 2
        assert await double.ask(1, correlation_id="q") == 2


# -- several parts -------------------------------------------------------------------------------------------


def counting(app: famulus.App) -> famulus.Agent[int, int]:
    """An agent that counts up to the number, and fails on 3."""

    @app.agent(app.channel(value_type=int), name="count")
    async def count(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            for each in range(number):
                yield each
            if number == 3:
                raise ValueError("three")

    return count


async def test_a_stream_gives_all_parts_then_ends() -> None:
    app = famulus.App("parts")
    count = counting(app)
    async with famulus.open_app(app) as running:
        with trio.fail_after(5):
            assert [part async for part in count.ask_stream(5)] == [0, 1, 2, 3, 4]
            assert [part async for part in running.agent(count).ask_stream(0)] == []
            assert await count.ask(2) == 0
        assert replies_of(running).waiting == 0


async def test_a_failure_comes_after_the_parts_before_it() -> None:
    app = famulus.App("parts-fail")
    count = counting(app)
    parts: list[int] = []
    async with famulus.open_app(app):
        with trio.fail_after(5), pytest.raises(famulus.AgentError, match="three"):
            async for part in count.ask_stream(3):
                parts.append(part)
    assert parts == [0, 1, 2]


async def test_the_agent_waits_for_a_slow_caller() -> None:
    app = famulus.App("slow", reply_buffer_maxsize=4)
    yielded: list[int] = []

    @app.agent(app.channel(value_type=int))
    async def count(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            for each in range(number):
                yielded.append(each)
                yield each

    async with famulus.open_app(app) as running:
        async with count.ask_stream(100) as parts:
            assert await anext(parts) == 0
            await trio.sleep(5)
            assert len(yielded) <= 6
            assert [part async for part in parts] == list(range(1, 100))
        async with count.ask_stream(100) as parts:
            assert await anext(parts) == 0
        with trio.fail_after(5):  # who leaves does not keep the agent waiting
            assert await count.ask(1) == 0
        assert replies_of(running).waiting == 0


async def test_a_stream_that_is_left_leaves_nothing() -> None:
    app = famulus.App("left-stream")
    count = counting(app)
    async with famulus.open_app(app) as running:
        async for _ in count.ask_stream(1000):
            break
        gc.collect()
        assert replies_of(running).waiting == 0
        async with aclosing(count.ask_stream(1000)) as parts:
            await anext(parts)
        with pytest.raises(StopAsyncIteration):
            while True:
                await anext(parts)
        assert replies_of(running).waiting == 0


async def test_explicit_replies_are_parts_too() -> None:
    app = famulus.App("explicit")

    @app.agent(app.channel(value_type=int))
    async def note(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            for each in range(event.value):
                event.reply(each)

    async with famulus.open_app(app):
        parts: list[object] = [part async for part in note.ask_stream(3)]
        assert parts == [0, 1, 2]


async def test_after_take_the_kth_answer_is_that_to_the_kth_request() -> None:
    app = famulus.App("take")

    @app.agent(app.channel(value_type=int))
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for numbers in stream.take(4, within=1):
            for number in numbers:
                yield 2 * number

    async with famulus.open_app(app):
        with trio.fail_after(60):
            assert await double.join(range(10)) == [2 * number for number in range(10)]
            assert [part async for part in double.ask_stream(4)] == [8]


async def test_the_request_s_id_is_known_to_the_agent() -> None:
    app = famulus.App("known")
    seen: list[bytes] = []

    @app.agent(app.channel(value_type=int))
    async def look(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            seen.append(dict(event.headers)["famulus-correlation-id"])

    async with famulus.open_app(app):
        await look.ask(1, correlation_id="mine", headers={"source": "web"})
    assert seen == [b"mine"]
