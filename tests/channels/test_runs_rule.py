"""The rule for runs: which run of an App a declared object means."""

from collections.abc import AsyncIterator

import pytest
import trio

import famulus


def counting_app(name: str = "runs") -> tuple[famulus.App, famulus.Agent[int, str]]:
    app = famulus.App(name)

    @app.agent()
    async def where(stream: famulus.Stream[int]) -> AsyncIterator[str]:
        seen = 0
        async for _ in stream:
            seen += 1
            yield f"{seen} seen"

    return app, where


async def test_a_declared_agent_means_the_run_around_it() -> None:
    app, where = counting_app()
    async with famulus.open_app(app):
        assert await where.ask(1) == "1 seen"


async def test_the_same_app_runs_twice_in_sequence_with_fresh_state() -> None:
    app, where = counting_app()
    for _ in range(2):
        async with famulus.open_app(app):
            assert await where.ask(1) == "1 seen"
            assert await where.ask(1) == "2 seen"


async def test_the_same_app_runs_twice_at_once_and_the_inner_one_is_meant_inside() -> None:
    app, where = counting_app()
    async with famulus.open_app(app) as outer:
        assert await where.ask(1) == "1 seen"
        async with famulus.open_app(app):
            assert await where.ask(1) == "1 seen"
            assert await outer.agent(where).ask(1) == "2 seen"
        assert await where.ask(1) == "3 seen"


async def test_a_task_of_neither_run_has_to_say_which_it_means() -> None:
    app, where = counting_app()
    answers: list[str] = []
    ready, finish = trio.Event(), trio.Event()

    async def stranger() -> None:
        await ready.wait()
        with pytest.raises(famulus.AmbiguousRun, match=r"runs 2 times .*running\.agent\(my_agent\)\.ask"):
            await where.ask(1)
        answers.append("refused")
        finish.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger)
        async with famulus.open_app(app), famulus.open_app(app):
            ready.set()
            await finish.wait()
    assert answers == ["refused"]


async def test_a_task_outside_means_the_only_live_run() -> None:
    app, where = counting_app()
    ready, finish = trio.Event(), trio.Event()

    async def stranger() -> None:
        await ready.wait()
        assert await where.ask(1) == "1 seen"
        finish.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger)
        async with famulus.open_app(app):
            ready.set()
            await finish.wait()


async def test_a_declaration_that_does_not_run_says_so() -> None:
    app, where = counting_app("quiet")
    with pytest.raises(famulus.AppNotRunning, match=r"app 'quiet' is a declaration .* open_app"):
        await where.ask(1)
    async with famulus.open_app(app):
        pass
    with pytest.raises(famulus.AppNotRunning):
        await where.ask(1)


def test_use_outside_trio_says_how_to_come_in() -> None:
    app = famulus.App("threads")
    topic = app.topic("t")
    with pytest.raises(famulus.AppNotRunning, match=r"trio\.from_thread\.run"):
        topic.send_soon(1)


async def test_a_thread_comes_in_through_from_thread() -> None:
    app, where = counting_app()
    async with famulus.open_app(app):
        assert await trio.to_thread.run_sync(lambda: trio.from_thread.run(where.ask, 1)) == "1 seen"


async def test_two_apps_at_once_do_not_mix() -> None:
    first, where_first = counting_app("first")
    second, where_second = counting_app("second")
    async with famulus.open_app(first), famulus.open_app(second):
        assert await where_first.ask(1) == "1 seen"
        assert await where_second.ask(1) == "1 seen"
        assert await where_first.ask(1) == "2 seen"


async def test_agents_declared_on_a_running_app_end_with_it() -> None:
    app = famulus.App("late")
    async with famulus.open_app(app) as running:

        @running.agent()
        async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for n in stream:
                yield 2 * n

        with trio.fail_after(1):
            assert await double.ask(21) == 42
    assert app.agents == {}
    with pytest.raises(famulus.AppNotRunning):
        await double.ask(21)
    async with famulus.open_app(app) as running:
        assert [node.name for node in running.tree().children[2].children] == []
