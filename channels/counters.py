"""What a run counts. Written by the parts that count, read through `snapshot()`."""

from __future__ import annotations

import attrs

__all__ = ["Counters", "Statistics"]


@attrs.frozen(kw_only=True)
class Statistics:
    """The counts of a run at one moment, in messages unless said otherwise."""

    messages_received: int = 0
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


@attrs.define
class Counters:
    """The live counts; hot code adds to its attributes."""

    messages_received: int = 0
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

    def snapshot(self) -> Statistics:
        return Statistics(**attrs.asdict(self))
