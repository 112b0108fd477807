"""The short way of a forwarder: what lies in its cursor goes on in one go, without a stream in between.

Nothing is awaited on it, so nothing is in hand when a task is cancelled or a partition revoked. What needs care is left where
it is, for the stream to take: what is delivered again, what cannot be decoded, keys that have to be awaited, a producer
that is full. A message whose key cannot be made is a failed event, here as there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .cursor import BatchCursor
from .event import UNCHANGED, Event, FailurePolicy
from .future import FutureMessage
from .hand import Hand
from .message import Message
from .pace import Pacer
from .producer import size_of
from .runs import Run

if TYPE_CHECKING:
    from .channel import Channel
    from .subscription import Subscription
    from .topic import Topic

__all__ = ["Copier"]

_AT_ONCE = 256  # messages


class Copier:
    """Copies messages of one topic into another with the same values, as the bytes that they are."""

    __slots__ = (
        "_awaits",
        "_cursor",
        "_dumps",
        "_fail",
        "_hand",
        "_loads_key",
        "_loads_value",
        "_pacer",
        "_producer",
        "_same_keys",
        "_taken",
        "_topic",
    )

    def __init__(
        self, source: Topic[Any], target: Topic[Any], run: Run, hand: Hand, cursor: BatchCursor, fail: FailurePolicy
    ) -> None:
        ours, theirs = source.serdes(run), target.serdes(run)
        self._loads_key, self._loads_value = ours.schema.decoders()
        self._dumps = theirs.dump_key
        self._same_keys = ours.key_form is theirs.key_form
        self._topic = target.destination
        self._producer = run.producer
        self._hand = hand
        self._cursor = cursor
        self._fail = fail
        self._taken = 0
        self._pacer = Pacer()
        self._awaits = False

    @classmethod
    def between(cls, source: Subscription, target: Channel[Any], hand: Hand, fail: FailurePolicy) -> Copier | None:
        """One that does it, or None where values have to be encoded anew.

        Args:
            fail: takes an event for which there is no key.
        """
        from .topic import Topic  # topics make streams, and streams forward into topics

        cursor, run, topic = hand.cursor(source), source.run, source.channel
        if not (
            type(cursor) is BatchCursor
            and cursor.prepare is None
            and isinstance(topic, Topic)
            and isinstance(target, Topic)
            and target.app is run.app
        ):
            return None
        ours, theirs = topic.serdes(run), target.serdes(run)
        if theirs.schema.custom_dumps or ours.value_form is not theirs.value_form:
            return None
        return cls(topic, target, run, hand, cursor, fail)

    def copy(self, key: Callable[[Any], Any]) -> bool:
        """Copy some messages. False, when the stream has to take the next one.

        Args:
            key: gives the new key for a value, or `UNCHANGED`.
        """
        most, most_bytes = self._producer.room
        messages = self._cursor.ahead(min(most, _AT_ONCE)) if most > 0 and not self._awaits else ()
        if not messages:
            return False
        self._pacer.rested()
        self._taken = 0
        copies: list[FutureMessage] = []
        try:
            self._make(messages, key, copies, most_bytes)
        finally:
            self._hand.event = None
            self._cursor.move_on(self._taken)
            self._producer.add_all(self._topic, copies)
        return self._taken > 0

    def _make(
        self, messages: Sequence[Message], key_of: Callable[[Any], Any], copies: list[FutureMessage], most_bytes: int
    ) -> None:
        """Make copies of the first of these messages, up to one that needs care, or until it is time for others."""
        hand, cursor, failures = self._hand, self._cursor, self._cursor.failures
        loads_key, loads_value, dumps, topic, limit = (
            self._loads_key,
            self._loads_value,
            self._dumps,
            self._topic,
            self._pacer.limit,
        )
        for message in messages:
            tracker, raw, raw_key = message.tracker, message.value, message.key
            if most_bytes <= 0 or tracker is None or tracker.live != message.generation:
                break
            try:
                value = loads_value(raw)
                event = Event(
                    None if raw_key is None else loads_key(raw_key), value, message.headers, message, cursor, failures
                )
            except Exception:  # it comes again in the stream, which sees to it
                break
            try:
                hand.event = event  # a key function may ask for it, or send something
                key = key_of(value)
                if type(key) is not str and inspect.isawaitable(key):
                    self._leave(key)
                    break
                if key is not UNCHANGED:
                    raw_key = dumps(key)
                elif not self._same_keys:
                    raw_key = dumps(event.key)
            except Exception as error:
                self._taken += 1
                event.acked = True
                self._fail(event, error)
                break  # it may come again, before the others
            self._taken += 1
            copy = FutureMessage(topic, raw_key, raw, message.headers, message.timestamp)
            copy.events = event  # the copy takes over the hold that the stream had on the message
            event.acked = True
            copies.append(copy)
            copy.size = size_of(copy)
            most_bytes -= copy.size
            if perf_counter() >= limit:
                break

    def _leave(self, key: Any) -> None:
        """The key function's answers are to be awaited: from now on the stream takes all."""
        self._awaits = True
        if inspect.iscoroutine(key):
            key.close()
