"""What channels, topics and sends take: each option stands here once, and everyone hands it on with `Unpack`.

`app.topic`, `app.channel`, agents and `clone` take them as they are; `Channel` and `Topic` have them checked here, where
they are given, and keep them, so that a changed copy can be made.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, get_args

from ..models import Codec, Schema
from .errors import ImproperlyConfigured
from .future import DeliveryCallback
from .message import HeadersArg, Message

if TYPE_CHECKING:
    from .topic import Topic

__all__ = [
    "AnyTopicOptions",
    "Changes",
    "ChannelOptions",
    "DecodeErrorPolicy",
    "DerivedOptions",
    "MessageOptions",
    "OnDecodeError",
    "SendOptions",
    "SendSoonOptions",
    "Serializer",
    "TopicOptions",
    "changed",
    "channel_options",
    "check_count",
    "check_known",
    "check_options",
    "compiled_pattern",
    "schema_of",
    "topic_config",
    "topic_title",
]

Serializer = str | Codec | None
"""A codec, or its name: "json", "raw"."""

DecodeErrorPolicy = Literal["skip", "dead_letter"]
OnDecodeError = DecodeErrorPolicy | Callable[[Exception, Message], Awaitable[None] | None]
"""What becomes of a message that cannot be decoded; it is logged and counted in any case."""


class ChannelOptions(TypedDict, total=False):
    """What every channel takes, besides its name and `value_type`.

    Attributes:
        key_type: what keys are decoded into. Without one they are bytes.
        key_serializer, value_serializer: codecs; the settings of the same names by default.
        schema: a `Schema`: types and codecs in one, which may choose them by a message's headers. What is given beside it
            counts more than what it says.
        maxsize: messages that wait for one reader before its senders wait, or its partitions are paused; setting
            `stream_buffer_maxsize` by default.
        acks: acknowledge events automatically; False leaves `event.ack()` to you.
    """

    key_type: Any
    key_serializer: Serializer
    value_serializer: Serializer
    schema: Schema | None
    maxsize: int | None
    acks: bool


class TopicOptions(ChannelOptions, total=False):
    """What a topic takes, besides its names and `value_type`.

    Attributes:
        pattern: in place of names: a regular expression for whole names. All topics of the broker that match it are read, those
            that are made later too.
        partitions: for its creation; setting `topic_partitions` by default. Leave it out for a topic of others.
        retention: seconds, or a timedelta, that the broker keeps messages.
        compacting, deleting: the broker keeps the newest message of each key; drops old ones.
        replicas: copies, for its creation; setting `topic_replication_factor` by default.
        internal: the topic is ours: created when missing, and refused where the broker has it with other `partitions`
            or another configuration than declared here. Others are never created or altered, unless the broker is
            embedded in this process, or `declare` or `maybe_declare` is called. True by default where all names end with
            ``.dead-letter``.
        config: the broker's own settings for its creation, as ``{"cleanup.policy": "compact"}``; numbers and booleans are
            written as the broker wants them.
        delivery_guarantee: "at_least_once".
        on_decode_error: what becomes of a message that cannot be decoded: "skip" goes on without it, "dead_letter" sends it to
            the dead-letter topic first. A function, plain or async, is called with the error and the message, which is
            then skipped.
        dead_letter: name of the dead-letter topic, ``<topic>.dead-letter`` by default. It is created when missing.
        root: the topic that this one was derived from.
    """

    pattern: str | re.Pattern[str] | None
    partitions: int | None
    retention: float | timedelta | None
    compacting: bool | None
    deleting: bool | None
    replicas: int | None
    internal: bool
    config: Mapping[str, str | float] | None
    delivery_guarantee: str
    on_decode_error: OnDecodeError
    dead_letter: str | None
    root: Topic[Any] | None


class AnyTopicOptions(TopicOptions, total=False):
    """The options of a topic with the type of its values; for who makes one on the side, as agents do."""

    value_type: Any


class DerivedOptions(TopicOptions, total=False):
    """What a derived topic may have otherwise, besides its name and `value_type`."""

    topics: Iterable[str]


class Changes(AnyTopicOptions, total=False):
    """What a copy of a channel or topic may have otherwise; a channel of the options that it takes."""

    name: str | None
    topics: Iterable[str]


class MessageOptions(TypedDict, total=False):
    """What a message is made with, besides value and key.

    Attributes:
        partition: where to write it; chosen by the key by default.
        timestamp: seconds since the epoch, before the year 10,000; the time of sending by default.
        headers: names and bytes, a mapping or pairs.
        schema, key_serializer, value_serializer: in place of the channel's own, for this message.
        callback: called with the settled promise; what it returns is awaited.
    """

    partition: int | None
    timestamp: float | None
    headers: HeadersArg
    schema: Schema | None
    key_serializer: Serializer
    value_serializer: Serializer
    callback: DeliveryCallback | None


class SendOptions(MessageOptions, total=False):
    """What every send takes, besides value and key.

    Attributes:
        force: send it at once and for itself, also while an event is in hand: the offset of that event does not wait for
            its delivery, and its failure is not the event's.
    """

    force: bool


class SendSoonOptions(SendOptions, total=False):
    """What `send_soon` takes.

    Attributes:
        eager_partitioning: choose the partition now, so that the promise's `partition` is known on return.
    """

    eager_partitioning: bool


# -- checks ------------------------------------------------------------------------------------------------

_Check = tuple[Callable[[Any], bool], str]


def _whole(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def _seconds(value: Any) -> bool:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and isfinite(value) and value > 0)


def _name(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value != "")


def _codec(value: Any) -> bool:
    return value is None or isinstance(value, str) or (hasattr(value, "dumps") and hasattr(value, "loads"))


def _config(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping)
        and all(isinstance(name, str) and isinstance(item, str | int | float) for name, item in value.items())
    )


_AT_LEAST_WHOLE: Final[_Check] = _whole, "a whole number of at least 1"
_TRUTH: Final[_Check] = lambda value: isinstance(value, bool), "True or False"
_MAYBE: Final[_Check] = lambda value: value is None or isinstance(value, bool), "True, False or None"
_CODEC: Final[_Check] = _codec, "a codec or its name"

_CHECKS: Final[Mapping[str, _Check]] = {
    "maxsize": _AT_LEAST_WHOLE,
    "partitions": _AT_LEAST_WHOLE,
    "replicas": _AT_LEAST_WHOLE,
    "schema": (lambda value: value is None or isinstance(value, Schema), "a famulus.Schema"),
    "key_serializer": _CODEC,
    "value_serializer": _CODEC,
    "acks": _TRUTH,
    "internal": _TRUTH,
    "compacting": _MAYBE,
    "deleting": _MAYBE,
    "retention": (_seconds, "seconds or a timedelta, more than 0"),
    "config": (_config, "a mapping of the broker's setting names to text or numbers"),
    "delivery_guarantee": (
        lambda value: value == "at_least_once",
        "'at_least_once'; the other guarantees cannot be kept yet, and are not promised",
    ),
    "on_decode_error": (
        lambda value: callable(value) or value in get_args(DecodeErrorPolicy),
        "'skip', 'dead_letter' or a function of the error and the message",
    ),
    "dead_letter": (_name, "the name of a topic"),
}


def check_options(owner: str, options: Mapping[str, Any], taken: type) -> None:
    """See that options are known and have values that they take.

    Args:
        owner: what they are given to, for the message: "topic 'orders'".
        taken: the TypedDict that lists them.

    Raises:
        TypeError: an option that there is not.
        ImproperlyConfigured: a value that its option does not take.
    """
    check_known(owner, options, taken)
    for name, value in options.items():
        check = _CHECKS.get(name)
        if check is not None and not check[0](value):
            raise ImproperlyConfigured(f"{owner} {name}={value!r}: expected {check[1]}")


def check_known(owner: str, options: Mapping[str, Any], taken: type, also: Iterable[str] = ()) -> None:
    """
    Args:
        also: other names that may have been meant.

    Raises:
        TypeError: an option that there is not.
    """
    known = taken.__annotations__
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *also], 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"{owner} got an unexpected option {name!r}{hint}")


def check_count(owner: str, name: str, value: Any) -> None:
    """
    Raises:
        ImproperlyConfigured: it is neither None nor a whole number of at least 1.
    """
    if not _whole(value):
        raise ImproperlyConfigured(f"{owner} {name}={value!r}: expected {_AT_LEAST_WHOLE[1]}")


_OF_SCHEMA = ("key_type", "value_type", "key_serializer", "value_serializer")


def schema_of(options: Mapping[str, Any]) -> Schema:
    """The schema that options come to."""
    given = {name: options[name] for name in _OF_SCHEMA if options.get(name) is not None}
    schema: Schema | None = options.get("schema")
    if schema is None:
        return Schema(**given)
    others = {name: value for name, value in given.items() if value != getattr(schema, name)}
    return schema.but(**others) if others else schema


def changed(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a copy: another schema comes in the place of what was said before of types and codecs."""
    kept = {name: value for name, value in options.items() if not (changes.get("schema") and name in _OF_SCHEMA)}
    return {**kept, **changes}


def topic_config(
    owner: str,
    config: Mapping[str, str | float] | None,
    *,
    compacting: bool | None,
    deleting: bool | None,
    retention: float | None,
) -> dict[str, str]:
    """The broker's settings that a declaration comes to.

    >>> topic_config("topic 't'", {"segment.bytes": 1024}, compacting=True, deleting=None, retention=1.5)
    {'segment.bytes': '1024', 'cleanup.policy': 'compact', 'retention.ms': '1500'}

    Raises:
        ImproperlyConfigured: two options say different things.
    """
    found = {name: _as_text(value) for name, value in (config or {}).items()}
    policies = [name for name, on in (("compact", compacting), ("delete", deleting)) if on]
    wanted = {"compacting/deleting": ("cleanup.policy", ",".join(policies))} if policies else {}
    if retention is not None:
        wanted["retention"] = "retention.ms", str(round(retention * 1000))
    for option, (name, value) in wanted.items():
        given = found.setdefault(name, value)
        if set(given.split(",")) != set(value.split(",")):
            raise ImproperlyConfigured(
                f"{owner} config={{{name!r}: {given!r}}} and {option}, which means {value!r}: give one of them"
            )
    return found


def _as_text(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def compiled_pattern(pattern: str | re.Pattern[str] | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ImproperlyConfigured(f"topic pattern={pattern!r}: expected a regular expression: {error}") from None


def topic_title(topics: tuple[str, ...], pattern: re.Pattern[str] | None) -> str:
    """What a description is called: its topic's name, all its topics' names, or its pattern."""
    for topic in topics:
        if not isinstance(topic, str) or not topic:
            raise ImproperlyConfigured(f"topic {topic!r}: a topic needs a name, text that is not empty")
    if pattern is not None:
        if topics:
            raise ImproperlyConfigured(
                f"topic {', '.join(topics)} pattern={pattern.pattern!r}: expected names or a pattern, not both"
            )
        return pattern.pattern
    if not topics:
        raise ImproperlyConfigured(
            "a topic needs a name, or pattern=: names stand before the options, as in topic('orders', value_type=Order)"
        )
    if len(set(topics)) < len(topics):
        raise ImproperlyConfigured(f"topic {', '.join(topics)}: expected each name once")
    return ",".join(topics)


_CHANNEL_OPTIONS = frozenset(ChannelOptions.__annotations__)


def channel_options(options: TopicOptions) -> ChannelOptions:
    found: Any = {name: value for name, value in options.items() if name in _CHANNEL_OPTIONS}
    channel: ChannelOptions = found
    return channel
