"""``topics``: look at the broker's topics and change them, over the transport's administration, whatever the broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import click

from ..actors.agent import Agent
from ..app.app import App
from ..channels.errors import TopicExists, UnknownTopic
from ..channels.message import TP
from ..channels.subscription import interest_in
from ..channels.topic import Topic
from ..channels.transport import TopicDescription, TopicSpec, Transport
from .broker import BrokerCall
from .invocation import Invocation, declared_topic, parse_pairs
from .output import write_json, write_table
from .tail import tail

__all__ = ["topics"]


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  famulus --broker kafka://localhost:9092 topics list
  famulus --broker kafka://localhost:9092 topics create orders --partitions 4
  famulus -A shop topics describe orders
""",
)
@click.pass_context
def topics(ctx: click.Context) -> None:
    """Look at the broker's topics and their messages, create, delete and grow them.

    The broker is enough: --broker URL, or FAMULUS_BROKER. With an app, -A, it is the app's broker, and what the
    app declares is used.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


topics.add_command(tail)


# -- looking -----------------------------------------------------------------------------------------------


@topics.command(
    name="list",
    epilog="""\b
Examples:
  famulus --broker kafka://localhost:9092 topics list
  famulus --broker kafka://localhost:9092 topics list --json | jq -r '.[].name'
""",
)
@click.option("--all", "every", is_flag=True, help="The broker's own topics too, as Kafka's __consumer_offsets.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list: name, partitions, replicas, internal.")
@click.pass_obj
def list_topics(invocation: Invocation, every: bool, as_json: bool) -> None:
    """List the broker's topics."""
    call = BrokerCall(invocation)
    found = [topic for topic in call.run(_describe_all) if every or not topic.internal]
    if as_json:
        names = ("name", "partitions", "replicas", "internal")
        write_json([{name: getattr(topic, name) for name in names} for topic in found])
    elif found:
        rows = [[topic.name, str(topic.partitions), str(topic.replicas)] for topic in found]
        write_table(["name", "partitions", "replicas"], rows)
    else:
        click.echo(f"broker {call.shown} has no topics")


async def _describe_all(transport: Transport) -> list[TopicDescription]:
    found = []
    for name in await transport.list_topics():
        with suppress(UnknownTopic):  # deleted meanwhile
            found.append(await transport.describe_topic(name))
    return found


@topics.command(
    epilog="""\b
Examples:
  famulus --broker kafka://localhost:9092 topics describe orders
  famulus --broker kafka://localhost:9092 topics describe orders --offsets
  famulus -A shop topics describe orders --json
""",
)
@click.argument("name")
@click.option(
    "--offsets",
    is_flag=True,
    help="The first offset of each partition and the one after its last.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="A JSON object: name, partitions, replicas, internal, config, offsets, app."
)
@click.pass_obj
def describe(invocation: Invocation, name: str, offsets: bool, as_json: bool) -> None:
    """Show a topic as the broker has it, and with -A which agents of the app read and write it."""
    call = BrokerCall(invocation)

    async def look(transport: Transport) -> tuple[TopicDescription, Mapping[int, tuple[int, int]] | None]:
        found = await transport.describe_topic(name)
        return found, await _offsets(transport, found) if offsets else None

    found, ends = call.run(look)
    uses = None if call.app is None else _uses(call.app, name)
    if as_json:
        shown = [{"partition": p, "earliest": low, "latest": high} for p, (low, high) in (ends or {}).items()]
        write_json({**attrs.asdict(found), "offsets": None if ends is None else shown, "app": uses})
        return
    facts = [["partitions", str(found.partitions)], ["replicas", str(found.replicas)]]
    if found.internal:
        facts.append(["internal", "a topic of the broker's own"])
    if call.app is not None:
        facts += [[f"app {call.app.id}", use] for use in uses or ["no agent of it reads or writes it by declaration"]]
    write_table(["topic", found.name], facts)
    if ends is not None:
        rows = [[str(p), str(low), str(high), str(high - low)] for p, (low, high) in ends.items()]
        write_table(["partition", "earliest", "latest", "messages, at most"], rows)
    if found.config:
        write_table(["config", "value"], [[key, value] for key, value in sorted(found.config.items())])


async def _offsets(transport: Transport, found: TopicDescription) -> dict[int, tuple[int, int]]:
    """By partition, where its log begins and where the next message will be."""
    partitions = [TP(found.name, number) for number in range(found.partitions)]
    async with transport.open_reader(dict.fromkeys(partitions, "latest")) as reader:
        return {tp.partition: (reader.beginning(tp), reader.highwater(tp)) for tp in partitions}


def _uses(app: App, name: str) -> list[str]:
    """What the declarations of an app say that it does with a topic. What agents send in their code is not seen."""
    uses = []
    declared = declared_topic(app, name)
    if declared is not None and declared.partitions is not None:
        uses.append(f"declares it with {declared.partitions} partitions")
    for agent in sorted(app.agents.values(), key=lambda agent: agent.name):
        if not isinstance(agent.channel, Topic):
            continue
        if interest_in(agent.channel).wants(name):
            uses.append(f"@{agent.name} reads it")
        elif name.startswith(f"{app.id}-{agent.channel.name}-") and name.endswith("-repartition"):
            uses.append(f"group_by regroups {agent.channel.name} through it, which @{agent.name} reads")
        if name in [_goal(sink) for sink in agent.options.sinks]:
            uses.append(f"@{agent.name} sends its answers to it")
    return uses


def _goal(sink: Any) -> str | None:
    channel = sink.channel if isinstance(sink, Agent) else sink
    return channel.name if isinstance(channel, Topic) else None


# -- changing ----------------------------------------------------------------------------------------------


@topics.command(
    epilog="""\b
Examples:
  famulus --broker kafka://localhost:9092 topics create orders --partitions 4
  famulus --broker kafka://localhost:9092 topics create totals --replicas 3 --config cleanup.policy=compact
  famulus -A shop topics create orders --if-missing     as the app declares it
""",
)
@click.argument("name")
@click.option(
    "--partitions",
    type=click.IntRange(min=1),
    help="By default what the app declares, else the setting topic_partitions.",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    help="Copies; by default what the app declares, else the setting topic_replication_factor.",
)
@click.option("--config", multiple=True, metavar="KEY=VALUE", help="The broker's own settings; may be given again.")
@click.option("--if-missing", is_flag=True, help="Leave a topic of that name as it is, and exit with 0.")
@click.pass_obj
def create(
    invocation: Invocation,
    name: str,
    partitions: int | None,
    replicas: int | None,
    config: Sequence[str],
    if_missing: bool,
) -> None:
    """Create a topic."""
    call = BrokerCall(invocation)
    pairs = dict(parse_pairs("--config", config))

    async def make(transport: Transport) -> str:
        declared = call.spec(transport, name)
        spec = TopicSpec(
            name=name,
            partitions=partitions or declared.partitions,
            replicas=replicas or declared.replicas,
            config={**declared.config, **pairs},
        )
        try:
            await transport.create_topic(spec)
        except TopicExists:
            if not if_missing:
                raise
            return f"topic {name} is there already, with {_partitions(await transport.partition_count(name))}"
        return f"created topic {name} with {_partitions(await transport.partition_count(name))}"

    click.echo(call.run(make))


@topics.command(
    epilog="""\b
Examples:
  famulus --broker kafka://localhost:9092 topics delete orders
  famulus --broker kafka://localhost:9092 topics delete orders totals --yes
""",
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(invocation: Invocation, names: Sequence[str], yes: bool) -> None:
    """Delete topics with all their messages. Where one of them is missing, none is deleted."""
    call = BrokerCall(invocation)
    if not yes:
        click.confirm(f"Delete {', '.join(names)} with all messages at {call.shown}?", abort=True)

    async def remove(transport: Transport) -> None:
        for name in names:
            await transport.partition_count(name)
        for name in dict.fromkeys(names):
            await transport.delete_topic(name)
            click.echo(f"deleted topic {name}")

    call.run(remove)


@topics.command(
    name="add-partitions",
    epilog="""\b
Example:
  famulus --broker kafka://localhost:9092 topics add-partitions orders --total 8
""",
)
@click.argument("name")
@click.option("--total", type=click.IntRange(min=1), required=True, help="Partitions that it has then.")
@click.pass_obj
def add_partitions(invocation: Invocation, name: str, total: int) -> None:
    """Raise a topic's number of partitions; it can never be lowered.

    Keys move: from then on most of them go to another partition than the messages that they have already. Stop
    the apps that keep tables or regroup by this topic, and see that the topics that go with it grow too.
    """
    BrokerCall(invocation).run(lambda transport: transport.add_partitions(name, total))
    click.echo(f"topic {name} has {_partitions(total)}")


def _partitions(count: int) -> str:
    return "1 partition" if count == 1 else f"{count} partitions"
