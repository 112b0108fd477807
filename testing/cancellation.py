"""Cancel a call at its first, second … wait, until it ends before that: every await is a place to be cancelled at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import trio.testing

__all__ = ["MOST", "CancelAt", "each_wait"]

MOST = 500
"""Waits of one call; more would be a loop without end."""


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when a task waits for the n-th time."""

    def __init__(self, task: trio.lowlevel.Task, number: int, scope: trio.CancelScope) -> None:
        self.task = task
        self.left = number
        self.scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task and self.left > 0:
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
    ended: list[bool] = []
    for number in range(1, MOST):
        scope = trio.CancelScope()
        watcher = CancelAt(trio.lowlevel.current_task(), number, scope)
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
    raise AssertionError(f"it waits more than {MOST} times")
