"""The interface between Famulus and a broker. `kafka/` and the embedded transports implement it.

One `Transport` serves one run. The conductor drives its consumer, the producer its `produce`; each belongs to
one task of ours, so no method is called by two tasks at once, except where its docstring says so. A transport
is found by the scheme of the broker's URL through the entry point group ``famulus.transports``: the entry names
a subclass of `Transport`, which is called as ``cls(url, options)``.

`famulus.testing.contract` holds the test suite that says what each method promises, faults included.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import entry_points
from re import Pattern
from typing import Literal, Protocol, TypeAlias

import attrs

from .errors import ImproperlyConfigured
from .message import TP, Message, ProducerRecord

__all__ = [
    "Assignment",
    "Batch",
    "Consumer",
    "ConsumerOptions",
    "OffsetReset",
    "ProduceResult",
    "Reader",
    "RebalanceListener",
    "StartOffset",
    "TopicDescription",
    "TopicSpec",
    "Transport",
    "TransportOptions",
    "checked_start",
    "load_transport",
    "log_reset",
    "transport_schemes",
]


_logger = logging.getLogger("famulus.transport")

StartOffset: TypeAlias = int | Literal["earliest", "latest"]
"""Where a reader begins in a partition: at an offset, at the first one that is there, or behind the last one."""


@attrs.frozen(kw_only=True)
class TransportOptions:
    """What a run tells its transport, frozen at start.

    Attributes:
        client_id: name under which the broker knows this run.
        default_partitions: partitions of a topic that is created without a number.
        commit_timeout: seconds that a commit may take before it counts as failed.
        shutdown_timeout: seconds that leaving the group and closing connections may take.
        datadir: directory of the files of an embedded broker whose URL names none.
    """

    client_id: str = "famulus"
    default_partitions: int = 8
    commit_timeout: float = 10.0
    shutdown_timeout: float = 10.0
    datadir: str = "famulus-data"


@attrs.frozen
class OffsetReset:
    """Reading could not go on where it should, and goes on elsewhere: a group's member by its `offset_reset`, a reader with
    the first offset that is there.

    Attributes:
        wanted: the offset that was to be read next.
        position: the one that is read next.
    """

    tp: TP
    wanted: int
    position: int

    @property
    def gone(self) -> int:
        """Offsets that are passed over: those below the log's start, and with "latest" all up to its end."""
        return max(0, self.position - self.wanted)


@attrs.frozen(kw_only=True)
class ConsumerOptions:
    """How a member joins its group.

    Attributes:
        group: the consumer group; members of one group share the partitions.
        instance_id: static membership: the same id after a restart gets the same partitions back.
        offset_reset: where to start in a partition for which the group has committed nothing, and where to go on when the
            offset that is next is not in the log any more, or not yet.
        on_reset: called, in a `fetch`, with each such case of an owned partition, before messages from there are given out.
        session_timeout: seconds without a heartbeat after which the broker gives the partitions away.
        rebalance_timeout: seconds that `on_revoked` may take before the member counts as gone.
    """

    group: str
    instance_id: str | None = None
    offset_reset: Literal["earliest", "latest"] = "earliest"
    on_reset: Callable[[OffsetReset], object] | None = None
    session_timeout: float = 10.0
    rebalance_timeout: float = 60.0


@attrs.frozen
class Assignment:
    """The partitions that a member owns, and the generation that proves it. Generations only grow."""

    generation: int
    partitions: frozenset[TP]


@attrs.frozen(slots=True)
class Batch:
    """Messages of one partition in offset order, as one fetch brought them.

    Attributes:
        generation: of the assignment under which it was fetched; -1 from a reader.
        messages: at least one, offsets strictly rising; gaps (compaction, transaction markers) are no error.
        next_offset: where the next fetch goes on: at least the last offset + 1, more if markers follow.
        highwater: the offset that the next message written to this partition will have, as last seen.
    """

    tp: TP
    generation: int
    messages: Sequence[Message]
    next_offset: int
    highwater: int


@attrs.frozen(slots=True)
class ProduceResult:
    """The receipt for one batch of one partition: offsets count up from `base_offset`.

    Attributes:
        timestamp: seconds since the epoch that the broker gave to the batch; None if each record kept its own.
    """

    base_offset: int
    timestamp: float | None = None


@attrs.frozen(kw_only=True)
class TopicSpec:
    """A topic to create. `config` holds the broker's own keys, as ``{"cleanup.policy": "compact"}``."""

    name: str
    partitions: int | None = None
    replicas: int | None = None
    config: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class TopicDescription:
    """A topic as the broker has it."""

    name: str
    partitions: int
    replicas: int
    config: Mapping[str, str] = attrs.field(factory=dict)
    internal: bool = False


class RebalanceListener(Protocol):
    """What a consumer calls when partitions come and go; never both at once, never concurrently with itself."""

    async def on_assigned(self, assignment: Assignment) -> None:
        """The member owns exactly these partitions now. No batch of that generation comes before this returns."""

    async def on_revoked(self, revoked: frozenset[TP], *, lost: bool) -> None:
        """The member gives these partitions up; there is at least one.

        With `lost=False` they are still ours until this returns: drain and commit now, within
        `rebalance_timeout` seconds. With `lost=True` they already belong to others: discard, commit nothing.
        """


class Consumer(ABC):
    """One member of a consumer group."""

    @abstractmethod
    async def subscribe(self, topics: Collection[str], *, pattern: Pattern[str] | None = None) -> None:
        """Replace the subscription; join the group or rebalance, and return once the assignment stands.

        The same topics again do nothing. While the broker is away it waits, as `fetch` does. `pattern` adds all topics
        whose whole name matches it, later ones too.

        Raises:
            UnknownTopic: a topic is missing; the message says how to create it.
        """

    @property
    @abstractmethod
    def assignment(self) -> Assignment:
        """What is owned now; after a loss, no partitions with the last generation."""

    @abstractmethod
    async def fetch(self, room: Mapping[TP, int]) -> list[Batch]:
        """Wait for messages of these partitions, at most `room[tp]` (≥ 1) of each.

        Returns as soon as there is anything, or with an empty list after `wake()` or a change of the assignment. Partitions
        that are not in `room` are left alone, their position unmoved; ones that are not owned are skipped.
        An empty `room` waits for `wake()` or a rebalance. A fetch that is cancelled has moved no position.
        """

    @abstractmethod
    def wake(self) -> None:
        """Make the `fetch` under way, or else the next one, return at once. May be called by any task."""

    @abstractmethod
    async def commit(self, offsets: Mapping[TP, int], *, generation: int) -> None:
        """Commit, for each partition, the offset of the next message to be read.

        May be called while another task is in `fetch`. All or nothing.

        Raises:
            CommitRefused: `generation` is not the group's, or a partition is not owned under it.
            BrokerUnavailable: nothing is known about the outcome; commit again.
        """

    @abstractmethod
    async def committed(self, partitions: Collection[TP]) -> Mapping[TP, int | None]:
        """The group's committed offsets; None where it has none."""

    @abstractmethod
    def position(self, tp: TP) -> int:
        """The offset of the next message that `fetch` will give of an owned partition.

        Raises:
            KeyError: not owned.
        """

    @abstractmethod
    def highwater(self, tp: TP) -> int:
        """The offset that the next message written to an owned partition will have, as last seen.

        Raises:
            KeyError: not owned.
        """

    @abstractmethod
    async def seek(self, tp: TP, offset: int) -> None:
        """Go on reading an owned partition at `offset`.

        Raises:
            KeyError: not owned.
        """

    @abstractmethod
    def pause(self, partitions: Collection[TP]) -> None:
        """For long stalls: stop prefetching these. Short ones are held by leaving them out of `fetch`'s `room`."""

    @abstractmethod
    def resume(self, partitions: Collection[TP]) -> None:
        """Undo `pause`. Partitions that are not paused are left alone."""


class Reader(ABC):
    """Reads partitions that its user names, outside of any group: shared with nobody, and nothing is committed.

    One task calls `fetch` and `seek`; the other methods do not wait and may be called by any.
    """

    @property
    @abstractmethod
    def partitions(self) -> frozenset[TP]:
        """What it reads."""

    @abstractmethod
    async def fetch(self, most: int) -> list[Batch]:
        """Wait for messages, at most `most` (≥ 1) in all of whichever partitions have any, each partition in its turn.

        Returns as soon as there is anything; with an empty list where positions have moved without a message, over
        offsets that have none (transaction markers, compaction): who reads up to an offset compares `position`.
        While the broker is away it waits, and logs that once. A partition whose log is damaged waits by itself, which is
        logged; the others are read on. Where the offset that is next is not in the log, it goes on with the first that
        is, and tells `on_reset`. A fetch that is cancelled has moved no position.

        Raises:
            UnknownTopic: a topic was deleted.
            TransportError: the broker does not let us read.
        """

    @abstractmethod
    def position(self, tp: TP) -> int:
        """The offset that is fetched next.

        Raises:
            KeyError: it does not read this partition.
        """

    @abstractmethod
    def beginning(self, tp: TP) -> int:
        """The first offset in the log, as last seen.

        Raises:
            KeyError: it does not read this partition.
        """

    @abstractmethod
    def highwater(self, tp: TP) -> int:
        """The offset that the next message written will have, as last seen: before the first `fetch` what "latest" meant
        when the reader was opened, and up to there all can be read at once.

        Raises:
            KeyError: it does not read this partition.
        """

    @abstractmethod
    async def seek(self, tp: TP, offset: int) -> None:
        """Go on at `offset`.

        Raises:
            KeyError: it does not read this partition.
            ValueError: the offset is negative.
        """


class Transport(ABC):
    """A connection to a broker, for one run. Called as ``cls(url, options)``; does nothing until opened."""

    #: True where the broker belongs to us, so that source topics are created as declared (embedded brokers).
    owns_topics: bool = False
    #: True where a message sent here can be read by another process.
    crosses_processes: bool = True

    @abstractmethod
    def open(self) -> AbstractAsyncContextManager[None]:
        """Connect; on leaving, close everything within `shutdown_timeout`.

        Raises:
            BrokerUnavailable: no broker answers. The caller retries.
        """

    @abstractmethod
    def open_consumer(
        self, options: ConsumerOptions, listener: RebalanceListener
    ) -> AbstractAsyncContextManager[Consumer]:
        """Make a member of a group. On leaving, `on_revoked` is called for what it owns, then it leaves the group."""

    @abstractmethod
    def open_reader(
        self, start: Mapping[TP, StartOffset], *, on_reset: Callable[[OffsetReset], object] | None = None
    ) -> AbstractAsyncContextManager[Reader]:
        """Read these partitions from there on, without a group. Several readers may be open at once.

        "earliest" and "latest" have become offsets when this is entered, so that nothing that is written afterwards is
        missed. While the broker is away entering waits, and logs that once.

        Args:
            start: at least one partition.
            on_reset: called, in a `fetch`, where reading goes on elsewhere than it should, before messages from there are
                given out; what it raises leaves the `fetch`. By default that is logged as a warning.

        Raises:
            UnknownTopic: a topic is missing, or has no such partition.
            ValueError: no partitions, or a negative offset.
        """

    @abstractmethod
    async def produce(self, batches: Mapping[TP, Sequence[ProducerRecord]]) -> Mapping[TP, ProduceResult | Exception]:
        """Append a batch to each of these partitions, in order; return once all are acknowledged or failed.

        It never hangs: a broker that does not answer becomes `BrokerUnavailable` after a bound of the transport's own.
        The outcome is per partition: a result, or the `TransportError` that kept the whole batch of that partition
        out of the log; one that is `in_doubt` if the batch may still get there. Who then repeats the same records, and
        perhaps more behind them, gets them written once. Cancelled: each batch is in the log whole or not at all.
        """

    @abstractmethod
    async def transact(
        self,
        batches: Mapping[TP, Sequence[ProducerRecord]],
        offsets: Mapping[TP, int],
        *,
        group: str,
        generation: int,
    ) -> Mapping[TP, ProduceResult]:
        """Append batches and commit a group's offsets together: all of it becomes visible, or nothing.

        An error that is not `in_doubt` is certain: nothing was written, and nothing of it will be. Whoever gets one that is
        `in_doubt`, or is cancelled, does not know; there are two ways to find out.

        - Ask for `committed`: the offsets stand there if and only if the records are in the log, as long as the group
          has not gone on.
        - Repeat the call, where the transport recognises it, as ``sqlite://`` does: the very same records for the same
          partitions, the same offsets, group and generation, while the transport stays open. It is answered by what became
          of the first: with its results if it was done, though the generation may be over by now; otherwise it is done now.
          It is recognised until the group goes on with another transaction at one of the partitions of `offsets`;
          without offsets, until a hundred others are in doubt.

        With ``memory://`` there is no doubt: who is cancelled has written nothing, and may repeat it. ``kafka://`` recognises
        no repetition, which may write the records again: there ask for `committed`.

        Raises:
            CommitRefused: the generation does not own the partitions of `offsets`; nothing was written, unless it is
                `in_doubt`, being the answer to a repetition.
            ProduceError: nothing was written.
            BrokerUnavailable: no answer; it may be tried again.
        """

    @abstractmethod
    async def partition_count(self, topic: str) -> int:
        """How many partitions a topic has. May be called by any task.

        Raises:
            UnknownTopic: the broker does not have it.
        """

    @abstractmethod
    async def committed(self, group: str, partitions: Collection[TP]) -> Mapping[TP, int | None]:
        """What a group has committed; None where it has nothing. Who asks need not be in it. May be called by any task."""

    @abstractmethod
    async def create_topic(self, spec: TopicSpec) -> None:
        """Create a topic; it can be used when this returns.

        Raises:
            TopicExists: it is there already, whatever its partitions.
        """

    @abstractmethod
    async def delete_topic(self, name: str) -> None:
        """Delete a topic and its messages; it is gone when this returns.

        Raises:
            UnknownTopic: the broker does not have it.
        """

    @abstractmethod
    async def list_topics(self) -> Sequence[str]:
        """Names of all topics, sorted."""

    @abstractmethod
    async def describe_topic(self, name: str) -> TopicDescription:
        """What the broker knows of a topic.

        Raises:
            UnknownTopic: the broker does not have it.
        """

    @abstractmethod
    async def add_partitions(self, name: str, total: int) -> None:
        """Raise a topic's number of partitions to `total`; group members get the new ones by a rebalance.

        Raises:
            UnknownTopic: the broker does not have it.
            ValueError: `total` is not more than it has.
        """

    @abstractmethod
    async def delete_records(self, before: Mapping[TP, int]) -> None:
        """Trim logs: drop the messages below these offsets. Offsets of the others stay as they are."""

    def command_to(
        self,
        change: Literal["grow", "configure", "delete"],
        topic: str,
        *,
        partitions: int = 0,
        config: Mapping[str, str] | None = None,
    ) -> str:
        """What a person types to change a topic, for error messages; without tools of the broker's own, a call of ours.

        Args:
            partitions: for "grow".
            config: for "configure".
        """
        if change == "grow":
            return f"await transport.add_partitions({topic!r}, {partitions})"
        delete = f"await transport.delete_topic({topic!r})"
        return delete if change == "delete" else f"{delete}, since its configuration cannot be changed"


def checked_start(start: Mapping[TP, StartOffset]) -> dict[TP, StartOffset]:
    """What `Transport.open_reader` was given, for those who implement it.

    Raises:
        ValueError: as there.
    """
    if not start:
        raise ValueError("open_reader: expected at least one partition")
    for tp, offset in start.items():
        if isinstance(offset, str):
            if offset not in ("earliest", "latest"):
                raise ValueError(f"open_reader of {tp} at {offset!r}: expected an offset, 'earliest' or 'latest'")
        elif offset < 0:
            raise ValueError(f"open_reader of {tp} at {offset}: expected an offset of at least 0")
    return dict(start)


def log_reset(reset: OffsetReset) -> None:
    """What a reader does about one by default."""
    if reset.gone:
        _logger.warning(
            "reading %s: %d messages from %d on are gone, deleted by the broker before they were read; going on at %d",
            reset.tp,
            reset.gone,
            reset.wanted,
            reset.position,
        )
    else:
        _logger.warning(
            "reading %s: it ends before %d, which was to be read next: it was made anew, or its log was cut off; going on at %d",
            reset.tp,
            reset.wanted,
            reset.position,
        )


def transport_schemes() -> list[str]:
    """The URL schemes for which a transport is installed, sorted."""
    return sorted({entry.name for entry in entry_points(group="famulus.transports")})


def load_transport(url: str, options: TransportOptions) -> Transport:
    """Make the transport that a broker URL names, unopened.

    Raises:
        ImproperlyConfigured: no installed transport has this scheme.
    """
    scheme, colon, _ = url.partition(":")
    scheme = scheme.lower() if colon else ""
    shown = re.sub("(://[^:/@]*):.*@", r"\1:***@", url)
    for entry in entry_points(group="famulus.transports"):
        if entry.name == scheme:
            cls = entry.load()
            if not (isinstance(cls, type) and issubclass(cls, Transport)):
                raise ImproperlyConfigured(
                    f"broker={shown!r}: entry point {entry.value!r} for scheme {scheme!r} is no subclass of famulus.Transport"
                )
            return cls(url, options)  # type: ignore[call-arg]  # the constructor is part of the interface, not of the ABC
    known = ", ".join(f"{name}://" for name in transport_schemes())
    raise ImproperlyConfigured(
        f"broker={shown!r}: no transport for {scheme or 'a URL without a scheme'!r}; installed: {known}"
    )
