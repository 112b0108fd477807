"""An agent in a run: its subscription, its actors, and what can be done with them.

The actors stand under one supervisor. With isolated partitions they come and go with the assignment: see `actors.partitions`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ..channels.crew import Crew
from ..channels.errors import AppNotRunning
from ..channels.hand import current_hand
from ..channels.runs import Run
from ..channels.stacks import stack_of
from ..channels.subscription import Subscription
from ..channels.topic import Topic
from ..supervision import (
    ChildHandle,
    Supervisor,
    SupervisorSpec,
    SupervisorStopping,
    UnknownChild,
    child,
    supervisor,
)
from .actor import Actor
from .agent import Agent
from .errors import AgentError
from .failure import Failures
from .info import AgentInfo, AgentState
from .partitions import IsolatedActors
from .replies import Replies
from .sinks import as_sink, await_sinks
from .waiting import enroll

__all__ = ["AgentRun"]

log = logging.getLogger("famulus.agent")


class AgentRun:
    """An agent in a run: its subscription and its actors. `of` finds it.

    Attributes:
        sinks: the declared ones, and those that were added in this run.
        cancelled: whether it was stopped for good.
        started: set once its supervisor is up, or it is known that it will not be.
    """

    def __init__(self, run: Run, agent: Agent[Any, Any]) -> None:
        self.run = run
        self.agent = agent
        self.sinks: list[Any] = list(agent.sinks)
        self.cancelled = False
        self.pouring = 0  # actors that wait for room in the channel that the agent reads itself
        options = agent.options
        self.failures = Failures(run, agent, options.on_failure, options.max_attempts, backoff=options.strategy.backoff)
        self._supervisor: Supervisor | None = None
        self.started = trio.Event()
        self._failure: Exception | None = None
        self._sinks_are_there = not agent.sinks
        self._looking_for_sinks = trio.Lock()
        self.lock = trio.Lock()  # held by whoever starts or ends its actors
        self._actors: dict[int, Actor] = {}
        self.crew = Crew() if options.concurrency > 1 or options.isolated_partitions else None
        self._isolated: IsolatedActors | None = None
        self.subscription: Subscription
        if options.isolated_partitions:
            self._isolated = IsolatedActors(self, self._actors)
            self.subscription = self._isolated.subscription
        else:
            self.subscription = agent.channel.subscribe(run, agent.name, shared=options.concurrency > 1)
            for index in range(options.concurrency):
                self._actors[index] = Actor(self, index, self.subscription, f"{agent.name}[{index}]")
        enroll(run, agent, self)

    @classmethod
    def of(cls, run: Run, agent: Agent[Any, Any]) -> AgentRun:
        """
        Raises:
            AppNotRunning: the agent is not one of this run's.
        """
        found: AgentRun | None = run.found(("actors", agent))
        if found is None:
            if Replies.of(run).is_client:
                raise AppNotRunning(
                    f"agent {agent.name} does not run in this client, which can only send to it and ask it: look at the "
                    "workers with `famulus tree`, or call this in the app itself"
                )
            raise AppNotRunning(
                f"agent {agent.name} is none of those of {run!r}: it was declared on another run, or on the App after this "
                "one began, which `@running.agent(...)` is for"
            )
        return found

    @property
    def actors(self) -> list[Actor]:
        """In the order of their index."""
        return [actor for _, actor in sorted(self._actors.items())]

    def spec(self) -> SupervisorSpec:
        """The agent's supervisor with its actors. They are started once the subscription is."""
        options = self.agent.options
        if self._isolated is None:
            children = [child(actor.play, name=actor.name, shutdown=options.drain) for actor in self.actors]
        else:
            children = [child(self._isolated.follow, name=f"{self.agent.name}[assignment]", shutdown=options.drain)]
        return supervisor(options.strategy, *children, name=self.agent.name, stop="together")

    async def wait_for_sinks(self) -> None:
        """Wait until the broker has the topics that are its sinks. The first of its actors does, and says so."""
        if not self._sinks_are_there:
            async with self._looking_for_sinks:
                if not self._sinks_are_there:
                    await await_sinks(self.run, self.agent)
                    self._sinks_are_there = True

    def begun(self, handle: ChildHandle) -> None:
        """One of its children runs, and so its supervisor does."""
        self._supervisor = handle.parent

    def not_started(self, error: Exception) -> None:
        """It cannot be started in this run."""
        self._failure = error
        self.started.set()
        Replies.of(self.run).fail(self.agent.name, error)

    def actor_ended(self) -> None:
        """One of its actors has returned for good. With the last one, nobody here answers any more."""
        if all(actor.ended for actor in self._actors.values()):
            error = AgentError(self.agent.name, "it has returned, and is not started again by itself")
            Replies.of(self.run).fail(self.agent.name, error, for_good=not isinstance(self.agent.channel, Topic))

    def revived(self) -> None:
        """An actor that had returned for good has been started again."""
        Replies.of(self.run).revive(self.agent.name)

    # -- being ready -----------------------------------------------------------------------------------------

    @property
    def isolated(self) -> bool:
        """Whether its actors come with the assignment."""
        return self._isolated is not None

    @property
    def reached(self) -> bool:
        """Whether every actor has come to its stream."""
        return all(actor.reached.is_set() for actor in self._actors.values())

    async def wait_reached(self) -> None:
        """Wait until every actor has come to its stream."""
        for actor in self.actors:
            await actor.reached.wait()

    # -- what users do with it -------------------------------------------------------------------------------

    def add_sink(self, sink: Any) -> None:
        """See `Agent.add_sink`."""
        self.sinks.append(as_sink(sink, self.agent))

    async def cancel(self) -> None:
        """See `Agent.cancel`."""
        await self._carry_out("cancel", self._cancel)

    async def restart(self) -> None:
        """See `Agent.restart`."""
        self._check_restartable()
        await self._carry_out("restart", self._restart)

    def _check_restartable(self) -> None:
        if self.cancelled:
            raise AgentError(self.agent.name, "it was cancelled, which is for the rest of the run")
        if self._failure is not None:
            raise AgentError(self.agent.name, f"it could not be started: {self._failure}") from self._failure

    async def _carry_out(self, verb: str, work: Callable[[], Awaitable[None]]) -> None:
        """Have it done by a task of the run, so that cancelling the call ends the wait only."""
        services, root, name = self.run.services, self.run.root, self.agent.name
        if services is None or root is None:
            raise AppNotRunning(f"app {self.run.app.id!r} is still starting")
        if root.state in ("stopping", "stopped", "failed"):
            raise AppNotRunning(f"app {self.run.app.id!r} is stopping, and its agents with it")
        finished = False
        over = trio.Event()
        failures: list[Exception] = []

        async def carry_out() -> None:
            nonlocal finished
            try:
                async with self.lock:
                    await work()
                finished = True
            except Exception as error:
                failures.append(error)
            finally:
                over.set()

        numbers = (f"{verb} {name}" if not number else f"{verb} {name} ({number})" for number in range(10_000))
        label = next(label for label in numbers if label not in services.children)
        try:
            await services.start(child(carry_out, name=label, restart="temporary"))
        except SupervisorStopping:
            raise AppNotRunning(f"app {self.run.app.id!r} is stopping, and its agents with it") from None
        hand = current_hand.get()
        if hand is not None and hand.owner in self._actors.values():
            return  # it would wait for its own end
        await over.wait()
        if failures:
            raise failures[0]
        if not finished:
            raise AppNotRunning(f"app {self.run.app.id!r} has stopped meanwhile")

    async def _cancel(self) -> None:
        if self.cancelled:
            return
        self.cancelled = True
        log.info("agent %s was cancelled, for the rest of the run", self.agent.name)
        await self.started.wait()
        if self._supervisor is not None:
            handle = self._supervisor.handle
            assert handle is not None, "an agent's supervisor is nobody's root"
            await handle.terminate()
        error = AgentError(self.agent.name, "it was cancelled before it answered")
        # Workers elsewhere may read the same topic, and answer what is asked from now on.
        Replies.of(self.run).fail(self.agent.name, error, for_good=not isinstance(self.agent.channel, Topic))
        for actor in self.actors:
            actor.leave()
        self.subscription.close(leave=True)

    async def _restart(self) -> None:
        await self.started.wait()
        self._check_restartable()
        assert self._supervisor is not None, "it has started"
        children = self._supervisor.children
        handles = [children[actor.name] for actor in self.actors if actor.name in children]
        log.info("agent %s is restarted: %d actors", self.agent.name, len(handles))
        for verb in ("terminate", "restart"):
            errors: list[Exception] = []
            async with trio.open_nursery() as nursery:
                for handle in handles:
                    nursery.start_soon(_attempt, getattr(handle, verb), errors)
            if errors:
                raise errors[0]

    # -- what it tells ---------------------------------------------------------------------------------------

    @property
    def _state(self) -> AgentState:
        if self.cancelled:
            return "cancelled"
        if self._supervisor is None:
            return "starting" if self._failure is None else "stopped"
        states: dict[str, AgentState] = {"starting": "starting", "running": "running", "stopping": "stopping"}
        state = states.get(self._supervisor.state, "stopped")
        return "starting" if state == "running" and not self.reached else state

    def info(self) -> AgentInfo:
        """See `Agent.info`."""
        channel, failures, subscription = self.agent.channel, self.failures, self.subscription
        delivered = subscription.delivered
        return AgentInfo(
            name=self.agent.name,
            channel=channel.name,
            topics=tuple(getattr(channel, "topics", ())),
            state=self._state,
            concurrency=self.agent.options.concurrency,
            actors=tuple(actor.info() for actor in self.actors),
            partitions=None if self._isolated is None else self._isolated.wanted,
            buffered=subscription.buffered,
            taken=None if delivered is None else delivered - subscription.buffered,
            failed=failures.failed,
            retried=failures.retried,
            dead_lettered=failures.dead_lettered,
        )

    def actor_tracebacks(self) -> dict[str, str]:
        """See `Agent.actor_tracebacks`."""
        return {actor.name: stack_of(actor.task) for actor in self.actors if actor.task is not None}

    def __repr__(self) -> str:
        return f"<AgentRun {self.agent.name} actors={len(self._actors)}>"


async def _attempt(call: Callable[[], Awaitable[None]], errors: list[Exception]) -> None:
    try:
        await call()
    except UnknownChild:  # it has gone with its partition
        pass
    except SupervisorStopping as error:
        errors.append(AppNotRunning(str(error)))
    except Exception as error:
        errors.append(error)
