"""Delivery callbacks: called one after the other by a task of their own, so that they may wait, and send."""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable

import trio

from ..supervision import trap_stop
from .future import FutureMessage

__all__ = ["DeliveryCallbacks"]

log = logging.getLogger("famulus.producer")


class DeliveryCallbacks:
    """Settled messages whose callback is to be called. They count in the producer's buffer until it has been.

    Args:
        on_room: called with 1 for each that has been called.

    Attributes:
        waiting: those whose turn has not come.
    """

    def __init__(self, *, on_room: Callable[[int], None]) -> None:
        self._on_room = on_room
        self.waiting: deque[FutureMessage] = deque()
        self._due = trio.Event()
        self._stopping = False
        self._task: trio.lowlevel.Task | None = None

    def calling(self) -> bool:
        """Whether the current task is the one that calls them: it cannot wait for room that it makes itself."""
        return self._task is not None and trio.lowlevel.current_task() is self._task

    def add(self, future: FutureMessage) -> None:
        """Have the callback of a settled message called soon."""
        self.waiting.append(future)
        self._due.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Call them; asked to stop, those that are due, then end."""
        trap_stop(self._ask_stop)
        task_status.started()
        self._task = trio.lowlevel.current_task()
        try:
            while not self._stopping or self.waiting:
                await self._due.wait()
                self._due = trio.Event()
                while self.waiting:
                    future = self.waiting.popleft()
                    result = self._call(future)
                    if result is not None and inspect.isawaitable(result):  # the first is cheaper
                        try:
                            await result
                        except Exception:
                            log.exception("the delivery callback of a message to %s raised", future.topic)
                    self._on_room(1)
        finally:
            self._task = None

    def _ask_stop(self) -> None:
        self._stopping = True
        self._due.set()

    def _call(self, future: FutureMessage) -> Awaitable[None] | None:
        try:
            return None if future.callback is None else future.callback(future)
        except Exception:
            log.exception("the delivery callback of a message to %s raised", future.topic)
            return None

    def close(self) -> None:
        """The run has ended: those that are plain functions are called."""
        while self.waiting:
            future = self.waiting.popleft()
            result = self._call(future)
            if inspect.isawaitable(result):
                log.error("the delivery callback of a message to %s could not be awaited any more", future.topic)
                if inspect.iscoroutine(result):
                    result.close()

    def __repr__(self) -> str:
        return f"<DeliveryCallbacks waiting={len(self.waiting)}>"
