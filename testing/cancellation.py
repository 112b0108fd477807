"""Cancel a call at its first, second … wait, until it ends before that: every await is a place to be cancelled at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import trio.testing

__all__ = ["MOST", "CancelAt", "each_step", "each_wait"]

MOST = 500
"""Waits of one call; more would be a loop without end."""


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when a task waits for the n-th time; without a task, when the n-th step of any task is over."""

    def __init__(self, task: trio.lowlevel.Task | None, number: int, scope: trio.CancelScope) -> None:
        self.task = task
        self.left = number
        self.scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if (self.task is None or task is self.task) and self.left > 0:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()

    @property
    def fired(self) -> bool:
        return self.left == 0


async def each_wait(call: Callable[[int], Awaitable[object]]) -> list[bool]:
    """Call it again and again, cancelled at its n-th wait. Gives for each call whether it ended by itself.

    Args:
        call: gets n, from 1 on.

    Raises:
        AssertionError: it waits without end.
    """
    return await _each(call, trio.lowlevel.current_task(), "it waits")


async def each_step(call: Callable[[int], Awaitable[object]]) -> list[bool]:
    """The same, cancelled after the n-th step of any task: also between an answer and the waking of who waits for it.

    Raises:
        AssertionError: it takes steps without end.
    """
    return await _each(call, None, "there are steps")


async def _each(call: Callable[[int], Awaitable[object]], task: trio.lowlevel.Task | None, what: str) -> list[bool]:
    ended: list[bool] = []
    for number in range(1, MOST):
        scope = trio.CancelScope()
        watcher = CancelAt(task, number, scope)
        with scope:
            trio.lowlevel.add_instrument(watcher)
            try:
                await call(number)
            finally:
                trio.lowlevel.remove_instrument(watcher)
        ended.append(not scope.cancelled_caught)
        if not watcher.fired:
            return ended
        await trio.testing.wait_all_tasks_blocked()
    raise AssertionError(f"{what} more than {MOST} times")
