"""`Stream`: what agents iterate over. It acknowledges each event when it is asked for the next one.

Streams are iterator classes and not generators: nothing of them is left to be finalised later, and a cancelled
`__anext__` has either taken an event into the hand or not.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Any, Generic, TypeVar

import trio
from trio.lowlevel import checkpoint, checkpoint_if_cancelled

from .cursor import BadMessage, Cursor
from .event import Event
from .groupby import GroupKey, regroup
from .hand import Hand, current_hand
from .pace import Pacer
from .subscription import Subscription

__all__ = ["Stream"]

T = TypeVar("T")

log = logging.getLogger("famulus.stream")


class Stream(AsyncIterator[T], Generic[T]):
    """An endless asynchronous iterator over the values of a channel or topic.

    Made by agents, and by `channel.stream()`; nothing is read before it is iterated. When its agent is asked to
    stop, it ends after the event in hand.

    Resource handling: an agent's stream is kept by its run. One that you made yourself buffers until the run ends, and
    pauses its partitions when it is full: `close()` it when you leave it, or make it in an `@app.task`, whose end closes it.
    """

    __slots__ = ("_acks", "_cursor", "_hand", "_pacer", "_root", "_subscription")

    def __init__(
        self,
        subscription: Subscription,
        *,
        hand: Hand | None = None,
        acks: bool = True,
        root: Subscription | None = None,
    ) -> None:
        self._subscription = subscription
        self._hand: Hand | None = hand
        self._acks = acks
        self._root = root or subscription
        self._cursor: Cursor | None = None
        self._pacer: Pacer | None = None

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
                cursor.event = hand.event = taken
                value: T = taken.value
                return value
            else:
                await self._report(taken)

    async def _begin(self) -> tuple[Cursor, Hand, Pacer]:
        """Bind to the hand of the current task, and see that the subscription is up."""
        hand = self._hand or current_hand.get()
        if hand is None:
            hand = Hand()
        current_hand.set(hand)
        await self._subscription.start()
        self._hand = hand
        self._cursor = cursor = hand.cursor(self._subscription)
        cursor.acks = self._acks
        self._pacer = pacer = Pacer()
        if hand.reached is not None:
            hand.reached()
        return cursor, hand, pacer

    async def _report(self, bad: BadMessage) -> None:
        """Bad input names itself and never stops an agent (law 6)."""
        message = bad.message
        self._subscription.run.counters.decode_errors += 1
        log.error("%s@%d: undecodable %s: %s", message.tp, message.offset, bad.part, bad.error)
        if self._hand is not None and self._hand.refuse is not None:
            self._hand.refuse(message, bad.error)
        try:
            await self._subscription.decode_error(bad)
        finally:
            message.release()

    def events(self) -> Events[T]:
        """Iterate over `Event` objects instead of values: key, headers and the raw message with them."""
        return Events(self)

    def items(self) -> Items[T]:
        """Iterate over pairs of key and value."""
        return Items(self)

    def noack(self) -> Stream[T]:
        """The same stream without automatic acknowledgement: call `event.ack()` yourself."""
        return Stream(self._subscription, hand=self._hand, acks=False, root=self._root)

    def close(self) -> None:
        """Leave the channel. What was not read, or is in hand, is not acknowledged; others who read it do not wait for it."""
        self._root.close(leave=True)

    def group_by(
        self,
        key: GroupKey[T],
        *,
        name: str | None = None,
        partitions: int | None = None,
    ) -> Stream[T]:
        """Send each value through an intermediate topic keyed by `key`, and go on with the stream of that.

        All values of one key then arrive at one worker, in order. The event of this stream is done once its
        copy is delivered.

        Args:
            key: a field (`Order.account`), or a function of the value, plain or async, that gives the key.
            name: of the key, in the intermediate topic's name; needed for a lambda.
            partitions: of the intermediate topic; as many as the source has by default.

        Raises:
            ValueError: a key without a name of its own, and no `name`.
        """
        hand = self._hand or current_hand.get()
        failures = None if hand is None else hand.failures
        regrouped = regroup(self._subscription, key, name=name, partitions=partitions, failures=failures, read=_events)
        return Stream(regrouped, hand=self._hand, root=self._root)

    @property
    def current_event(self) -> Event[T] | None:
        """The event in hand."""
        return None if self._cursor is None else self._cursor.event

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


def _events(subscription: Subscription, hand: Hand) -> Events[Any]:
    return Stream[Any](subscription, hand=hand).events()
