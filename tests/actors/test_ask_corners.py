"""Calls at their corners: who is asked, from where, and what becomes of failures that are hard to tell of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.actors.replies import Replies
from famulus.actors.wire import decode_failure, encode_failure, failure_of
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP


class Mute(Exception):
    """An error that cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


@pytest.mark.parametrize("local", [True, False])
async def test_an_error_whose_text_cannot_be_had_is_an_answer_all_the_same(local: bool, broker: MemoryBroker) -> None:
    app = famulus.App("shop", broker=f"memory://{broker.name}", broker_commit_interval=0.1)
    channel: Any = app.channel() if local else app.topic("words", value_type=str, partitions=1)

    @app.agent(channel, name="say")
    async def say(stream: famulus.Stream[str]) -> AsyncIterator[str]:
        async for _ in stream:
            raise Mute
            yield ""

    async with famulus.open_app(app):
        with (
            trio.fail_after(5),
            pytest.raises(famulus.AgentError, match="Mute: <the error's text cannot be had") as caught,
        ):
            await say.ask("hello")
        assert caught.value.remote_type.endswith("Mute")
        await trio.sleep(1)
    if not local:
        assert broker.group("shop").committed[TP("words", 0)] == 1


def test_a_failure_is_never_too_large_to_travel() -> None:
    try:
        raise ValueError("ä" * 1_000_000 + "\U0001f600" * 1_000_000)
    except ValueError as error:
        data = encode_failure(failure_of("long", error))
    assert len(data) < 500_000
    failure = decode_failure("long", data)
    assert failure.remote_type == "ValueError"
    assert failure.remote_message.startswith("äää")


async def test_each_caller_gets_a_failure_of_its_own() -> None:
    app = famulus.App("shop")

    @app.agent(app.channel(), name="deaf")
    async def deaf(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for _ in stream:
            await trio.sleep_forever()
            yield 0

    found: list[famulus.AgentError] = []

    async def ask() -> None:
        with pytest.raises(famulus.AgentError) as caught:
            await deaf.ask(1)
        found.append(caught.value)

    async with famulus.open_app(app), trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await deaf.cancel()
        await ask()
    assert len({id(error) for error in found}) == 3


async def test_a_stream_and_an_ask_under_one_id_do_not_disturb_each_other() -> None:
    app = famulus.App("shop")

    @app.agent(app.channel(), name="count")
    async def count(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield number
            await trio.sleep(1)

    async with famulus.open_app(app):
        async with count.ask_stream(1, correlation_id="q") as parts:
            assert await anext(parts) == 1
        with trio.fail_after(10):  # the end of the first comes while it waits
            assert await count.ask(2, correlation_id="q") == 2


async def test_whoever_goes_on_after_a_refusal_comes_to_the_end_of_the_values() -> None:
    app = famulus.App("shop")

    @app.agent(app.channel(), name="double")
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 2 * number

    async with famulus.open_app(app):
        await double.cancel()
        results = double.map([1, 2, 3])
        refused: list[int] = []
        while True:
            try:
                await anext(results)
            except famulus.AgentError:
                refused.append(results.index)
            except StopAsyncIteration:
                break
            assert len(refused) <= 3
        assert refused == [0, 1, 2]


async def test_an_ask_from_another_thread_says_how() -> None:
    app = famulus.App("shop")

    @app.agent(app.channel(), name="double")
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 2 * number

    async with famulus.open_app(app) as running:

        async def elsewhere(asked: Any) -> None:
            with trio.move_on_after(2):
                await asked.ask(1)

        for asked in (double, running.agent(double)):
            with pytest.raises(famulus.AppNotRunning, match="from_thread"):
                await trio.to_thread.run_sync(trio.run, elsewhere, asked)  # its context goes with it
            with pytest.raises(famulus.AppNotRunning, match="from_thread"):
                await trio.to_thread.run_sync(asked.ask_stream, 1)
            with pytest.raises(famulus.AppNotRunning, match="from_thread"):
                await trio.to_thread.run_sync(asked.map, [1])
        assert Replies.of(running._run).waiting == 0

        def in_thread() -> int:
            return trio.from_thread.run(double.ask, 21)

        assert await trio.to_thread.run_sync(in_thread) == 42


async def test_a_reply_from_another_thread_is_refused_and_the_caller_is_told() -> None:
    app = famulus.App("shop")

    @app.agent(app.channel(), name="think")
    async def think(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            await trio.to_thread.run_sync(event.reply, 2 * event.value)
            yield 0

    @app.agent(app.channel(), name="ponder")
    async def ponder(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            await trio.to_thread.run_sync(trio.from_thread.run_sync, event.reply, 2 * event.value)
            yield 0

    async with famulus.open_app(app):
        with trio.fail_after(5):
            with pytest.raises(famulus.AgentError, match="from_thread"):
                await think.ask(21)
            assert await ponder.ask(21) == 42


async def test_a_handle_of_a_run_that_is_over_does_not_mean_another_run() -> None:
    app = famulus.App("shop")

    @app.agent(app.channel(), name="double")
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 2 * number

    async with famulus.open_app(app) as first:
        assert await first.agent(double).ask(1) == 2
    bound = first.agent(double)
    async with famulus.open_app(app):
        with pytest.raises(famulus.AppNotRunning):
            await bound.ask(1)
        with pytest.raises(famulus.AppNotRunning):
            bound.ask_stream(1)
        with pytest.raises(famulus.AppNotRunning):
            await bound.cast(1)


async def test_what_is_said_after_the_acknowledgement_holds_nothing(broker: MemoryBroker) -> None:
    app = famulus.App("shop", broker=f"memory://{broker.name}", broker_commit_interval=0.1)

    @app.agent(app.topic("numbers", value_type=int, partitions=1), name="late")
    async def late(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for event in stream.noack().events():
            event.reply(event.value)
            event.ack()
            event.reply(-1)
            yield -2

    async with famulus.open_app(app):
        with trio.fail_after(5):
            assert await late.ask(1) == 1
            assert [part async for part in late.ask_stream(2)] == [2]
            assert await late.ask(3) == 3
        await trio.sleep(1)
    assert broker.group("shop").committed[TP("numbers", 0)] == 3


@pytest.mark.parametrize("local", [True, False])
async def test_of_several_agents_on_a_topic_the_one_that_is_asked_answers(local: bool) -> None:
    app = famulus.App("shop")
    numbers: Any = app.channel() if local else app.topic("numbers", value_type=int, partitions=1)
    seen: list[int] = []

    @app.agent(numbers, name="audit")
    async def audit(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    @app.agent(numbers, name="square")
    async def square(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(0.1)
            if number < 0:
                raise ValueError("negative")
            yield number**2
            yield number**3

    @app.agent(numbers, name="negate")
    async def negate(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield -number
            yield -number

    async with famulus.open_app(app) as running:
        with trio.fail_after(10):
            assert await square.ask(3) == 9
            assert await negate.ask(3) == -3
            nothing: object = await audit.ask(3)  # type: ignore[func-returns-value]
            assert nothing is None
            assert [part async for part in square.ask_stream(2)] == [4, 8]
            assert await negate.ask(-1) == 1
            with pytest.raises(famulus.AgentError, match="negative"):
                await square.ask(-1)
        assert running.statistics().replies_dropped == 0
    assert seen == [3, 3, 3, 2, -1, -1]


async def test_of_agents_on_a_pattern_and_its_topics_the_one_that_is_asked_answers() -> None:
    app = famulus.App("shop")
    doubled: list[int] = []

    @app.agent(app.topic(pattern="num.*", value_type=int), name="all")
    async def audit(stream: famulus.Stream[int]) -> None:
        async for _ in stream.group_by(lambda number: str(number), name="number"):
            pass

    @app.agent(app.topic("numbers", value_type=int, partitions=2), name="double")
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream.group_by(lambda number: str(number), name="number"):
            await trio.sleep(1)
            yield 2 * number

    @app.agent(app.topic("doubled", value_type=int, partitions=1), name="hear")
    async def hear(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            doubled.append(number)

    async with famulus.open_app(app) as running:
        with trio.fail_after(20):
            assert await double.ask(3) == 6
            await double.send(4, reply_to=hear)
            while not doubled:
                await trio.sleep(0.1)
        assert doubled == [8]
        assert running.statistics().replies_dropped == 0


async def test_an_agent_that_has_ended_for_good_is_not_waited_for() -> None:
    app = famulus.App("shop")

    @app.agent(app.channel(), name="once", concurrency=2)
    async def once(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield number
            return

    app.supervisor("front", famulus.leaf("once", restart="transient"))
    async with famulus.open_app(app):
        with trio.fail_after(5):
            assert await once.ask(1) == 1
            assert await once.ask(2) == 2
            with pytest.raises(famulus.AgentError, match="returned"):
                await once.ask(3)
        await once.restart()
        with trio.fail_after(5):
            assert await once.ask(4) == 4
            waits = await once.ask_nowait(5)
            assert await waits == 5
            with pytest.raises(famulus.AgentError, match="returned"):
                await once.join([6, 7])
