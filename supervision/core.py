"""The supervisor: it holds the children, decides with the pure modules what their exits mean, and carries
that out.

Restarts under one-for-one happen in the task that has just ended; the supervisor's own task
(:mod:`.serving`) starts the declared children, carries out group restarts, and stops everything in
reverse order at the end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import trio

from . import report
from .errors import (
    ChildActive,
    DuplicateChild,
    StartFailed,
    SupervisorFailed,
    SupervisorStopping,
    UnknownChild,
    is_fatal,
)
from .groups import GroupRestarts
from .handle import ChildHandle, ChildState, current_child, trap_stop
from .plans import exit_verdict
from .runner import Incarnation, without_cancelled
from .serving import serve
from .specs import ChildSpec, Spec, SupervisorSpec, check_siblings
from .strategies import CrashingSupervisor, SupervisorStrategy
from .view import Counts, TreeNode
from .window import Incident, IncidentWindow, describe

__all__ = ["Supervisor", "SupervisorState"]

SupervisorState = Literal["starting", "running", "stopping", "stopped", "failed"]


class Supervisor:
    """A running supervisor: what :func:`open_supervisor` yields and ``handle.supervisor`` is."""

    def __init__(
        self,
        strategy: SupervisorStrategy,
        name: str,
        *,
        handle: ChildHandle | None = None,
        on_failing: Callable[[], object] | None = None,
    ) -> None:
        self.name = name
        self.path = name if handle is None else handle.label
        self.strategy = strategy
        self.state: SupervisorState = "starting"
        self.stops_together = (
            handle is not None and isinstance(handle.spec, SupervisorSpec) and handle.spec.stop == "together"
        )
        self._handle = handle
        self._on_failing = on_failing
        self._children: dict[str, ChildHandle] = {}
        self._window = IncidentWindow(strategy.max_restarts, strategy.within)
        self._significant: set[str] = set()  # names of significant children that have not ended
        self._ending = False
        self._failure: SupervisorFailed | None = None
        self._fatal: list[BaseException] = []
        self._nursery: trio.Nursery | None = None
        self._bell = trio.Event()  # wakes the supervisor's task
        self._done = trio.Event()
        self._groups = GroupRestarts(self)

    # ---- what others may do

    @property
    def children(self) -> Mapping[str, ChildHandle]:
        """The children by name, in start order; live and read-only."""
        return MappingProxyType(self._children)

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The incidents in the window, oldest first."""
        return self._window.incidents

    async def start(self, spec: Spec) -> ChildHandle:
        """Start a child and return when it is ready. If this call is cancelled before, so is the child.

        Raises:
            DuplicateChild: There is a child of this name.
            SupervisorStopping: The supervisor is stopping or has stopped, or began to while the child was
                starting.
            ValueError: The child is significant, but the strategy never shuts down by itself.
            Exception: The failure of the start, bare; the child is forgotten.
        """
        handle = self._adopt(spec)
        try:
            await self._launch_by_hand(handle)
        except BaseException:
            if self._children.get(spec.name) is handle and handle._run is None:
                del self._children[spec.name]
            raise
        return handle

    async def delete(self, name: str) -> None:
        """Forget a child that has ended.

        Raises:
            UnknownChild: There is none of this name.
            ChildActive: It has not ended.
        """
        await trio.lowlevel.checkpoint()
        handle = self._children.get(name)
        if handle is None:
            raise UnknownChild(f"supervisor {self.path!r} has no child {name!r}")
        if handle._run is not None or handle.state == "backoff":
            raise ChildActive(f"child {handle.label!r} is {handle.state}: terminate it before you delete it")
        del self._children[name]

    def request_stop(self) -> None:
        """Begin the ordered stop; does not wait. A nested supervisor stays stopped, as after
        ``terminate()``.
        """
        if self._handle is not None and self._handle._run is not None:
            self._handle._held = True
            self._ask(self._handle, self._handle._run, drain=True)
        self._end()

    async def stop(self) -> None:
        """Stop in order, and return when everything has ended. Cancelling the call ends the wait only."""
        self.request_stop()
        await self.wait()

    async def wait(self) -> None:
        """Return when the supervisor has ended, in whatever way: stopped, by ``auto_shutdown``, or failed."""
        await self._done.wait()

    def counts(self) -> Counts:
        """How many children there are, and of which kind."""
        handles = self._children.values()
        supervisors = sum(isinstance(handle.spec, SupervisorSpec) for handle in handles)
        return Counts(
            specs=len(handles),
            active=sum(handle.alive for handle in handles),
            supervisors=supervisors,
            workers=len(handles) - supervisors,
        )

    def tree(self) -> TreeNode:
        """The supervisor and everything below it, as data."""
        if self._handle is not None:
            return self._handle.node()
        last = self.incidents[-1].reason if self.incidents else None
        return TreeNode(
            name=self.name,
            kind="supervisor",
            strategy=type(self.strategy).__name__,
            state=self.state,
            last_reason=None if last is None else describe(last),
            children=tuple(handle.node() for handle in self._children.values()),
        )

    def __repr__(self) -> str:
        kind = type(self.strategy).__name__
        return f"<Supervisor {self.path!r} {kind} {self.state}, {len(self._children)} children>"

    # ---- starting and stopping one child

    def _adopt(self, spec: Spec) -> ChildHandle:
        self._check_open()
        if spec.name in self._children:
            raise DuplicateChild(f"supervisor {self.path!r} has a child {spec.name!r} already")
        if spec.significant:
            check_siblings((spec,), self.strategy, self.path)
        handle = self._children[spec.name] = ChildHandle(self, spec)
        return handle

    def _check_open(self) -> None:
        if self._ending or self._nursery is None:
            raise SupervisorStopping(f"supervisor {self.path!r} is {self.state}: it starts no more children")

    def _launch(
        self,
        handle: ChildHandle,
        delay: float = 0.0,
        by_hand: bool = False,
        listener: Callable[[], None] | None = None,
    ) -> Incarnation:
        """Begin the next incarnation of a child that has none; it first sleeps ``delay`` seconds in its own
        scope.
        """
        assert handle._run is None, handle
        spec = handle.spec
        if isinstance(spec, ChildSpec):
            run = Incarnation(handle, spec.fn, spec.wants_status, delay, by_hand, listener)
            args = spec.args
        else:
            run = Incarnation(handle, _run_nested, True, delay, by_hand, listener)
            args = (spec,)
        handle._run = run
        handle._held = False
        handle.progressed = False
        handle.incarnation += 1
        handle.state = "backoff" if delay else "starting"
        if spec.significant:
            self._significant.add(handle.name)
        self._spawn(handle, run, args)
        return run

    def _spawn(self, handle: ChildHandle, run: Incarnation, args: tuple[Any, ...]) -> None:
        assert self._nursery is not None
        # start_soon copies the context that it is called in: one fresh copy for each incarnation.
        handle._context.run(_start_soon, self._nursery, run, args, handle.label)

    async def _launch_by_hand(self, handle: ChildHandle) -> None:
        settled = trio.Event()
        run = self._launch(handle, by_hand=True, listener=settled.set)
        try:
            await settled.wait()
        except BaseException:
            self._ask(handle, run, drain=False)
            with trio.CancelScope(shield=True):
                await run.gone()
            raise
        if run.ready_at is None:
            if run.failure is not None:
                raise run.failure
            raise SupervisorStopping(f"child {handle.label!r} was stopped while it was starting")

    def _ask(self, handle: ChildHandle, run: Incarnation, drain: bool) -> None:
        handle.state = "stopping"
        # A worker that is not ready has nothing to drain; a supervisor may have children that do.
        can_drain = run.ready_at is not None or handle._nested is not None
        run.ask(drain and can_drain, handle.spec.shutdown)

    async def _terminate(self, handle: ChildHandle) -> None:
        handle._held = True
        self._groups.forget(handle)
        run = handle._run
        if run is None:
            if handle.state == "backoff":
                self._retire(handle, "stopped")
            await trio.lowlevel.checkpoint()
            return
        self._ask(handle, run, drain=True)
        await run.gone()

    async def _restart(self, handle: ChildHandle) -> None:
        self._check_open()
        handle._keep = True
        try:
            await self._terminate(handle)
        finally:
            handle._keep = False
        self._check_open()
        if self._children.get(handle.name) is not handle:
            raise UnknownChild(f"supervisor {self.path!r} has no child {handle.name!r} any more")
        if handle._run is not None:
            raise ChildActive(f"child {handle.label!r} was started again by someone else meanwhile")
        handle._attempt = 0
        try:
            await self._launch_by_hand(handle)
        except BaseException:
            handle._held = True
            raise

    # ---- what an exit means

    def _child_exited(self, handle: ChildHandle, run: Incarnation, reason: BaseException | None) -> None:
        """Called in the task that is about to end, for each incarnation exactly once; must not raise."""
        stopped = run.stopping or not run.began
        if reason is not None:
            reason = without_cancelled(reason, handle.label)
        elif not stopped and run.ready_at is None:
            reason = StartFailed(f"child {handle.label!r} returned before it called task_status.started()")
        hook = handle.spec.on_exit
        if hook is not None and run.began:
            try:
                hook(handle, reason)
            except BaseException as failure:
                handle.hook_failures += 1
                report.hook_failed(self.path, handle.name, failure)
                if is_fatal(failure):
                    reason = failure
        if reason is not None:
            handle.last_reason = reason
        handle._run = None
        handle._nested = None
        run.failure = reason
        self._decide(handle, run, reason, stopped)

    def _decide(self, handle: ChildHandle, run: Incarnation, reason: BaseException | None, stopped: bool) -> None:
        if reason is not None and is_fatal(reason):
            self._retire(handle, "failed")
            self._fatal.append(reason)
            self._end(failing=True)
        elif stopped or self._ending:
            if reason is not None:
                report.crashed(self.path, handle.name, handle.incarnation, reason, "stopping")
            self._retire(handle, "stopped")
        elif run.by_hand and run.ready_at is None:
            report.start_failed(self.path, handle.name, reason)
            self._retire(handle, "failed")
        else:
            verdict = exit_verdict(handle.spec.restart, normal=reason is None)
            if reason is not None or verdict == "restart":
                doing = "running" if run.ready_at is not None else "starting"
                report.crashed(self.path, handle.name, handle.incarnation, reason, doing)
            if verdict == "restart" or (reason is not None and isinstance(self.strategy, CrashingSupervisor)):
                self._incident(handle, run, reason)
            else:
                self._retire(handle, "finished" if reason is None else "failed")
                self._auto_shutdown(handle)

    def _retire(self, handle: ChildHandle, state: ChildState) -> None:
        handle.state = state
        self._significant.discard(handle.name)
        if handle.spec.restart == "temporary" and not handle._keep and self._children.get(handle.name) is handle:
            del self._children[handle.name]
        report.ended(self.path, handle.name, state)

    def _auto_shutdown(self, handle: ChildHandle) -> None:
        if handle.spec.significant and (
            self.strategy.auto_shutdown == "any_significant"
            or (self.strategy.auto_shutdown == "all_significant" and not self._significant)
        ):
            self._end()

    def _incident(self, handle: ChildHandle, run: Incarnation, reason: BaseException | None) -> None:
        now = trio.current_time()
        if handle.progressed:
            self._window.clear()
            handle._attempt = 0
        elif run.ready_at is not None and now - run.ready_at >= self.strategy.backoff.reset_after:
            handle._attempt = 0
        incident = Incident(now, handle.name, handle.incarnation, reason)
        handle.last_incident = incident
        handle.state = "backoff"
        if self.strategy.affects != "one":  # siblings must be stopped first: the supervisor's task does that
            self._groups.crashed(handle, incident)
            self._ring()
            return
        delay = self._account(handle, incident)
        if delay is not None:  # this is plan() for one-for-one, without looking at 10,000 siblings
            handle.restarts += 1
            self._launch(handle, delay)

    def _account(self, handle: ChildHandle, incident: Incident) -> float | None:
        """Count an incident: the backoff before the restart in seconds, or None if it was one too many."""
        if self._window.record(incident):
            self._failure = SupervisorFailed(self.path, self.strategy, self._window.incidents)
            self._retire(handle, "failed")
            report.gave_up(self.path, self._failure, self._failure.incidents)
            self._end(failing=True)
            return None
        delay = self.strategy.backoff.delay(handle._attempt, random.random())
        handle._attempt += 1
        report.restarting(self.path, handle.name, delay, len(self._window), incident.reason)
        return delay

    # ---- the supervisor's own task

    def _ending_reason(self) -> BaseException | None:
        if len(self._fatal) > 1:
            return BaseExceptionGroup(f"children of supervisor {self.path!r} asked to exit", self._fatal)
        return self._fatal[0] if self._fatal else self._failure

    def _end(self, failing: bool = False) -> None:
        """Start nothing any more, and have the supervisor's task stop the children."""
        if failing and self._on_failing is not None:
            self._on_failing()
        if not self._ending:
            self._ending = True
            if not self._done.is_set():
                self.state = "stopping"
        self._ring()

    def _ring(self) -> None:
        self._bell.set()

    async def _listen(self, until: float = math.inf) -> None:
        """Wait for the bell, at most to ``until`` on trio's clock. Callers look again at what they wait
        for.
        """
        if until == math.inf:
            await self._bell.wait()
        else:
            with trio.move_on_at(until):
                await self._bell.wait()
        self._bell = trio.Event()


def _start_soon(nursery: trio.Nursery, run: Incarnation, args: tuple[Any, ...], label: str) -> None:
    nursery.start_soon(run.run, *args, name=label)


async def _run_nested(spec: SupervisorSpec, *, task_status: trio.TaskStatus[Supervisor]) -> None:
    """What the incarnation of a nested supervisor runs."""
    handle = current_child()
    nested = handle._nested = Supervisor(spec.strategy, spec.name, handle=handle)
    trap_stop(nested._end)
    await serve(nested, spec.children, task_status.started)
