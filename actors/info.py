"""What `agent.info()` tells: frozen data about an agent and its actors in one run."""

from __future__ import annotations

from typing import Literal

import attrs

from ..channels.message import TP

__all__ = ["ActorInfo", "ActorState", "AgentInfo", "AgentState"]

AgentState = Literal["starting", "running", "stopping", "stopped", "cancelled"]
ActorState = Literal["starting", "waiting", "working", "backoff", "stopping", "stopped"]


@attrs.frozen(kw_only=True)
class ActorInfo:
    """One actor.

    Attributes:
        name: as in the tree and in the log.
        index: its number among the agent's actors; with isolated partitions, that of its partition.
        incarnation: how often it was started, from 1; 0 before.
        state: `starting`, before it has come to its stream; `waiting` for something to do; `working` on an event; `backoff`,
            before it is started again; `stopping`; `stopped`.
        partition, offset: where the event in hand is from, of a `take` the last; None where there is none. The offset is -1
            for what came through a local channel.
        attempt: which delivery of the event this is, from 1.
        in_hand: seconds that it has had the event, exact to 5 ms. None also on a mock clock.
    """

    name: str
    index: int
    incarnation: int
    state: ActorState
    partition: TP | None = None
    offset: int | None = None
    attempt: int | None = None
    in_hand: float | None = None


@attrs.frozen(kw_only=True)
class AgentInfo:
    """An agent in a run.

    Attributes:
        channel: the name of what it reads.
        topics: names of topics among that; a pattern's are not listed.
        state: `cancelled` once `agent.cancel()` was called.
        actors: in the order of their index.
        partitions: those that this worker has of what it reads, where it has isolated partitions; else None.
        buffered: messages that wait for its actors, or are in their hands.
        taken: messages that its actors have taken, those included that could not be decoded. None for a local channel.
        failed: events that an actor has failed on, each attempt counted.
        retried: events that were delivered again.
        dead_lettered: events that were sent to the dead letters.
    """

    name: str
    channel: str
    topics: tuple[str, ...]
    state: AgentState
    concurrency: int
    actors: tuple[ActorInfo, ...]
    partitions: frozenset[int] | None
    buffered: int
    taken: int | None
    failed: int
    retried: int
    dead_lettered: int
