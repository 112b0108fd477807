"""What a memory broker stores: topics, and in them partition logs. Plain data, nothing here waits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from .errors import MessageTooLarge
from .message import TP, Headers, Message, ProducerRecord
from .transport import ProduceResult

__all__ = ["Entry", "MemoryTopic", "PartitionLog"]

Entry = tuple[float, int, Headers, bytes | None, bytes | None]
"""A stored record: timestamp, timestamp type, headers, key, value."""

_DEAD_ENTRIES: Final = 1024
"""Trimmed records that may stay in memory, so that trimming is amortised O(1) a record."""


class PartitionLog:
    """The records of one partition, from offset `start` up to `end`, both readable and set only here.

    An offset without a record (compacted away, taken by a transaction marker) holds None.
    """

    __slots__ = ("_base", "_entries", "_gaps", "end", "listeners", "start", "tp")

    def __init__(self, tp: TP) -> None:
        self.tp = tp
        self.start = 0
        self.end = 0
        self.listeners: dict[Callable[[], None], None] = {}
        self._base = 0
        self._entries: list[Entry | None] = []
        self._gaps = False

    def append(self, records: Sequence[ProducerRecord], now: float, *, stamp_all: bool) -> ProduceResult:
        """Store a batch and tell the listeners. `now` is the time of records that have none, or of all."""
        base = self.end
        if stamp_all:
            self._entries += [(now, 1, record.headers, record.key, record.value) for record in records]
            stamped = True
        else:
            self._entries += [
                (
                    now if (own := record.timestamp) is None else own,
                    0,
                    record.headers,
                    record.key,
                    record.value,
                )
                for record in records
            ]
            stamped = any(record.timestamp is None for record in records)
        self.end = self._base + len(self._entries)
        self.notify()
        return ProduceResult(base, now if stamped else None)

    def notify(self) -> None:
        """Something can be read that could not be read before."""
        for listener in self.listeners:
            listener()

    def read(self, position: int, most: int, generation: int) -> tuple[list[Message], int]:
        """Up to `most` messages from `position` (within start and end) on, and where to go on reading."""
        topic, partition = self.tp
        entries, index = self._entries, position - self._base
        if not self._gaps:
            present = [entry for entry in entries[index : index + most] if entry is not None]  # all of them
            messages = [
                Message(topic, partition, offset, timestamp, kind, headers, key, value, generation)
                for offset, (timestamp, kind, headers, key, value) in enumerate(present, position)
            ]
            return messages, position + len(messages)
        messages = []
        for entry in entries[index:]:
            if entry is not None:
                if len(messages) == most:
                    break
                messages.append(Message(topic, partition, position, *entry, generation))
            position += 1
        return messages, position

    def entries(self) -> list[tuple[int, Entry]]:
        """All records with their offsets, for tests to look at."""
        kept = enumerate(self._entries[self.start - self._base :], self.start)
        return [(offset, entry) for offset, entry in kept if entry is not None]

    def trim(self, before: int) -> None:
        """Drop the records below `before`, or all there are."""
        self.start = max(self.start, min(before, self.end))
        dead = self.start - self._base
        if dead >= _DEAD_ENTRIES and 2 * dead >= len(self._entries):
            del self._entries[:dead]
            self._base = self.start

    def skip(self, count: int) -> None:
        """Let offsets go by without records, as transaction markers do."""
        self._entries += [None] * count
        self._gaps = True
        self.end += count
        self.notify()

    def drop(self, offsets: Collection[int]) -> None:
        """Remove records but not their offsets, as compaction does."""
        for offset in offsets:
            if self._base <= offset < self.end:
                self._entries[offset - self._base] = None
                self._gaps = True

    def __repr__(self) -> str:
        return f"<PartitionLog {self.tp} {self.start}..{self.end}>"


class MemoryTopic:
    """A topic: its partitions and its configuration."""

    __slots__ = ("config", "logs", "name", "replicas")

    def __init__(self, name: str, partitions: int, replicas: int, config: Mapping[str, str]) -> None:
        self.name = name
        self.replicas = replicas
        self.config = dict(config)
        self.logs = [PartitionLog(TP(name, number)) for number in range(partitions)]

    @property
    def stamps_all(self) -> bool:
        """True where the broker's clock gives the timestamps, as Kafka's setting of that name says."""
        return self.config.get("message.timestamp.type") == "LogAppendTime"

    @property
    def is_compacted(self) -> bool:
        """True where the newest record of each key must be kept, so that nothing may be trimmed."""
        return "compact" in self.config.get("cleanup.policy", "")

    def check_size(self, records: Sequence[ProducerRecord]) -> None:
        """
        Raises:
            MessageTooLarge: the topic takes no batch of this size.
        """
        most = self.config.get("max.message.bytes")
        if most is None:
            return
        size = sum(
            len(record.key or b"")
            + len(record.value or b"")
            + sum(len(name.encode()) + len(text) for name, text in record.headers)
            for record in records
        )
        if size > int(most):
            raise MessageTooLarge(f"topic {self.name!r} takes no {size} bytes at once: its max.message.bytes is {most}")

    def grow(self, total: int) -> None:
        """Add partitions up to `total`."""
        self.logs += [PartitionLog(TP(self.name, number)) for number in range(len(self.logs), total)]

    def __repr__(self) -> str:
        return f"<MemoryTopic {self.name} partitions={len(self.logs)}>"
