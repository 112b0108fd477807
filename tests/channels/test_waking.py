"""What a waiting task is woken with: as trio's own outcomes, but it may be used again."""

from collections.abc import AsyncGenerator, Generator

import trio
import trio.testing

from famulus.channels.waking import NOTHING, Given


async def test_a_task_that_waits_goes_on_with_the_value_that_it_is_given() -> None:
    got: list[object] = []

    async def wait() -> None:
        got.append(await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, name="waiting")
        await trio.testing.wait_all_tasks_blocked()
        (task,) = (task for task in nursery.child_tasks if task.name == "waiting")
        trio.lowlevel.reschedule(task, Given(3))
    assert got == [3]


async def test_many_tasks_are_woken_with_the_same_nothing() -> None:
    woken = 0

    async def wait() -> None:
        nonlocal woken
        assert await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED) is None
        woken += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        for task in nursery.child_tasks:
            trio.lowlevel.reschedule(task, NOTHING)
    assert woken == 3


async def test_a_given_value_can_be_sent_into_generators() -> None:
    def plain() -> Generator[int, int, None]:
        yield 2 * (yield 0)

    async def asynchronous() -> AsyncGenerator[int, int]:
        yield 2 * (yield 0)

    given, generator, asynchronous_one = Given(3), plain(), asynchronous()
    next(generator)
    await anext(asynchronous_one)
    assert given.send(generator) == 6
    assert await given.asend(asynchronous_one) == 6
    await asynchronous_one.aclose()
