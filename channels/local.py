"""A local channel's place in one run: its readers, and what was put before the first of them came. `Channel` uses it."""

from __future__ import annotations

from collections import deque
from typing import Any

import trio

from .errors import AppNotRunning, BufferFull
from .event import Event
from .inbox import EventInbox

__all__ = ["LocalState"]


class LocalState:
    """A local channel in one run: its readers, and what was put before the first of them came."""

    __slots__ = ("_closed", "_early", "_inboxes", "_room")

    def __init__(self) -> None:
        self._inboxes: list[EventInbox] = []
        self._early: deque[Event[Any]] = deque()
        self._closed = False
        self._room = trio.lowlevel.ParkingLot()

    @property
    def early(self) -> bool:
        """Whether something waits for a first reader."""
        return bool(self._early)

    def attach(self, inbox: EventInbox) -> None:
        self._inboxes.append(inbox)
        while self._early:
            try:
                inbox.put_nowait(self._early[0])
            except trio.WouldBlock:
                break
            self._early.popleft()
        self._room.unpark_all()

    def detach(self, inbox: EventInbox) -> None:
        if inbox in self._inboxes:
            self._inboxes.remove(inbox)

    def offer(self, event: Event[Any]) -> bool:
        """Hand an event to the one reader, if there is one and it has room."""
        inboxes = self._inboxes
        if len(inboxes) != 1:
            return False
        event.message.refcount = 1
        return inboxes[0].offer(event)

    async def put(self, event: Event[Any], bound: int) -> int:
        """All readers get it or, when this is cancelled, none. Readers may come and go meanwhile. Returns how many got it."""
        while True:
            inboxes = self._inboxes
            if not inboxes:
                self._check_open(event)
                if len(self._early) < bound:
                    self._early.append(event)
                    return 0
                await self._room.park()
            elif len(inboxes) == 1:
                event.message.refcount = 1
                try:
                    inboxes[0].put_nowait(event)
                    return 1
                except trio.WouldBlock:
                    pass
                try:
                    await inboxes[0].put(event)
                    return 1
                except trio.ClosedResourceError:
                    continue  # that reader has left
            elif (full := self._full()) is not None:
                await full.wait_room()
            else:
                self._put_to_all(event)
                return len(inboxes)

    def _full(self) -> EventInbox | None:
        return next((inbox for inbox in self._inboxes if inbox.buffered >= inbox.maxsize), None)

    def _put_to_all(self, event: Event[Any]) -> None:
        event.message.refcount = len(self._inboxes)
        for inbox in self._inboxes:
            inbox.put_nowait(Event(event.key, event.value, event.headers, event.message))

    def put_nowait(self, event: Event[Any], bound: int) -> None:
        if not self._inboxes:
            self._check_open(event)
            if len(self._early) >= bound:
                raise BufferFull(
                    f"{event.message.topic}: {bound} events wait for a first reader; use `await send(...)`"
                )
            self._early.append(event)
            return
        full = self._full()
        if full is not None:
            raise BufferFull(f"{full.name}: {full.maxsize} events wait; use `await send(...)`, or raise maxsize")
        self._put_to_all(event)

    def _check_open(self, event: Event[Any]) -> None:
        if self._closed:
            raise AppNotRunning(f"the app has stopped: nobody will read {event.message.topic} any more")

    def close(self) -> None:
        """The run has ended, and its readers with it: those who wait for room are refused."""
        self._closed = True
        self._room.unpark_all()
