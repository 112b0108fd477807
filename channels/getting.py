"""What is behind `Channel.get`: one reader for all who call it in a run, which the callers share."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import trio

from ..models import NotReady
from .cursor import BadMessage, Cursor
from .errors import AppNotRunning
from .event import Event
from .hand import Hand
from .redelivery import Thrown
from .subscription import Subscription

__all__ = ["Getter"]

log = logging.getLogger("famulus.channel")


class Getter:
    """Takes single events from a subscription of its own; each goes to one caller, who came first is served first."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._turn = trio.Lock()
        self._cursor: Cursor | None = None
        self._bad: deque[BadMessage] = deque()
        self._pending: NotReady | None = None
        self._next: Event[Any] | Thrown | None = None

    async def take(self) -> Event[Any]:
        """Wait for the next event, or raise what was thrown in its place. Cancelled, it has taken none."""
        async with self._turn:
            cursor = await self._started()
            while True:
                event = self._peek(cursor)
                if self._bad:
                    await self._report(self._bad.popleft())
                elif event is not None:
                    self._next = None
                    if isinstance(event, Thrown):
                        raise event.error
                    return event
                elif self._pending is not None:
                    pending, self._pending = self._pending, None
                    await cursor.wait_for(self._subscription.run.errands.run(pending))
                else:
                    await self._wait(cursor)

    async def _wait(self, cursor: Cursor) -> None:
        try:
            await cursor.wait()
        except trio.EndOfChannel:
            raise AppNotRunning(
                f"the app has stopped: nothing more comes from {self._subscription.channel!r}"
            ) from None

    async def _started(self) -> Cursor:
        if self._cursor is None:
            await self._subscription.start()
            self._cursor = self._subscription.open_cursor(Hand())
            self._cursor.set_acks(False)
        return self._cursor

    def empty(self) -> bool:
        """Whether `take` would have to wait for a message."""
        return self._cursor is None or (self._peek(self._cursor) is None and self._pending is None)

    def _peek(self, cursor: Cursor) -> Event[Any] | Thrown | None:
        """The next event, which stays; what cannot be decoded on the way to it is kept for a report."""
        while self._next is None or _stale(self._next):
            self._next = None
            taken = cursor.take_nowait()
            if taken is None:
                return None
            if isinstance(taken, BadMessage) and isinstance(taken.error, NotReady):
                taken.cursor.take_back()
                self._pending = taken.error
                return None
            if isinstance(taken, BadMessage):
                self._bad.append(taken)
            else:
                self._next = taken
        return self._next

    async def _report(self, bad: BadMessage) -> None:
        message = bad.message
        self._subscription.run.counters.decode_errors += 1
        log.error("%s@%d: undecodable %s: %s", message.tp, message.offset, bad.part, bad.error)
        try:
            await self._subscription.decode_error(bad)
        finally:
            message.release()

    def __repr__(self) -> str:
        return f"<Getter of {self._subscription.channel!r}>"


def _stale(event: Event[Any] | Thrown) -> bool:
    """Whether its partition was given up since it was looked at; then it comes again, here or elsewhere."""
    if isinstance(event, Thrown):
        return False
    tracker = event.message.tracker
    return tracker is not None and tracker.live != event.message.generation
