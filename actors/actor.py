"""Actors: they run an agent's function over its stream. One `Actor` per concurrent actor, or isolated partition.

An actor's hand and cursors outlive its incarnations: what was taken and not done is delivered again, to the next
incarnation, before anything new.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn

import trio

from ..channels.asyncio_hint import explained
from ..channels.event import Event, Request
from ..channels.hand import Hand, current_hand
from ..channels.message import Message
from ..channels.stream import Stream
from ..channels.subscription import Subscription
from ..models import NotReady
from ..supervision import ChildHandle, current_child, trap_stop
from .agent import Agent
from .errors import YieldInsideNursery
from .info import ActorInfo, ActorState
from .requests import AgentRequest
from .sinks import pour
from .waiting import Asker

if TYPE_CHECKING:  # it makes actors
    from .agent_run import AgentRun

__all__ = ["Actor", "current_agent"]

log = logging.getLogger("famulus.agent")


class Actor(Asker):
    """One of an agent's actors, across its incarnations."""

    def __init__(self, agent_run: AgentRun, index: int, subscription: Subscription, name: str) -> None:
        self._agent_run = agent_run
        self._agent = agent_run.agent
        self._subscription = subscription
        self.index = index
        self.name = name
        self.incarnation = 0
        self.reached = trio.Event()
        self._handle: ChildHandle | None = None
        self.task: trio.lowlevel.Task | None = None  # while it plays
        self._begun = self._interrupted = False
        self.ended = False  # it has returned, and is not started again by itself
        self._scope: trio.CancelScope | None = None
        self._before_sinks = trio.CancelScope()
        self._stuck: Exception | None = None
        self._hand = Hand(
            owner=self,
            prepare=self._prepare,
            interrupt=self._interrupt,
            fail=self._fail,
            failures=agent_run.failures,
            one_by_one=agent_run.agent.options.on_failure != "ack",
            refuse=self._refuse,
            crew=agent_run.crew,
        )
        self._hand.reached = self._has_reached

    @property
    def agent(self) -> Agent[Any, Any]:
        return self._agent

    @property
    def hand(self) -> Hand:
        return self._hand

    def _prepare(self, event: Event[Any]) -> None:
        event.request = AgentRequest.find(self._agent_run.run, self._agent, event.headers)

    def _refuse(self, message: Message, error: Exception) -> None:
        """A request that cannot be decoded is answered with the failure."""
        request = AgentRequest.find(self._agent_run.run, self._agent, message.headers)
        if request is not None:
            request.failed(error, Event(None, None, message.headers, message))

    def _stop(self) -> None:
        """Asked to stop, alone (a sibling's restart) or with everything; then what no log has is still processed."""
        self._before_sinks.cancel()
        self._hand.stop(drain=self._ends_with_run)

    @property
    def _ends_with_run(self) -> bool:
        """Whether nobody will start it again in this run."""
        root = self._agent_run.run.root
        return root is not None and root.state != "running"

    def leave(self) -> None:
        """It has ended, and will not be started again: close the streams that it made."""
        self._hand.close_made(leave=True, for_good=True)

    def _has_reached(self) -> None:
        """It has come to its stream, or to another one."""
        self.reached.set()
        if self._begun:
            return
        self._begun = True
        self._hand.come_to_first()
        if self._interrupted:  # while it was on its way, perhaps with streams that it makes there
            self._hand.close_spare_later()
        else:
            self._hand.close_spare()

    def _interrupt(self) -> None:
        """A rebalance cannot wait any longer for the event in hand."""
        if self._scope is not None:
            self._scope.cancel()

    def _fail(self, error: Exception) -> None:
        """The watchdog has lost its patience: the event in hand has failed."""
        self._stuck = error
        self._interrupt()

    async def play(self) -> None:
        """One incarnation: run the agent's function over the stream."""
        self._before_sinks = trio.CancelScope()
        stop = trap_stop(self._stop)
        hand = self._hand
        current_hand.set(hand)
        this = self._handle = current_child()
        self._agent_run.begun(this)
        if self._agent_run.cancelled:  # and what it stands under has been restarted since
            await stop.wait()
            return
        with self._before_sinks:
            await self._agent_run.wait_for_sinks()
        if self._before_sinks.cancelled_caught:
            return
        self.incarnation += 1
        if self.ended:
            self.ended = False
            self._agent_run.revived()
        self.task = trio.lowlevel.current_task()
        failure: Exception | None = None
        self._interrupted = False
        try:
            while True:
                self._begun = False
                hand.begin()
                self._stuck = None
                with trio.CancelScope() as self._scope:
                    try:
                        await self._perform()
                    except Exception as error:
                        failure = explained(error)
                    else:
                        hand.finish()
                        if this.spec.restart != "permanent" and this.state != "stopping":
                            self.ended = True
                            self._agent_run.actor_ended()
                        return
                failure = failure or self._stuck
                if failure is not None:
                    await self._failed(failure)
                    raise failure
                log.info("actor %s begins again", self.name)
                self._interrupted = True
        finally:
            if hand.worked:
                this.progress()
            hand.give_back()
            self.task = None
            if failure is not None or (this.state == "stopping" and not self._ends_with_run):
                hand.close_passing()
            else:
                hand.close_made(leave=this.state != "stopping")
            failure = self._stuck = None  # its traceback refers to this frame, and to what it had in hand

    async def _perform(self) -> None:
        agent, hand = self._agent, self._hand
        stream: Stream[Any] = Stream(self._subscription, hand=hand, acks=agent.channel.acks)
        performance: Any = agent.fun(stream)
        if agent.answers:
            async with aclosing(performance):
                await self._relay(performance)
        else:
            await performance

    async def _relay(self, answers: AsyncGenerator[Any, None]) -> None:
        """Give each answer to whoever asked, and to the sinks; a failed delivery is thrown into the agent."""
        hand, task = self._hand, trio.lowlevel.current_task()
        nurseries = len(task.child_nurseries)
        failed: Exception | None = None
        while True:
            try:
                value = await (answers.__anext__() if failed is None else answers.athrow(failed))
            except StopAsyncIteration:
                return
            failed = None
            if len(task.child_nurseries) > nurseries:
                await self._refuse_yield(answers)
            event = hand.event
            if event is None or event.request is None:
                event = hand.asked
            try:
                if event is not None and (request := event.request) is not None:
                    try:
                        crowded = request.answer(value, event)
                    except NotReady as pending:
                        crowded = await self._answer_when_ready(request, value, event, pending)
                    if crowded:
                        await request.wait_room()
                for sink in self._agent_run.sinks:
                    await pour(sink, value, event, self._agent_run)
            except Exception as error:
                failed = error

    async def _answer_when_ready(self, request: Request, value: Any, event: Event[Any], pending: NotReady) -> bool:
        """Answer, after what the codec has to fetch first."""
        while True:
            await self._agent_run.run.errands.run(pending)
            try:
                return request.answer(value, event)
            except NotReady as another:
                pending = another

    async def _refuse_yield(self, answers: AsyncGenerator[Any, None]) -> NoReturn:
        """The agent has yielded inside a nursery: raised there, which ends the nursery's tasks; closing it would not say why."""
        hazard = (
            f"agent {self._agent.name} yielded inside a nursery of its own: leave `async with "
            "trio.open_nursery()` before each yield (PEP 789)"
        )
        try:
            await answers.athrow(YieldInsideNursery(hazard))
        except Exception as error:
            raise YieldInsideNursery(hazard) from error
        raise YieldInsideNursery(hazard)

    async def _failed(self, error: Exception) -> None:
        """The agent raised: its failure policy takes the event in hand, or those of all its streams; `on_error` is told."""
        for event in self._hand.drop():
            event.crash(self._agent_run.failures.crashed, error)
        on_error = self._agent.options.on_error
        if on_error is not None:
            try:
                result = on_error(self._agent, error)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                log.exception("on_error of agent %s raised", self._agent.name)
        if self._agent.options.on_failure != "ack":  # letters go beyond the producer's bounds, but nobody runs ahead
            await self._agent_run.run.producer.wait_caught_up()

    def info(self) -> ActorInfo:
        """What it does now."""
        cursors = [cursor for cursor in self._hand.cursors if cursor.event is not None]
        handle = self._handle
        state: ActorState
        if handle is None or handle.state == "starting":
            state = "starting"
        elif handle.state == "backoff" or handle.state == "stopping":
            state = handle.state
        elif handle.state != "running" or (self._agent_run.cancelled and not cursors):
            state = "stopped"
        elif cursors:
            state = "working"
        else:
            state = "waiting" if self.reached.is_set() else "starting"
        event = cursors[0].event if cursors else None
        if event is None:
            return ActorInfo(name=self.name, index=self.index, incarnation=self.incarnation, state=state)
        pacer = cursors[0].pacer
        last = event.parts[-1]
        return ActorInfo(
            name=self.name,
            index=self.index,
            incarnation=self.incarnation,
            state=state,
            partition=last.message.tp,
            offset=last.message.offset,
            attempt=last.attempt,
            in_hand=None if pacer is None else pacer.rested_for,
        )

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Actor {self.name} {self._hand!r}>"


def current_agent() -> Agent[Any, Any] | None:
    """The agent whose actor the current task is, or None."""
    hand = current_hand.get()
    owner = None if hand is None else hand.owner
    return owner.agent if isinstance(owner, Actor) else None
