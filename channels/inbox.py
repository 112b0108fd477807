"""Inboxes: the bounded buffer in front of each subscriber, between whoever delivers and its streams.

A `BatchInbox` holds batches of messages from a transport, counted in messages: the conductor fetches only for
inboxes that have room, so handing over never waits. An `EventInbox` holds the events of a local channel: its
senders wait for room themselves. Both are trio memory channels; the actors of one agent share one inbox.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import trio

from .event import Event
from .message import Message

__all__ = ["BatchInbox", "EventInbox"]


class BatchInbox:
    """Batches of messages that wait for a stream.

    Args:
        name: of the subscriber, for reports.
        maxsize: messages it takes; what a stream is iterating over counts until the batch is used up.
        shared: more than one stream reads it: batches are cut to single messages, so that the idle one takes the next.
        on_room: called when an inbox that was full has room for half of `maxsize` again.
        alone: it gets the messages of one partition only, so it shares its room with no other.

    Attributes:
        delivered: messages that it has got in all.
    """

    __slots__ = (
        "_closed",
        "_full",
        "_receive",
        "_send",
        "alone",
        "buffered",
        "delivered",
        "maxsize",
        "name",
        "on_room",
        "shared",
    )

    def __init__(
        self, name: str, maxsize: int, *, shared: bool, on_room: Callable[[], None], alone: bool = False
    ) -> None:
        self.name = name
        self.maxsize = maxsize
        self.shared = shared
        self.on_room = on_room
        self.alone = alone
        self.buffered = 0
        self.delivered = 0
        self._full = False
        self._closed = False
        self._send, self._receive = trio.open_memory_channel[Sequence[Message]](inf)  # bounded by `room`

    @property
    def room(self) -> int:
        """Messages that may be delivered now: 0 from when it is full until it is half empty (hysteresis)."""
        if self._full or self._closed:
            return 0
        return self.maxsize - self.buffered

    def deliver(self, messages: Sequence[Message]) -> None:
        """Hand over a batch; never waits."""
        if self._closed:
            return
        self.buffered += len(messages)
        self.delivered += len(messages)
        if self.buffered > self.maxsize // 2:
            self._full = True
        if self.shared:
            for message in messages:
                self._send.send_nowait((message,))
        else:
            self._send.send_nowait(messages)

    @property
    def closed(self) -> bool:
        return self._closed

    def peek(self) -> list[Sequence[Message]]:
        """What waits, left where it is."""
        waiting: list[Sequence[Message]] = []
        if not self._closed:
            while (batch := self.take_nowait()) is not None:
                waiting.append(batch)
            for batch in waiting:
                self._send.send_nowait(batch)
        return waiting

    def take_nowait(self) -> Sequence[Message] | None:
        """The next batch, or None when there is none now."""
        try:
            return self._receive.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            return None

    async def take(self) -> Sequence[Message]:
        """Wait for the next batch.

        Raises:
            trio.EndOfChannel: it was closed.
        """
        return await self._receive.receive()

    def put_back(self, messages: Sequence[Message]) -> None:
        """Somebody has taken these and not used them."""
        if messages and not self._closed:
            self._send.send_nowait(messages)

    def used(self, count: int) -> None:
        """A stream has finished with `count` messages."""
        self.buffered -= count
        if self._full and self.buffered <= self.maxsize // 2:
            self._full = False
            self.on_room()

    def close(self) -> list[Message]:
        """Take no more, and wake the streams that wait. Returns what nobody has taken."""
        self._closed = True
        waiting: list[Message] = []
        while (batch := self.take_nowait()) is not None:
            waiting.extend(batch)
        self._send.close()
        return waiting

    def __repr__(self) -> str:
        return f"<BatchInbox {self.name} {self.buffered}/{self.maxsize}>"


class EventInbox:
    """Events of a local channel that wait for a stream; `maxsize` of them, then senders wait."""

    __slots__ = ("_receive", "_send", "_waiting", "maxsize", "name")

    def __init__(self, name: str, maxsize: int) -> None:
        self.name = name
        self.maxsize = maxsize
        self._send, self._receive = trio.open_memory_channel[Event[Any]](maxsize)
        self._waiting: trio.lowlevel.ParkingLot | None = None

    @property
    def buffered(self) -> int:
        return self._send.statistics().current_buffer_used

    def put_nowait(self, event: Event[Any]) -> None:
        """Hand over an event.

        Raises:
            trio.WouldBlock: it is full.
        """
        self._send.send_nowait(event)

    async def put(self, event: Event[Any]) -> None:
        """Hand over an event, waiting for room."""
        await self._send.send(event)

    def take_nowait(self) -> Event[Any] | None:
        """The next event, or None when there is none now."""
        try:
            event = self._receive.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            return None
        if self._waiting is not None:
            self._waiting.unpark_all()
            self._waiting = None
        return event

    async def wait_room(self) -> None:
        """Wait until an event has been taken. Those who wait look again: others may have been faster."""
        if self._waiting is None:
            self._waiting = trio.lowlevel.ParkingLot()
        await self._waiting.park()

    async def take(self) -> Event[Any]:
        """Wait for the next event.

        Raises:
            trio.EndOfChannel: it was closed and what it held is taken.
        """
        return await self._receive.receive()

    def close(self) -> None:
        """Take no more. What it holds is still given out, since no log has it."""
        self._send.close()
        if self._waiting is not None:
            self._waiting.unpark_all()

    def __repr__(self) -> str:
        return f"<EventInbox {self.name} {self.buffered}/{self.maxsize}>"
