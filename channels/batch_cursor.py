"""The places of streams over topics: batches of messages, which are decoded as they are taken."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any, Final

import trio

from ..models import NotReady, Schema
from .cursor import BadMessage, Cursor
from .event import Event
from .inbox import BatchInbox, Taker
from .message import Message
from .redelivery import Thrown

__all__ = ["BatchCursor", "Decoder", "SchemaCursor"]

Decoder = Callable[[bytes | None], Any]


class BatchCursor(Cursor):
    """A place in an inbox of batches, and the decoding of what it takes."""

    __slots__ = ("_batch", "_decode_key", "_decode_value", "_draining", "_index", "_length", "_taker", "inbox")

    def __init__(self, inbox: BatchInbox, decode_key: Decoder, decode_value: Decoder) -> None:
        super().__init__()
        self.inbox: Final = inbox
        self._taker: Final = Taker[Sequence[Message]](inbox)
        self._draining = False
        self._decode_key = decode_key
        self._decode_value = decode_value
        self._batch: Sequence[Message] = ()
        self._index = 0
        self._length = 0

    @property
    def rest(self) -> Sequence[Message]:
        """What it has taken from its inbox and not given to its stream yet."""
        return self._batch[self._index :]

    @property
    def used(self) -> int:
        return self._index

    def stop(self, *, drain: bool) -> None:
        self._draining = drain
        if drain and self.on_drain is not None:
            self.on_drain()
        super().stop(drain=drain)

    def resume(self) -> None:
        self._draining = False
        super().resume()

    def behind(self) -> bool:
        if self.stopping:
            return False
        again = [*self.redeliver, *(self.gathered.events if self.gathered is not None else ())]
        if any(map(_due, self.rest)) or any(isinstance(event, Thrown) or _due(event.message) for event in again):
            return True
        return any(_due(message) for batch in self.inbox.peek() for message in batch)

    def _catch_up(self) -> bool:
        """Go on to the next message that another reader has taken, past those that nobody has. Returns whether there is one.

        The inbox is not told of what was passed over: it shall not ask for more.
        """
        if not self._draining or self.may_catch_up is None or not self.may_catch_up():
            return False
        while self.redeliver:
            event = self.redeliver[0]
            if isinstance(event, Thrown) or (not event.acked and _due(event.message)):
                return True
            self.redeliver.popleft()
        while True:
            while self._index < self._length:
                if _due(self._batch[self._index]):
                    return True
                self._index += 1
            batch = self.inbox.take_nowait()
            if batch is None:
                return False
            self._start(batch)

    def take_nowait(self) -> Event[Any] | BadMessage | Thrown | None:
        if self.stopping and not self._catch_up():
            return None
        if self.redeliver and ((again := self._redelivery()) is not None or self.held_up):
            return again
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
            tracker = message.tracker
            if tracker is not None and tracker.live != message.generation and message.offset >= tracker.until:
                continue  # `_stale`, without a call
            self._index = index
            key = message.key
            part = "value"
            try:
                value = self._decode_value(message.value)
                if key is not None:
                    part = "key"
                    key = self._decode_key(key)
            except Exception as error:
                return BadMessage(self, message, part, error)
            headers = message.headers
            event = Event(key, value, headers, message, self, self.failures)
            if headers and self.prepare is not None:
                self.prepare(event)
            return event

    def take_back(self) -> None:
        self._index -= 1

    def decoded(self, event: Event[Any]) -> Any:
        try:
            return self._decode_value(event.message.value)
        except NotReady:  # it was ready when the event came: the codec has forgotten it since
            return event.value

    def hand_over(self, to: Callable[[Event[Any]], None]) -> None:
        super().hand_over(to)
        rest = self.rest
        self.inbox.used(self._length - len(rest))
        self.inbox.put_back(rest)
        self._batch, self._index, self._length = (), 0, 0

    def ahead(self, most: int) -> Sequence[Message]:
        """The messages that come next, up to `most`; none where something else comes first. See `move_on`."""
        if self.stopping or self.redeliver or self.idle is not None:
            return ()
        if self._index >= self._length:
            batch = self._next_batch()
            if batch is None:
                return ()
            self._start(batch)
        return self._batch[self._index : self._index + most]

    def move_on(self, count: int) -> None:
        """So many of those that were `ahead` have been taken."""
        self._index += count

    def _next_batch(self) -> Sequence[Message] | None:
        if self._length:
            self.inbox.used(self._length)
            self._batch, self._index, self._length = (), 0, 0
        return self.inbox.take_nowait()

    def _start(self, batch: Sequence[Message]) -> None:
        self._batch = batch
        self._length = len(batch)
        self._index = 0

    async def wait(self) -> None:
        """As that of all cursors, without a scope: its wait can be ended by itself."""
        if self.stopping:
            raise trio.EndOfChannel
        batch = await (self._while_resting(self._taker.take) if self.redeliver else self._taker.take())
        if batch is not None:
            self._start(batch)

    async def _take(self) -> None:
        await self.wait()

    @property
    def waiting(self) -> bool:
        return self._taker.waiting or super().waiting

    def _wake(self) -> None:
        self._taker.wake()
        super()._wake()

    def close(self, *, release: Container[str]) -> None:
        self.stopping = True
        self.abandon_all(release)
        for message in self.rest:
            if message.topic in release:
                message.release()
        self._index = self._length
        self.redeliver.clear()


class SchemaCursor(BatchCursor):
    """A place in an inbox of batches that are decoded by a schema of the user's, which may look at the headers."""

    __slots__ = ("_schema",)

    def __init__(self, inbox: BatchInbox, schema: Schema) -> None:
        super().__init__(inbox, self._key, self._value)
        self._schema: Final = schema

    def _key(self, data: bytes | None) -> Any:
        return self._schema.decode_key(data, self._batch[self._index - 1].headers)

    def _value(self, data: bytes | None) -> Any:
        return self._schema.decode_value(data, self._batch[self._index - 1].headers)  # of the message being taken


def _due(message: Message) -> bool:
    """Whether it is still to be processed by the slower readers while its partition is given up."""
    tracker = message.tracker
    return tracker is not None and message.offset < tracker.until
