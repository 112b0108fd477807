"""The place of a stream over a local channel."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, Final

import trio

from .cursor import Cursor
from .event import Event
from .inbox import EventInbox, Taker
from .redelivery import Thrown, is_stale

__all__ = ["EventCursor"]


class EventCursor(Cursor):
    """A place in the inbox of a local channel."""

    __slots__ = ("_draining", "_inbox", "_next", "_taker")

    def __init__(self, inbox: EventInbox) -> None:
        super().__init__()
        self._inbox: Final = inbox
        self._taker: Final = Taker[Event[Any]](inbox)
        self._next: Event[Any] | None = None
        self._draining = False

    def take_nowait(self) -> Event[Any] | Thrown | None:
        if self.stopping and not self._draining:
            return None
        if self.redeliver and ((again := self._redelivery()) is not None or self.held_up):
            return again
        event, self._next = self._next, None
        if event is None:
            event = self._inbox.take_nowait()
        while event is not None and event.message.tracker is not None and is_stale(event.message):
            event = self._inbox.take_nowait()
        if event is not None:
            event.cursor = self
            event.on_failure = self.failures
            if event.headers and self.prepare is not None:
                self.prepare(event)
        return event

    def hand_over(self, to: Callable[[Event[Any]], None]) -> None:
        if self._next is not None:
            self._next.cursor = self
            self.redeliver.append(self._next)
            self._next = None
        super().hand_over(to)

    async def wait(self) -> None:
        """As that of all cursors, without a scope: its wait can be ended by itself."""
        if self.stopping:
            raise trio.EndOfChannel
        self._next = await (self._while_resting(self._taker.take) if self.redeliver else self._taker.take())

    async def _take(self) -> None:
        await self.wait()

    @property
    def waiting(self) -> bool:
        return self._taker.waiting or super().waiting

    def _wake(self) -> None:
        self._taker.wake()
        super()._wake()

    def stop(self, *, drain: bool) -> None:
        self._draining = drain
        super().stop(drain=drain)

    def close(self, *, release: Container[str]) -> None:
        self.stopping = True
        self._released = ()
        if release:  # no log has any of it
            self.abandon_all(_Everything())
            if self._next is not None:
                self._next.abandon()
                self._next = None
        self.redeliver.clear()


class _Everything(Container[str]):
    """All topics."""

    def __contains__(self, topic: object) -> bool:
        return True
