"""How often a loop that never has to wait makes a full checkpoint.

A full `trio.lowlevel.checkpoint()` costs several microseconds; one per message would cost more than the rest of the
message's way. So it is made after 64 events or 5 ms, whichever is first, and `checkpoint_if_cancelled` on the others (which
alone would never see a deadline, nor let others run). Under a mock clock only the count decides, for repeatable tests.
"""

from __future__ import annotations

from time import perf_counter

import trio

__all__ = ["Pacer"]

_EVENTS = 64
_SECONDS = 0.005


class Pacer:
    """Says when a full checkpoint is due."""

    __slots__ = ("_seconds", "left", "limit")

    def __init__(self) -> None:
        self.left = _EVENTS
        real = type(trio.lowlevel.current_clock()).__name__ == "SystemClock"
        self._seconds = _SECONDS if real else float("inf")
        self.limit = perf_counter() + self._seconds

    def due(self) -> bool:
        """Count one event; True when a full checkpoint has to be made now."""
        self.left -= 1
        if self.left > 0 and perf_counter() < self.limit:
            return False
        self.rested()
        return True

    def rested(self) -> None:
        """A full checkpoint was just made elsewhere."""
        self.left = _EVENTS
        self.limit = perf_counter() + self._seconds

    @property
    def rested_for(self) -> float | None:
        """Seconds since the last full checkpoint; None under a mock clock, which does not count them."""
        return None if self._seconds == float("inf") else perf_counter() - (self.limit - self._seconds)
