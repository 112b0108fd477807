"""What travels: topic partitions, messages as a broker holds them, and receipts of delivery.

Transports make `Message` objects, the conductor stamps them with the tracker of their partition, and
every stream that got one releases it once; at zero the offset counts as done (DESIGN: refcounts).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any, Final, NamedTuple, Protocol

import attrs

__all__ = [
    "ASKED",
    "CORRELATION_ID",
    "REPLY_MODE",
    "REPLY_TO",
    "REQUEST_HEADERS",
    "TP",
    "Header",
    "Headers",
    "HeadersArg",
    "Message",
    "ProducerRecord",
    "RecordMetadata",
    "StandIn",
    "Tracker",
    "as_headers",
    "as_partition",
    "as_timestamp",
    "some_names",
]

Header = tuple[str, bytes]

Headers = tuple[Header, ...]
"""Headers in order, as Kafka has them: a name may occur more than once."""

REPLY_TO: Final = "famulus-reply-to"
CORRELATION_ID: Final = "famulus-correlation-id"
REPLY_MODE: Final = "famulus-reply-mode"
ASKED: Final = "famulus-asked"
REQUEST_HEADERS: Final = frozenset({REPLY_TO, CORRELATION_ID, REPLY_MODE, ASKED})
"""What makes a message a question: where its answer goes, which question it answers, and how much of it is wanted."""

HeadersArg = Mapping[str, bytes | str] | Sequence[tuple[str, bytes | str]] | None
"""What callers may give as headers; text is sent as UTF-8."""

_MOST_PARTITIONS: Final = 2**31
_END_OF_TIME: Final = 253_402_300_800.0  # the year 10,000


def as_headers(headers: HeadersArg) -> Headers:
    """Normalise headers given as a mapping, a sequence of pairs or None. Text becomes bytes in UTF-8.

    >>> as_headers({"a": b"1", "source": "web"})
    (('a', b'1'), ('source', b'web'))

    Raises:
        TypeError, ValueError: a name is no text, a value neither bytes nor text, or text that has no UTF-8.
    """
    if not headers:
        return ()
    pairs: Any = headers
    if headers.__class__ is dict or isinstance(headers, Mapping):  # the first is cheaper
        pairs = pairs.items()
    found: list[tuple[str, bytes]] = []
    try:
        for name, value in pairs:
            if value.__class__ is bytes and name.__class__ is str and name.isascii():
                found.append((name, value))
            else:
                found.append(_header(name, value))
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"headers={headers!r}: expected a mapping of names to bytes or text, or pairs: {error}"
        ) from None
    return tuple(found)


def _header(name: Any, value: Any) -> tuple[str, bytes]:
    """One header whose name or value is none of the usual."""
    if not isinstance(name, str):
        raise TypeError(f"the name {name!r} is no text")
    try:
        name.encode()
        if isinstance(value, str):
            return name, value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name!r}: {value!r} has characters that UTF-8 does not have") from None
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"the value of {name!r} is {value!r}, neither bytes nor text")
    return name, bytes(value)


def as_partition(partition: Any) -> int:
    """
    Raises:
        ValueError: it is no number that a partition can have.
    """
    if partition.__class__ is int and 0 <= partition < _MOST_PARTITIONS:
        return partition
    try:
        number = -1 if isinstance(partition, bool) else index(partition)
    except TypeError:
        number = -1
    if not 0 <= number < _MOST_PARTITIONS:
        raise ValueError(f"partition={partition!r}: expected a whole number of at least 0")
    return number


def as_timestamp(timestamp: Any) -> float:
    """
    Raises:
        ValueError: it is no time in seconds that a broker takes.
    """
    if timestamp.__class__ is float and 0 <= timestamp < _END_OF_TIME:
        return timestamp
    try:
        seconds = -1.0 if isinstance(timestamp, str | bytes) else float(timestamp)
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds < _END_OF_TIME:
        raise ValueError(f"timestamp={timestamp!r}: expected seconds since the epoch")
    return seconds


class TP(NamedTuple):
    """A topic's partition."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


def some_names(partitions: Iterable[TP], most: int = 5) -> str:
    """Partitions for a log line, sorted: the first few, and how many more.

    >>> some_names([TP("t", 1), TP("t", 0), TP("u", 0)], most=2)
    't-0, t-1 and 1 more'
    """
    names = [str(tp) for tp in sorted(partitions)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class Tracker(Protocol):
    """Whoever keeps account of a partition's messages; `Message.release` tells it when one is done.

    Attributes:
        live: the generation whose messages are still to be processed; -1 from revocation on.
        until: messages below this offset are still processed then, since another reader has taken them; -1: none.
    """

    @property
    def live(self) -> int: ...

    @property
    def until(self) -> int: ...

    def done(self, message: Message) -> None: ...


class Message:
    """One record as the broker holds it, bytes undecoded, with a count of who still works on it.

    Attributes:
        offset: position in the partition; -1 for a message that no log holds (a local channel's).
        timestamp: seconds since the epoch.
        timestamp_type: 0 when the producer set it, 1 when the broker did (Kafka's CreateTime, LogAppendTime).
        generation: of the assignment that it was fetched under; an ack from an older one is ignored.
        refcount: how many holders (streams, outputs under way) have not released it yet.
    """

    __slots__ = (
        "generation",
        "headers",
        "key",
        "offset",
        "partition",
        "refcount",
        "timestamp",
        "timestamp_type",
        "topic",
        "tracker",
        "value",
    )

    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        timestamp: float,
        timestamp_type: int,
        headers: Headers,
        key: bytes | None,
        value: bytes | None,
        generation: int = -1,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.timestamp = timestamp
        self.timestamp_type = timestamp_type
        self.headers = headers
        self.key = key
        self.value = value
        self.generation = generation
        self.refcount = 0
        self.tracker: Tracker | None = None

    @property
    def tp(self) -> TP:
        return TP(self.topic, self.partition)

    def release(self) -> None:
        """One holder is done with it; the last one tells the tracker. More calls than holders do nothing."""
        count = self.refcount = self.refcount - 1
        if count == 0:
            tracker = self.tracker
            if tracker is not None:
                tracker.done(self)

    def stand_for(self, source: Message) -> None:
        """This one, which no log holds, was made of `source`, whose offset waits for it from now on."""
        source.refcount += 1
        self.generation = source.generation
        self.tracker = StandIn(source)

    def __repr__(self) -> str:
        return f"<Message {self.topic}-{self.partition} @{self.offset} refs={self.refcount}>"


class StandIn:
    """In the place of a partition's account, for a message that was made of another: it is that one's hold.

    Attributes:
        source: that other message.
    """

    __slots__ = ("source",)

    def __init__(self, source: Message) -> None:
        self.source = source

    @property
    def live(self) -> int:
        tracker = self.source.tracker
        return self.source.generation if tracker is None else tracker.live

    @property
    def until(self) -> int:
        """For the offset -1, which its message has."""
        tracker = self.source.tracker
        return 0 if tracker is not None and self.source.offset < tracker.until else -1

    def done(self, message: Message) -> None:
        self.source.release()


@attrs.define(slots=True, eq=False)  # not frozen: that would triple the cost of making one
class ProducerRecord:
    """One record to be written: encoded, its partition already chosen. Compared by identity.

    Attributes:
        timestamp: seconds since the epoch; None lets the transport take the time of the write.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp: float | None = None


class RecordMetadata(NamedTuple):
    """The broker's receipt for one delivered message.

    `offset` is -1 where no log holds it (local channels). `timestamp` is in seconds since the epoch.
    """

    topic: str
    partition: int
    topic_partition: TP
    offset: int
    timestamp: float
    timestamp_type: int
