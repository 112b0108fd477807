"""`open_app`: an App brought to life in a trio program, and the handle on that run.

The tree, in start order (it stops in reverse): messaging (transport, producer, conductor, commits), services (helpers of
streams, late declarations), agents (one supervisor each), tasks, timers. All agents, tasks and timers get their
chance to restart under a supervisor of their own kind; when one of those gives up, the run fails.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from itertools import chain
from math import inf
from typing import Any, Literal, TypeVar, overload

import attrs
import trio

from ..actors.agent import Agent
from ..actors.agent_run import AgentRun
from ..actors.replies import Replies
from ..actors.reply_topic import ReplyReader
from ..channels.asyncio_hint import explained
from ..channels.channel import Channel
from ..channels.counters import Statistics
from ..channels.errors import AppNotRunning, ImproperlyConfigured
from ..channels.hand import Hand, current_hand
from ..channels.runs import Declaration, Run
from ..channels.subscription import close_readers
from ..supervision import (
    ChildSpec,
    CrashingSupervisor,
    OneForOneSupervisor,
    Spec,
    Supervisor,
    SupervisorStrategy,
    TreeNode,
    TreeSpec,
    child,
    current_child,
    open_supervisor,
    supervisor,
    trap_stop,
)
from ..supervision.specs import StopOrder
from .app import App
from .bound import BoundAgent
from .connecting import Connection, make_transport
from .declare import (
    AgentDecorator,
    Declarations,
    Declared,
    ServiceDeclaration,
    TaskDeclaration,
    TimerDeclaration,
    name_taken,
)
from .placing import TreeLike, as_tree, place
from .settings import Settings
from .timers import run_timer

__all__ = ["BoundAgent", "RunningApp", "open_app", "open_run"]

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("famulus.app")

Kind = Literal["services", "agents", "tasks", "timers"]
"""The supervisors that run what a declared tree does not name."""


class RunningApp(Declarations):
    """A live run of an App, made by `open_app`. What is declared on it starts at once and ends with it.

    Attributes:
        app: the declaration.
        settings: frozen at start.
    """

    def __init__(self, app: App, settings: Settings, run: Run, tree: TreeSpec | None) -> None:
        """
        Raises:
            ImproperlyConfigured: the tree does not fit what is declared.
        """
        self.app = app
        self.settings = settings
        self._run = run
        self._agents = {agent.name: AgentRun(run, agent) for agent in app.agents.values()}
        self._specs: dict[Kind, list[Spec]] = {"services": [], "agents": [], "tasks": [], "timers": []}
        for agent_run in self._agents.values():
            self._specs["agents"].append(agent_run.spec())
        declarations: list[ServiceDeclaration | TaskDeclaration | TimerDeclaration] = [
            *app.services,
            *app.tasks,
            *app.timers,
        ]
        for declared in declarations:
            kind, spec = self._spec_of(declared)
            self._specs[kind].append(spec)
        self._placed = place(tree, chain.from_iterable(self._specs.values()))
        self._up = trio.Event()  # the agents are at their streams, and the partitions assigned
        self._timer_starts: dict[TimerDeclaration, float] = {}
        self._late, self._late_receive = trio.open_memory_channel[Callable[[], Awaitable[None]]](inf)  # see _adopt
        self._supervisors: dict[Kind, Supervisor] = {}

    @property
    def id(self) -> str:
        """The App's id."""
        return self.app.id

    @property
    def _declaration(self) -> Declaration:
        return self.app

    # -- the handle ----------------------------------------------------------------------------------------

    @overload
    def agent(self, channel: Agent[T, R], /) -> BoundAgent[T, R]: ...
    @overload
    def agent(self, channel: Channel[Any] | str | None = None, **options: Any) -> AgentDecorator: ...
    def agent(self, channel: Any = None, **options: Any) -> Any:
        """Given an agent: that agent in this run. Else as `App.agent`: declare one, which starts at once."""
        if isinstance(channel, Agent):
            return BoundAgent(self._run, channel)
        return super().agent(channel, **options)

    def current(self) -> AbstractContextManager[None]:
        """Within ``with running.current():`` the App's declared objects mean this run."""
        return self._run.current()

    def tree(self) -> TreeNode:
        """The supervision tree as frozen data."""
        return self._run.tree()

    def statistics(self) -> Statistics:
        """The counts of this run so far, and how far it has come in the partitions that it reads."""
        return self._run.counters.snapshot(self._run.conductor.partition_statistics())

    def stop(self) -> None:
        """Ask the run to stop. `wait_stop` returns; leaving `open_app` is what stops it."""
        self._run.stop_requested.set()

    async def wait_stop(self) -> None:
        """Wait until somebody asks the run to stop."""
        await self._run.stop_requested.wait()

    async def commit(self) -> None:
        """Commit what is acknowledged now, without waiting for the interval. Cancelling this ends the wait only.

        Raises:
            CommitRefused: other workers own the partitions now.
            BrokerUnavailable, TooSlowError: it will be tried again.
            AppNotRunning: the run ended meanwhile.
        """
        await self._run.conductor.commits.commit()

    def __repr__(self) -> str:
        return f"<RunningApp {self.app.id} agents={len(self._agents)}>"

    # -- declarations on a running app ---------------------------------------------------------------------

    def _check_new(self, name: str) -> None:
        if name in self._agents or name in self.app.agents:
            raise ImproperlyConfigured(name_taken(self.id, name))

    def _adopt(self, declared: Declared) -> None:
        """Have it started by the services' task; a decorator cannot wait. Bounded by the program's own declarations."""
        if isinstance(declared, Agent):
            self._check_new(declared.name)
            agent_run = self._agents[declared.name] = AgentRun(self._run, declared)
            self._start_soon(lambda: self._start_late_agent(agent_run))
        elif isinstance(declared, TaskDeclaration | TimerDeclaration | ServiceDeclaration):
            kind, spec = self._spec_of(declared)
            if any(other.name == spec.name for other in self._specs[kind]):
                raise ImproperlyConfigured(
                    f"app {self.id!r} has {spec.name!r} among its {kind} already: give another name"
                )
            self._specs[kind].append(spec)
            self._start_soon(lambda: self._start_late_child(kind, spec))

    def _start_soon(self, start: Callable[[], Awaitable[None]]) -> None:
        try:
            self._late.send_nowait(start)
        except trio.ClosedResourceError:
            raise AppNotRunning(f"app {self.id!r} is stopping: nothing can be declared on it any more") from None

    async def _start_late(self) -> None:
        trap_stop(self._late.close)
        async for start in self._late_receive:
            await start()

    # -- the tree ------------------------------------------------------------------------------------------

    async def _start(self, root: Supervisor) -> None:
        """Bring everything up, in order."""
        run, settings = self._run, self.settings
        drain = settings.stream_drain_timeout + settings.producer_flush_timeout + settings.broker_commit_timeout
        connection = Connection(run, settings)
        messaging = supervisor(
            OneForOneSupervisor,
            connection.spec(),
            child(run.producer.callbacks.run, name="callbacks", shutdown=settings.producer_flush_timeout),
            child(run.producer.run, name="producer", shutdown=settings.producer_flush_timeout),
            child(run.conductor.run, name="conductor", shutdown=drain + settings.shutdown_timeout + 1),
            child(run.conductor.commits.run, name="commits"),
            name="messaging",
        )
        await connection.start(root, messaging)
        if settings.consumer_group_instance_id is not None:
            await root.start(child(run.conductor.watch_membership, name="membership", shutdown=None))
        await self._start_supervisor("services", OneForOneSupervisor)
        run.services = self._supervisors["services"]
        if run.transport.crosses_processes:
            await run.services.start(child(ReplyReader(run).run, name="replies", shutdown=settings.shutdown_timeout))
        for topic in self.app.topics.values():
            await topic.prepare(run)
        await self._start_unplaced("services")
        for agent_run in self._agents.values():
            await agent_run.subscription.start()
        if self._placed.spec is not None:
            await root.start(self._placed.spec)
        await self._start_supervisor("agents", CrashingSupervisor)
        await self._start_supervisor("tasks", OneForOneSupervisor)
        await self._start_supervisor("timers", OneForOneSupervisor)
        await self._start_unplaced("agents")
        for agent_run in self._agents.values():
            agent_run.started.set()
        await self._wait_ready()
        self._up.set()
        await self._start_unplaced("tasks")
        await self._start_unplaced("timers")
        await run.services.start(child(self._start_late, name="late declarations", restart="transient"))

    async def _start_supervisor(self, kind: Kind, strategy: type[SupervisorStrategy]) -> None:
        assert self._run.root is not None, "set first"
        # Services may use each other: those declared later are stopped first.
        order: StopOrder = "reverse" if kind == "services" else "together"
        handle = await self._run.root.start(supervisor(strategy, name=kind, stop=order))
        self._supervisors[kind] = handle.supervisor

    async def _start_unplaced(self, kind: Kind) -> None:
        """Start what the declared tree does not name, each in its default place."""
        for spec in self._specs[kind]:
            if spec.name not in self._placed.names:
                await self._supervisors[kind].start(spec)

    async def _start_late_agent(self, agent_run: AgentRun) -> None:
        try:
            await agent_run.subscription.start()
            await self._supervisors["agents"].start(agent_run.spec())
            agent_run.started.set()
        except Exception as error:
            agent_run.not_started(error)
            raise

    async def _start_late_child(self, kind: Kind, spec: Spec) -> None:
        """Nobody waits for it to be ready, nor takes the failure of its first start: it is restarted like any other."""
        if isinstance(spec, ChildSpec) and spec.wants_status:
            spec = attrs.evolve(spec, fn=partial(spec.fn, task_status=trio.TASK_STATUS_IGNORED), wants_status=False)
        await self._supervisors[kind].start(spec)

    def _spec_of(self, declared: TaskDeclaration | TimerDeclaration | ServiceDeclaration) -> tuple[Kind, Spec]:
        """How a declaration runs, and where by default."""
        drain = self.settings.task_drain_timeout
        if isinstance(declared, TaskDeclaration):
            run_task = child(
                self._run_task, declared.fun, Hand(), name=declared.name, restart="transient", shutdown=drain
            )
            return "tasks", run_task
        if isinstance(declared, TimerDeclaration):
            return "timers", child(self._run_timer, declared, name=declared.name)
        service = child(declared.fun, name=declared.name, restart=declared.restart, shutdown=drain)
        return "services", service

    async def _run_task(self, fun: Callable[[], Awaitable[object]], hand: Hand) -> None:
        """Run a task's function. Streams that it made end with it; after a crash they wait for it to come back."""
        await self._up.wait()
        current_hand.set(hand)
        hand.begin()
        try:
            await fun()
            hand.finish()
            # With the run ending, leaving would only begin a rebalance that the stop has to wait for.
            hand.close_made(leave=current_child().state != "stopping" and not self._run.stop_requested.is_set())
        except RuntimeError as error:
            explained(error)
            raise
        finally:
            hand.give_back()

    async def _run_timer(self, timer: TimerDeclaration) -> None:
        await self._up.wait()
        start = self._timer_starts.setdefault(timer, trio.current_time())
        try:
            await run_timer(timer.fun, timer.interval, start)
        except RuntimeError as error:
            explained(error)
            raise

    async def _wait_ready(self) -> None:
        """Wait until the actors have come to their streams and the partitions are assigned.

        Raises:
            ImproperlyConfigured: a stream found that it cannot work as declared.
        """
        patience = self.settings.stream_ready_timeout
        with trio.move_on_after(patience) as waiting:
            self._run.on_refusal = waiting.cancel
            for agent_run in self._agents.values():
                await agent_run.wait_reached()
        if self._run.refusal is not None:
            raise self._run.refusal
        for agent_run in self._agents.values():
            if not agent_run.reached:
                log.warning(
                    "agent %s has not come to its stream within %g s; going on without it",
                    agent_run.agent.name,
                    patience,
                )
        self._run.conductor.begin()
        await self._run.conductor.wait_assigned()
        with trio.move_on_after(patience) as waiting:
            self._run.on_refusal = waiting.cancel
            for agent_run in self._agents.values():
                if agent_run.isolated:  # its actors come with the assignment
                    await agent_run.wait_reached()
        if self._run.refusal is not None:
            raise self._run.refusal


@asynccontextmanager
async def open_app(
    app: App | str | None = None, /, *, tree: TreeLike | None = None, **settings: Any
) -> AsyncIterator[RunningApp]:
    """Run an App around the body of an ``async with`` block.

    The body begins once partitions are assigned and agents are at their streams. When it ends, in whatever way, the run
    is stopped in order: timers and tasks, agents (each finishes the event in hand), the last commit, the producer's
    buffer, the connection.

    Args:
        app: a declaration; a name, or nothing, makes an empty one, to declare on while it runs. Without a name nothing of it
            can outlive the run, so its broker is ``memory://`` by default.
        tree: which supervisor runs what, instead of the App's own tree: `tree(...)`, or the same as a table of plain values.
        settings: override the App's and the environment's; see `Settings`.

    Error handling: a failure of the body alone leaves bare. A failure of the tree cancels the body and leaves as one
    ``ExceptionGroup`` holding a `SupervisorFailed` with its history; if the body failed as well, the group holds both. What
    keeps the tree from starting leaves as an ``ExceptionGroup`` too. A broker that cannot be reached is waited for; with the
    setting `broker_start_timeout` only so long, then the group holds a `BrokerUnavailable`.

    Raises:
        ImproperlyConfigured: a wrong setting or tree; nothing has started then.
    """
    async with open_run(app, tree=tree, **settings) as running:
        yield running


@asynccontextmanager
async def open_run(
    app: App | str | None = None,
    /,
    *,
    tree: TreeLike | None = None,
    before: Callable[[RunningApp], Spec] | None = None,
    **settings: Any,
) -> AsyncIterator[RunningApp]:
    """`open_app`, with a child of the root that runs before everything else."""
    declaration = app if isinstance(app, App) else App(app) if app else App("famulus", broker="memory://")
    frozen = declaration.settings(**settings)
    run = Run(declaration, frozen, make_transport(declaration, frozen))
    declared = declaration.declared_tree if tree is None else as_tree(tree, where="tree")
    running = RunningApp(declaration, frozen, run, declared)
    with run.entered():
        try:
            async with open_supervisor(CrashingSupervisor, name=declaration.id) as root:
                try:
                    run.root = root
                    if before is not None:
                        await root.start(before(running))
                    await running._start(root)
                except Exception as error:
                    raise ExceptionGroup(f"app {declaration.id!r} did not start", [error]) from None
                yield running
        finally:
            close_readers(run)
            run.producer.close()
            run.conductor.commits.close()
            Replies.of(run).close()
            with trio.CancelScope(shield=True):
                await run.errands.over()
