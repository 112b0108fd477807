"""Passing an event on to another channel: as the bytes that came, or encoded anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..models import NotReady
from .event import UNCHANGED, Event
from .future import FutureMessage
from .hand import current_hand
from .likeness import topic_like
from .message import Headers, HeadersArg, as_headers, as_partition, as_timestamp
from .runs import current_run

if TYPE_CHECKING:
    from .channel import Channel
    from .runs import Run
    from .subscription import Subscription
    from .topic import Topic

__all__ = ["Carrier", "carry", "forward", "target_of"]


def target_of(event: Event[Any], channel: Channel[Any] | str) -> Channel[Any]:
    """The channel that is meant; a name means a topic with the types of the channel that the event came from."""
    if not isinstance(channel, str):
        return channel
    if event.cursor is None or event.cursor.subscription is None:
        raise ValueError(
            f"{event!r} came from no stream, so the topic {channel!r} has no App: give app.topic({channel!r})"
        )
    reader = event.cursor.subscription
    return topic_like(reader.run, reader.channel.app, channel, reader.channel.schema)


async def forward(
    event: Event[Any],
    channel: Channel[Any] | str,
    *,
    key: Any = UNCHANGED,
    value: Any = UNCHANGED,
    partition: int | None = None,
    timestamp: float | None = None,
    headers: HeadersArg = None,
) -> FutureMessage:
    """See `Event.forward`."""
    message = event.message
    return await _pass_on(
        event,
        target_of(event, channel),
        key=key,
        value=value,
        raw_key=key is UNCHANGED and message.offset >= 0,
        raw_value=value is UNCHANGED and message.offset >= 0,
        partition=partition,
        timestamp=message.timestamp if timestamp is None else as_timestamp(timestamp),
        headers=message.headers if headers is None else as_headers(headers),
    )


async def carry(
    event: Event[Any],
    channel: Channel[Any] | str,
    *,
    value: Any,
    changed: bool,
    headers: Headers,
    key: Any = UNCHANGED,
) -> FutureMessage:
    """Pass a value on that an event has become: its bytes as they are where that comes to the same, else encoded anew.

    Args:
        changed: whether the value may be another one than that of the bytes; it may be the same object all the same.
        key: another one; the event's own by default.
    """
    from .topic import Topic

    target = target_of(event, channel)
    raw_key = raw_value = False
    if isinstance(target, Topic) and event.message.offset >= 0 and event.cursor is not None:
        source = None if event.cursor.subscription is None else event.cursor.subscription.channel
        if isinstance(source, Topic):
            ours, theirs = source.serdes(current_run(source.app)), target.serdes(current_run(target.app))
            raw_key = key is UNCHANGED and ours.key_form is theirs.key_form
            raw_value = not changed and (
                ours.value_form is theirs.value_form
                # Ours alone reads an internal topic: there, bytes may stay those of a codec that knows another topic.
                or (target.internal and ours.value_reading is theirs.value_reading)
            )
    return await _pass_on(
        event,
        target,
        key=key,
        value=value,
        raw_key=raw_key,
        raw_value=raw_value,
        partition=None,
        timestamp=event.message.timestamp,
        headers=headers,
    )


class Carrier:
    """`carry` from a reader of one topic to another topic, where nothing has to be waited for."""

    __slots__ = ("_dump_key", "_dump_value", "_producer", "_same_keys", "_same_values", "_topic")

    def __init__(self, source: Topic[Any], target: Topic[Any], run: Run) -> None:
        ours, theirs = source.serdes(run), target.serdes(run)
        self._same_keys = ours.key_form is theirs.key_form
        self._same_values = ours.value_form is theirs.value_form
        self._dump_key = theirs.dump_key
        self._dump_value = theirs.dump_value
        self._topic = target.destination
        self._producer = run.producer

    @classmethod
    def between(cls, reader: Subscription | None, target: Channel[Any]) -> Carrier | None:
        """One that does it; None where it takes more."""
        from .topic import Topic

        source = None if reader is None else reader.channel
        if reader is None or not (isinstance(source, Topic) and isinstance(target, Topic)):
            return None
        run = reader.run
        plain = target.app is run.app and not target.serdes(run).schema.custom_dumps
        return cls(source, target, run) if plain else None

    def carry(self, event: Event[Any], *, value: Any, changed: bool, headers: Headers) -> bool:
        """Pass a value on that an event has become, with its key. False, and nothing is done: that has to wait.

        Raises:
            EncodeError: the value cannot be encoded.
        """
        message, producer = event.message, self._producer
        if message.offset < 0 or not producer.has_room:
            return False
        try:
            key = message.key if self._same_keys else self._dump_key(event.key)
            raw = message.value if self._same_values and not changed else self._dump_value(value)
        except NotReady:
            return False
        future = FutureMessage(self._topic, key, raw, headers, message.timestamp)
        producer.add(future, None)
        hand = current_hand.get()
        if hand is not None:
            hand.claim(future)
        return True


async def _pass_on(
    event: Event[Any],
    target: Channel[Any],
    *,
    key: Any,
    value: Any,
    raw_key: bool,
    raw_value: bool,
    partition: int | None,
    timestamp: float,
    headers: Headers,
) -> FutureMessage:
    from .topic import Topic

    if key is UNCHANGED:
        key = event.key
    if value is UNCHANGED:
        value = event.value
    if not isinstance(target, Topic):
        return await target.send(value, key=key, partition=partition, timestamp=timestamp, headers=headers)
    run = current_run(target.app)
    state = target.serdes(run)
    key_as_is, value_as_is = event.message.key if raw_key else None, event.message.value if raw_value else None
    while True:
        try:
            key, value, headers = state.encoded(key, value, headers, key_as_is, value_as_is)
            break
        except NotReady as pending:
            await run.errands.run(pending)
    future = FutureMessage(target.destination, key, value, headers, timestamp)
    if partition is not None:
        future.partition = as_partition(partition)
    await run.producer.wait_room()
    run.producer.enqueue(future, partition=None)
    hand = current_hand.get()
    if hand is not None:
        hand.claim(future)
    return future
