"""An agent that would wait for itself is told so at once, and only then."""

from collections.abc import AsyncIterator

import pytest
import trio

import famulus


@pytest.mark.parametrize("local", [True, False])
async def test_an_agent_that_asks_itself_is_told_what_to_do(local: bool) -> None:
    app = famulus.App("itself")

    @app.agent(app.channel(value_type=int) if local else None, name="factorial")
    async def factorial(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield number * await factorial.ask(number - 1) if number > 1 else 1

    async with famulus.open_app(app):
        with trio.fail_after(5):
            with pytest.raises(
                famulus.AgentError, match=r"AskDeadlock.*factorial\[0\] → factorial.*concurrency"
            ) as caught:
                await factorial.ask(3)
            assert caught.value.remote_type == "famulus.actors.errors.AskDeadlock"
            assert await factorial.ask(1) == 1


@pytest.mark.parametrize("call", ["ask_stream", "join", "promise"])
async def test_every_way_to_wait_is_looked_at(call: str) -> None:
    app = famulus.App("ways")

    @app.agent(app.channel(value_type=int), name="self")
    async def itself(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            if number == 0:
                pass
            elif call == "ask_stream":
                [_ async for _ in itself.ask_stream(0)]
            elif call == "join":
                await itself.join([0, 0])
            else:
                await (await itself.ask_nowait(0))
            yield number

    async with famulus.open_app(app):
        with trio.fail_after(5), pytest.raises(famulus.AgentError, match="AskDeadlock"):
            await itself.ask(1)


async def test_with_as_many_actors_as_requests_wait_for_each_other_it_goes() -> None:
    app = famulus.App("enough")

    @app.agent(name="factorial", concurrency=3)
    async def factorial(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield number * await factorial.ask(number - 1) if number > 1 else 1

    async with famulus.open_app(app):
        with trio.fail_after(5):
            assert await factorial.ask(3) == 6
            with pytest.raises(famulus.AgentError, match="AskDeadlock"):
                await factorial.ask(4)
            assert await factorial.ask(2) == 2


async def test_a_circle_of_several_agents_is_found() -> None:
    app = famulus.App("circle")

    @app.agent(name="ping")
    async def ping(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield await pong.ask(number - 1)

    @app.agent(name="pong")
    async def pong(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 0 if number == 0 else await ping.ask(number - 1)

    async with famulus.open_app(app):
        with trio.fail_after(5):
            assert await ping.ask(1) == 0
            with pytest.raises(famulus.AgentError, match=r"pong\[0\] → ping → pong"):
                await ping.ask(2)
            assert await ping.ask(1) == 0


async def test_a_free_actor_does_not_help_who_holds_the_other_s_request() -> None:
    app = famulus.App("held")

    @app.agent(name="ping")
    async def ping(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield await pong.ask(number)

    @app.agent(name="pong", concurrency=5)
    async def pong(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield await ping.ask(number)

    async with famulus.open_app(app):
        with trio.fail_after(5), pytest.raises(famulus.AgentError, match="AskDeadlock"):
            await ping.ask(1)


async def test_what_can_end_by_itself_is_no_circle() -> None:
    app = famulus.App("ends")
    answers: list[int] = []

    @app.agent(name="ping")
    async def ping(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            if number == 1:
                with trio.move_on_after(1):  # its own patience
                    await pong.ask(number)
            yield number

    @app.agent(name="pong")
    async def pong(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            answers.append(await ping.ask(number + 1) if number < 2 else number)
            yield number

    async with famulus.open_app(app):
        with trio.fail_after(60):
            assert await ping.ask(1) == 1
            await trio.sleep(5)
    assert answers[-1] == 2


async def test_a_task_of_an_agent_may_ask_it() -> None:
    app = famulus.App("task-of")
    answers: list[object] = []

    async def ask_later(number: int) -> None:
        answer: object = await agent.ask(number)  # type: ignore[func-returns-value]  # it replies by hand
        answers.append(answer)

    @app.agent(name="agent")
    async def agent(stream: famulus.Stream[int]) -> None:
        async with trio.open_nursery() as nursery:
            async for event in stream.events():
                if event.value:
                    nursery.start_soon(ask_later, 0)
                event.reply(event.value)

    async with famulus.open_app(app):
        with trio.fail_after(5):
            await agent.ask(1)
            while not answers:
                await trio.sleep(0.1)
    assert answers == [0]


@pytest.mark.parametrize("stream", [False, True])
async def test_who_has_its_answer_already_is_not_waiting(stream: bool) -> None:
    app = famulus.App("answered")
    echoed: list[int] = []

    @app.agent(app.channel(value_type=int), name="ping")
    async def ping(stream_: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream_:
            if number < 10:
                if stream:
                    async with pong.ask_stream(number) as parts:
                        await anext(parts)
                else:
                    await pong.ask(number)
            yield number

    @app.agent(app.channel(value_type=int), name="pong")
    async def pong(stream_: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream_:
            yield number
            echoed.append(await ping.ask(number + 10))  # ping is ready to go on, and has not been woken yet

    async with famulus.open_app(app):
        with trio.fail_after(5):
            assert await ping.ask(1) == 1
            await trio.sleep(1)
    assert echoed == [11]
