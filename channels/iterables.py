"""Streams over any iterable or async iterable, in place of a channel."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Container, Iterable, Iterator
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any, Final

import trio

from ..supervision import child
from .channel import Channel
from .cursor import Cursor
from .event import Event
from .event_cursor import EventCursor
from .hand import Hand
from .message import Message
from .redelivery import Thrown
from .runs import Run
from .subscription import InboxSubscription, Subscription

__all__ = ["IterableChannel"]


class IterableChannel(Channel[Any]):
    """A channel that gives the items of an iterable. What one stream has taken, another does not get.

    Its events have no key, and no log holds them. An async iterable is read ahead by a task of the run, up to `maxsize`
    items; what it raises is raised from the stream, after the items before it.
    """

    def __init__(self, run: Run, items: Iterable[Any] | AsyncIterable[Any]) -> None:
        super().__init__(run.app, type(items).__name__)
        self.items: Final = items

    def subscribe(self, run: Run, name: str, *, shared: bool = False) -> Subscription:
        if isinstance(self.items, AsyncIterable):
            return _AsyncReader(run, self, name)
        return _Reader(run, self, name, iter(self.items))


def _event(name: str, value: Any) -> Event[Any]:
    message = Message(name, 0, -1, time.time(), 0, (), None, None)
    message.refcount = 1
    return Event(None, value, (), message)


class _Reader(Subscription):
    def __init__(self, run: Run, channel: Channel[Any], name: str, items: Iterator[Any]) -> None:
        super().__init__(run, channel, name)
        self._items = items

    def _make_cursor(self, hand: Hand) -> Cursor:
        return _IterableCursor(self.channel.name, self._items)

    def _detach(self, leave: bool) -> None:
        for cursor in self._cursors:
            cursor.close(release=())


class _IterableCursor(Cursor):
    """Takes the next item when it is asked for."""

    __slots__ = ("_items", "_name")

    def __init__(self, name: str, items: Iterator[Any]) -> None:
        super().__init__()
        self._name = name
        self._items = items

    def take_nowait(self) -> Event[Any] | Thrown | None:
        if self.stopping:
            return None
        if self.redeliver and ((again := self._redelivery()) is not None or self.held_up):
            return again
        try:
            event = _event(self._name, next(self._items))
        except StopIteration:
            return None
        except Exception as error:
            return Thrown(error)
        event.cursor = self
        event.on_failure = self.failures
        return event

    async def _take(self) -> None:
        if not self.redeliver:
            await trio.lowlevel.checkpoint()
            raise trio.EndOfChannel
        await trio.sleep_until(self.redeliver.due(shared=False))

    def close(self, *, release: Container[str]) -> None:
        self.stopping = True
        self.redeliver.clear()


class _AsyncReader(InboxSubscription):
    """Items come through an inbox: a stream's waiting may be cancelled at any moment, an async generator's not."""

    def __init__(self, run: Run, channel: IterableChannel, name: str) -> None:
        super().__init__(run, channel, name)
        self._items: AsyncIterator[Any] = aiter(channel.items)  # type: ignore[arg-type]  # looked at by its maker
        self._reading = trio.CancelScope()
        self.failure: Exception | None = None

    def _make_cursor(self, hand: Hand) -> Cursor:
        return _AsyncCursor(self)

    async def _begin(self) -> None:
        services = self.run.services
        if services is None:
            raise RuntimeError("the run has no supervisor for the reader of an async iterable")
        await services.start(child(self._read, name=f"reading {self.channel.name} {id(self):x}", restart="temporary"))

    async def _read(self) -> None:
        async with AsyncExitStack() as stack:
            stack.enter_context(self._reading)
            if isinstance(self._items, AsyncGenerator):
                await stack.enter_async_context(aclosing(self._items))
            while not self.closed:
                try:
                    item = await anext(self._items)
                except StopAsyncIteration:
                    break
                except Exception as error:
                    self.failure = error
                    break
                with suppress(trio.ClosedResourceError):  # its reader has left
                    await self._inbox.put(_event(self.channel.name, item))
        self._inbox.close()

    def _detach(self, leave: bool) -> None:
        self._reading.cancel()
        super()._detach(leave)


class _AsyncCursor(EventCursor):
    __slots__ = ("_reader",)

    def __init__(self, reader: _AsyncReader) -> None:
        super().__init__(reader._inbox)
        self._reader = reader

    async def wait(self) -> None:
        try:
            await super().wait()
        except trio.EndOfChannel:
            failure, self._reader.failure = self._reader.failure, None
            if failure is None:
                raise
            self.redeliver.append(Thrown(failure))
