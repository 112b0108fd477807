"""Inboxes: the bounded buffer in front of each subscriber, between whoever delivers and its streams.

A `BatchInbox` holds batches of messages from a transport, counted in messages: the conductor fetches only for
inboxes that have room, so handing over never waits. An `EventInbox` holds the events of a local channel: its
senders wait for room themselves. The actors of one agent share one inbox.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

import outcome
import trio

from .event import Event
from .message import Message
from .waking import NOTHING, Given

__all__ = ["BatchInbox", "EventInbox", "Taker"]

Item = TypeVar("Item")


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
        "_full",
        "alone",
        "buffered",
        "closed",
        "delivered",
        "maxsize",
        "name",
        "on_room",
        "shared",
        "takers",
        "waiting",
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
        self.closed = False
        self.waiting: deque[Sequence[Message]] = deque()  # bounded by `room`
        self.takers: deque[Taker[Sequence[Message]]] = deque()

    @property
    def room(self) -> int:
        """Messages that may be delivered now: 0 from when it is full until it is half empty (hysteresis)."""
        if self._full or self.closed:
            return 0
        return self.maxsize - self.buffered

    def deliver(self, messages: Sequence[Message]) -> None:
        """Hand over a batch; never waits."""
        if self.closed:
            return
        self.buffered += len(messages)
        self.delivered += len(messages)
        if self.buffered > self.maxsize // 2:
            self._full = True
        if self.shared:
            for message in messages:
                self._put((message,))
        else:
            self._put(messages)

    def _put(self, batch: Sequence[Message]) -> None:
        if self.takers:
            self.takers.popleft().give(batch)
        else:
            self.waiting.append(batch)

    def peek(self) -> list[Sequence[Message]]:
        """What waits, left where it is."""
        return list(self.waiting)

    def take_nowait(self) -> Sequence[Message] | None:
        """The next batch, or None when there is none now."""
        return self.waiting.popleft() if self.waiting else None

    def put_back(self, messages: Sequence[Message]) -> None:
        """Somebody has taken these and not used them."""
        if messages and not self.closed:
            self._put(messages)

    def used(self, count: int) -> None:
        """A stream has finished with `count` messages."""
        self.buffered -= count
        if self._full and self.buffered <= self.maxsize // 2:
            self._full = False
            self.on_room()

    def close(self) -> list[Message]:
        """Take no more, and wake the streams that wait. Returns what nobody has taken."""
        self.closed = True
        waiting = [message for batch in self.waiting for message in batch]
        self.waiting.clear()
        while self.takers:
            self.takers.popleft().end()
        return waiting

    def __repr__(self) -> str:
        return f"<BatchInbox {self.name} {self.buffered}/{self.maxsize}>"


class EventInbox:
    """Events of a local channel that wait for a stream; `maxsize` of them, then senders wait.

    An event for a stream that waits goes straight to its task, and a woken sender's event into the room that there is, so
    nobody overtakes: as in trio's memory channels, which cost twice as much where each event is waited for.
    """

    __slots__ = ("_lot", "_senders", "closed", "maxsize", "name", "takers", "waiting")

    def __init__(self, name: str, maxsize: int) -> None:
        self.name = name
        self.maxsize = maxsize
        self.closed = False
        self.waiting: deque[Event[Any]] = deque()
        self.takers: deque[Taker[Event[Any]]] = deque()
        self._senders: OrderedDict[trio.lowlevel.Task, Event[Any]] = OrderedDict()
        self._lot: trio.lowlevel.ParkingLot | None = None

    @property
    def buffered(self) -> int:
        return len(self.waiting)

    def put_nowait(self, event: Event[Any]) -> None:
        """Hand over an event.

        Raises:
            trio.WouldBlock: it is full.
            trio.ClosedResourceError: its reader has left.
        """
        if self.closed:
            raise trio.ClosedResourceError
        if self.takers:
            self.takers.popleft().give(event)
        elif len(self.waiting) < self.maxsize:
            self.waiting.append(event)
        else:
            raise trio.WouldBlock

    def offer(self, event: Event[Any]) -> bool:
        """Hand over an event, if there is room."""
        if self.takers:
            self.takers.popleft().give(event)
        elif len(self.waiting) < self.maxsize and not self.closed:
            self.waiting.append(event)
        else:
            return False
        return True

    async def put(self, event: Event[Any]) -> None:
        """Hand over an event, waiting for room.

        Raises:
            trio.ClosedResourceError: its reader has left.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self.put_nowait(event)
        except trio.WouldBlock:
            pass
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        senders, task = self._senders, trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            del senders[task]
            return trio.lowlevel.Abort.SUCCEEDED

        senders[task] = event
        await trio.lowlevel.wait_task_rescheduled(abort)

    def take_nowait(self) -> Event[Any] | None:
        """The next event, or None when there is none now."""
        if not self.waiting:
            return None
        event = self.waiting.popleft()
        if self._senders:
            task, waiting = self._senders.popitem(last=False)
            self.waiting.append(waiting)
            trio.lowlevel.reschedule(task, NOTHING)
        if self._lot is not None:
            self._lot.unpark_all()
            self._lot = None
        return event

    async def wait_room(self) -> None:
        """Wait until an event has been taken. Those who wait look again: others may have been faster."""
        if self._lot is None:
            self._lot = trio.lowlevel.ParkingLot()
        await self._lot.park()

    def close(self) -> None:
        """Take no more. What it holds is still given out, since no log has it."""
        self.closed = True
        while self._senders:
            task, _ = self._senders.popitem(last=False)
            trio.lowlevel.reschedule(task, outcome.Error(trio.ClosedResourceError()))
        while self.takers:
            self.takers.popleft().end()
        if self._lot is not None:
            self._lot.unpark_all()

    def __repr__(self) -> str:
        return f"<EventInbox {self.name} {self.buffered}/{self.maxsize}>"


class Inbox(Protocol[Item]):
    """What a `Taker` needs to know of an inbox."""

    closed: bool
    waiting: deque[Item]
    takers: deque[Taker[Item]]

    def take_nowait(self) -> Item | None: ...


class Taker(Generic[Item]):
    """A place at an inbox, where one task at a time waits for the next item."""

    __slots__ = ("_inbox", "_task")

    def __init__(self, inbox: Inbox[Item]) -> None:
        self._inbox: Final = inbox
        self._task: trio.lowlevel.Task | None = None

    @property
    def waiting(self) -> bool:
        return self._task is not None

    def take(self) -> Awaitable[Item | None]:
        """Wait for the next item. Cancelled, it has taken none; None when it was woken.

        Raises:
            trio.EndOfChannel: the inbox was closed and what it held is taken.
        """
        inbox = self._inbox
        if inbox.waiting or inbox.closed:
            return self._take_ready()
        if self._task is not None:  # a stream that two tasks iterate
            return Taker(inbox).take()
        self._task = trio.lowlevel.current_task()
        inbox.takers.append(self)
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105  # awaited by the caller, without a coroutine more

    async def _take_ready(self) -> Item | None:
        await trio.lowlevel.checkpoint()
        item = self._inbox.take_nowait()
        if item is None and self._inbox.closed:
            raise trio.EndOfChannel
        return item

    def give(self, item: Item | None) -> None:
        """End the wait with this item."""
        task, self._task = self._task, None
        assert task is not None, "only who waits is in the inbox's list"
        trio.lowlevel.reschedule(task, Given(item))

    def end(self) -> None:
        """End the wait: nothing will come any more."""
        task, self._task = self._task, None
        assert task is not None, "only who waits is in the inbox's list"
        trio.lowlevel.reschedule(task, outcome.Error(trio.EndOfChannel()))

    def wake(self) -> None:
        """End the wait without an item, if there is one."""
        if self._task is not None:
            self._inbox.takers.remove(self)
            self.give(None)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._inbox.takers.remove(self)
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED
