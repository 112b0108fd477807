"""Partitions whose log is damaged: each waits by itself and is tried again, ever more rarely; the others are read on."""

from __future__ import annotations

import logging
from collections.abc import Collection

import trio

from ..channels.errors import TransportError
from ..channels.message import TP

__all__ = ["Damage"]

_FIRST, _LONGEST = 1.0, 60.0  # seconds before the next attempt, doubled each time


class Damage:
    """What one consumer could not read. True while there is any.

    Each attempt that fails is logged as an error: nobody else says why the partition stands still.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._waiting: dict[TP, tuple[int, float, float]] = {}  # offset, delay, time of the next attempt

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def keep(self, owned: Collection[TP]) -> None:
        """Forget the partitions that are not owned any more."""
        for tp in [tp for tp in self._waiting if tp not in owned]:
            del self._waiting[tp]

    def found(self, tp: TP, offset: int, error: TransportError) -> None:
        """It cannot be read at this offset."""
        before = self._waiting.get(tp)
        delay = _FIRST if before is None or before[0] != offset else min(2 * before[1], _LONGEST)
        self._waiting[tp] = (offset, delay, trio.current_time() + delay)
        self._log.error("%s; tried again in %g s, while other partitions go on", error, delay)

    def may_be_tried(self, tp: TP) -> bool:
        """Whether a partition is not damaged, or its time has come."""
        waiting = self._waiting.get(tp)
        return waiting is None or trio.current_time() >= waiting[2]

    @property
    def due(self) -> bool:
        """Whether the time of any has come."""
        return any(trio.current_time() >= time for _, _, time in self._waiting.values())

    def passed(self, tp: TP) -> None:
        """It was read."""
        waiting = self._waiting.pop(tp, None)
        if waiting is not None:
            self._log.info("reading %s@%d goes on", tp, waiting[0])
