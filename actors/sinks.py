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
from ..channels.errors import ImproperlyConfigured, UnknownTopic
from ..channels.event import Event
from ..channels.retry import Retry
from ..channels.runs import Run
from ..channels.topic import Topic

if TYPE_CHECKING:  # agents have sinks, and are sinks
    from .agent import Agent

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


async def pour(sink: Agent[Any, Any] | Channel[Any] | Any, value: Any, event: Event[Any] | None) -> None:
    """Give an answer to a sink, with the key of the event that it answers."""
    from .agent import Agent

    if isinstance(sink, Channel | Agent):
        await sink.send(value, key=None if event is None else event.key)
    else:
        result = sink(value)
        if inspect.isawaitable(result):
            await result
