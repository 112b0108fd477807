"""`open_app`: an App brought to life in a trio program, and the handle on that run.

The tree, in start order (it stops in reverse): messaging (transport, producer, conductor, commits), services (helpers of
streams, late declarations), agents (one supervisor each), tasks, timers. All agents, tasks and timers get their
chance to restart under a supervisor of their own kind; when one of those gives up, the run fails.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from math import inf
from typing import Any, Generic, TypeVar, overload

import trio

from ..actors.actor import AgentRun
from ..actors.agent import Agent
from ..actors.replies import Replies
from ..channels.channel import Channel
from ..channels.counters import Statistics
from ..channels.errors import AppNotRunning, ImproperlyConfigured, TransportError
from ..channels.hand import Hand, current_hand
from ..channels.retry import Retry
from ..channels.runs import Declaration, Run
from ..channels.topic import Topic
from ..channels.transport import TransportOptions, load_transport
from ..supervision import (
    CrashingSupervisor,
    OneForOneSupervisor,
    Supervisor,
    TreeNode,
    child,
    current_child,
    open_supervisor,
    supervisor,
    trap_stop,
)
from .app import App
from .declare import AgentDecorator, Declarations, TaskDeclaration, TimerDeclaration
from .settings import Settings
from .timers import run_timer

__all__ = ["BoundAgent", "RunningApp", "open_app"]

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("famulus.app")


class BoundAgent(Generic[T, R]):
    """An agent of one particular run, for when several runs of its App are live."""

    def __init__(self, run: Run, agent: Agent[T, R]) -> None:
        self._run = run
        self._agent = agent

    async def ask(self, value: T | None = None, **options: Any) -> R:
        """See `Agent.ask`."""
        with self._run.current():
            return await self._agent.ask(value, **options)

    async def cast(self, value: T | None = None, **options: Any) -> None:
        """See `Agent.cast`."""
        with self._run.current():
            await self._agent.cast(value, **options)

    def __repr__(self) -> str:
        return f"<BoundAgent {self._agent.name} in {self._run!r}>"


class RunningApp(Declarations):
    """A live run of an App, made by `open_app`. What is declared on it starts at once and ends with it.

    Attributes:
        app: the declaration.
        settings: frozen at start.
    """

    def __init__(self, app: App, settings: Settings, run: Run) -> None:
        self.app = app
        self.settings = settings
        self._run = run
        self._agents: dict[str, AgentRun] = {}
        self._late, self._late_receive = trio.open_memory_channel[Callable[[], Awaitable[None]]](inf)  # see _adopt
        self._supervisors: dict[str, Supervisor] = {}

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
        """The counts of this run so far."""
        return self._run.counters.snapshot()

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

    def _adopt(self, declared: Agent[Any, Any] | Topic[Any] | TaskDeclaration | TimerDeclaration) -> None:
        """Have it started by the services' task; a decorator cannot wait. Bounded by the program's own declarations."""
        if isinstance(declared, Agent):
            if declared.name in self._agents or declared.name in self.app.agents:
                raise ImproperlyConfigured(f"app {self.id!r} has an agent {declared.name!r} already: give name=")
            agent_run = self._agents[declared.name] = AgentRun(self._run, declared)
            self._start_soon(lambda: self._start_late_agent(agent_run))
        elif isinstance(declared, TaskDeclaration):
            self._start_soon(lambda: self._start_task(declared))
        elif isinstance(declared, TimerDeclaration):
            self._start_soon(lambda: self._start_timer(declared))

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
        run.root = root
        drain = settings.stream_drain_timeout + settings.producer_flush_timeout + settings.broker_commit_timeout
        await root.start(
            supervisor(
                OneForOneSupervisor,
                child(self._hold_transport, name="transport", shutdown=settings.shutdown_timeout + 1),
                child(run.producer.callbacks.run, name="callbacks", shutdown=settings.producer_flush_timeout),
                child(run.producer.run, name="producer", shutdown=settings.producer_flush_timeout),
                child(run.conductor.run, name="conductor", shutdown=drain + settings.shutdown_timeout + 1),
                child(run.conductor.commits.run, name="commits"),
                name="messaging",
            )
        )
        services = await root.start(supervisor(OneForOneSupervisor, name="services", stop="together"))
        run.services = services.supervisor
        for name, strategy in (
            ("agents", CrashingSupervisor),
            ("tasks", OneForOneSupervisor),
            ("timers", OneForOneSupervisor),
        ):
            self._supervisors[name] = (await root.start(supervisor(strategy, name=name, stop="together"))).supervisor
        for topic in self.app.topics.values():
            await topic.prepare(run)
        for agent in self.app.agents.values():
            agent_run = self._agents[agent.name] = AgentRun(run, agent)
            await self._start_agent(agent_run)
        await self._wait_ready()
        for task in self.app.tasks:
            await self._start_task(task)
        for timer in self.app.timers:
            await self._start_timer(timer)
        await services.supervisor.start(child(self._start_late, name="late declarations", restart="transient"))

    async def _hold_transport(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Connect, trying again while the broker is away, and stay connected until asked to stop."""
        stop = trap_stop()
        retry = Retry("connecting", self.settings, log)
        connected = False
        while not connected:
            try:
                async with self._run.transport.open():
                    connected = True
                    retry.clear()
                    task_status.started()
                    await stop.wait()
            except TransportError as error:
                if connected:  # a connection that broke is a crash: the supervisor makes another
                    raise
                await retry.wait(error)

    async def _start_late_agent(self, agent_run: AgentRun) -> None:
        try:
            await self._start_agent(agent_run)
        except Exception as error:
            Replies.of(self._run).fail(agent_run.agent.name, error)
            raise

    async def _start_agent(self, agent_run: AgentRun) -> None:
        await agent_run.start(self._supervisors["agents"])

    async def _start_task(self, task: TaskDeclaration) -> None:
        spec = child(
            _run_task, task.fun, Hand(), name=task.name, restart="transient", shutdown=self.settings.task_drain_timeout
        )
        await self._supervisors["tasks"].start(spec)

    async def _start_timer(self, timer: TimerDeclaration) -> None:
        await self._supervisors["timers"].start(
            child(run_timer, timer.fun, timer.interval, trio.current_time(), name=timer.name)
        )

    async def _wait_ready(self) -> None:
        """Wait until the actors have come to their streams and the partitions are assigned."""
        patience = self.settings.stream_ready_timeout
        with trio.move_on_after(patience):
            for agent_run in self._agents.values():
                await agent_run.wait_reached()
        for agent_run in self._agents.values():
            if not agent_run.reached:
                log.warning(
                    "agent %s has not come to its stream within %g s; going on without it",
                    agent_run.agent.name,
                    patience,
                )
        self._run.conductor.begin()
        await self._run.conductor.wait_assigned()


async def _run_task(fun: Callable[[], Awaitable[object]], hand: Hand) -> None:
    """Run a task's function. Streams that it made end with it; after a crash they wait for it to come back."""
    current_hand.set(hand)
    hand.begin()
    try:
        await fun()
        hand.finish()
        hand.close_made(leave=current_child().state != "stopping")
    finally:
        hand.give_back()


@asynccontextmanager
async def open_app(app: App | str | None = None, /, **settings: Any) -> AsyncIterator[RunningApp]:
    """Run an App around the body of an ``async with`` block.

    The body begins once partitions are assigned and agents are at their streams. When it ends, in whatever way, the run
    is stopped in order: timers and tasks, agents (each finishes the event in hand), the last commit, the producer's
    buffer, the connection.

    Args:
        app: a declaration; a name, or nothing, makes an empty one, to declare on while it runs.
        settings: override the App's and the environment's; see `Settings`.

    Error handling: a failure of the body alone leaves bare. A failure of the tree cancels the body and leaves as one
    ``ExceptionGroup`` holding a `SupervisorFailed` with its history; if the body failed as well, the group holds both. What
    keeps the tree from starting leaves as an ``ExceptionGroup`` too.

    Raises:
        ImproperlyConfigured: a wrong setting; nothing has started then.
    """
    declaration = app if isinstance(app, App) else App(app or "famulus")
    frozen = declaration.settings(**settings)
    transport = load_transport(
        frozen.broker,
        TransportOptions(
            client_id=frozen.client_id or declaration.id,
            default_partitions=frozen.topic_partitions,
            commit_timeout=frozen.broker_commit_timeout,
            shutdown_timeout=frozen.shutdown_timeout,
        ),
    )
    run = Run(declaration, frozen, transport)
    running = RunningApp(declaration, frozen, run)
    with run.entered():
        try:
            async with open_supervisor(CrashingSupervisor, name=declaration.id) as root:
                try:
                    await running._start(root)
                except Exception as error:
                    raise ExceptionGroup(f"app {declaration.id!r} did not start", [error]) from None
                yield running
        finally:
            run.producer.close()
            run.conductor.commits.close()
            Replies.of(run).close()
