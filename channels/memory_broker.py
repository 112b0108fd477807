"""The broker behind ``memory://``: topics, groups and faults, in this process. Tests may hold one.

A private broker (``memory://``) belongs to one transport. A named one (``memory://name``) belongs to the
process: every transport of that name uses it, one run after the other or at once, and it keeps its data until
`MemoryBroker.forget`. Neither is for several threads: its users must be in one trio run at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final, Literal, Protocol

import attrs
import trio

from .errors import BrokerUnavailable, TopicExists, UnknownTopic
from .memory_faults import MemoryFaults
from .memory_group import MemoryGroup
from .memory_log import MemoryTopic, PartitionLog
from .message import TP, Message, ProducerRecord
from .transport import ProduceResult

__all__ = ["PRIVATE_MAX_RECORDS", "MemoryBroker", "MemoryStatistics"]

_logger = logging.getLogger("famulus.memory")

PRIVATE_MAX_RECORDS: Final = 100_000
"""Records per partition that a private broker keeps of a topic that no group reads."""


@attrs.frozen
class MemoryStatistics:
    """A broker in numbers.

    Attributes:
        topics, groups, members: how many there are.
        records: held in all logs, gaps included.
        trimmed: dropped by retention and `delete_records` since the beginning.
    """

    topics: int
    groups: int
    members: int
    records: int
    trimmed: int


class BrokerReader(Protocol):
    """What the broker needs to know of a reader."""

    def reads(self, tp: TP) -> bool: ...

    def position(self, tp: TP) -> int: ...


class MemoryBroker:
    """Topics, groups and faults of one memory broker.

    Retention: ``keep="uncommitted"`` drops what every group that reads a topic has committed. `max_records`
    drops the oldest records of a partition beyond that number, but none that a group which reads the topic
    has yet to commit. Neither drops what an open reader has yet to read, or touches a topic with a
    ``cleanup.policy`` of ``compact``. A private broker has ``keep="uncommitted"`` and `PRIVATE_MAX_RECORDS`; a
    named one, and one made by hand, keeps everything unless told otherwise.

    Attributes:
        faults: order faults here.
        auto_create: whether subscribing to a missing topic creates it.
        clock: what gives records without a timestamp their time, in seconds since the epoch.
    """

    _named: ClassVar[dict[str, MemoryBroker]] = {}

    def __init__(
        self,
        name: str = "",
        *,
        auto_create: bool = True,
        keep: Literal["all", "uncommitted"] = "all",
        max_records: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if keep not in ("all", "uncommitted"):
            raise ValueError(f"keep={keep!r}: expected 'all' or 'uncommitted'")
        if max_records is not None and max_records < 1:
            raise ValueError(f"max_records={max_records}: expected at least 1, or None")
        self.name = name
        self.auto_create = auto_create
        self.keep = keep
        self.max_records = max_records
        self.clock = clock
        self.faults = MemoryFaults(self)
        self.up = True
        self.topics: dict[str, MemoryTopic] = {}
        self.groups: dict[str, MemoryGroup] = {}
        self.readers: dict[BrokerReader, None] = {}
        self.listeners: dict[Callable[[], None], None] = {}
        self._waiting = trio.lowlevel.ParkingLot()
        self._users = 0
        self._run: trio.lowlevel.TrioToken | None = None
        self._members_made = 0
        self._trimmed = 0
        self._warned: set[str] = set()  # topics whose retention was reported

    # -- named brokers -------------------------------------------------------------------------------------

    @classmethod
    def named(cls, name: str) -> MemoryBroker:
        """The broker of ``memory://name``, made when it is first asked for."""
        if name not in cls._named:
            cls._named[name] = cls(name)
        return cls._named[name]

    def register(self) -> MemoryBroker:
        """Make this the broker of ``memory://`` and its name; returns it.

        Raises:
            ValueError: it has no name, or there is one of that name.
        """
        if not self.name or self._named.get(self.name, self) is not self:
            raise ValueError(f"a broker named {self.name!r} cannot be registered: expected a name not in use")
        self._named[self.name] = self
        return self

    @classmethod
    def forget(cls, name: str) -> None:
        """Drop a named broker with its data; who uses it still goes on with it. Unknown names do nothing."""
        cls._named.pop(name, None)

    # -- users ---------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """A transport opens.

        Raises:
            BrokerUnavailable: it was stopped by an ordered fault.
            RuntimeError: another trio run uses it.
        """
        self.check_up()
        token = trio.lowlevel.current_trio_token()
        if self._users and self._run is not token:
            raise RuntimeError(f"{self!r} is in use by another trio run; a memory broker cannot be shared by threads")
        self._run = token
        self._users += 1

    def detach(self) -> None:
        """A transport closes."""
        self._users -= 1

    def check_up(self) -> None:
        """Raise `BrokerUnavailable` while the broker is stopped."""
        if not self.up:
            raise BrokerUnavailable(f"memory://{self.name}: stopped by an ordered fault")

    def set_up(self, up: bool) -> None:
        """Stop or start; the public way is `faults`."""
        if up and not self.up:
            for group in self.groups.values():
                group.restart_clock()
        self.up = up
        if up:
            self._waiting.unpark_all()
            for listener in self.listeners:
                listener()

    async def wait_up(self) -> None:
        """Wait until the broker is there. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while not self.up:
            await self._waiting.park()

    # -- topics --------------------------------------------------------------------------------------------

    def topic(self, name: str) -> MemoryTopic:
        """A topic.

        Raises:
            UnknownTopic: there is none; the message says how to create it.
        """
        try:
            return self.topics[name]
        except KeyError:
            raise UnknownTopic(
                f"memory://{self.name} has no topic {name!r}: declare it on the app, or create it with "
                f"await transport.create_topic(TopicSpec(name={name!r}, partitions=...))"
            ) from None

    def log(self, tp: TP) -> PartitionLog:
        """The log of a partition.

        Raises:
            UnknownTopic: there is no such topic, or it has no such partition.
        """
        logs = self.topic(tp.topic).logs
        if not 0 <= tp.partition < len(logs):
            raise UnknownTopic(f"topic {tp.topic!r} has partitions 0 to {len(logs) - 1}, no {tp.partition}")
        return logs[tp.partition]

    def create_topic(
        self, name: str, partitions: int, *, replicas: int = 1, config: Mapping[str, str] | None = None
    ) -> MemoryTopic:
        """Create a topic; groups that want it get it by a rebalance.

        Raises:
            TopicExists: there is one of that name.
            ValueError: it would have no partitions.
        """
        if name in self.topics:
            raise TopicExists(f"memory://{self.name} has a topic {name!r} already")
        if partitions < 1:
            raise ValueError(f"topic {name!r}, partitions={partitions}: expected at least 1")
        topic = self.topics[name] = MemoryTopic(name, partitions, replicas, config or {})
        self._topics_changed(name)
        return topic

    def delete_topic(self, name: str) -> None:
        """Delete a topic, with its messages and what groups have committed of it."""
        topic = self.topic(name)
        del self.topics[name]
        for group in self.groups.values():
            for tp in [tp for tp in group.committed if tp.topic == name]:
                del group.committed[tp]
        for log in topic.logs:
            log.notify()
        self._topics_changed(name)

    def add_partitions(self, name: str, total: int) -> None:
        """Raise a topic's number of partitions."""
        topic = self.topic(name)
        if total <= len(topic.logs):
            raise ValueError(f"topic {name!r} has {len(topic.logs)} partitions, total={total}: expected more")
        topic.grow(total)
        self._topics_changed(name)

    def _topics_changed(self, name: str) -> None:
        for group in self.groups.values():
            group.topics_changed([name])

    def partition_counts(self) -> dict[str, int]:
        """The number of partitions of every topic, by name in order."""
        return {name: len(self.topics[name].logs) for name in sorted(self.topics)}

    def messages(self, name: str) -> list[Message]:
        """All messages of a topic, partition by partition; for tests to look at. Nothing is consumed."""
        return [
            Message(name, log.tp.partition, offset, *entry)
            for log in self.topic(name).logs
            for offset, entry in log.entries()
        ]

    # -- records -------------------------------------------------------------------------------------------

    def append(self, tp: TP, records: Sequence[ProducerRecord]) -> ProduceResult:
        """Store a batch.

        Raises:
            UnknownTopic: there is no such partition.
            MessageTooLarge: it is larger than the topic's ``max.message.bytes``, if that is configured.
        """
        log, topic = self.log(tp), self.topics[tp.topic]
        topic.check_size(records)
        result = log.append(records, self.clock(), stamp_all=topic.stamps_all)
        most = self.max_records
        if most is not None and log.end - log.start > most and not topic.is_compacted:
            before = min(log.end - most, self._unread_from(tp, log.end))
            if before > log.start and tp.topic not in self._warned and not any(r.reads(tp) for r in self.readers):
                self._warned.add(tp.topic)
                _logger.warning(
                    "%s: nobody reads %s, its records beyond %d a partition are dropped", self, tp.topic, most
                )
            self._trim(log, before)
        return result

    def delete_records(self, tp: TP, before: int) -> None:
        """Drop the records below an offset."""
        self._trim(self.log(tp), before)

    def _trim(self, log: PartitionLog, before: int) -> None:
        start = log.start
        log.trim(before)
        self._trimmed += log.start - start

    def _unread_from(self, tp: TP, otherwise: int) -> int:
        """The lowest offset that a group has yet to commit, or a reader to read; `otherwise` if nobody reads the partition."""
        needed = [
            group.committed.get(tp, 0)
            for group in self.groups.values()
            if tp in group.committed or group.consumes(tp.topic)
        ]
        needed += [reader.position(tp) for reader in self.readers if reader.reads(tp)]
        return min(needed, default=otherwise)

    # -- groups --------------------------------------------------------------------------------------------

    def group(self, name: str) -> MemoryGroup:
        """A consumer group, made when it is first asked for."""
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = MemoryGroup(name, self.partition_counts)
        return group

    def new_member_id(self, client_id: str) -> str:
        """A member id that was never used; ids rise, so that sorting keeps the order of joining."""
        self._members_made += 1
        return f"{client_id}-{self._members_made:06d}"

    def commit(self, group: str, offsets: Mapping[TP, int]) -> None:
        """Store what a group has committed, ownership being checked, and trim what nobody needs.

        Of a topic that was deleted meanwhile nothing is kept: one that is made anew has other messages.
        """
        there = {tp: offset for tp, offset in offsets.items() if tp.topic in self.topics}
        self.group(group).committed.update(there)
        if self.keep == "all":
            return
        for tp in offsets:
            topic = self.topics.get(tp.topic)
            if topic is not None and not topic.is_compacted:
                self._trim(topic.logs[tp.partition], self._unread_from(tp, 0))

    # -- looking at it -------------------------------------------------------------------------------------

    def statistics(self) -> MemoryStatistics:
        """Numbers as they are now."""
        return MemoryStatistics(
            topics=len(self.topics),
            groups=len(self.groups),
            members=sum(len(group.members) for group in self.groups.values()),
            records=sum(log.end - log.start for topic in self.topics.values() for log in topic.logs),
            trimmed=self._trimmed,
        )

    def __repr__(self) -> str:
        state = "up" if self.up else "stopped"
        held = f"topics={len(self.topics)} groups={len(self.groups)}"
        return f"<MemoryBroker memory://{self.name} {state} {held}>"
