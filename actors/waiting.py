"""Who waits for whom: finds, at the time of an ask, that it would wait for itself.

Only what is certain is refused. An actor that waits inside its own task takes no further event. If all who could answer a request
are such actors, and wait for requests of which the same holds, and the one who asks is among them, nobody ever goes on.
What leaves the process, what tasks that an agent has started wait for, and waits that end by a deadline of another actor of the
circle, are left to deadlines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

import trio
from trio.lowlevel import current_task

from ..channels.errors import TransportError
from ..channels.event import Event
from ..channels.hand import Hand, current_hand
from ..channels.runs import Run
from ..channels.subscription import readers_of
from ..channels.topic import Topic
from .errors import AskDeadlock

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["Asker", "Awaited", "asking", "begin_wait", "enroll"]


class Awaited(Protocol):
    """What an actor waits for: an answer of an agent.

    Attributes:
        correlation_id: of the request; None where there are several.
        arrived: whether there is something to go on with, though who waits has not been woken yet.
    """

    @property
    def agent(self) -> Agent[Any, Any]: ...

    @property
    def correlation_id(self) -> bytes | None: ...

    @property
    def arrived(self) -> bool: ...


class Asker:
    """An actor, as far as calls are concerned.

    Attributes:
        task: what it runs in.
        waits_for: the answer that this task waits for now.
        patience: until when, on the run's clock.
    """

    task: trio.lowlevel.Task | None = None
    waits_for: Awaited | None = None
    patience: float = inf

    @property
    def hand(self) -> Hand:
        raise NotImplementedError


class Actors(Protocol):
    """All actors of an agent in a run."""

    @property
    def actors(self) -> Iterable[Asker]: ...


def enroll(run: Run, agent: Agent[Any, Any], actors: Actors) -> None:
    """These are the actors of an agent in a run."""
    run.forget(("actors", agent))
    run.state(("actors", agent), lambda: actors)
    run.forget(("asked", agent.wire_name))
    run.state(("asked", agent.wire_name), lambda: agent)


def asking() -> Asker | None:
    """The actor whose own task this is; None in tasks that it has started, which it may not wait for."""
    hand = current_hand.get()
    if hand is None:
        return None
    owner = hand.owner
    return owner if isinstance(owner, Asker) and owner.task is current_task() else None


async def begin_wait(run: Run, asker: Asker, awaited: Awaited) -> None:
    """See that the wait of an actor, which begins now, can end. Its end is `asker.waits_for = None`.

    Raises:
        AskDeadlock: it cannot.
    """
    circle = _circle(run, asker, awaited)
    if circle and await _all_here(run, circle) and (circle := _circle(run, asker, awaited)):
        names = " → ".join([str(asker), *(agent.name for agent in circle)])
        busy = "its only actor is" if len(_actors(run, awaited.agent)) == 1 else "all its actors are"
        raise AskDeadlock(
            f"{names}: agent {awaited.agent.name} could never answer, since {busy} waiting for this; raise its concurrency, "
            "`cast` what needs no answer, or ask from a task that the agent does not wait for"
        )
    asker.patience = trio.current_effective_deadline()
    asker.waits_for = awaited


def _circle(run: Run, asker: Asker, awaited: Awaited) -> list[Agent[Any, Any]]:
    """The agents that wait for each other if this actor waits for that answer; none if any actor is free to go on."""
    found: list[Agent[Any, Any]] = []
    seen: set[Asker] = {asker}
    todo: list[Awaited] = [awaited]
    while todo:
        wanted = todo.pop()
        if wanted.agent not in found:
            found.append(wanted.agent)
        actors = _holders(run, wanted)
        if not actors:
            return []
        for actor in actors:
            if actor in seen:
                continue
            seen.add(actor)
            other = actor.waits_for
            if other is None or other.arrived or actor.patience < inf:
                return []
            todo.append(other)
    return found


def _actors(run: Run, agent: Agent[Any, Any]) -> Sequence[Asker]:
    here: Actors | None = run.found(("actors", agent))
    return () if here is None else list(here.actors)


def _holders(run: Run, wanted: Awaited) -> Sequence[Asker]:
    """Who may answer: the actor that has the request in hand, else any."""
    actors = _actors(run, wanted.agent)
    if wanted.correlation_id is not None:
        for actor in actors:
            event = actor.hand.event
            if event is not None and any(_asks(part, wanted.correlation_id) for part in event.parts):
                return [actor]
    return actors


def _asks(event: Event[Any], correlation_id: bytes) -> bool:
    return getattr(event.request, "correlation_id", None) == correlation_id


async def _all_here(run: Run, agents: Iterable[Agent[Any, Any]]) -> bool:
    """Whether what is sent to these agents comes to their actors in this run, for sure, and to nobody else."""
    for agent in agents:
        channel = agent.channel
        if len(readers_of(run, channel)) != 1 or channel.is_foreign:
            return False
        if not isinstance(channel, Topic):
            continue
        owned = [tp for tp in run.conductor.partitions if tp.topic in channel.topics]
        if len(channel.topics) != 1:
            return False
        try:
            count = await run.transport.partition_count(channel.topics[0])
        except TransportError:
            return False
        if len(owned) != count:
            return False
    return True
