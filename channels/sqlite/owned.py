"""The partitions that a member owns, and how far it has read them. Pure; nothing here waits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Final

from ..message import TP
from ..transport import Assignment, Batch, OffsetReset
from .log import Read, Wanted

__all__ = ["Owned"]

log = logging.getLogger("famulus.sqlite")

_NOBODY: Final = -1  # generation


class Owned:
    """Made empty. Positions move in `accept` and `seek` alone.

    Args:
        reset: where to read in a partition whose first and next offset these are, if it cannot be read where it should.
        on_reset: told of each such case in `accept`.

    Attributes:
        assignment: what is owned, and under which generation.
    """

    def __init__(self, reset: Callable[[int, int], int], on_reset: Callable[[OffsetReset], object] | None) -> None:
        self.assignment = Assignment(_NOBODY, frozenset())
        self._reset = reset
        self._on_reset = on_reset
        self._ids: dict[TP, int] = {}
        self._positions: dict[TP, int] = {}
        self._ends: dict[TP, int] = {}
        self._paused: set[TP] = set()
        self._damaged: set[TP] = set()
        self._read_at: dict[TP, int] = {}  # how much news there had been when it was last read
        self._turn = 0

    def take(self, generation: int, found: Mapping[TP, tuple[int, int, int, int | None]]) -> None:
        """Own these. For each: its id, first and next offset, and the one that the group has committed."""
        self.assignment = Assignment(generation, frozenset(found))
        for tp, (id_, first, end, committed) in found.items():
            self._ids[tp] = id_
            self._ends[tp] = end
            self._positions[tp] = self._reset(first, end) if committed is None else committed

    def give_up(self) -> None:
        """Own nothing any more; the generation stays to be seen."""
        self.assignment = Assignment(self.assignment.generation, frozenset())
        for state in (self._ids, self._positions, self._ends, self._paused, self._damaged, self._read_at):
            state.clear()

    def wanted(self, room: Mapping[TP, int], news: int) -> list[Wanted]:
        """What is worth reading now, another partition first each time.

        Args:
            news: how often there was any so far: what was read to its end is read again when that has grown.
        """
        wanted = [
            Wanted(tp, self._ids[tp], position, most)
            for tp, most in room.items()
            if most > 0
            and (position := self._positions.get(tp)) is not None
            and tp not in self._paused
            and (position != self._ends[tp] or self._read_at.get(tp) != news)
            and tp not in self._damaged
        ]
        self._turn += 1
        turn = self._turn % len(wanted) if wanted else 0
        return wanted[turn:] + wanted[:turn]

    def accept(self, wanted: Collection[Wanted], found: Mapping[TP, Read | None], news: int) -> list[Batch]:
        """Make what was read the member's own."""
        batches: list[Batch] = []
        for want in wanted:
            tp = want.tp
            if tp not in found or self._positions.get(tp) != want.position:  # somebody has called `seek`
                continue
            self._read_at[tp] = news
            got = found[tp]
            if got is None:  # its topic is gone, and a rebalance on its way
                self._ends[tp] = want.position
                continue
            self._ends[tp] = got.next
            if not got.first <= want.position <= got.next:
                position = self._positions[tp] = self._reset(got.first, got.next)
                if self._on_reset is not None:
                    self._on_reset(OffsetReset(tp, want.position, position))
                continue
            self._positions[tp] = got.position
            if got.damage is not None:
                self._damaged.add(tp)
                log.error("%s cannot be read on: %s", tp, got.damage)
            if got.messages:
                batches.append(Batch(tp, self.assignment.generation, got.messages, got.position, got.next))
        return batches

    def by_id(self, offsets: Mapping[TP, int]) -> dict[int, int]:
        """Offsets of owned partitions, by the ids of these."""
        return {self._ids[tp]: offset for tp, offset in offsets.items()}

    def position(self, tp: TP) -> int:
        """See `Consumer.position`."""
        return self._positions[tp]

    def highwater(self, tp: TP) -> int:
        """See `Consumer.highwater`."""
        return self._ends[tp]

    def seek(self, tp: TP, offset: int) -> None:
        """See `Consumer.seek`. What is damaged is tried again."""
        if tp not in self._positions:
            raise KeyError(tp)
        if offset < 0:
            raise ValueError(f"seek of {tp} to {offset}: expected an offset of at least 0")
        self._positions[tp] = offset
        self._damaged.discard(tp)

    def pause(self, partitions: Collection[TP]) -> None:
        """See `Consumer.pause`."""
        self._paused.update(tp for tp in partitions if tp in self._positions)

    def resume(self, partitions: Collection[TP]) -> None:
        """See `Consumer.resume`."""
        self._paused.difference_update(partitions)
