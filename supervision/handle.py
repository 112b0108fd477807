"""The handle of a child: what its owner holds, over all of its incarnations."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import trio

from . import report
from .exits import child_exited
from .monitors import ChildExit, Monitor
from .runner import Incarnation, StopRequest
from .specs import Spec, SupervisorSpec
from .view import TreeNode
from .window import Incident, describe

if TYPE_CHECKING:  # handle and supervisor know each other
    from .core import Supervisor

__all__ = ["ChildHandle", "ChildState", "current_child", "trap_stop"]

ChildState = Literal["starting", "running", "backoff", "stopping", "stopped", "finished", "failed"]

_current: contextvars.ContextVar[ChildHandle] = contextvars.ContextVar("famulus.supervision.current_child")


class ChildHandle:
    """A child of a supervisor. Made by :meth:`Supervisor.start`.

    Attributes:
        name: Its name under its supervisor.
        spec: Its declaration.
        state: ``starting``; ``running``; ``backoff`` (waits to be started again); ``stopping``; ``stopped``
            (asked to); ``finished`` (returned for good); ``failed`` (for good: a temporary child's crash, a
            failed start).
        incarnation: The number of its current or last run, from 1; 0 before the first.
        restarts: How often the supervisor restarted it, alone or with its siblings.
        last_reason: Its last failure, None if there was none.
        last_incident: The last incident of it that counted; its reason is None for a return.
        progressed: Set it to True whenever the child does something worthwhile (one attribute store, made for
            hot code): at its next incident its backoff begins anew and its supervisor forgets the incidents
            before.
        hook_failures: How often its ``on_exit`` hook raised.
        value: What the current incarnation gave to ``task_status.started(value)``.
    """

    __slots__ = (
        "__weakref__",
        "_args",
        "_attempt",
        "_context",
        "_held",
        "_keep",
        "_monitors",
        "_nested",
        "_run",
        "_supervisor",
        "hook_failures",
        "incarnation",
        "last_incident",
        "last_reason",
        "name",
        "progressed",
        "restarts",
        "spec",
        "state",
        "value",
    )

    def __init__(self, supervisor: Supervisor, spec: Spec, name: str, args: tuple[object, ...]) -> None:
        self.name = name
        self.spec = spec
        self.state: ChildState = "starting"
        self.incarnation = 0
        self.restarts = 0
        self.last_reason: BaseException | None = None
        self.last_incident: Incident | None = None
        self.progressed = False
        self.hook_failures = 0
        self.value: object = None
        self._supervisor = supervisor
        self._run: Incarnation | None = None  # the incarnation under way, which may still sleep out its backoff
        self._args = args  # of this child of a pool, after the spec's
        self._monitors: tuple[Monitor, ...] = ()
        self._attempt = 0  # position in the backoff
        self._held = False  # terminated by hand: stays stopped
        self._keep = False  # a temporary child that is stopped only to be restarted by hand
        self._nested: Supervisor | None = None
        self._context = contextvars.copy_context()  # each incarnation runs in a copy of the starter's context
        self._context.run(_current.set, self)

    @property
    def label(self) -> str:
        """Its path in the tree, such as ``root/agents/tally``."""
        return f"{self._supervisor.path}/{self.name}"

    @property
    def parent(self) -> Supervisor:
        """The supervisor that it is a child of."""
        return self._supervisor

    @property
    def alive(self) -> bool:
        """Whether a task of it exists and is past its backoff."""
        return self._run is not None and self._run.began

    @property
    def gone(self) -> bool:
        """Whether it is forgotten, or its supervisor has ended: it will never run again."""
        supervisor = self._supervisor
        return supervisor._children.get(self.name) is not self or supervisor._done.is_set()

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """Its own incidents among those in its supervisor's window."""
        return tuple(i for i in self._supervisor.incidents if i.child == self.name)

    @property
    def supervisor(self) -> Supervisor:
        """The live supervisor that this child is; another object after each restart.

        Raises:
            RuntimeError: The child is no supervisor, or does not run now.
        """
        if self._nested is None:
            why = "does not run now" if isinstance(self.spec, SupervisorSpec) else "is a worker, not a supervisor"
            raise RuntimeError(f"child {self.label!r} {why}")
        return self._nested

    def progress(self) -> None:
        """Set :attr:`progressed`."""
        self.progressed = True

    async def terminate(self) -> None:
        """Stop it, with its shutdown time, and keep it stopped until :meth:`restart`; a temporary child is
        forgotten.

        Cancelling the call ends the wait only, not the stop.
        """
        await self._supervisor._terminate(self)

    async def restart(self) -> None:
        """Stop it if it runs, start it again with a fresh backoff, and return when it is ready.

        If this call is cancelled or the start fails, the child stays stopped.

        Raises:
            SupervisorStopping: Its supervisor takes no more starts.
            UnknownChild: It was deleted, or was temporary and has ended.
            Exception: The failure of the start, bare.
        """
        await self._supervisor._restart(self)

    async def wait_stopped(self) -> None:
        """Return when the incarnation under way, if any, has ended."""
        if self._run is not None:
            await self._run.gone()
        else:
            await trio.lowlevel.checkpoint()

    def node(self) -> TreeNode:
        """This child, and all below it, as data."""
        run, nested, reason = self._run, self._nested, self.last_reason
        return TreeNode(
            name=self.name,
            kind="supervisor" if isinstance(self.spec, SupervisorSpec) else "worker",
            strategy=type(self.spec.strategy).__name__ if isinstance(self.spec, SupervisorSpec) else None,
            state=self.state,
            restarts=self.restarts,
            uptime=trio.current_time() - run.ready_at if run is not None and run.ready_at is not None else None,
            last_reason=None if reason is None and self.last_incident is None else describe(reason),
            children=() if nested is None else tuple(h.node() for h in nested.children.values()),
        )

    def __repr__(self) -> str:
        return f"<ChildHandle {self.label!r} {self.state} #{self.incarnation}, {self.restarts} restarts>"

    # What its incarnations tell it.

    def _began(self) -> bool:
        if self._supervisor._ending:
            return False
        self.state = "starting"
        return True

    def _became_ready(self, value: object) -> None:
        self.value = value
        if self.state == "starting":
            self.state = "running"
        if report.tells_starts():  # asked first, since 10,000 children of a pool may start at once
            report.started(self._supervisor.path, self.name, self.incarnation, len(self._supervisor._window))

    def _exited(self, run: Incarnation, reason: BaseException | None) -> None:
        child_exited(self._supervisor, self, run, reason)

    def _is_deaf(self, failure: BaseException) -> None:
        supervisor = self._supervisor
        report.hook_failed(supervisor.path, self.name, failure, len(supervisor._window), "trap_stop listener")

    def _stays(self, seconds: float, task: trio.lowlevel.Task | None) -> None:
        supervisor = self._supervisor
        report.stays(supervisor.path, self.name, seconds, task, len(supervisor._window))

    def _tell_monitors(self, incarnation: int, reason: BaseException | None, asked: bool) -> None:
        state: ChildState = "backoff" if self._run is not None else self.state
        exit = ChildExit(
            child=self.label,
            incarnation=incarnation,
            time=trio.current_time(),
            reason=reason,
            asked=asked,
            state=state,
        )
        for watching in self._monitors:
            watching._tell(exit)

    def _end_monitors(self) -> None:
        for watching in self._monitors:
            watching._end()


def current_child() -> ChildHandle:
    """The handle of the child in whose task, or in whose tasks' tasks, this is called.

    Raises:
        RuntimeError: There is none.
    """
    handle = current_child_or_none()
    if handle is None:
        raise RuntimeError("not inside a supervised child")
    return handle


def current_child_or_none() -> ChildHandle | None:
    """The same, or None."""
    return _current.get(None)


def trap_stop(on_request: Callable[[], object] | None = None) -> StopRequest:
    """From now on, ask this incarnation of the current child to stop instead of cancelling it at once.

    As OTP's ``process_flag(trap_exit, true)``. After the request it has its spec's ``shutdown`` seconds to
    return. A worker that is not ready yet is cancelled at once all the same.

    Args:
        on_request: Called when the request comes (at once if it came already), for a child that waits
            elsewhere than in the request's ``wait()``; it must not block. If it raises, the child is
            cancelled.

    Raises:
        RuntimeError: Not called inside a supervised child.
    """
    run = current_child()._run
    if run is None:
        raise RuntimeError("the supervised child of this task has ended")
    if run.trap is None:
        run.trap = StopRequest()
        if run.stopping:
            run.trap.request()
    if on_request is not None:
        run.trap.listen(on_request)
    return run.trap
