"""Cursors: one stream's place in its inbox. They outlive the stream's task, so a crash loses nothing.

A cursor keeps what was taken from the inbox and is not done: the rest of a batch, the event in hand, and events
that wait to be redelivered. Whoever runs the stream again (the next incarnation of an actor) goes on with the same
cursor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Container, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from .event import Event, FailurePolicy
from .message import TP, Message, StandIn
from .pace import Pacer
from .redelivery import Redelivery, Thrown, is_stale

if TYPE_CHECKING:
    from .hand import Hand
    from .subscription import Subscription
    from .taking import Gathered

__all__ = ["BadMessage", "Cursor"]

R = TypeVar("R")

_HELD_LOOK = 64
"""How many events a stream without acknowledgement hands out before it looks which of them are done."""


class BadMessage:
    """A message that could not be decoded, in the place of its event."""

    __slots__ = ("cursor", "error", "message", "part")

    def __init__(self, cursor: Cursor, message: Message, part: str, error: Exception) -> None:
        self.cursor = cursor
        self.message = message
        self.part = part
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
        name, task, pacer: of its user.
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
        "pacer",
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
        self.redeliver = Redelivery()
        self.failures: FailurePolicy | None = None
        self.prepare: Callable[[Event[Any]], None] | None = None
        self.interrupt: Callable[[], None] | None = None
        self.fail: Callable[[Exception], None] | None = None
        self.task: trio.lowlevel.Task | None = None
        self.pacer: Pacer | None = None
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
        """Its user has been started again, which took as long as it should."""
        self.stopping = False
        self.redeliver.hasten()

    def deliver_again(self, event: Event[Any], *, after: float = 0.0) -> None:
        """Redeliver this event before anything new, in the order of its log, and wake the stream if it waits.

        Args:
            after: seconds. Until then a stream that is its reader's only one gives nothing newer; one of several goes on.
        """
        message = event.message
        if self._released is not None:  # an output of what it finished has failed since
            if message.topic in self._released:
                event.abandon()
            return
        if self._heir is not None:
            self._heir(event)
            return
        self.redeliver.place(event, after=after)
        self._wake()

    def throw(self, error: BaseException) -> None:
        """Raise this from the stream, before anything else comes."""
        self.redeliver.appendleft(Thrown(error))
        self._wake()

    @property
    def used(self) -> int:
        """Messages of the batch under way that it has taken."""
        return 0

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

    @property
    def shared(self) -> bool:
        """Whether others read the same."""
        return self.subscription is not None and self.subscription.shared

    def _redelivery(self) -> Event[Any] | Thrown | None:
        """The next event to be delivered again, if there is one now."""
        return self.redeliver.next(shared=self.shared, hurry=self.stopping)

    @property
    def held_up(self) -> bool:
        """Whether nothing new may be taken, since what is older rests."""
        return bool(self.redeliver) and not self.shared

    async def _while_resting(self, take: Callable[[], Awaitable[R]]) -> R | None:
        """Wait until what rests is due, or, where others read the same, until something new has come."""
        due = self.redeliver.due(shared=self.shared)
        if self.shared:
            with trio.move_on_at(due):
                return await take()
        else:
            await self.wait_for(trio.sleep_until(due))
        return None

    def look_again(self) -> None:
        """Partitions were given up: what rests may be somebody else's now."""
        if self.redeliver.resting:
            self._wake()


def _partition(message: Message) -> TP:
    """The partition that the message is from; what came through a local channel is from where it was before."""
    tracker = message.tracker
    while isinstance(tracker, StandIn):
        message = tracker.source
        tracker = message.tracker
    return message.tp
