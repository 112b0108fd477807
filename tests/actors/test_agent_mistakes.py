"""What is easily done wrong with agents, and what is said then."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

import famulus


async def squares(stream: famulus.Stream[int]) -> AsyncIterator[int]:
    async for number in stream:
        yield number * number


def plain(stream: famulus.Stream[int]) -> None:
    """Not async."""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"concurency": 2}, "agent got an unexpected option 'concurency'; did you mean concurrency?"),
        ({"name": "a", "valuetype": int}, "agent a got an unexpected option 'valuetype'; did you mean value_type?"),
        ({"channel": ["a", "b"]}, "app.topic('a', 'b')"),
        ({"channel": 3}, "expected a channel, a topic, or the name of a topic"),
        ({"name": 3}, "agent name=3: expected text"),
        ({"name": ""}, "agent name='': expected text"),
        ({"on_error": lambda error: None}, "expected a function of the agent and the error"),
    ],
)
def test_a_wrong_option_is_refused_with_what_was_expected(wrong: dict[str, Any], said: str) -> None:
    app = famulus.App("mistakes")
    with pytest.raises((famulus.ImproperlyConfigured, TypeError)) as caught:
        app.agent(**wrong)
    assert said in str(caught.value)


def test_a_wrong_function_or_channel_is_refused_with_what_to_do() -> None:
    app: Any = famulus.App("mistakes")
    with pytest.raises(famulus.ImproperlyConfigured, match="write `async def`"):
        app.agent()(plain)
    with pytest.raises(famulus.ImproperlyConfigured, match="or leave isolated_partitions out"):
        app.agent(app.channel("c"), isolated_partitions=True)(squares)
    assert not app.agents


async def test_a_timeout_and_a_reply_address_are_no_options_of_a_question() -> None:
    app = famulus.App("options")
    square: Any = app.agent(name="square")(squares)

    async with famulus.open_app(app):
        for call in (square.ask, square.ask_nowait):
            with pytest.raises(TypeError, match=r"square was asked with timeout=.*trio\.fail_after"):
                await call(1, timeout=3)
        with pytest.raises(TypeError, match=r"reply_to=.*agent\.send\(value, reply_to=topic\)"):
            await square.join([1], reply_to="there")
        with pytest.raises(TypeError, match="timeout"):
            await anext(square.ask_stream(1, timeout=3))
        with trio.fail_after(5):
            assert await square.ask(3) == 9


async def test_a_correlation_id_is_text() -> None:
    app = famulus.App("ids")
    square: Any = app.agent(name="square")(squares)

    async with famulus.open_app(app):
        for wrong in (3, b"id", ""):
            with pytest.raises(ValueError, match=r"correlation_id=.*expected text"):
                await square.ask(1, correlation_id=wrong)
            with pytest.raises(ValueError, match=r"correlation_id=.*expected text"):
                await square.send(1, correlation_id=wrong, reply_to="there")


async def test_kvjoin_takes_pairs_and_says_so() -> None:
    app = famulus.App("pairs")
    square: Any = app.agent(name="square")(squares)

    async with famulus.open_app(app):
        with pytest.raises(TypeError, match=r"this is a mapping: give its items\(\)"):
            await square.kvjoin({"ab": 1})
        with pytest.raises(TypeError, match=r"1: expected a pair, \(key, value\)"):
            await square.kvjoin([1, 2])


async def test_in_a_client_an_agent_cannot_be_looked_into_and_the_error_says_where_it_can() -> None:
    app = famulus.App("looked", broker="memory://looked")
    square = app.agent(name="square")(squares)

    async with famulus.open_client(app):
        for look in (square.info, square.actor_tracebacks):
            with pytest.raises(famulus.AppNotRunning, match=r"does not run in this client.*famulus tree"):
                look()
        with pytest.raises(famulus.AppNotRunning, match="does not run in this client"):
            await square.restart()


async def test_an_agent_declared_on_the_app_while_that_runs_is_said_to_wait_for_the_next_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = famulus.App("late")
    async with famulus.open_app(app):
        late = app.agent(name="late")(squares)
        assert "agent late was declared on app 'late' while that runs" in caplog.text
        assert "@running.agent" in caplog.text
        with pytest.raises(famulus.AppNotRunning, match=r"@running\.agent"):
            late.info()
    async with famulus.open_app(app):
        with trio.fail_after(5):
            assert await late.ask(3) == 9


async def test_an_agent_that_only_a_client_declares_is_nothing_to_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    app = famulus.App("asked", broker="memory://asked")
    async with famulus.open_client(app):
        app.agent(name="square")(squares)
    assert not caplog.records
