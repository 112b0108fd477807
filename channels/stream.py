"""`Stream`: what agents iterate over. It acknowledges each event when it is asked for the next one.

Streams are iterator classes and not generators: nothing of them is left to be finalised later, and a cancelled
`__anext__` has either taken an event into the hand or not.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import trio
from trio.lowlevel import checkpoint, checkpoint_if_cancelled

from ..models import NotReady
from .combining import combine
from .cursor import BadMessage, Cursor
from .event import AckResult, Event
from .groupby import GroupKey, named, pass_through, regroup
from .hand import Hand, current_hand
from .pace import Pacer
from .redelivery import Thrown
from .steps import DROPPED, Echo, Filter, Map, Processor, Step, apply_steps, changes_values
from .subscription import Subscription
from .taking import Batches, with_timestamp

if TYPE_CHECKING:
    from .channel import Channel

__all__ = ["Stream"]

T = TypeVar("T")
U = TypeVar("U")

log = logging.getLogger("famulus.stream")


class Stream(AsyncIterator[T], Generic[T]):
    """An endless asynchronous iterator over the values of a channel or topic.

    Made by agents, by `channel.stream()` and `app.stream(...)`; nothing is read before it is iterated. When its agent is
    asked to stop, it ends after the event in hand.

    Operations give a new stream in the same place: go on with that one. `take`, `items`, `events` and `enumerate` come last.

    Resource handling: an agent's stream is kept by its run. One that you made yourself buffers until the run ends, and
    pauses its partitions when it is full: `close()` it when you leave it, or make it in an `@app.task`, whose end closes it.
    """

    __slots__ = ("_acks", "_cursor", "_hand", "_pacer", "_roots", "_subscription", "steps")

    def __init__(
        self,
        subscription: Subscription,
        *,
        hand: Hand | None = None,
        acks: bool = True,
        roots: tuple[Subscription, ...] = (),
        steps: tuple[Step, ...] = (),
    ) -> None:
        self._subscription = subscription
        self._hand: Hand | None = hand
        self._acks = acks
        self._roots = roots or (subscription,)
        self._cursor: Cursor | None = None
        self._pacer: Pacer | None = None
        self.steps = steps

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        cursor, hand, pacer = self._cursor, self._hand, self._pacer
        if cursor is None or hand is None or pacer is None:
            cursor, hand, pacer = await self._begin()
        event = cursor.event
        if event is not None:
            cursor.event = None
            hand.event = None
            if not event.acked:
                if self._acks:
                    event.ack()
                else:
                    cursor.pass_on(event)
            hand.worked = True
            if cursor.idle is not None:
                cursor.let_go()
        elif cursor.gathered is not None:
            cursor.ungather()
        left = pacer.left = pacer.left - 1  # `pacer.due()`, without a call
        if left <= 0 or perf_counter() >= pacer.limit:
            pacer.rested()
            await checkpoint()
        else:
            await checkpoint_if_cancelled()
        while True:
            taken = cursor.take_nowait()
            if taken is None:
                try:
                    await cursor.wait()
                except trio.EndOfChannel:
                    raise StopAsyncIteration from None
                pacer.rested()
            elif isinstance(taken, Event):
                if not self.steps:
                    cursor.event = hand.event = taken
                    value: T = taken.value
                    return value
                value = await self.value_of(taken, cursor, hand)
                if value is not DROPPED:
                    return value
                if pacer.due():
                    await checkpoint()
            else:
                await self.trouble(taken)

    # -- for the iterators over it ---------------------------------------------------------------------------

    async def advance(self) -> tuple[Cursor, Hand, Pacer]:
        """Be done with what is in hand."""
        cursor, hand, pacer = self._cursor, self._hand, self._pacer
        if cursor is None or hand is None or pacer is None:
            cursor, hand, pacer = await self._begin()
        event = cursor.event
        if event is not None:
            cursor.event = hand.event = None
            if not event.acked:
                if self._acks:
                    event.ack()
                else:
                    cursor.pass_on(event)
            hand.worked = True
            if cursor.idle is not None:
                cursor.let_go()
        await checkpoint_if_cancelled()
        return cursor, hand, pacer

    async def value_of(self, event: Event[Any], cursor: Cursor, hand: Hand) -> Any:
        """Take an event into the hand, and give what the steps make of its value. What they drop is acknowledged."""
        cursor.event = hand.event = event
        try:
            value = await apply_steps(self.steps, event)
        except StopAsyncIteration as error:  # it would end the stream without a word
            raise RuntimeError(f"a processor raised StopAsyncIteration on {event!r}") from error
        except Exception:
            raise
        except BaseException:  # cancelled: nobody has seen it, so it comes again
            hand.event = None
            cursor.put_back(event)
            raise
        if value is DROPPED:
            event.ack()
            hand.event = None
            hand.worked = True
            cursor.let_go()
        return value

    async def trouble(self, taken: BadMessage | Thrown) -> None:
        """What came is no event: raise it, or report it. Bad input names itself and never stops an agent (law 6)."""
        if isinstance(taken, Thrown):
            raise taken.error
        if isinstance(taken.error, NotReady):
            taken.cursor.take_back()
            await (self._cursor or taken.cursor).wait_for(self._subscription.run.errands.run(taken.error))
            return
        message = taken.message
        self._subscription.run.counters.decode_errors += 1
        log.error("%s@%d: undecodable %s: %s", message.tp, message.offset, taken.part, taken.error)
        if self._hand is not None and self._hand.refuse is not None:
            self._hand.refuse(message, taken.error)
        reader = taken.cursor.subscription or self._subscription
        try:
            await reader.decode_error(taken)
        except trio.Cancelled:
            taken.cursor.take_back()
            raise
        except BaseException:
            message.release()
            raise
        message.release()

    async def _begin(self) -> tuple[Cursor, Hand, Pacer]:
        """Bind to the hand of the current task, and see that the subscription is up."""
        hand = self._hand or current_hand.get()
        if hand is None:
            hand = Hand()
        current_hand.set(hand)
        await self._subscription.start()
        self._hand = hand
        self._cursor = cursor = hand.cursor(self._subscription)
        cursor.set_acks(self._acks)
        cursor.task = trio.lowlevel.current_task()
        cursor.pacer = self._pacer = pacer = Pacer()
        if hand.reached is not None:
            hand.reached()
        return cursor, hand, pacer

    def _with(self, *steps: Step, acks: bool | None = None) -> Stream[Any]:
        return Stream(
            self._subscription,
            hand=self._hand,
            acks=self._acks if acks is None else acks,
            roots=self._roots,
            steps=(*self.steps, *steps),
        )

    # -- what comes out of it --------------------------------------------------------------------------------

    def events(self) -> Events[T]:
        """Iterate over `Event` objects instead of values: key, headers and the raw message with them.

        Their values are as they were decoded; what processors make of them is what `items()` and the stream itself give.
        """
        return Events(self)

    def items(self) -> Items[T]:
        """Iterate over pairs of key and value."""
        return Items(self)

    def enumerate(self, start: int = 0) -> Enumerated[T]:
        """Iterate over pairs of a count, from `start`, and value."""
        return Enumerated(self, start)

    def take(self, size: int, within: float | None = None) -> Batches[T]:
        """Iterate over lists of values: `size` of them, or those that have come `within` seconds after the first.

        They are in hand together: acknowledged when the next list is asked for, and what is sent meanwhile belongs to all.
        At a stop of the agent, what has been gathered is given out as a last list. When the agent raises on a list and its
        `on_failure` is not "ack", its events come again one by one, so that only the bad one fails again. In an
        agent that answers, the k-th yield answers the k-th value.

        Args:
            within: seconds; without it, a list waits until it is full.

        Raises:
            ValueError: an argument is out of its range.
        """
        return Batches(self, size, within, lambda event, value: value)

    def take_events(self, size: int, within: float | None = None) -> Batches[Event[T]]:
        """`take` with `Event` objects instead of values."""
        return Batches(self, size, within, lambda event, value: event)

    def take_with_timestamp(self, size: int, within: float | None, timestamp_field_name: str) -> Batches[T]:
        """`take` with each message's timestamp (seconds since the epoch) in this field, or key, of its value.

        Raises:
            TypeError: in the iteration: a value has no such field.
        """
        return Batches(self, size, within, with_timestamp(timestamp_field_name))

    # -- what happens on the way -----------------------------------------------------------------------------

    def add_processor(self, processor: Processor) -> None:
        """Have this stream's values go through a function from now on, after those that are there. It may be async."""
        self.steps = (*self.steps, Map(processor))

    @overload
    def map(self, fun: Callable[[T], Awaitable[U]]) -> Stream[U]: ...
    @overload
    def map(self, fun: Callable[[T], U]) -> Stream[U]: ...
    def map(self, fun: Callable[[T], Any]) -> Stream[Any]:
        """What a function makes of each value; it may be async. When it raises, that is a failure of the agent."""
        return self._with(Map(fun))

    def filter(self, fun: Callable[[T], object]) -> Stream[T]:
        """The values for which a function, which may be async, says yes. The others are acknowledged."""
        return self._with(Filter(fun))

    def echo(self, *channels: Channel[Any] | str) -> Stream[T]:
        """Send each value on to other channels too, before it comes here.

        A copy has the key, the headers and the timestamp of its message, but it is no question to who reads it. The event
        is done once its copies are delivered.

        Args:
            channels: channels, topics, or names of topics, which then have the type of this stream's values.

        Raises:
            ImproperlyConfigured: one of them is a pattern, or several topics.
        """
        targets = [named(self._subscription, self.steps, channel) for channel in channels]
        return self._with(Echo(targets, changed=changes_values(self.steps)))

    def noack(self) -> Stream[T]:
        """The same stream without automatic acknowledgement: call `event.ack()` yourself."""
        return self._with(acks=False)

    def group_by(
        self,
        key: GroupKey[T],
        *,
        name: str | None = None,
        topic: Channel[T] | str | None = None,
        partitions: int | None = None,
    ) -> Stream[T]:
        """Send each value through an intermediate topic keyed by `key`, and go on with the stream of that.

        All values of one key then arrive at one worker, in order. The event of this stream is done once its
        copy is delivered.

        Args:
            key: a field (`Order.account`) or its name, or a function of the value, plain or async, that gives the key.
            name: of the key, in the intermediate topic's name; needed for a lambda.
            topic: another intermediate topic than our own, which is named after app, source and key, and trimmed.
            partitions: of our own intermediate topic; as many as the source has by default.

        Raises:
            ValueError: a key without a name of its own, and no `name`.
            ImproperlyConfigured: the intermediate topic is one that this stream reads, or another reader regroups through it.
        """
        made = regroup(
            self._subscription, self._source_hand, self.steps, key, name=name, topic=topic, partitions=partitions
        )
        return Stream(made, hand=self._hand, acks=self._acks, roots=self._roots)

    def through(self, channel: Channel[T] | str) -> Stream[T]:
        """Send each value on to another channel, and go on with the stream of that.

        The event of this stream is done once its copy is delivered. A topic that does not exist is created.

        Args:
            channel: a channel, a topic, or the name of a topic, which then has the type of this stream's values.

        Raises:
            ImproperlyConfigured: the channel is one that this stream reads, a pattern, or several topics.
        """
        made = pass_through(self._subscription, self._source_hand, self.steps, channel)
        return Stream(made, hand=self._hand, acks=self._acks, roots=self._roots)

    @property
    def _source_hand(self) -> Hand | None:
        return self._hand or current_hand.get()

    def __and__(self, other: Stream[U]) -> Stream[T | U]:
        return self.combine(other)

    def combine(self, *others: Stream[Any]) -> Stream[Any]:
        """The values of this stream and of others, each as it comes; ``s1 & s2`` is the same.

        Each keeps its processors, and operations on the combined stream come after them.

        Raises:
            ValueError: one acknowledges and another does not, or two are the same stream.
        """
        streams = (self, *others)
        if len({stream._acks for stream in streams}) > 1:
            raise ValueError("combined streams have to be all with or all without acknowledgement: see noack()")
        subscription, steps = combine([(stream._subscription, stream.steps) for stream in streams])
        return Stream(
            subscription,
            hand=self._hand,
            acks=self._acks,
            roots=tuple(root for stream in streams for root in stream._roots),
            steps=steps,
        )

    # -- more --------------------------------------------------------------------------------------------------

    async def ack(self, event: Event[Any]) -> AckResult:
        """Acknowledge an event: see `Event.ack`."""
        return event.ack()

    def throw(self, error: BaseException) -> None:
        """Raise this where the stream is iterated, before anything else comes. Actors that share it: one of them."""
        self._subscription.throw(error)

    def close(self) -> None:
        """Leave the channel. What was not read, or is in hand, is not acknowledged; others who read it do not wait for it."""
        hand = self._source_hand
        for root in self._roots:
            if hand is None or not hand.unmake(root):
                root.close(leave=True)

    @property
    def current_event(self) -> Event[T] | None:
        """The event in hand; of a `take`, the last."""
        event = None if self._cursor is None else self._cursor.event
        return None if event is None else event.parts[-1]

    def __repr__(self) -> str:
        return f"<Stream of {self._subscription.name}>"


class Events(AsyncIterator[Event[T]], Generic[T]):
    """What `Stream.events()` gives."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream[T]) -> None:
        self._stream = stream

    def __aiter__(self) -> Events[T]:
        return self

    async def __anext__(self) -> Event[T]:
        await self._stream.__anext__()
        event = self._stream.current_event
        assert event is not None
        return event


class Items(AsyncIterator[tuple[Any, T]], Generic[T]):
    """What `Stream.items()` gives."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream[T]) -> None:
        self._stream = stream

    def __aiter__(self) -> Items[T]:
        return self

    async def __anext__(self) -> tuple[Any, T]:
        value = await self._stream.__anext__()
        event = self._stream.current_event
        assert event is not None
        return event.key, value


class Enumerated(AsyncIterator[tuple[int, T]], Generic[T]):
    """What `Stream.enumerate()` gives."""

    __slots__ = ("_count", "_stream")

    def __init__(self, stream: Stream[T], start: int) -> None:
        self._stream = stream
        self._count = start

    def __aiter__(self) -> Enumerated[T]:
        return self

    async def __anext__(self) -> tuple[int, T]:
        value = await self._stream.__anext__()
        count = self._count
        self._count += 1
        return count, value
