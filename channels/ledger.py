"""The ledger of a partition: which offset may be committed. Pure; the conductor keeps one per assignment.

The law: **never commit past work in hand.** `PartitionLedger.committable` never exceeds the lowest offset
that was delivered and not acknowledged, whatever order the acknowledgements come in, however often they are
repeated, and from whichever assignment they are left over.

Offsets that were never delivered (compacted away, transaction markers) are no hole: they count as done.

Delivered offsets are held as runs. A run that is acknowledged in order costs two comparisons a message and no
memory; the first acknowledgement out of order gives the run one byte per offset. Every operation is amortised
O(1), except that an acknowledgement out of order finds its run by bisection among the runs in hand.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

__all__ = ["PartitionLedger"]

_WIDEST_GAP: Final = 64
"""Offsets: a wider gap starts a new run, so that a run costs at most this many bytes per message."""

_LOOK_AHEAD: Final = 256
"""Bytes searched for the next acknowledged offset: bounds the work of one acknowledgement."""

_DEAD_RUNS: Final = 64
"""Finished runs kept at the head of the lists before they are cut off."""


class PartitionLedger:
    """Accounts for the messages of one partition under one assignment.

    >>> ledger = PartitionLedger(generation=3, position=100)
    >>> ledger.deliver(100, 102, next_offset=103)
    >>> ledger.ack(101, generation=3), ledger.committable
    (True, 100)
    >>> ledger.ack(100, generation=3), ledger.committable
    (True, 102)
    >>> ledger.ack(102, generation=2), ledger.committable  # left over from an older assignment
    (False, 102)

    Attributes (to be read only):
        generation: of the assignment; acknowledgements under any other are ignored.
        committable: the offset of the next message to be read after a restart: everything below it was
            acknowledged here, or never delivered.
        newest: the offset after the newest delivered message, past the markers that follow it.
        in_flight: messages delivered and not acknowledged.
    """

    __slots__ = (
        "_ends",
        "_firsts",
        "_flags",
        "_head",
        "_stop",
        "committable",
        "generation",
        "in_flight",
        "newest",
    )

    def __init__(self, generation: int, position: int) -> None:
        self.generation = generation
        self.committable = position
        self.newest = position
        self.in_flight = 0
        # Runs in offset order, as parallel lists from index `_head` on: [first, end), and one byte per offset
        # (1: acknowledged, or a gap) once any is needed. Every run's first and last offset was delivered.
        self._firsts: list[int] = []
        self._ends: list[int] = []
        self._flags: list[bytearray | None] = []
        self._head = 0
        # While anything is in flight, `committable` is a message in flight of the head run, and so is all
        # of [committable, _stop). Otherwise _stop == committable == newest.
        self._stop = position

    @property
    def span(self) -> int:
        """Offsets between the lowest one in hand and the newest delivered: what the conductor bounds."""
        return self.newest - self.committable

    def deliver(self, first: int, last: int, next_offset: int) -> None:
        """Enter a batch without gaps: all offsets from `first` to `last`, both included.

        Raises:
            ValueError: an offset of it was delivered before, or `next_offset` is not above `last`. A message
                that is to be read again (a seek backwards) needs a ledger of its own.
        """
        if not self.newest <= first <= last < next_offset:
            raise ValueError(
                f"delivery of offsets {first} to {last} with next_offset={next_offset}: "
                f"expected {self.newest} <= first <= last < next_offset"
            )
        self._add_run(first, last + 1, None)
        self.in_flight += last - first + 1
        self.newest = next_offset

    def deliver_offsets(self, offsets: Sequence[int], next_offset: int) -> None:
        """Enter a batch by its offsets, strictly rising; empty when a fetch brought nothing but markers.

        Raises:
            ValueError: as `deliver`, or the offsets do not rise.
        """
        if not offsets:
            if next_offset < self.newest:
                raise ValueError(f"next_offset={next_offset}: expected at least {self.newest}")
            self.newest = next_offset
            if not self.in_flight:
                self.committable = self._stop = next_offset
            return
        first, last = offsets[0], offsets[-1]
        if last - first + 1 == len(offsets):  # dense: fetches deliver rising offsets
            self.deliver(first, last, next_offset)
            return
        if not self.newest <= first <= last < next_offset:
            raise ValueError(
                f"delivery of offsets {first} to {last} with next_offset={next_offset}: "
                f"expected {self.newest} <= first <= last < next_offset"
            )
        before = first - 1
        for offset in offsets:
            if offset <= before:
                raise ValueError(f"offset {offset} after {before}: offsets of a batch must rise")
            before = offset
        start = 0
        for index in range(1, len(offsets) + 1):
            if index == len(offsets) or offsets[index] - offsets[index - 1] > _WIDEST_GAP:
                self._add_offsets(offsets[start:index])
                start = index
        self.in_flight += len(offsets)
        self.newest = next_offset

    def ack(self, offset: int, generation: int) -> bool:
        """A message is done. True if that is news.

        False, and nothing changes: another generation, acknowledged before, never delivered, or in a gap.
        """
        if offset == self.committable and generation == self.generation:
            following = offset + 1
            if following < self._stop:
                self.committable = following
                self.in_flight -= 1
                return True
        return self._ack_slowly(offset, generation)

    def _ack_slowly(self, offset: int, generation: int) -> bool:
        """All but an acknowledgement in order in the middle of a run."""
        if generation != self.generation or not self.in_flight or not self.committable <= offset < self.newest:
            return False
        if offset == self.committable:
            self.in_flight -= 1
            self._advance(offset + 1)
            return True
        index = bisect_right(self._firsts, offset, self._head) - 1
        first, end = self._firsts[index], self._ends[index]
        if offset >= end:
            return False  # in the gap after that run
        flags = self._flags[index]
        if flags is None:
            flags = self._flags[index] = bytearray(end - first)
        if flags[offset - first]:
            return False
        flags[offset - first] = 1
        self.in_flight -= 1
        if offset < self._stop:
            self._stop = offset
        return True

    def _advance(self, position: int) -> None:
        """Go on to the first message in flight from `position` on, which is in the head run or its end."""
        while True:
            first, end, flags = self._firsts[self._head], self._ends[self._head], self._flags[self._head]
            if position < end:
                if flags is None:
                    self.committable, self._stop = position, end
                    return
                found = flags.find(0, position - first)
                if found >= 0:
                    self.committable = first + found
                    until = min(found + _LOOK_AHEAD, end - first)
                    stop = flags.find(1, found, until)
                    self._stop = first + (until if stop < 0 else stop)
                    return
            self._head += 1
            if self._head == len(self._firsts):
                self._cut_off_dead_runs()
                self.committable = self._stop = self.newest
                return
            if self._head >= _DEAD_RUNS and 2 * self._head > len(self._firsts):
                self._cut_off_dead_runs()
            position = self._firsts[self._head]

    def _cut_off_dead_runs(self) -> None:
        del self._firsts[: self._head]
        del self._ends[: self._head]
        del self._flags[: self._head]
        self._head = 0

    def _add_offsets(self, offsets: Sequence[int]) -> None:
        first, end = offsets[0], offsets[-1] + 1
        flags = None
        if end - first != len(offsets):
            flags = bytearray(b"\x01") * (end - first)
            for offset in offsets:
                flags[offset - first] = 0
        self._add_run(first, end, flags)

    def _add_run(self, first: int, end: int, flags: bytearray | None) -> None:
        self._firsts.append(first)
        self._ends.append(end)
        self._flags.append(flags)
        if len(self._firsts) == 1:  # nothing was in flight, so all below `first` is done
            self._advance(first)

    def __repr__(self) -> str:
        return (
            f"<PartitionLedger generation={self.generation} committable={self.committable} "
            f"newest={self.newest} in_flight={self.in_flight}>"
        )
