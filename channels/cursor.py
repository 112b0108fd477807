"""Cursors: one stream's place in its inbox. They outlive the stream's task, so a crash loses nothing.

A cursor keeps what was taken from the inbox and is not done: the rest of a batch, the event in hand, and events
that wait to be redelivered. Whoever runs the stream again (the next incarnation of an actor) goes on with the same
cursor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from .event import Event
from .inbox import BatchInbox, EventInbox
from .message import TP, Message

__all__ = ["BadMessage", "BatchCursor", "Cursor", "Decoder", "EventCursor"]

Decoder = Callable[[bytes | None], Any]


class BadMessage:
    """A message that could not be decoded, in the place of its event."""

    __slots__ = ("error", "message", "part")

    def __init__(self, message: Message, part: str, error: Exception) -> None:
        self.message = message
        self.part = part
        self.error = error


class Cursor(ABC):
    """What a stream takes its events from.

    Attributes:
        event: the one in hand: taken, not acknowledged by the stream yet.
        acks: whether its stream acknowledges; otherwise that is the user's.
        prepare: called with each new event and this cursor before the stream sees it (agents hang requests and policies on it).
        interrupt: called at a rebalance when the event in hand took longer than allowed; cancels the stream's user.
    """

    __slots__ = ("_waiting", "acks", "event", "idle", "interrupt", "prepare", "redeliver")

    def __init__(self) -> None:
        self.event: Event[Any] | None = None
        self.acks = True
        self.redeliver: deque[Event[Any]] = deque()
        self.prepare: Callable[[Event[Any], Cursor], None] | None = None
        self.interrupt: Callable[[], None] | None = None
        self.idle: trio.Event | None = None
        self._waiting: trio.CancelScope | None = None

    @abstractmethod
    def take_nowait(self) -> Event[Any] | BadMessage | None:
        """The next event, or None when it is necessary to `wait`."""

    @abstractmethod
    async def _take(self) -> None:
        """Wait for something from the inbox and keep it for `take_nowait`."""

    async def wait(self) -> None:
        """Wait until `take_nowait` may have something.

        Raises:
            trio.EndOfChannel: nothing will come any more.
        """
        with trio.CancelScope() as self._waiting:
            await self._take()
        self._waiting = None

    def deliver_again(self, event: Event[Any]) -> None:
        """Redeliver this event before anything new, and wake the stream if it waits."""
        self.redeliver.append(event)
        if self._waiting is not None:
            self._waiting.cancel()

    @abstractmethod
    def close(self) -> list[Message]:
        """End the stream: the event in hand may be finished, nothing new is taken. Returns what was not taken."""

    def let_go(self) -> None:
        """The event in hand is finished, or given back: whoever waits for that (a rebalance) goes on."""
        self.event = None
        if self.idle is not None:
            self.idle.set()
            self.idle = None

    def finish(self) -> None:
        """Its user returned: the event in hand is done, where that is the stream's to say."""
        event = self.event
        if event is not None:
            if self.acks:
                event.ack()
            self.let_go()

    def give_back(self) -> None:
        """Have the event in hand redelivered first; its user was cancelled or will try again."""
        event = self.event
        if event is not None:
            if not event.acked:
                self.redeliver.appendleft(event)
            self.let_go()

    def holds(self, partitions: frozenset[TP]) -> bool:
        """Whether the event in hand came from one of these."""
        event = self.event
        return event is not None and not event.acked and event.message.tp in partitions


class EventCursor(Cursor):
    """A place in the inbox of a local channel."""

    __slots__ = ("_inbox", "_next")

    def __init__(self, inbox: EventInbox) -> None:
        super().__init__()
        self._inbox: Final = inbox
        self._next: Event[Any] | None = None

    def take_nowait(self) -> Event[Any] | None:
        if self.redeliver:
            return self.redeliver.popleft()
        event = self._next
        if event is not None:
            self._next = None
        else:
            event = self._inbox.take_nowait()
        if event is not None and self.prepare is not None:
            self.prepare(event, self)
        return event

    async def _take(self) -> None:
        self._next = await self._inbox.take()

    def close(self) -> list[Message]:
        self._inbox.close()
        return []


class BatchCursor(Cursor):
    """A place in an inbox of batches, and the decoding of what it takes."""

    __slots__ = ("_batch", "_decode_key", "_decode_value", "_inbox", "_index", "_length")

    def __init__(self, inbox: BatchInbox, decode_key: Decoder, decode_value: Decoder) -> None:
        super().__init__()
        self._inbox: Final = inbox
        self._decode_key = decode_key
        self._decode_value = decode_value
        self._batch: Sequence[Message] = ()
        self._index = 0
        self._length = 0

    def take_nowait(self) -> Event[Any] | BadMessage | None:
        while self.redeliver:
            event = self.redeliver.popleft()
            if not _stale(event.message):
                return event
        index = self._index
        while True:
            if index >= self._length:
                batch = self._next_batch()
                if batch is None:
                    return None
                self._start(batch)
                index = 0
            message = self._batch[index]
            index += 1
            if _stale(message):
                continue
            self._index = index
            part = "value"
            try:
                value = self._decode_value(message.value)
                part = "key"
                key = self._decode_key(message.key)
            except Exception as error:
                return BadMessage(message, part, error)
            event = Event(key, value, message.headers, message)
            if self.prepare is not None:
                self.prepare(event, self)
            return event

    def _next_batch(self) -> Sequence[Message] | None:
        if self._length:
            self._inbox.used(self._length)
            self._batch, self._index, self._length = (), 0, 0
        return self._inbox.take_nowait()

    def _start(self, batch: Sequence[Message]) -> None:
        self._batch = batch
        self._length = len(batch)
        self._index = 0

    async def _take(self) -> None:
        self._start(await self._inbox.take())

    def close(self) -> list[Message]:
        waiting = [*(event.message for event in self.redeliver), *self._batch[self._index :]]
        self._index = self._length
        self.redeliver.clear()
        return waiting


def _stale(message: Message) -> bool:
    """Whether its partition was given up since it was fetched; then it belongs to somebody else."""
    tracker = message.tracker
    return tracker is not None and tracker.live != message.generation
