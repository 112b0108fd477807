"""One incarnation: one run of a child's function, in a task and a shielded cancel scope of its own.

The laws: nothing that happens inside ever leaves :meth:`Incarnation.run` as an exception (it would cancel the
siblings); cancellation from outside does not reach the child, only the supervisor's does; and a task does not
end before the nurseries that its function left behind are empty. Made by handles, driven by the supervisor.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from .errors import LeakedCancellation, StrayNursery

__all__ = ["Incarnation", "Owner", "StopRequest", "without_cancelled"]

_FIRST_REPORT = 5.0  # seconds after its cancellation that a child which stays is reported, then twice that, and so on
_LONGEST_REPORT = 600.0


class StopRequest:
    """What :func:`trap_stop` returns: how a child learns that it should finish and return."""

    __slots__ = ("_event", "_listeners")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._listeners: list[Callable[[], object]] = []

    @property
    def requested(self) -> bool:
        """Whether the child has been asked to stop."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Return once the child has been asked to stop."""
        await self._event.wait()

    def listen(self, listener: Callable[[], object]) -> None:
        """Have ``listener`` called when the request comes, or at once if it came already."""
        if self.requested:
            listener()
        else:
            self._listeners.append(listener)

    def request(self) -> None:
        """Ask. Only supervisors call this."""
        self._event.set()
        for listener in self._listeners:
            listener()

    def __repr__(self) -> str:
        return f"<StopRequest {'requested' if self.requested else 'pending'}>"


class Owner(Protocol):
    """What an incarnation needs of the handle it belongs to."""

    @property
    def label(self) -> str: ...

    def _began(self) -> bool: ...

    def _became_ready(self, value: object) -> None: ...

    def _exited(self, run: Incarnation, reason: BaseException | None) -> None: ...

    def _is_deaf(self, failure: BaseException) -> None: ...

    def _stays(self, seconds: float, task: trio.lowlevel.Task | None) -> None: ...


class Incarnation:
    """The state of one run. It is also the ``task_status`` that the child gets."""

    __slots__ = (
        "_call",
        "_delay",
        "_gone",
        "_owner",
        "_wants_status",
        "asked",
        "began",
        "by_hand",
        "ended",
        "failure",
        "listener",
        "ready_at",
        "scope",
        "stopping",
        "task",
        "trap",
    )

    def __init__(
        self,
        owner: Owner,
        call: Callable[..., Awaitable[object]],
        wants_status: bool,
        delay: float,
        by_hand: bool,
        listener: Callable[[], None] | None,
    ) -> None:
        self._owner = owner
        self._call = call
        self._wants_status = wants_status
        self._delay = delay
        self._gone: trio.Event | None = None
        self.by_hand = by_hand  # someone waits for this start, and takes its failure
        self.listener = listener  # called when it is ready and when it has ended
        self.scope = trio.CancelScope(shield=True)
        self.task: trio.lowlevel.Task | None = None
        self.began = False
        self.ready_at: float | None = None
        self.ended = False
        self.failure: BaseException | None = None
        self.stopping = False  # its end is wanted
        self.asked = False  # … and it was asked for it, having trapped
        self.trap: StopRequest | None = None

    @property
    def settled(self) -> bool:
        """Whether its start has come to a result."""
        return self.ready_at is not None or self.ended

    async def run(self, *args: object) -> None:
        """The task's main function."""
        self.task = task = trio.lowlevel.current_task()
        reason: BaseException | None = None
        try:
            with self.scope:
                if self._delay:
                    await trio.sleep(self._delay)
                if not self.scope.cancel_called and self._owner._began():
                    self.began = True
                    if self._wants_status:
                        await self._call(*args, task_status=self)
                    else:
                        self.started()
                        await self._call(*args)
        except BaseException as exc:
            # Our own frame goes, so that a kept reason keeps no incarnation alive.
            reason = exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next)
        if task.child_nurseries:
            reason = await _close_strays(task, reason)
        self.ended = True
        self._owner._exited(self, reason)
        if self._gone is not None:
            self._gone.set()
        if self.listener is not None:
            self.listener()

    def started(self, value: object = None) -> None:
        """The child is ready (``task_status.started``).

        Raises:
            RuntimeError: It was called before in this incarnation.
        """
        if self.ready_at is not None:
            raise RuntimeError(f"child {self._owner.label!r} called started() more than once")
        self.ready_at = trio.current_time()
        self._owner._became_ready(value)
        if self.listener is not None:
            self.listener()

    def ask(self, drain: bool, shutdown: float | None) -> None:
        """Want its end: ask it if it trapped and ``drain``, then cancel it after ``shutdown`` seconds; else
        at once.
        """
        self.stopping = True
        if drain and self.trap is not None and shutdown:
            if not self.asked:
                self.asked = True
                self.scope.deadline = trio.current_time() + shutdown
                try:
                    self.trap.request()
                except Exception as failure:  # a child that cannot hear the request must not outlive it
                    self._owner._is_deaf(failure)
                    self.scope.cancel()
        else:
            self.scope.cancel()

    async def gone(self) -> None:
        """Return when its task has ended; meanwhile report it if it stays in spite of its cancellation."""
        if self.ended:
            return
        if self._gone is None:
            self._gone = trio.Event()
        interval = _FIRST_REPORT
        cancelled_at = min(self.scope.deadline, trio.current_time())
        if not self.scope.cancel_called:
            cancelled_at = self.scope.deadline
        report_at = cancelled_at + interval
        while not self.ended:
            with trio.move_on_at(report_at):
                await self._gone.wait()
                return
            self._owner._stays(trio.current_time() - cancelled_at, self.task)
            interval = min(2 * interval, _LONGEST_REPORT)
            report_at += interval


async def _close_strays(task: trio.lowlevel.Task, reason: BaseException | None) -> BaseException:
    """End the nurseries that a child left open, and give the failure that this is."""
    with trio.CancelScope(shield=True):
        for nursery in task.child_nurseries:
            nursery.cancel_scope.cancel()
        pause = 0.001
        while any(nursery.child_tasks for nursery in task.child_nurseries):
            await trio.sleep(pause)  # an abandoned nursery has nothing to wait for
            pause = min(2 * pause, 1.0)
    # trio turns the exit of a task with open nurseries into an error of its parent nursery, which would
    # cancel the whole supervisor, and has no public way to disown them.
    disown = getattr(task, "_child_nurseries", None)
    if disown is not None:
        disown.clear()
    failure = StrayNursery(
        "the child ended with a nursery still open: an async generator that yields inside a nursery was left "
        "suspended; close it (contextlib.aclosing) or open the nursery outside of it (PEP 789)"
    )
    failure.__cause__ = reason
    return failure


def without_cancelled(reason: BaseException, label: str) -> BaseException:
    """The same reason, but a ``Cancelled`` in it, which nobody asked for, as a failure that can be raised
    anywhere.
    """
    if isinstance(reason, trio.Cancelled):
        leak = LeakedCancellation(
            f"child {label!r} let a Cancelled out that nobody asked for: does an async generator yield "
            f"inside its own cancel scope or nursery (PEP 789)?"
        )
        leak.__cause__ = reason
        return leak
    if isinstance(reason, BaseExceptionGroup):
        cancelled, rest = reason.split(trio.Cancelled)
        if cancelled is None:
            return reason
        return rest if rest is not None else without_cancelled(_first_leaf(cancelled), label)
    return reason


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    reason: BaseException = group
    while isinstance(reason, BaseExceptionGroup):
        reason = reason.exceptions[0]
    return reason
