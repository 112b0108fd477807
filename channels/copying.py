"""The short way of a forwarder: what lies in its cursor goes on in one go, without a stream in between.

Nothing is awaited on it, so nothing is in hand when a task is cancelled or a partition revoked. What needs care is left where
it is, for the stream to take: what is delivered again, what cannot be decoded, a producer that is full.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..models import NotReady
from .batch_cursor import BatchCursor
from .errors import AppNotRunning, TransportError
from .event import UNCHANGED, Event, FailurePolicy
from .future import FutureMessage
from .hand import Hand
from .message import Message
from .pace import Pacer
from .routes import size_of
from .runs import Run

if TYPE_CHECKING:
    from .channel import Channel
    from .subscription import Subscription
    from .topic import Topic

__all__ = ["OUR_TROUBLE", "Copier"]

OUR_TROUBLE = (AppNotRunning, TransportError)
"""Not the event's fault: the forwarder is started again, and the event comes again."""

_AT_ONCE = 256  # messages


class Copier:
    """Copies messages of one topic into another with the same values, as the bytes that they are.

    Args:
        fail: called with an event that has no key, and why.

    Attributes:
        awaiting: an event, which is in hand now, and the awaitable that gives its key; then None again, by the forwarder.
    """

    __slots__ = (
        "_cursor",
        "_dumps",
        "_fail",
        "_hand",
        "_loads_key",
        "_loads_value",
        "_pacer",
        "_producer",
        "_same_keys",
        "_topic",
        "awaiting",
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
        self._pacer = Pacer()
        self._fail = fail
        self.awaiting: tuple[Event[Any], Awaitable[Any]] | None = None

    @classmethod
    def between(cls, source: Subscription, target: Channel[Any], hand: Hand, fail: FailurePolicy) -> Copier | None:
        """One that does it, or None where values have to be encoded anew."""
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

        Raises:
            AppNotRunning, TransportError: by the key function; its message is the next.
        """
        most, most_bytes = self._producer.room
        messages = self._cursor.ahead(min(most, _AT_ONCE)) if most > 0 and most_bytes > 0 else ()
        if not messages:
            return False
        self._pacer.rested()
        hand = self._hand
        copies: list[FutureMessage] = []
        done = 0
        try:
            for event in self._decoded(messages):
                hand.event = event  # a key function may ask for it, or send something
                try:
                    made = key(event.value)
                    if type(made) is not str and inspect.isawaitable(made):
                        done += 1
                        self.awaiting = event, made
                        break
                    copy = self._copy(event, made)
                except OUR_TROUBLE:
                    raise
                except NotReady:
                    break  # the stream waits for what the codec has to fetch
                except Exception as error:
                    done += 1
                    event.acked = True
                    self._fail(event, error)
                    break  # it may be the next again
                done += 1
                copies.append(copy)
                most_bytes -= copy.size
                if most_bytes <= 0 or perf_counter() >= self._pacer.limit:
                    break
        finally:
            hand.event = None
            self._cursor.move_on(done)
            self._producer.add_all(self._topic, copies)
        if self.awaiting is not None:
            hand.event = self._cursor.event = self.awaiting[0]
        return done > 0

    def _decoded(self, messages: Sequence[Message]) -> Iterator[Event[Any]]:
        """Events of the first of these messages, up to one that cannot be decoded or is not ours any more."""
        cursor, failures = self._cursor, self._cursor.failures
        loads_key, loads_value = self._loads_key, self._loads_value
        for message in messages:
            tracker, key = message.tracker, message.key
            if tracker is None or tracker.live != message.generation:
                return
            try:
                value = loads_value(message.value)
                if key is not None:
                    key = loads_key(key)
            except Exception:  # it comes again in the stream, which reports it
                return
            yield Event(key, value, message.headers, message, cursor, failures)

    def _copy(self, event: Event[Any], key: Any) -> FutureMessage:
        """The event's message under a key. It takes over the hold that the stream had on the message."""
        message = event.message
        if key is not UNCHANGED:
            raw_key = self._dumps(key)
        elif self._same_keys:
            raw_key = message.key
        else:
            raw_key = self._dumps(event.key)
        copy = FutureMessage(self._topic, raw_key, message.value, message.headers, message.timestamp)
        copy.size = size_of(copy)
        copy.events = event
        event.acked = True
        return copy
