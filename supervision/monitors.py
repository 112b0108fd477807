"""Watching a child from outside: each of its exits with the reason, as OTP's monitors tell them.

A monitor is a bounded queue that the supervisor puts exits into without ever waiting for whoever reads them.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self

import attrs
import trio

from .window import describe

if TYPE_CHECKING:  # the handle tells its monitors, and knows them
    from .handle import ChildHandle, ChildState

__all__ = ["ChildExit", "Monitor", "monitor"]


@attrs.frozen(kw_only=True)
class ChildExit:
    """The end of one incarnation.

    Attributes:
        child: The child's path in the tree, such as ``root/agents/tally``.
        incarnation: Which run of it ended, from 1.
        time: When, on trio's clock, in seconds.
        reason: What it raised; None for a return and for an ordered stop.
        asked: Whether it had been asked to stop.
        state: What the child was then: ``backoff`` if it is to run again, ``stopped``, ``finished`` or ``failed``.
    """

    child: str
    incarnation: int
    time: float
    reason: BaseException | None
    asked: bool
    state: ChildState

    @property
    def will_restart(self) -> bool:
        """Whether it is to run again; what comes before that, such as a stop of its supervisor, may prevent it."""
        return self.state == "backoff"

    def __str__(self) -> str:
        what = "stopped" if self.asked and self.reason is None else describe(self.reason)
        return f"{self.child} #{self.incarnation}: {what}"


class Monitor:
    """The exits of a child, in order. Made by :func:`monitor`; several tasks may read it, each exit goes to one.

    Attributes:
        missed: How many exits were dropped, the oldest first, because nobody had read them.
    """

    def __init__(self, handle: ChildHandle, buffer: int) -> None:
        self.missed = 0
        self._handle = handle
        self._exits = deque[ChildExit](maxlen=buffer)
        self._readers = trio.lowlevel.ParkingLot()
        self._over = True

    async def __aenter__(self) -> Self:
        self._over = self._handle.gone
        self._handle._monitors = (*self._handle._monitors, self)  # before the first wait, so that nothing is missed
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._handle._monitors = tuple(other for other in self._handle._monitors if other is not self)
        self._end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChildExit:
        await trio.lowlevel.checkpoint()
        while not self._exits:
            if self._over:
                raise StopAsyncIteration
            await self._readers.park()
        return self._exits.popleft()

    def __repr__(self) -> str:
        state = "over" if self._over else "open"
        return f"<Monitor of {self._handle.label!r} {state}, {len(self._exits)} exits to read, {self.missed} missed>"

    def _tell(self, exit: ChildExit) -> None:
        if len(self._exits) == self._exits.maxlen:
            self.missed += 1
        self._exits.append(exit)
        self._readers.unpark()

    def _end(self) -> None:
        self._over = True
        self._readers.unpark_all()


def monitor(handle: ChildHandle, *, buffer: int = 100) -> Monitor:
    """Watch a child: an async context manager, and inside of it an async iterator over the child's exits.

        async with monitor(handle) as exits:
            async for exit in exits:
                print(exit.incarnation, exit.reason, exit.will_restart)

    It begins with the block and ends when the child is gone for good: deleted, dropped, or its supervisor has ended. A
    child that was terminated, has finished or has failed may be started again by hand, so that does not end it. Nothing
    happens to the child when the block is left, and a child may have any number of monitors.

    Args:
        buffer: How many exits are kept for a slow reader. The supervisor never waits for one: the oldest are dropped,
            and counted in :attr:`Monitor.missed`.

    Raises:
        ValueError: ``buffer`` is less than 1.
    """
    if not buffer >= 1:
        raise ValueError(f"monitor: buffer={buffer!r}: expected at least 1")
    return Monitor(handle, buffer)
