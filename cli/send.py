"""``send``: one message to a topic or to an agent's topic, from outside the worker."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import click
import trio

from ..actors.agent import Agent
from ..app.app import App
from ..app.settings import Settings
from ..channels.errors import BrokerUnavailable, ImproperlyConfigured, TransportError, UnknownTopic
from ..channels.message import TP, ProducerRecord, RecordMetadata
from ..channels.partitioner import partition_for
from ..channels.runs import Run
from ..channels.topic import Topic
from ..channels.transport import ProduceResult, Transport, transport_schemes
from .invocation import Invocation, declared_topic, parse_pairs
from .output import mask

__all__ = ["send"]


@click.command(
    epilog="""\b
Examples:
  famulus -A shop send orders '{"account": "ada", "cents": 1250}' -K ada
  famulus -A shop send @shop.tally '{"account": "ada", "cents": 1250}'
  famulus -A shop send @tally 21 --partition 0 --header source=shell
""",
)
@click.argument("target", metavar="TOPIC|@AGENT")
@click.argument("value")
@click.option("-K", "--key", help="The message's key; it chooses the partition. Sent as it is given.")
@click.option("--partition", type=click.IntRange(min=0), help="The partition to write to, whatever the key.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="A header; may be given again.")
@click.pass_obj
def send(
    invocation: Invocation,
    target: str,
    value: str,
    key: str | None,
    partition: int | None,
    headers: Sequence[str],
) -> None:
    """Send VALUE to a topic, or to the topic that an agent reads, and wait until the broker has it.

    VALUE goes out as the bytes that you give: for a topic of records, write JSON. An agent may be named in
    short (@tally for @shop.tally) where that is clear.
    """
    app = invocation.app()
    topic = _topic_name(app, target)
    settings = invocation.settings(app)
    transport = invocation.transport(app)
    if not transport.crosses_processes:
        shared = [scheme for scheme in transport_schemes() if scheme != settings.broker.partition(":")[0]]
        raise ImproperlyConfigured(
            f"broker {settings.broker} lives inside one process, so no other process can receive what `send` "
            f"sends; expected a broker that processes share ({', '.join(shared) or 'none is installed'}): "
            "give --broker URL"
        )
    pairs = tuple((name, os.fsencode(text)) for name, text in parse_pairs("--header", headers))
    record = ProducerRecord(None if key is None else os.fsencode(key), os.fsencode(value), pairs, time.time())
    try:
        receipt = trio.run(_deliver, app, settings, transport, topic, partition, record)
    except (TransportError, trio.TooSlowError) as error:
        meant = (
            f"; did you mean the agent, @{target}?" if isinstance(error, UnknownTopic) and _agents(app, target) else ""
        )
        raise click.ClickException(mask(_say(error, settings)) + meant) from error
    click.echo(f"sent to {receipt.topic}, partition {receipt.partition}, offset {receipt.offset}")


def _topic_name(app: App, target: str) -> str:
    """The topic that a target means.

    Raises:
        ImproperlyConfigured: there is no such agent, or several, or it reads no topic.
    """
    if not target.startswith("@"):
        return target
    name = target[1:]
    agents = _agents(app, name)
    if len(agents) != 1:
        names = ", ".join(f"@{full}" for full in sorted(app.agents)) or "none"
        problem = f"means {len(agents)} agents" if agents else "is no agent"
        raise ImproperlyConfigured(f"{target} {problem} of app {app.id}; expected one of: {names}")
    (agent,) = agents
    if not isinstance(agent.channel, Topic):
        what = (
            f"the channel {agent.channel.name}, which takes its messages in from elsewhere: send them there"
            if agent.channel.is_foreign
            else f"the local channel {agent.channel.name}, which only its own process reaches"
        )
        raise ImproperlyConfigured(f"@{agent.name} reads {what}; expected an agent that reads a topic")
    if len(agent.channel.topics) != 1:
        several = ", ".join(agent.channel.topics) or f"all topics that match {agent.channel.name!r}"
        raise ImproperlyConfigured(f"@{agent.name} reads {several}; expected the name of the one that is meant")
    return agent.channel.name


def _agents(app: App, name: str) -> list[Agent[Any, Any]]:
    """Those that a name, whole or short, may mean."""
    if name in app.agents:
        return [app.agents[name]]
    return [agent for full, agent in app.agents.items() if full.endswith(f".{name}")]


async def _deliver(
    app: App,
    settings: Settings,
    transport: Transport,
    topic: str,
    partition: int | None,
    record: ProducerRecord,
) -> RecordMetadata:
    """Write one record.

    Raises:
        ImproperlyConfigured: the topic has no such partition.
        TransportError: the broker cannot be reached, has no such topic, or did not take it.
        trio.TooSlowError: that took longer than `producer_delivery_timeout`.
    """
    with trio.fail_after(settings.producer_delivery_timeout):
        async with transport.open():
            declared = declared_topic(app, topic)
            if declared is not None:
                await declared.prepare(Run(app, settings, transport))
            count = await transport.partition_count(topic)
            if partition is None:
                key = record.key
                partition = time.time_ns() % count if key is None else partition_for(key, count)
            elif partition >= count:
                raise ImproperlyConfigured(
                    f"--partition {partition}: topic {topic} has the partitions 0 to {count - 1}"
                )
            tp = TP(topic, partition)
            outcome = (await transport.produce({tp: [record]}))[tp]
    if not isinstance(outcome, ProduceResult):
        raise outcome
    timestamp, kind = (record.timestamp or 0.0, 0) if outcome.timestamp is None else (outcome.timestamp, 1)
    return RecordMetadata(topic, partition, tp, outcome.base_offset, timestamp, kind)


def _say(error: Exception, settings: Settings) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, trio.TooSlowError):
        limit = settings.producer_delivery_timeout
        return f"not sent: broker {settings.broker} did not answer within {limit:g} s"
    if isinstance(error, BrokerUnavailable):
        return f"not sent: broker {settings.broker} cannot be reached: {text}"
    return f"not sent: {text}"
