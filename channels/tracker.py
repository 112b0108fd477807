"""The account of one assigned partition: its ledger, who reads it, whether it is held back and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .counters import Counters
from .inbox import BatchInbox
from .ledger import PartitionLedger
from .message import TP, Message

__all__ = ["AckCount", "PartitionTracker"]


class AckCount:
    """Acknowledgements, of all partitions together, until a commit is due."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


class PartitionTracker:
    """Made at assignment, closed at revocation; an ack that comes later finds `live` at -1 and changes nothing.

    Attributes:
        began: the offset that was started from.
        committed: the offset that was last committed, or started from.
        until: while partitions are given up, readers that are behind may still take messages below this offset.
    """

    __slots__ = (
        "__weakref__",
        "_acks",
        "_counters",
        "_max_span",
        "_on_due",
        "_on_room",
        "_span_full",
        "began",
        "blocked_since",
        "committed",
        "inboxes",
        "ledger",
        "live",
        "paused",
        "tp",
        "until",
    )

    def __init__(
        self,
        tp: TP,
        ledger: PartitionLedger,
        inboxes: Sequence[BatchInbox],
        *,
        max_span: int,
        counters: Counters,
        acks: AckCount,
        on_due: Callable[[], None],
        on_room: Callable[[], None],
    ) -> None:
        self.tp = tp
        self.ledger = ledger
        self.inboxes = inboxes
        self.live = ledger.generation
        self.until = -1
        self.began = self.committed = ledger.committable
        self.blocked_since: float | None = None
        self.paused = False
        self._max_span = max_span
        self._span_full = False
        self._counters = counters
        self._acks = acks
        self._on_due = on_due
        self._on_room = on_room

    def done(self, message: Message) -> None:
        """Every holder has released this message. An ack from an older generation is ignored (law 2)."""
        if self.ledger.ack(message.offset, message.generation):
            self._counters.messages_acked += 1
            acks = self._acks
            acks.left -= 1
            if acks.left <= 0:
                self._on_due()
            if self._span_full and self.ledger.span <= self._max_span // 2:
                self._span_full = False
                self._on_room()

    @property
    def room(self) -> int:
        """Messages that may be fetched now: as many as every inbox and the span of offsets have room for."""
        if not self.inboxes:
            return 0
        room = self._max_span - self.ledger.span
        if room <= 0:
            self._span_full = True
        if self._span_full:
            return 0
        for inbox in self.inboxes:  # for every partition before every fetch: a loop costs half of `min`
            if (free := inbox.room) < room:
                room = free
        return room

    def deliver(self, messages: Sequence[Message], next_offset: int) -> None:
        """Enter a batch into the ledger and hand it to every subscriber."""
        ledger = self.ledger
        first, last = messages[0].offset, messages[-1].offset
        if last - first + 1 == len(messages):
            ledger.deliver(first, last, next_offset)
        else:
            ledger.deliver_offsets([message.offset for message in messages], next_offset)
        holders = len(self.inboxes)
        for message in messages:
            message.refcount = holders
            message.tracker = self
        for inbox in self.inboxes:
            inbox.deliver(messages)

    def close(self) -> None:
        """Given up: from now on its messages are stale."""
        self.live = -1

    def __repr__(self) -> str:
        return f"<PartitionTracker {self.tp} committed={self.committed} committable={self.ledger.committable}>"
