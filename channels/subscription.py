"""Subscriptions: one reader of one channel in one run, be it a single stream or all actors of an agent.

A subscription owns the inbox and the intermediate topics that its streams were regrouped through. The actors of an
agent share it, each with a cursor of its own.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from ..models import Schema, UnsafeCodec
from .batch_cursor import BatchCursor, SchemaCursor
from .cursor import BadMessage, Cursor
from .dead_letters import settle_undecodable
from .errors import ImproperlyConfigured, UnknownTopic
from .event import Event
from .event_cursor import EventCursor
from .inbox import BatchInbox, EventInbox
from .local import LocalState
from .readers import Interest, without_letters
from .retry import Retry
from .runs import Run

if TYPE_CHECKING:
    from .channel import Channel
    from .forwarder import Forwarder
    from .hand import Hand
    from .topic import Topic

log = logging.getLogger("famulus.stream")

__all__ = ["ChannelSubscription", "InboxSubscription", "Subscription", "TopicSubscription"]
__all__ += ["check_readable", "close_readers", "interest_in", "partitions_of", "readers_of", "topic_cursor"]


class Subscription(ABC):
    """A reader of a channel.

    Attributes:
        channel: what is read.
        shared: several streams read it, and an event goes to whichever is idle.
        names: of what is read, for the names of intermediate topics.
        derived: subscriptions to what its streams were regrouped or sent through, by channel or topic name.
        combinations: subscriptions that it is part of.
        feeder: what fills its channel, where it is derived itself.
        isolated: it reads one partition number only.
    """

    isolated = False

    def __init__(self, run: Run, channel: Channel[Any], name: str, *, shared: bool = False) -> None:
        self.run = run
        self.channel = channel
        self.name = name
        self.shared = shared
        self.names: tuple[str, ...] = getattr(channel, "topics", ()) or (channel.name,)
        self.derived: dict[Channel[Any] | str, Subscription] = {}
        self.combinations: dict[tuple[Subscription, ...], Subscription] = {}
        self.feeder: Forwarder | None = None
        self._cursors: list[Cursor] = []
        self._thrown: list[BaseException] = []
        self._left: list[Event[Any]] = []  # not finished by those who have left
        self._released: Container[str] = ()  # topics that others go on reading once it is closed
        self._start_lock = trio.Lock()
        self._started = False
        self._closed = False
        self._register()

    @property
    def parts(self) -> tuple[Subscription, ...]:
        """What it consists of: itself, or those that are combined in it."""
        return (self,)

    @property
    def schema(self) -> Schema:
        """How what it reads travels."""
        return self.channel.schema

    @property
    def value_type(self) -> Any:
        """Of the values that come out of it; None where that is not known."""
        return self.schema.value_type

    @property
    def closed(self) -> bool:
        """Whether its reader has left."""
        return self._closed

    def _register(self) -> None:
        readers_of(self.run, self.channel).append(self)

    async def start(self) -> None:
        """Begin to receive; again does nothing."""
        if self._started:
            return
        async with self._start_lock:
            if not self._started:
                await self._provide()
                await self._begin()
                if self.feeder is not None:
                    await self.feeder.start()
                self._started = True

    async def _provide(self) -> None:
        """Have made what it reads, where that is derived: from the source on, since each asks how many partitions it has."""
        if self.feeder is not None:
            for part in self.feeder.source.parts:
                await part._provide()
            await self.feeder.prepare()

    async def _begin(self) -> None:  # noqa: B027  # a local channel has nothing to do
        """Declare what has to be, and attach the inbox."""

    def open_cursor(self, hand: Hand) -> Cursor:
        """A new place in the inbox, for this hand."""
        cursor = self._make_cursor(hand)
        cursor.subscription = self
        self._cursors.append(cursor)
        for error in self._thrown:
            cursor.throw(error)
        self._thrown = []
        left, self._left = self._left, []
        for event in left:
            cursor.inherit(event)
            event.on_failure = hand.failures  # the cursor is the hand's in a moment
        return cursor

    @abstractmethod
    def _make_cursor(self, hand: Hand) -> Cursor: ...

    def throw(self, error: BaseException) -> None:
        """Raise this from the stream that reads it, or from one of those that share it, before anything else comes."""
        if self.derived or self.combinations:
            for subscription in self.derived.values():
                subscription.throw(error)
            if combined := list(self.combinations.values()):  # each actor that shares this may have one of its own
                next((other for other in combined if other.waiting), combined[0]).throw(error)
        elif self._cursors:
            next((cursor for cursor in self._cursors if cursor.waiting), self._cursors[0]).throw(error)
        else:
            self._thrown.append(error)

    @property
    def waiting(self) -> bool:
        """Whether a stream that reads it waits for something to come."""
        return any(cursor.waiting for cursor in self._cursors)

    def hand_over(self, hand: Hand) -> None:
        """One of those who share it reads it no more, nor what it is part of: another gets what it has not finished."""
        for subscription in [*self.derived.values(), *self.combinations.values()]:
            subscription.hand_over(hand)
        for cursor in [cursor for cursor in self._cursors if cursor.hand is hand]:
            self._cursors.remove(cursor)
            self.run.conductor.unwatch(cursor)
            cursor.hand_over(self._inherit)

    def _inherit(self, event: Event[Any]) -> None:
        """Nobody may read it at present: those who share it come to their streams one after the other."""
        if self._cursors:
            self._cursors[0].inherit(event)
        elif not self._closed:
            self._left.append(event)
        elif event.message.topic in self._released:
            event.abandon()

    async def decode_error(self, bad: BadMessage) -> None:
        """Do what the channel says about undecodable input, and tell its handlers."""
        await settle_undecodable(self.run, self.channel, bad.message, bad.part, bad.error, reader=self.name)

    async def partition_count(self) -> int:
        """How many partitions what it reads has."""
        return self.run.options.topic_partitions

    @property
    def inboxes(self) -> Sequence[BatchInbox]:
        """The conductor's inboxes that it reads."""
        return ()

    @property
    def cursors(self) -> Sequence[Cursor]:
        """The places in it of those who read it."""
        return self._cursors

    @property
    def buffered(self) -> int:
        """Messages that wait to be taken."""
        return sum(inbox.buffered for inbox in self.inboxes) - sum(cursor.used for cursor in self.cursors)

    @property
    def delivered(self) -> int | None:
        """Messages that have come in all; None where that is not counted."""
        return sum(inbox.delivered for inbox in self.inboxes) if self.inboxes else None

    def close(self, *, leave: bool = False) -> None:
        """End its streams after the event in hand, the derived ones too.

        Args:
            leave: its reader goes while the run goes on: others no longer wait for what it had not read.
        """
        if not self._closed:
            self._closed = True
            if self in (readers := readers_of(self.run, self.channel)):
                readers.remove(self)
            if not readers:
                self.run.forget(("readers", self.channel))
            self._detach(leave)
            left, self._left = self._left, []
            for event in left:
                self._inherit(event)
            if self.feeder is not None:
                self.feeder.close()
            for subscription in [*self.derived.values(), *self.combinations.values()]:
                subscription.close(leave=leave)

    @abstractmethod
    def _detach(self, leave: bool) -> None: ...

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} of {self.channel!r}>"


def readers_of(run: Run, channel: Channel[Any]) -> list[Subscription]:
    """Who reads a channel in a run."""
    return run.state(("readers", channel), list)


def close_readers(run: Run) -> None:
    """A run has ended: streams that are read outside of its tree end, and so does waiting for room in local channels."""
    for key, state in run.states():
        if isinstance(state, LocalState):
            state.close()
        elif isinstance(key, tuple) and key[0] == "readers":
            for reader in [*state]:
                reader.close()


class InboxSubscription(Subscription):
    """A reader of an inbox of events; what comes into it is up to the subclass."""

    def __init__(self, run: Run, channel: Channel[Any], name: str, *, shared: bool = False) -> None:
        super().__init__(run, channel, name, shared=shared)
        self._inbox = EventInbox(name, channel.bound(run))

    @property
    def buffered(self) -> int:
        return self._inbox.buffered

    def _make_cursor(self, hand: Hand) -> Cursor:
        return EventCursor(self._inbox)

    def _detach(self, leave: bool) -> None:
        self._inbox.close()


class ChannelSubscription(InboxSubscription):
    """A reader of a local channel; gets all that is put into it from now on."""

    def __init__(self, run: Run, channel: Channel[Any], name: str, *, shared: bool = False) -> None:
        super().__init__(run, channel, name, shared=shared)
        channel.attach(run, self._inbox)

    def _make_cursor(self, hand: Hand) -> Cursor:
        cursor = super()._make_cursor(hand)
        self.run.conductor.watch(cursor)  # what comes through here may be from a partition
        return cursor

    def _detach(self, leave: bool) -> None:
        self.channel.detach(self.run, self._inbox)
        super()._detach(leave)
        if leave:
            self._released = (self.channel.name,)
            self._abandon()
            for cursor in self._cursors:
                self.run.conductor.unwatch(cursor)

    def _abandon(self) -> None:
        """What it has not finished is done, as far as it is concerned: no log would give it again."""
        for cursor in self._cursors:
            cursor.close(release=(self.channel.name,))
        while (event := self._inbox.take_nowait()) is not None:
            event.abandon()


class TopicSubscription(Subscription):
    """A reader of a topic."""

    channel: Topic[Any]

    def __init__(self, run: Run, channel: Topic[Any], name: str, *, shared: bool = False) -> None:
        super().__init__(run, channel, name, shared=shared)
        self._inbox = BatchInbox(name, channel.bound(run), shared=shared, on_room=run.conductor.wake)
        self._interest = interest_in(channel)
        self._attached = False

    async def _begin(self) -> None:
        check_readable(self.run, self.channel, self.channel.serdes(self.run).schema)
        await self.channel.prepare(self.run)
        if not self._attached:  # a start that was cancelled is made again
            self._attached = True
            self.run.conductor.add(self._interest, self._inbox)

    @property
    def inboxes(self) -> Sequence[BatchInbox]:
        return (self._inbox,)

    async def partition_count(self) -> int:
        return await partitions_of(self.run, self._interest)

    def _make_cursor(self, hand: Hand) -> Cursor:
        cursor = topic_cursor(self.run, self.channel, self._inbox)
        self.run.conductor.watch(cursor)
        return cursor

    def _detach(self, leave: bool) -> None:
        conductor = self.run.conductor
        others = self._released = conductor.remove(self._inbox, leave=leave)
        for cursor in self._cursors:
            cursor.close(release=others)
            if leave:
                conductor.unwatch(cursor)


async def partitions_of(run: Run, interest: Interest) -> int:
    """Of several topics, the largest number; of a pattern alone, that of a topic made without one, if there is none."""
    topics = sorted(interest.topics)
    if interest.pattern is not None:
        topics += [topic for topic in await run.transport.list_topics() if interest.pattern.fullmatch(topic)]
    counts: list[int] = []
    for topic in topics:
        retry = Retry(f"looking at topic {topic}", run.options, log, patient_with=(UnknownTopic,))
        counts.append(await retry.until_done(partial(run.transport.partition_count, topic)))
    return max(counts, default=run.options.topic_partitions)


def topic_cursor(run: Run, channel: Topic[Any], inbox: BatchInbox) -> BatchCursor:
    """A place in an inbox of this topic's messages."""
    schema = channel.serdes(run).schema
    return SchemaCursor(inbox, schema) if schema.custom_loads else BatchCursor(inbox, *schema.decoders())


def check_readable(run: Run, channel: Channel[Any], schema: Schema) -> None:
    """Rather than let message after message be undecodable.

    Raises:
        ImproperlyConfigured: decoding with its codec is not allowed in this run, which does not start then.
    """
    try:
        schema.check_readable()
    except UnsafeCodec as error:
        refusal = ImproperlyConfigured(f"{channel!r} cannot be read: {error}")
        run.refuse(refusal)
        raise refusal from error


def interest_in(topic: Topic[Any]) -> Interest:
    """What a reader of this topic reads: its names, or what matches its pattern."""
    pattern = topic.pattern
    if pattern is not None:
        pattern = without_letters(pattern, *([] if topic.dead_letter is None else [topic.dead_letter]))
    return Interest(frozenset(topic.topics), pattern)
