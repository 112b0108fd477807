"""PEP 789: what a child does to its own cancel scope stack stays in that child."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
import trio

from famulus.supervision import (
    Backoff,
    LeakedCancellation,
    OneForOneSupervisor,
    StrayNursery,
    child,
    open_supervisor,
)

STEADY = OneForOneSupervisor(backoff=Backoff(min=1.0, max=1.0, factor=1.0, jitter=0.0))


async def ticks(seconds: float) -> AsyncGenerator[int, None]:
    with trio.move_on_after(seconds):
        while True:
            yield 1


class Witness:
    """A sibling that must not notice anything."""

    def __init__(self) -> None:
        self.began = 0

    async def __call__(self) -> None:
        self.began += 1
        await trio.sleep_forever()


@pytest.fixture
def kept() -> list[AsyncGenerator[int, None]]:
    """Holds generators, so that the garbage collector's warnings do not come into it."""
    return []


async def test_a_deadline_inside_a_suspended_generator_is_a_crash_of_that_child_only() -> None:
    witness, runs = Witness(), list[float]()

    async def leaks() -> None:
        runs.append(trio.current_time())
        async with aclosing(ticks(1)) as stream:
            async for _ in stream:
                await trio.sleep(100)  # the delivery of an answer, interrupted by the generator's own deadline

    async with open_supervisor(STEADY) as sup:
        sibling = await sup.start(child(witness, name="witness"))
        handle = await sup.start(child(leaks))
        await trio.sleep(2.5)
        assert isinstance(handle.last_reason, LeakedCancellation)
        assert isinstance(handle.last_reason.__cause__, trio.Cancelled)
        assert "PEP 789" in str(handle.last_reason)
        assert (len(runs), sibling.state, sup.state) == (2, "running", "running")
    assert witness.began == 1


async def test_a_generator_left_suspended_inside_its_scope_is_a_crash_of_that_child_only(
    kept: list[AsyncGenerator[int, None]],
) -> None:
    witness, runs = Witness(), list[float]()

    async def leaves_it_open() -> None:
        runs.append(trio.current_time())
        kept.append(ticks(100))
        assert await anext(kept[-1]) == 1
        if len(runs) == 2:
            raise ValueError("and fails as well")

    async with open_supervisor(STEADY) as sup:
        sibling = await sup.start(child(witness, name="witness"))
        handle = await sup.start(child(leaves_it_open))
        await trio.sleep(0.5)
        assert isinstance(handle.last_reason, RuntimeError)
        assert "Cancel scope stack corrupted" in str(handle.last_reason)
        await trio.sleep(1)
        assert isinstance(handle.last_reason, RuntimeError)
        assert isinstance(handle.last_reason.__context__, ValueError)
        await handle.terminate()
        assert (len(runs), sibling.state, witness.began) == (2, "running", 1)
    for generator in kept:
        await generator.aclose()


async def test_a_nursery_left_open_in_a_generator_is_emptied_and_a_crash_of_that_child_only(
    kept: list[AsyncGenerator[int, None]],
) -> None:
    witness, ended = Witness(), list[str]()

    async def orphan() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.25)
            ended.append("orphan")

    async def source() -> AsyncGenerator[int, None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(orphan)
            while True:
                yield 1

    async def leaves_it_open() -> None:
        generator = source()
        kept.append(generator)
        await anext(generator)
        await trio.sleep(0.1)

    async with open_supervisor(STEADY) as sup:
        sibling = await sup.start(child(witness, name="witness"))
        handle = await sup.start(child(leaves_it_open, restart="transient"))
        await trio.sleep(1)
        assert isinstance(handle.last_reason, StrayNursery)
        assert ended == ["orphan"]
        assert (handle.state, sibling.state, sup.state) == ("backoff", "running", "running")
        await handle.terminate()
    assert witness.began == 1
    with pytest.raises((IndexError, AttributeError, RuntimeError)):
        await kept[0].aclose()  # it is beyond repair, and says so to its owner


async def test_a_leaked_cancelled_in_a_group_leaves_the_real_failures() -> None:
    async def leaks_both() -> None:
        async def with_scope() -> None:
            async with aclosing(ticks(1)) as stream:
                async for _ in stream:
                    try:
                        await trio.sleep(100)
                    except trio.Cancelled as cancelled:
                        raise BaseExceptionGroup("both", [cancelled, ValueError("real")]) from None

        await with_scope()

    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(leaks_both))
        await trio.sleep(1.5)
        assert isinstance(handle.last_reason, ExceptionGroup)
        assert [str(e) for e in handle.last_reason.exceptions] == ["real"]
        await handle.terminate()


async def test_a_leak_in_a_start_does_not_cancel_the_starter() -> None:
    async def leaks(*, task_status: trio.TaskStatus[None]) -> None:
        async with aclosing(ticks(1)) as stream:
            async for _ in stream:
                await trio.sleep(100)

    async with open_supervisor(STEADY) as sup:
        with pytest.raises(LeakedCancellation):
            await sup.start(child(leaks))
        assert not sup.children
