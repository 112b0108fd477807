"""Calls between agents, in one process."""

import traceback
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker


async def test_a_plain_coroutine_answers_none() -> None:
    app = famulus.App("plain")

    @app.agent()
    async def note(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app):
        with trio.fail_after(1):
            nothing: object = await note.ask(1)  # type: ignore[func-returns-value]  # that is the point
            assert nothing is None


async def test_pain_19_a_failure_is_an_answer() -> None:
    app = famulus.App("fails")

    @app.agent(name="divide")
    async def divide(stream: famulus.Stream[int]) -> AsyncIterator[float]:
        async for number in stream:
            yield 1 / number

    async with famulus.open_app(app):
        with trio.fail_after(5):
            with pytest.raises(famulus.AgentError) as caught:
                await divide.ask(0)
            assert await divide.ask(4) == 0.25
    error = caught.value
    assert (error.agent, error.remote_type, error.remote_message) == ("divide", "ZeroDivisionError", "division by zero")
    assert "yield 1 / number" in error.remote_traceback
    assert "agent divide: ZeroDivisionError: division by zero" in str(error)


async def test_a_failure_deep_in_a_chain_of_agents_is_told_in_one_line_with_each_traceback_once() -> None:
    app = famulus.App("chain")

    @app.agent(name="stock")
    async def stock(stream: famulus.Stream[str]) -> AsyncIterator[int]:
        async for item in stream:
            raise LookupError(f"no {item}")
            yield 0

    @app.agent(name="price")
    async def price(stream: famulus.Stream[str]) -> AsyncIterator[int]:
        async for item in stream:
            yield 2 * await stock.ask(item)

    @app.agent(name="checkout")
    async def checkout(stream: famulus.Stream[str]) -> AsyncIterator[int]:
        async for item in stream:
            yield 3 * await price.ask(item)

    async with famulus.open_app(app):
        with trio.fail_after(5), pytest.raises(famulus.AgentError) as caught:
            await checkout.ask("plums")
    assert str(caught.value) == "agent checkout: agent price: agent stock: LookupError: no plums"
    shown = "".join(traceback.format_exception(caught.value))
    for line in ('raise LookupError(f"no {item}")', "2 * await stock.ask(item)", "3 * await price.ask(item)"):
        assert shown.count(line) == 1


async def test_an_error_without_a_text_is_told_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    app = famulus.App("late")

    @app.agent(name="late")
    async def late(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            with trio.fail_after(1):
                await trio.sleep_forever()
            yield number

    async with famulus.open_app(app):
        with trio.fail_after(5), pytest.raises(famulus.AgentError) as caught:
            await late.ask(1)
    assert str(caught.value) == "agent late: trio.TooSlowError"
    assert "attempt 1: TooSlowError; skipped" in caplog.text


async def test_pain_19_an_error_whose_text_cannot_be_had_is_an_answer_too() -> None:
    app = famulus.App("odd")

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @app.agent(name="odd")
    async def odd(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            if number:
                raise Odd
            yield number

    async with famulus.open_app(app):
        with trio.fail_after(5):
            with pytest.raises(famulus.AgentError, match=r"Odd: <the error's text cannot be had"):
                await odd.ask(1)
            assert await odd.ask(0) == 0


async def test_a_generator_that_gives_no_answer_says_so() -> None:
    app = famulus.App("silent")

    @app.agent()
    async def evens(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            if number % 2 == 0:
                yield number

    async with famulus.open_app(app):
        with trio.fail_after(1):
            assert await evens.ask(2) == 2
            with pytest.raises(famulus.AgentError, match="no answer"):
                await evens.ask(3)


async def test_deadlines_belong_to_the_caller_and_late_answers_are_dropped() -> None:
    app = famulus.App("late")

    @app.agent()
    async def slow(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(10)
            yield number

    async with famulus.open_app(app) as running:
        with pytest.raises(trio.TooSlowError), trio.fail_after(1):
            await slow.ask(1)
        await trio.sleep(20)
        assert running.statistics().replies_dropped == 1


async def test_many_callers_get_their_own_answers() -> None:
    app = famulus.App("many")

    @app.agent(concurrency=10)
    async def square(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(number % 7)
            yield number * number

    answers: dict[int, int] = {}

    async def ask(number: int) -> None:
        answers[number] = await square.ask(number)

    async with famulus.open_app(app), trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(ask, number)
    assert answers == {number: number * number for number in range(200)}


async def test_an_agent_on_a_local_channel_answers_without_a_broker() -> None:
    app = famulus.App("local")
    channel = app.channel(value_type=int)

    @app.agent(channel)
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 2 * number

    async with famulus.open_app(app) as running:
        with trio.fail_after(1):
            assert await double.ask(21) == 42
        assert running.statistics().messages_sent == 0


async def test_a_chain_of_asks_respects_the_outer_deadline() -> None:
    app = famulus.App("chain")

    @app.agent()
    async def c(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(100 if number > 10 else 0)
            yield number + 1

    @app.agent()
    async def b(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield await c.ask(number) + 1

    async with famulus.open_app(app):
        with trio.fail_after(1):
            assert await b.ask(1) == 3
        with trio.move_on_after(1) as scope:
            await b.ask(11)
        assert scope.cancelled_caught


async def test_an_explicit_reply_comes_before_the_yield() -> None:
    app = famulus.App("explicit")

    @app.agent()
    async def early(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            event.reply("explicit")
            yield event.value

    async with famulus.open_app(app) as running:
        answer: object = await early.ask(1)
        assert answer == "explicit"
        assert running.statistics().replies_sent == 1


async def test_answers_go_to_sinks_as_well() -> None:
    app = famulus.App("sinks")
    out = app.channel(value_type=int)
    heard: list[int] = []
    called: list[int] = []

    @app.agent(out)
    async def hear(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            heard.append(number)

    async def callback(number: int) -> None:
        called.append(number)

    @app.agent(sink=[out, callback, called.append])
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 2 * number

    async with famulus.open_app(app):
        assert await double.ask(2) == 4
        await trio.testing.wait_all_tasks_blocked()
    assert (heard, called) == ([4], [4, 4])


async def test_a_failing_sink_is_thrown_into_the_agent() -> None:
    app = famulus.App("bad-sink")
    thrown: list[str] = []

    def refuse(number: int) -> None:
        raise OSError(f"no room for {number}")

    @app.agent(sink=[refuse])
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            try:
                yield 2 * number
            except OSError as error:
                thrown.append(str(error))

    async with famulus.open_app(app):
        assert await double.ask(2) == 4
        assert await double.ask(3) == 6
        await trio.testing.wait_all_tasks_blocked()
    assert thrown == ["no room for 4", "no room for 6"]


async def test_asks_made_before_the_actor_is_up_wait_for_it() -> None:
    async with famulus.open_app() as app:

        @app.agent()
        async def sleepy(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            await trio.sleep(3)
            async for number in stream:
                yield number

        with trio.fail_after(4):
            assert await sleepy.ask(1) == 1


async def test_asks_that_are_open_when_the_app_stops_fail() -> None:
    app = famulus.App("stops")
    outcome: list[str] = []

    @app.agent()
    async def stuck(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep_forever()
            yield number

    async def ask() -> None:
        try:
            await stuck.ask(1)
        except famulus.AgentError as error:
            outcome.append(error.reason)

    async with trio.open_nursery() as nursery, famulus.open_app(app):
        nursery.start_soon(ask)
        await trio.sleep(1)
    assert outcome == ["the app stopped before the answer came"]


async def test_the_current_agent_and_event_are_known_inside() -> None:
    app = famulus.App("inside")
    seen: list[object] = []

    @app.agent()
    async def look(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            event = famulus.current_event()
            assert event is not None
            seen.extend([famulus.current_agent(), event.value])
            yield number

    async with famulus.open_app(app):
        await look.ask(5)
        assert famulus.current_agent() is None
        assert famulus.current_event() is None
    assert seen == [look, 5]


async def test_with_retry_the_failure_is_answered_only_when_it_is_final() -> None:
    app = famulus.App("patient")
    attempts: list[int] = []

    @app.agent(on_failure="retry", max_attempts=3)
    async def flaky(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            attempts.append(event.attempt)
            if event.attempt < event.value:
                raise RuntimeError(f"attempt {event.attempt}")
            yield event.attempt

    async with famulus.open_app(app):
        with trio.fail_after(100):
            assert await flaky.ask(3) == 3
            assert attempts == [1, 2, 3]
            with pytest.raises(famulus.AgentError, match="attempt 3"):
                await flaky.ask(4)
            assert [part async for part in flaky.ask_stream(2)] == [2]


async def test_a_request_that_goes_to_the_dead_letters_is_answered_with_the_failure() -> None:
    app = famulus.App("buried")

    @app.agent(on_failure="dead_letter")
    async def fails(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 1 // number

    async with famulus.open_app(app) as running:
        with trio.fail_after(5), pytest.raises(famulus.AgentError, match="ZeroDivisionError"):
            await fails.ask(0)
        await trio.sleep(1)
        assert running.statistics().dead_letters == 1


async def test_the_caller_of_a_plain_coroutine_s_parts_gets_the_end() -> None:
    app = famulus.App("plain-parts")

    @app.agent()
    async def note(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app):
        with trio.fail_after(5):
            assert [part async for part in note.ask_stream(1)] == []


async def test_asks_to_an_agent_that_cannot_be_started_fail(broker: MemoryBroker) -> None:
    broker.create_topic("numbers", 3)
    told: list[str] = []
    async with famulus.open_app(broker=f"memory://{broker.name}") as app:
        started = trio.Event()

        @app.agent(app.topic("numbers", value_type=int, partitions=5, internal=True))
        async def never(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for number in stream:
                yield number

        async def ask() -> None:
            with pytest.raises(famulus.AgentError, match="partitions"):
                await never.ask(1, partition=0)
            told.append("failed")

        started.set()
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
            await ask()
    assert told == ["failed", "failed"]


async def test_a_client_in_the_same_process_gets_the_answer_itself_without_a_topic(broker: MemoryBroker) -> None:
    thing = object()

    def make() -> tuple[famulus.App, famulus.Agent[int, object]]:
        app = famulus.App("near", broker=f"memory://{broker.name}")

        @app.agent(name="give")
        async def give(stream: famulus.Stream[int]) -> AsyncIterator[object]:
            async for _ in stream:
                yield thing

        return app, give

    (worker, _), (here, give) = make(), make()
    async with famulus.open_app(worker) as running, famulus.open_client(here) as client:
        with trio.fail_after(5):
            assert await give.ask(1) is thing
            assert await client.agent(give).join([1, 2]) == [thing, thing]
            with pytest.raises(famulus.ImproperlyConfigured, match="another App"):
                running.agent(give)
        assert list(broker.topics) == ["near-give"]


async def test_the_same_app_may_be_worker_and_client_here(broker: MemoryBroker) -> None:
    app = famulus.App("both", broker=f"memory://{broker.name}")

    @app.agent(name="double")
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 2 * number

    async with famulus.open_app(app) as running, famulus.open_client(app) as client:
        with trio.fail_after(5):
            for handle in (running.agent(double), client.agent(double)):
                assert await handle.ask(1) == 2
                assert await (await handle.ask_nowait(2)) == 4
                assert [part async for part in handle.ask_stream(3)] == [6]
                assert [answer async for answer in handle.map([1])] == [2]
                assert await handle.kvjoin([("a", 4)]) == [8]
                await handle.cast(5)
                await (await handle.send(5))
                await handle.send_soon(5)
        assert (client.statistics().replies_sent, client.statistics().messages_sent) == (0, 8)
        assert running.statistics().replies_sent == 12  # six from each, with the end of the parts


async def test_requests_that_are_sent_through_a_topic_are_answered_by_the_last_stage(broker: MemoryBroker) -> None:
    app = famulus.App("stages", broker=f"memory://{broker.name}")

    @app.agent(app.topic("first", value_type=int, partitions=2))
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream.filter(lambda number: number >= 0).through("second"):
            yield 2 * number

    async with famulus.open_app(app) as running:
        with trio.fail_after(60):
            assert await double.join(range(20)) == [2 * number for number in range(20)]
            with pytest.raises(famulus.AgentError, match="no answer"):
                await double.ask(-1)
        assert running.statistics().replies_sent == 21
