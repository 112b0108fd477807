"""Timers: a function at multiples of an interval, without drift."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import floor

import trio

__all__ = ["next_time", "run_timer"]


def next_time(start: float, interval: float, now: float) -> float:
    """The first multiple of `interval` after `start` that is later than `now`; all in seconds.

    >>> next_time(100.0, 30.0, 100.0)
    130.0
    >>> next_time(100.0, 30.0, 191.5)
    220.0
    """
    return start + (floor((now - start) / interval) + 1) * interval


async def run_timer(fun: Callable[[], Awaitable[object]], interval: float, start: float) -> None:
    """Call `fun` at multiples of `interval` seconds after `start`, for ever; times at which it is still busy are left out."""
    while True:
        await trio.sleep_until(next_time(start, interval, trio.current_time()))
        await fun()
