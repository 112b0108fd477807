"""Cursors: one stream's place in its inbox. They outlive the stream's task, so a crash loses nothing.

A cursor keeps what was taken from the inbox and is not done: the rest of a batch, the event in hand, and events
that wait to be redelivered. Whoever runs the stream again (the next incarnation of an actor) goes on with the same
cursor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Container, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from ..models import NotReady, Schema
from .event import Event, FailurePolicy
from .inbox import BatchInbox, EventInbox
from .message import TP, Message, StandIn

if TYPE_CHECKING:
    from .hand import Hand
    from .subscription import Subscription
    from .taking import Gathered

__all__ = ["BadMessage", "BatchCursor", "Cursor", "Decoder", "EventCursor", "SchemaCursor", "Thrown", "is_stale"]

_HELD_LOOK = 64
"""How many events a stream without acknowledgement hands out before it looks which of them are done."""

Decoder = Callable[[bytes | None], Any]


class BadMessage:
    """A message that could not be decoded, in the place of its event."""

    __slots__ = ("cursor", "error", "message", "part")

    def __init__(self, cursor: Cursor, message: Message, part: str, error: Exception) -> None:
        self.cursor = cursor
        self.message = message
        self.part = part
        self.error = error


class Thrown:
    """An exception in the place of an event, by `throw`."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Cursor(ABC):
    """What a stream takes its events from.

    Attributes:
        event: the one in hand: taken, not acknowledged by the stream yet.
        acks: whether its stream acknowledges; otherwise that is the user's.
        held: with `acks` off, events that were handed out and have left the hand; those that the user has not
            acknowledged are delivered again after a crash.
        failures: what becomes of its events that fail.
        hand: whose it is.
        gathered: what a `take` has gathered for its next batch.
        once_done: called when the event in hand is finished.
        on_wake: called when it is woken; where it is part of another, that one waits for it.
        one_by_one: events that failed together are delivered again each alone.
        subscription: what it is a place in.
        prepare: called with each new event that has headers, before the stream sees it (agents hang requests on it).
        interrupt: called at a rebalance when the event in hand took longer than allowed; cancels the stream's user.
        fail: has its user fail with this error, by a cancellation.
        name, task: of its user.
        stopping: its user was asked to stop: nothing new is taken.
        on_drain: called when it is asked to stop with the run.
        may_catch_up: whether it may then go on with what other readers of its topic have taken.
    """

    __slots__ = (
        "__weakref__",
        "_heir",
        "_released",
        "_waiting",
        "acks",
        "event",
        "fail",
        "failures",
        "gathered",
        "hand",
        "held",
        "idle",
        "interrupt",
        "may_catch_up",
        "name",
        "on_drain",
        "on_wake",
        "once_done",
        "one_by_one",
        "prepare",
        "redeliver",
        "stopping",
        "subscription",
        "task",
    )

    def __init__(self) -> None:
        self.event: Event[Any] | None = None
        self.acks = True
        self.held: list[Event[Any]] = []
        self.gathered: Gathered | None = None
        self.hand: Hand | None = None
        self.one_by_one = False
        self.subscription: Subscription | None = None
        self.redeliver: deque[Event[Any] | Thrown] = deque()
        self.failures: FailurePolicy | None = None
        self.prepare: Callable[[Event[Any]], None] | None = None
        self.interrupt: Callable[[], None] | None = None
        self.fail: Callable[[Exception], None] | None = None
        self.task: trio.lowlevel.Task | None = None
        self.name = "a stream"
        self.idle: trio.Event | None = None
        self.on_drain: Callable[[], None] | None = None
        self.may_catch_up: Callable[[], bool] | None = None
        self.stopping = False
        self.on_wake: Callable[[], None] | None = None
        self.once_done: Callable[[], None] | None = None
        self._waiting: trio.CancelScope | None = None
        self._released: Container[str] | None = None  # once it is closed
        self._heir: Callable[[Event[Any]], None] | None = None  # once it is handed over

    def bind(self, hand: Hand) -> None:
        """It belongs to this hand from now on."""
        self.hand = hand
        self.failures = hand.failures
        self.one_by_one = hand.one_by_one
        self.prepare = hand.prepare
        self.interrupt = hand.interrupt
        self.fail = hand.fail
        self.name = "a stream" if hand.owner is None else str(hand.owner)

    def set_acks(self, acks: bool) -> None:
        """Whether its stream acknowledges."""
        self.acks = acks

    @abstractmethod
    def take_nowait(self) -> Event[Any] | BadMessage | Thrown | None:
        """The next event, or None when it is necessary to `wait`."""

    def take_back(self) -> None:  # noqa: B027  # only where something is decoded
        """The last message taken, which could not be decoded, is to be taken once more."""

    @abstractmethod
    async def _take(self) -> None:
        """Wait for something from the inbox and keep it for `take_nowait`."""

    @abstractmethod
    def close(self, *, release: Container[str]) -> None:
        """Its reader goes for good. Of the topics in `release`, others no longer wait for what it had not finished."""

    async def wait(self) -> None:
        """Wait until `take_nowait` may have something.

        Raises:
            trio.EndOfChannel: nothing will come any more.
        """
        if self.stopping:
            raise trio.EndOfChannel
        try:
            with trio.CancelScope() as self._waiting:
                await self._take()
        finally:
            self._waiting = None

    async def wait_for(self, done: Awaitable[object]) -> None:
        """Wait for something else than the inbox; what ends a `wait` ends this."""
        try:
            with trio.CancelScope() as self._waiting:
                await done
        finally:
            self._waiting = None

    def stop(self, *, drain: bool) -> None:
        """End the stream after the event in hand, or with `drain` after what no log has."""
        self.stopping = True
        self._wake()

    def resume(self) -> None:
        """Its user has been started again."""
        self.stopping = False

    def deliver_again(self, event: Event[Any]) -> None:
        """Redeliver this event before anything new, in the order of its log, and wake the stream if it waits."""
        message = event.message
        if self._released is not None:  # an output of what it finished has failed since
            if message.topic in self._released:
                event.abandon()
            return
        if self._heir is not None:
            self._heir(event)
            return
        for place, other in enumerate(self.redeliver):
            if isinstance(other, Event) and other.message.tp == message.tp and other.message.offset > message.offset:
                self.redeliver.insert(place, event)
                break
        else:
            self.redeliver.append(event)
        self._wake()

    def throw(self, error: BaseException) -> None:
        """Raise this from the stream, before anything else comes."""
        self.redeliver.appendleft(Thrown(error))
        self._wake()

    @property
    def waiting(self) -> bool:
        """Whether its stream waits for something to come."""
        return self._waiting is not None

    def _wake(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        if self.on_wake is not None:
            self.on_wake()

    def pass_on(self, event: Event[Any]) -> None:
        """The event in hand was not acknowledged, and its user asks for the next: keep it in mind."""
        held = self.held
        held.extend(event.parts)
        event.pass_on()
        if len(held) >= _HELD_LOOK and len(held) & (len(held) - 1) == 0:  # at powers of two: amortised
            self.held = [event for event in held if not event.acked and not is_stale(event.message)]

    def let_go(self) -> None:
        """The event in hand is finished, or given back: whoever waits for that (a rebalance) goes on."""
        self.event = None
        if self.idle is not None:
            self.idle.set()
            self.idle = None
        if self.once_done is not None:
            then, self.once_done = self.once_done, None
            then()

    def after_event(self, then: Callable[[], None]) -> None:
        """Call this once, when the next event is finished."""
        self.once_done = then
        if self.idle is None:
            self.idle = trio.Event()  # so the stream lets go, which it need not do otherwise

    def finish(self) -> None:
        """Its user returned: the event in hand is done, where that is the stream's to say."""
        event = self.event
        if event is not None:
            if self.acks:
                event.ack()
            self.let_go()

    def give_back(self) -> None:
        """Have what is in hand redelivered first; its user was cancelled or will try again."""
        self.once_done = None
        self.ungather()
        event = self.event
        if event is not None:
            self.give_again(event.repeats())
            self.let_go()
        if self.held:
            self.give_again([event.repeat() for event in self.held if not event.acked])
            self.held = []

    def decoded(self, event: Event[Any]) -> Any:
        """The event's value as it came, whatever its user has made of it."""
        return event.value

    def put_back(self, event: Event[Any]) -> None:
        """Its stream was cancelled before its user has seen it."""
        self.give_again([event.repeat()])
        self.let_go()

    def hand_over(self, to: Callable[[Event[Any]], None]) -> None:
        """It is read no more: what it has not finished goes there, now and if an output of it fails later."""
        self.give_back()
        self.stopping = True
        self._heir = to
        waiting = [event for event in self.redeliver if isinstance(event, Event)]
        self.redeliver.clear()
        for event in waiting:
            to(event)

    @property
    def handed_over(self) -> bool:
        return self._heir is not None

    def inherit(self, event: Event[Any]) -> None:
        """Deliver what another cursor of the same reader has not finished."""
        event.cursor = self
        event.on_failure = self.failures
        self.deliver_again(event)

    def behind(self) -> bool:
        """Whether it waits for messages that it may still take though their partition is given up."""
        return False

    def give_again(self, events: Sequence[Event[Any]]) -> None:
        """Have these delivered first, in this order."""
        self.redeliver.extendleft(reversed(events))

    def ungather(self) -> None:
        """What waited for a batch is taken again, first."""
        if self.gathered is not None:
            self.give_again(self.gathered.split(0))
            self.gathered = None

    def abandon_all(self, topics: Container[str]) -> None:
        """Its reader goes for good: others no longer wait for what it has taken of these topics."""
        self._released = topics
        self.ungather()
        taken = [*self.redeliver] if self.event is None or not self.acks else [*self.event.parts, *self.redeliver]
        for event in taken:
            if isinstance(event, Event) and event.message.topic in topics:
                event.abandon()

    def holds(self, partitions: frozenset[TP]) -> bool:
        """Whether an event in hand came from one of these."""
        event = self.event
        return (
            event is not None
            and not event.acked
            and any(not part.acked and _partition(part.message) in partitions for part in event.parts)
        )

    def _redelivery(self) -> Event[Any] | Thrown | None:
        """The next event to be delivered again, if it is still ours and not done meanwhile."""
        while self.redeliver:
            event = self.redeliver.popleft()
            if isinstance(event, Thrown):
                return event
            if not event.acked and not is_stale(event.message):
                return event
        return None


class EventCursor(Cursor):
    """A place in the inbox of a local channel."""

    __slots__ = ("_draining", "_inbox", "_next")

    def __init__(self, inbox: EventInbox) -> None:
        super().__init__()
        self._inbox: Final = inbox
        self._next: Event[Any] | None = None
        self._draining = False

    def take_nowait(self) -> Event[Any] | Thrown | None:
        if self.stopping and not self._draining:
            return None
        if self.redeliver and (again := self._redelivery()) is not None:
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

    async def _take(self) -> None:
        self._next = await self._inbox.take()

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


class BatchCursor(Cursor):
    """A place in an inbox of batches, and the decoding of what it takes."""

    __slots__ = ("_batch", "_decode_key", "_decode_value", "_draining", "_index", "_length", "inbox")

    def __init__(self, inbox: BatchInbox, decode_key: Decoder, decode_value: Decoder) -> None:
        super().__init__()
        self.inbox: Final = inbox
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
        if self.redeliver and (again := self._redelivery()) is not None:
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

    async def _take(self) -> None:
        self._start(await self.inbox.take())

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


class _Everything(Container[str]):
    """All topics."""

    def __contains__(self, topic: object) -> bool:
        return True


def _partition(message: Message) -> TP:
    """The partition that the message is from; what came through a local channel is from where it was before."""
    tracker = message.tracker
    while isinstance(tracker, StandIn):
        message = tracker.source
        tracker = message.tracker
    return message.tp


def is_stale(message: Message) -> bool:
    """Whether its partition was given up since it was fetched; then it belongs to somebody else."""
    tracker = message.tracker
    return tracker is not None and tracker.live != message.generation and message.offset >= tracker.until


def _due(message: Message) -> bool:
    """Whether it is still to be processed by the slower readers while its partition is given up."""
    tracker = message.tracker
    return tracker is not None and message.offset < tracker.until
