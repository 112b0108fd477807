"""Virtual time that waits for real threads: the clock under every test of ours, and of our users.

`trio.testing.MockClock` jumps as soon as all tasks are blocked, and a task that waits for a thread is
blocked: a deadline of 30 s then expires during 0.3 s of `trio.to_thread.run_sync`. `VirtualClock` holds
still until the thread is back. It uses trio's public interfaces alone (`Clock`, `Instrument`,
`run_sync_soon`, statistics).

How a jump comes about: when no task can run, trio asks the clock how long to sleep before the next
deadline. While a jump is allowed we answer `_JUMP`, a number nobody else uses. If trio is about to sleep
just that long, then nobody stands in `wait_all_tasks_blocked` either (their cushion would be shorter), so
we knock on trio's own door to end the sleep at once; if the knock is all that happened meanwhile, time
moves to the deadline. No polling anywhere: a thread that comes back, a socket or a signal wakes trio by
itself, and the question is asked anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import trio
from trio.testing import active_thread_count

__all__ = ["VirtualClock"]

_JUMP = 54_321.0  # seconds; below trio's cap of one day on a sleep, above any cushion that makes sense
_WAIT = 86_400.0  # seconds; "sleep until something happens"


class VirtualClock(trio.abc.Clock, trio.abc.Instrument):
    """A clock that starts at 0.0 and jumps to the next deadline whenever a run has nothing else to do.

    It does not jump while

    - a thread started with `trio.to_thread.run_sync` (or anything built on it) is running and awaited,
    - a task is in `trio.testing.wait_all_tasks_blocked`,
    - somebody is inside `hold`.

    It knows nothing of work outside the process: a test that waits for another process or a real socket takes
    the real clock (``@pytest.mark.real_time``) or wraps that part in `hold`.

    >>> async def nap() -> float:
    ...     await trio.sleep(3600)
    ...     return trio.current_time()
    >>> trio.run(nap, clock=VirtualClock())
    3600.0

    One clock serves one `trio.run` at a time; used again it goes on where it stood.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._next = inf
        self._holds = 0
        self._knocked = False

    def __repr__(self) -> str:
        held = f", held {self._holds}x" if self._holds else ""
        return f"<VirtualClock at {self._now:.6f} s{held}>"

    def jump(self, seconds: float) -> None:
        """Move time forward by hand, by `seconds` of virtual time; ValueError if that is negative."""
        if seconds < 0:
            raise ValueError(f"time can't go backwards: jump({seconds!r})")
        self._now += seconds

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep time still inside this block: for work the clock cannot see. Holds nest.

        Enter and leave it in the thread of the run.
        """
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    # What trio calls.

    def start_clock(self) -> None:
        trio.lowlevel.add_instrument(self)

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if deadline <= self._now:
            return 0
        if deadline == inf or self._holds or active_thread_count():
            return _WAIT
        self._next = deadline
        return _JUMP

    def before_io_wait(self, timeout: float) -> None:
        self._knocked = timeout == _JUMP
        if self._knocked:
            trio.lowlevel.current_trio_token().run_sync_soon(_nothing)

    def after_io_wait(self, timeout: float) -> None:
        if not self._knocked:
            return
        self._knocked = False
        statistics = trio.lowlevel.current_statistics()
        # The knock itself is one runnable task (trio's own, which serves that queue) and one call queued.
        if statistics.tasks_runnable <= 1 and statistics.run_sync_soon_queue_size <= 1:
            self._now = max(self._now, self._next)


def _nothing() -> None:
    pass
