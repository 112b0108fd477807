"""When a member of a group counts as gone because nothing is heard of it. Pure: times and signs of life come as arguments.

No clock is compared with another's. Each member looks now and then for a sign of life of the others, which need only
differ from the one before, and counts by its own clock how long it has been the same. While it does not look (its
process was suspended, the machine slept, its disk hung) it counts nothing: who could not look cannot know.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Silence"]


class Silence:
    """How long others have been silent, as one of them has counted.

    >>> silence = Silence(pace=1.0)
    >>> silence.heard({7: 1}, now=0.0), silence.heard({7: 1}, now=1.0), silence.heard({7: 2}, now=2.0)
    ({7: 0.0}, {7: 1.0}, {7: 0.0})
    """

    def __init__(self, pace: float) -> None:
        """`pace`: seconds between two looks; of a longer pause only twice as much is counted."""
        self._most = 2 * pace
        self._last: float | None = None
        self._signs: dict[int, tuple[int | None, float]] = {}

    def heard(self, signs: Mapping[int, int | None], now: float) -> dict[int, float]:
        """Seconds that each of these has been silent, given their newest signs of life. Others are forgotten."""
        passed = 0.0 if self._last is None else min(now - self._last, self._most)
        self._last = now
        known: dict[int, tuple[int | None, float]] = {}
        for who, sign in signs.items():
            before, silent = self._signs.get(who, (None, 0.0))
            known[who] = (sign, silent + passed if sign == before else 0.0)
        self._signs = known
        return {who: silent for who, (_, silent) in known.items()}
