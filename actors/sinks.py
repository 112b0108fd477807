"""Sinks: where an agent's answers go besides to whoever asked.

What is sent to a topic belongs to the event in the actor's hand: its offset waits for the delivery.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..channels.channel import Channel
from ..channels.errors import BufferFull, ImproperlyConfigured, UnknownTopic
from ..channels.event import Event
from ..channels.retry import Retry
from ..channels.runs import Run
from ..channels.topic import Topic

if TYPE_CHECKING:  # agents have sinks, and are sinks
    from .agent import Agent
    from .agent_run import AgentRun

__all__ = ["as_sink", "await_sinks", "check_sinks", "pour"]

log = logging.getLogger("famulus.agent")


def check_sinks(sinks: Iterable[Any], agent: str) -> tuple[Any, ...]:
    """
    Raises:
        ImproperlyConfigured: this is no collection of what can be a sink.
    """
    if isinstance(sinks, str | Channel) or callable(sinks) or not isinstance(sinks, Iterable):
        raise ImproperlyConfigured(f"agent {agent}: sink={sinks!r}: expected several, in brackets: sink=[...]")
    return tuple(_check_sink(sink, agent) for sink in sinks)


def _check_sink(sink: Any, agent: str) -> Any:
    """
    Raises:
        ImproperlyConfigured: it is no agent, channel, topic that can be written to, topic's name, or function of one value.
    """
    from .agent import Agent

    if isinstance(sink, Topic):
        _ = sink.destination  # or it raises
    if isinstance(sink, Agent):
        if isinstance(sink.channel, Topic):
            _ = sink.channel.destination
    elif not isinstance(sink, Channel | str):
        if not callable(sink) or isinstance(sink, type):
            raise ImproperlyConfigured(
                f"agent {agent}: sink {sink!r}: expected an agent, a channel, a topic, the name of a topic, or a function "
                "of one value, plain or async"
            )
        try:
            inspect.signature(sink).bind(None)
        except TypeError:
            raise ImproperlyConfigured(
                f"agent {agent}: sink {sink!r}: a function that is a sink is called with one argument, the answer"
            ) from None
        except ValueError:  # written in C: it does not tell
            return sink
    return sink


def as_sink(sink: Any, agent: Agent[Any, Any]) -> Any:
    """What a sink that is added stands for: the name of a topic for that topic.

    Raises:
        ImproperlyConfigured: it can be none, or the agent yields nothing.
    """
    _check_sink(sink, agent.name)
    if not agent.answers:
        raise ImproperlyConfigured(
            f"agent {agent.name} yields nothing that could go to its sinks: make it an async generator"
        )
    return Topic[Any](agent.app, sink) if isinstance(sink, str) else sink


async def await_sinks(run: Run, agent: Agent[Any, Any]) -> None:
    """Before an agent starts: wait until the broker has the topics that are its sinks, as for those that are read.

    Without one, each of its events would fail for nothing but that.

    Raises:
        TransportError: the broker refuses to tell.
    """
    for sink in agent.sinks:
        topic = getattr(sink, "channel", sink)
        if not isinstance(topic, Topic) or topic.app is not run.app:
            continue
        retry = Retry(
            f"agent {agent.name}", run.options, log, patient_with=(UnknownTopic,), of=f"its sink {topic.destination}"
        )
        await retry.until_done(partial(run.transport.partition_count, topic.destination))


async def pour(sink: Any, value: Any, event: Event[Any] | None, of: AgentRun) -> None:
    """Give an answer of this agent to a sink, with the key of the event that it answers.

    Raises:
        BufferFull: the sink is what the agent reads itself, so only it can make room, and all of its actors wait for that.
    """
    from .agent import Agent

    if not isinstance(sink, Channel | Agent):
        result = sink(value)
        if inspect.isawaitable(result):
            await result
        return
    key = None if event is None else event.key
    channel = sink.channel if isinstance(sink, Agent) else sink
    if channel is of.agent.channel and not (isinstance(channel, Topic) or channel.is_foreign):
        try:
            sink.send_soon(value, key=key)
        except BufferFull:
            await _wait_for_own_room(sink, value, key, of)
    else:
        await sink.send(value, key=key)


async def _wait_for_own_room(sink: Any, value: Any, key: Any, of: AgentRun) -> None:
    if of.pouring + 1 >= of.agent.options.concurrency:
        raise BufferFull(
            f"agent {of.agent.name} is its own sink, and its channel is full: all of its actors would wait for room that "
            "only they can make; raise the channel's maxsize, or let it read a topic"
        )
    of.pouring += 1
    try:
        await sink.send(value, key=key)
    finally:
        of.pouring -= 1
