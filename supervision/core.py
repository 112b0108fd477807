"""The supervisor: it holds the children, decides with the pure modules what their exits mean, and carries
that out.

Restarts under one-for-one happen in the task that has just ended; the supervisor's own task
(:mod:`.serving`) starts the declared children, carries out group restarts, and stops everything in
reverse order at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import trio

from .errors import ChildActive, DuplicateChild, SupervisorFailed, SupervisorStopping, UnknownChild
from .exits import forget, retire
from .groups import GroupRestarts
from .handle import ChildHandle, current_child, current_child_or_none, trap_stop
from .runner import Incarnation
from .serving import serve
from .specs import ChildSpec, PoolSpec, Spec, SupervisorSpec, check_siblings
from .strategies import SupervisorStrategy
from .turns import StartWaiter, Turn
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
        self.stops_together = False
        self._handle = handle
        self._on_failing = on_failing
        self._children: dict[str, ChildHandle] = {}
        self._window = IncidentWindow(strategy.max_restarts, strategy.within)
        self._template: ChildSpec | None = None  # what all children of a pool are
        self._numbers = itertools.count(1)  # their names
        self._turn = Turn()
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
    def handle(self) -> ChildHandle | None:
        """What it is to the supervisor above it; None for the root."""
        return self._handle

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
            TypeError: The supervisor is a pool.
            Exception: The failure of the start, bare; the child is forgotten.
        """
        if self._template is not None:
            raise TypeError(f"supervisor {self.path!r} is a pool, whose children are alike: use start_child(*args)")
        handle = self._adopt(spec)
        await self._launch_by_hand(handle)
        return handle

    async def start_child(self, *args: object) -> ChildHandle:
        """Start one more child of a pool, as ``fn(*args of the pool's child, *args)``; return when it is ready.

        A pool starts one child at a time: calls wait for each other, in their order. The child's name is the template's with
        a number. When it has ended and will not run again, it is forgotten. If this call is cancelled before, so is the child.

        Raises:
            TypeError: The supervisor is no pool.
            SupervisorStopping: As for :meth:`start`.
            RuntimeError: A child of the pool calls this before it is ready, so they would wait for each other.
            Exception: The failure of the start, bare; the child is forgotten.
        """
        template = self._template
        if template is None:
            raise TypeError(f"supervisor {self.path!r} is no pool, and has no child to make more of: use start(spec)")
        turn = self._turn
        if turn.taken:
            starter = current_child_or_none()
            if (
                starter is not None
                and starter._supervisor is self
                and (starter.incarnation, starter.state) == (1, "starting")
            ):
                raise RuntimeError(
                    f"child {starter.label!r} calls start_child() of its own pool before it is ready: the pool starts "
                    f"one child at a time, so call it after task_status.started()"
                )
            await turn.wait()
        turn.taken = True
        try:
            self._check_open()
            name = f"{template.name}[{next(self._numbers)}]"
            handle = self._children[name] = ChildHandle(self, template, name, args)
            await self._launch_by_hand(handle)
        finally:
            turn.pass_on()
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
        forget(self, handle)

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
            specs=len(handles) if self._template is None else 1,
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
        handle = self._children[spec.name] = ChildHandle(self, spec, spec.name, ())
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
            args = spec.args + handle._args
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
        """Launch and wait until the child is ready; forget one whose first start fails."""
        waiter = StartWaiter(trio.lowlevel.current_task())
        waiter.run = run = self._launch(handle, by_hand=True, listener=waiter.settled)
        try:
            await trio.lowlevel.wait_task_rescheduled(waiter.abort)
            if run.ready_at is None:
                raise run.failure or SupervisorStopping(f"child {handle.label!r} was stopped while it was starting")
        except BaseException:
            if not run.ended:
                self._ask(handle, run, drain=False)
                with trio.CancelScope(shield=True):
                    await run.gone()
            if handle.incarnation == 1 and handle._run is None:
                forget(self, handle)
            raise

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
                retire(self, handle, "stopped")
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
            if handle._run is None:  # nobody has started it meanwhile
                handle._held = True
                self._groups.forget(handle)
                if handle.state == "backoff":  # its group was about to be restarted, with it
                    retire(self, handle, "stopped")
            raise

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
    nested.stops_together = spec.stop == "together"
    if isinstance(spec, PoolSpec):
        nested._template = spec.template
    trap_stop(nested._end)
    await serve(nested, spec.children, task_status.started)
