"""`take`: several events at a time, as one in the hand.

What is gathered is kept by the cursor: a cancelled wait loses nothing and starts no clock anew, and a crash gives it back.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
import trio
from trio.lowlevel import checkpoint

from ..models import NotReady
from .cursor import BadMessage, Cursor
from .event import Event, FailurePolicy, Request
from .hand import Hand
from .message import Message
from .pace import Pacer
from .redelivery import is_stale
from .steps import DROPPED, Step

if TYPE_CHECKING:
    from .stream import Stream

__all__ = ["Batches", "Taken", "with_timestamp"]

B = TypeVar("B")

log = logging.getLogger("famulus.stream")


class Taken(Event[list[Any]]):
    """Events that are in hand together. What is sent meanwhile belongs to all of them.

    Its message stands for its own hold on the messages of all: it is given up when all outputs are delivered.
    """

    __slots__ = ("events", "live", "until")

    def __init__(self, events: list[Event[Any]], cursor: Cursor) -> None:
        first = events[0].message
        message = Message(first.topic, first.partition, first.offset, first.timestamp, 0, (), None, None, 0)
        super().__init__(None, [], (), message, cursor)
        self.events = events
        self.live, self.until = 0, -1  # it is its own message's tracker
        message.tracker = self
        message.refcount = 1
        for event in events:
            event.message.refcount += 1
        if any(event.request is not None for event in events):
            self.request = _InTurn(events)

    @property
    def parts(self) -> Sequence[Event[Any]]:
        return self.events

    def done(self, message: Message) -> None:
        """Everything that was sent for them is delivered, or has failed."""
        message.tracker = None  # they know each other, and all their bytes would wait for the garbage collector
        for event in self.events:
            event.message.release()

    def ack(self) -> Any:
        if not self.acked:
            for event in self.events:
                event.ack()
            self.request = None
        return super().ack()

    def abandon(self) -> None:
        if not self.acked:
            for event in self.events:
                event.abandon()
        super().abandon()

    def fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
            for event in self.events:
                event.message.refcount += 1
                event.fail(error)
        self.message.release()

    def crash(self, policy: FailurePolicy, error: BaseException) -> None:
        """Who fails on several and does not skip what failed gets them again one by one: so the bad one is found."""
        if self.acked:
            return
        self.failure = error
        cursor = self.cursor
        waiting = [event for event in self.events if not event.acked]
        if len(waiting) > 1 and cursor is not None and cursor.one_by_one:
            log.warning("%s and %d more failed together: they come again one by one", waiting[0], len(waiting) - 1)
            if cursor.subscription is not None:
                counters = cursor.subscription.run.counters
                counters.events_failed += len(waiting)
                counters.events_retried += len(waiting)
            for event in waiting:  # each to its own place: `cursor` may read several
                (event.cursor or cursor).deliver_again(event.again())
        else:
            for event in waiting:
                event.crash(policy, error)
        self.pass_on()

    def repeats(self) -> list[Event[Any]]:
        if self.acked:
            return []
        again = [event.repeat() for event in self.events if not event.acked]
        self.pass_on()
        return again

    def pass_on(self) -> None:
        """Its events go on alone; it waits for what was sent for them, and holds them that long."""
        self.acked = True
        self.on_failure = self.request = None
        self.message.release()


class _InTurn:
    """The k-th answer to a `take` is that to its k-th event."""

    __slots__ = ("_events", "_last")

    def __init__(self, events: Sequence[Event[Any]]) -> None:
        self._events = [*reversed(events)]
        self._last: Request | None = None

    def answer(self, value: Any, event: Event[Any]) -> bool:
        if not self._events:
            return False
        part = self._events.pop()
        self._last = part.request
        return part.request is not None and part.request.answer(value, part)

    async def wait_room(self) -> None:
        if self._last is not None:
            await self._last.wait_room()

    def acked(self, event: Event[Any]) -> None:
        """Nothing: each event tells its own request."""

    def again(self) -> Request:
        return self  # not used: each event has its own


@attrs.define
class Gathered:
    """What a cursor has gathered for a batch that is not full yet: events, and what their steps made of their values.

    Attributes:
        steps: of the stream that has gathered.
        since: when the first of them came.
    """

    steps: tuple[Step, ...] = ()
    events: list[Event[Any]] = attrs.Factory(list)
    values: list[Any] = attrs.Factory(list)
    since: float = inf

    def add(self, event: Event[Any], value: Any) -> None:
        if not self.events and self.since == inf:
            self.since = trio.current_time()
        self.events.append(event)
        self.values.append(value)

    def drop_stale(self) -> bool:
        """Forget what was revoked meanwhile, which its new owner gets. Returns whether there was any."""
        if not any(is_stale(event.message) for event in self.events):
            return False
        pairs = zip(self.events, self.values, strict=True)
        kept = [(event, value) for event, value in pairs if not is_stale(event.message)]
        self.events = [event for event, _ in kept]
        self.values = [value for _, value in kept]
        if not kept:
            self.since = inf
        return True

    def split(self, count: int) -> list[Event[Any]]:
        """Keep so many, and return the others, to be taken once more."""
        rest = [event.repeat() for event in self.events[count:]]
        del self.events[count:], self.values[count:]
        return rest


class Batches(AsyncIterator[list[B]], Generic[B]):
    """What `Stream.take()` gives: lists of up to `size` values, each at the latest `within` seconds after its first came."""

    __slots__ = ("_give", "_size", "_stream", "_within")

    def __init__(
        self,
        stream: Stream[Any],
        size: int,
        within: float | None,
        give: Callable[[Event[Any], Any], B],
    ) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"take({size!r}): expected a whole number of at least 1")
        if within is not None and not within > 0:
            raise ValueError(f"take({size}, within={within!r}): expected seconds, more than 0")
        self._stream = stream
        self._size = size
        self._within = inf if within is None else within
        self._give = give

    def __aiter__(self) -> Batches[B]:
        return self

    async def __anext__(self) -> list[B]:
        stream = self._stream
        cursor, hand, pacer = await stream.advance()
        gathered = self._gathered(cursor)
        await self._gather(cursor, hand, pacer, gathered)
        if not gathered.events:
            raise StopAsyncIteration
        cursor.gathered = None
        cursor.event = hand.event = Taken(gathered.events, cursor)
        give = self._give
        return [give(event, value) for event, value in zip(gathered.events, gathered.values, strict=True)]

    def _gathered(self, cursor: Cursor) -> Gathered:
        """What a cancelled call has left, as far as it suits this one; what does not is taken once more, on the old clock."""
        gathered: Gathered | None = cursor.gathered
        if gathered is None:
            gathered = Gathered(self._stream.steps)
        elif gathered.steps != self._stream.steps:
            since = gathered.since
            cursor.ungather()
            gathered = Gathered(self._stream.steps, since=since)
        elif len(gathered.events) > self._size:
            cursor.give_again(gathered.split(self._size))
        cursor.gathered = gathered
        return gathered

    def _due(self, gathered: Gathered) -> bool:
        """Whether it is time to give out what there is."""
        if not gathered.events or trio.current_time() < gathered.since + self._within:
            return False
        return not gathered.drop_stale() or bool(gathered.events)

    async def _gather(self, cursor: Cursor, hand: Hand, pacer: Pacer, gathered: Gathered) -> None:
        """Until there are enough, or it is time, or nothing more will come: then there may be none."""
        stream, size = self._stream, self._size
        while True:
            count = len(gathered.events)
            if count >= size:
                if not gathered.drop_stale():
                    return
                continue
            if pacer.due():
                await checkpoint()
                if self._due(gathered):
                    return
            taken = cursor.take_nowait()
            if taken is None:
                deadline = gathered.since + self._within if count else inf
                with trio.move_on_at(deadline) as scope:
                    try:
                        await cursor.wait()
                    except trio.EndOfChannel:
                        gathered.drop_stale()
                        return
                pacer.rested()
                if scope.cancelled_caught and self._due(gathered):
                    return
            elif not isinstance(taken, Event):
                waits = isinstance(taken, BadMessage) and isinstance(taken.error, NotReady)
                with trio.move_on_at(gathered.since + self._within if count and waits else inf) as scope:
                    await stream.trouble(taken)
                if scope.cancelled_caught:
                    return
            elif taken.attempt > 1:  # it has failed before, perhaps together with others: now alone
                if count:
                    cursor.give_again([taken])
                    gathered.drop_stale()
                else:
                    await self._add(taken, cursor, hand, gathered)
                if gathered.events:
                    return
            elif stream.steps:
                await self._add(taken, cursor, hand, gathered)
                if self._due(gathered):
                    return
            else:
                gathered.add(taken, taken.value)

    async def _add(self, event: Event[Any], cursor: Cursor, hand: Hand, gathered: Gathered) -> None:
        value = await self._stream.value_of(event, cursor, hand)
        if value is not DROPPED:
            hand.event = None
            cursor.let_go()
            gathered.add(event, value)


def with_timestamp(name: str) -> Callable[[Event[Any], Any], Any]:
    """Gives values with their message's timestamp in the field or key `name`."""

    def give(event: Event[Any], value: Any) -> Any:
        if isinstance(value, dict):
            return {**value, name: event.message.timestamp}
        try:
            setattr(value, name, event.message.timestamp)
        except AttributeError:
            raise TypeError(
                f"take_with_timestamp: {type(value).__name__} has no field {name!r} that can be set: declare it, as "
                f"`{name}: float | None = None`, or use take_events() and event.message.timestamp"
            ) from None
        return value

    return give
