"""Waiting in tests, without sleeping."""

from __future__ import annotations

import trio.testing

__all__ = ["settle"]


async def settle() -> None:
    """Return when no task of this trio run can go on without the clock or the outside world.

    On the ``memory://`` broker everything that was sent has then been processed, as far as agents do not wait for time,
    locks or files themselves.
    """
    await trio.testing.wait_all_tasks_blocked()
