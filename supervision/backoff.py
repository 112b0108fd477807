"""How long a crashed child waits before it runs again: pure arithmetic, no clock and no randomness of its
own.
"""

from __future__ import annotations

import math

import attrs

__all__ = ["Backoff"]


@attrs.frozen(kw_only=True)
class Backoff:
    """The wait before restart number n (from 0) of one child: ``min * factor**n`` seconds, at most ``max``.

    Args:
        min: Seconds before the first restart; 0 restarts at once.
        max: The longest wait in seconds (jitter comes on top).
        factor: What each further crash multiplies the wait by, at least 1.
        jitter: Each wait is spread evenly over ± this fraction of itself, so that children that crashed
            together do not return together.
        reset_after: A child that has run this many seconds begins again at ``min``.

    Raises:
        ValueError: A value is out of its range.
    """

    min: float = 0.1
    max: float = 30.0
    factor: float = 2.0
    jitter: float = 0.1
    reset_after: float = 60.0

    def __attrs_post_init__(self) -> None:
        if not (0 <= self.min < math.inf):
            raise ValueError(f"Backoff(min={self.min!r}): expected seconds, 0 or more and finite")
        if not (self.min <= self.max < math.inf):
            raise ValueError(f"Backoff(max={self.max!r}): expected seconds, at least min={self.min!r} and finite")
        if not (1 <= self.factor < math.inf):
            raise ValueError(f"Backoff(factor={self.factor!r}): expected a number from 1 up, finite")
        if not (0 <= self.jitter <= 1):
            raise ValueError(f"Backoff(jitter={self.jitter!r}): expected a fraction from 0 to 1")
        if not self.reset_after > 0:
            raise ValueError(f"Backoff(reset_after={self.reset_after!r}): expected seconds, more than 0")

    def nominal(self, attempt: int) -> float:
        """The wait in seconds before restart number ``attempt`` (from 0), jitter left out."""
        try:
            return min(self.max, self.min * self.factor**attempt)
        except OverflowError:
            return self.max if self.min else 0.0

    def delay(self, attempt: int, chance: float) -> float:
        """The wait in seconds before restart number ``attempt``; ``chance`` in [0, 1) places it in the
        jitter.
        """
        return self.nominal(attempt) * (1 + self.jitter * (2 * chance - 1))

    def span(self, incidents: int) -> float:
        """The shortest time in seconds that ``incidents`` crashes of one child can take, first to last."""
        total = 0.0
        for attempt in range(incidents - 1):
            wait = self.nominal(attempt)
            if wait >= self.max or self.factor == 1 or not wait:  # from here on all waits are alike
                total += wait * (incidents - 1 - attempt)
                break
            total += wait
        return total * (1 - self.jitter)

    def fits(self, within: float) -> float:
        """The most incidents that a child which crashes whenever it runs can have within ``within``
        seconds.
        """
        if not self.nominal(10_000) * (1 - self.jitter) or within == math.inf:
            return math.inf
        low, high = 1, 2
        while self.span(high) <= within:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.span(middle) <= within else (low, middle)
        return low
