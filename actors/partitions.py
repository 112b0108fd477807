"""Isolated partitions: an actor for each partition number that is ours.

One more child of the agent's supervisor follows the assignment: it starts an actor for each partition that comes, and ends those
whose partition does not come back. Decision 0014 says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ..channels.partitioned import PartitionedSubscription
from ..channels.topic import Topic
from ..supervision import ChildHandle, Supervisor, SupervisorStopping, child, current_child
from .actor import Actor

if TYPE_CHECKING:  # it has these
    from .agent_run import AgentRun

__all__ = ["IsolatedActors"]


class IsolatedActors:
    """The actors of an agent with isolated partitions, in one run.

    Args:
        actors: by partition number; kept up to date.

    Attributes:
        subscription: what they read together.
        wanted: the partition numbers that are ours.
    """

    def __init__(self, agent_run: AgentRun, actors: dict[int, Actor]) -> None:
        agent = agent_run.agent
        assert isinstance(agent.channel, Topic), "checked at declaration"
        self._agent_run = agent_run
        self._actors = actors
        self._changed = trio.Event()
        self.wanted: frozenset[int] = frozenset()
        self.subscription = PartitionedSubscription(
            agent_run.run, agent.channel, agent.name, on_assigned=self._assigned
        )

    def _assigned(self, partitions: frozenset[int]) -> None:
        """These are ours now. Actors of those that come back keep their place."""
        self.wanted = partitions
        for number in sorted(partitions - self._actors.keys()):
            stream = self.subscription.partition(number)
            self._actors[number] = Actor(self._agent_run, number, stream, stream.name)
        self._changed.set()

    async def follow(self) -> None:
        """Have an actor for each partition that is ours, and no others."""
        this = current_child()
        agent_run = self._agent_run
        agent_run.begun(this)
        while True:
            self._changed = trio.Event()
            async with agent_run.lock:
                if not agent_run.cancelled:
                    await self._settle(this)
            await self._changed.wait()

    async def _settle(self, this: ChildHandle) -> None:
        spec, children = this.spec, this.parent.children
        for number in sorted(self.wanted):
            actor = self._actors.get(number)
            if actor is None:
                continue
            handle = children.get(actor.name)
            try:
                if handle is None:
                    actor_spec = child(actor.play, name=actor.name, restart=spec.restart, shutdown=spec.shutdown)
                    await this.parent.start(actor_spec)
                elif handle.state in ("stopping", "stopped"):  # we were cancelled while we ended it
                    await handle.restart()
            except SupervisorStopping:
                if this.parent.state != "running":
                    return
                self._changed.set()  # its group was being restarted: look again
        async with trio.open_nursery() as nursery:
            for number, actor in [*self._actors.items()]:
                if number not in self.wanted:
                    nursery.start_soon(self._end, number, actor, this.parent)

    async def _end(self, number: int, actor: Actor, supervisor: Supervisor) -> None:
        """A partition is gone: end its actor, which had its time for the event in hand when the partition was revoked."""
        handle = supervisor.children.get(actor.name)
        if handle is not None:
            await handle.terminate()
            await supervisor.delete(actor.name)
        if number in self.wanted:  # it has come back meanwhile, and goes on where it was
            self._changed.set()
            return
        actor.leave()
        del self._actors[number]
        self.subscription.let_go(number)
