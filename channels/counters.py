"""What a run counts. Written by the parts that count, read through `snapshot()`."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from .message import TP

__all__ = ["Counters", "PartitionStatistics", "Statistics"]


@attrs.frozen(kw_only=True)
class PartitionStatistics:
    """A partition that this run reads, in offsets.

    Attributes:
        committed: where the group would go on now.
        acknowledged: everything below is done, and is committed next.
        highwater: of the next message that is written to it, as the broker last said: with what it last sent of it, so
            this stands still while the partition's streams are full.
    """

    committed: int
    acknowledged: int
    highwater: int

    @property
    def lag(self) -> int:
        """Offsets of which nothing was read yet, or what was read is not done."""
        return self.highwater - self.acknowledged


@attrs.frozen(kw_only=True)
class Statistics:
    """The counts of a run at one moment, in messages unless said otherwise.

    Attributes:
        messages_gone: offsets that were passed over, since the broker had deleted them before they were read.
        partitions: what the run reads now.
    """

    messages_received: int = 0
    messages_gone: int = 0
    messages_acked: int = 0
    messages_sent: int = 0
    messages_delivered: int = 0
    deliveries_failed: int = 0
    decode_errors: int = 0
    events_failed: int = 0
    events_retried: int = 0
    dead_letters: int = 0
    replies_sent: int = 0
    replies_dropped: int = 0
    commits: int = 0
    commits_failed: int = 0
    rebalances: int = 0
    partitions: Mapping[TP, PartitionStatistics] = attrs.field(factory=dict)

    @property
    def lag(self) -> int:
        """Of all partitions together."""
        return sum(partition.lag for partition in self.partitions.values())


@attrs.define
class Counters:
    """The live counts; hot code adds to its attributes."""

    messages_received: int = 0
    messages_gone: int = 0
    messages_acked: int = 0
    messages_sent: int = 0
    messages_delivered: int = 0
    deliveries_failed: int = 0
    decode_errors: int = 0
    events_failed: int = 0
    events_retried: int = 0
    dead_letters: int = 0
    replies_sent: int = 0
    replies_dropped: int = 0
    commits: int = 0
    commits_failed: int = 0
    rebalances: int = 0

    def snapshot(self, partitions: Mapping[TP, PartitionStatistics]) -> Statistics:
        return Statistics(**attrs.asdict(self), partitions=partitions)
