"""Waiting, as cheap as it can be: for one's turn to start a child of a pool, and for a start to come to a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:  # what a start waiter waits for
    from .runner import Incarnation

__all__ = ["StartWaiter", "Turn"]


class Turn:
    """One turn, passed on in the order of asking. As a ``trio.Lock``, but free of cost when nobody else asks."""

    __slots__ = ("_waiting", "taken")

    def __init__(self) -> None:
        self.taken = False
        self._waiting: trio.lowlevel.ParkingLot | None = None

    async def wait(self) -> None:
        """Return when it is the caller's turn; only if it is :attr:`taken` now."""
        if self._waiting is None:
            self._waiting = trio.lowlevel.ParkingLot()
        await self._waiting.park()

    def pass_on(self) -> None:
        """End the turn."""
        if self._waiting:
            self._waiting.unpark()  # whose turn it is now: it stays taken
        else:
            self.taken = False


class StartWaiter:
    """Wakes the task that waits for a start, once. An event would do, at three times the cost."""

    __slots__ = ("run", "task")

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task = task
        self.run: Incarnation | None = None

    def settled(self) -> None:
        self._leave()
        trio.lowlevel.reschedule(self.task)

    def abort(self, _: object) -> trio.lowlevel.Abort:
        self._leave()
        return trio.lowlevel.Abort.SUCCEEDED

    def _leave(self) -> None:
        if self.run is not None:
            self.run.listener = None
