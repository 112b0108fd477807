"""``agents``: what processes what."""

from __future__ import annotations

from typing import Any

import click

from ..actors.agent import Agent
from ..channels.channel import Channel
from ..channels.topic import Topic
from .invocation import Invocation
from .output import write_json, write_table

__all__ = ["agents"]


@click.command(
    epilog="""\b
Examples:
  famulus -A shop agents
  famulus -A shop agents --local
  famulus -A shop agents --json | jq -r '.[].topic'
""",
)
@click.option(
    "--local", is_flag=True, help="Those that read a local channel too, which only their own process reaches."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="A JSON list: name, channel, topic (null for a channel, several topics or a pattern), local, concurrency, "
    "isolated_partitions, help.",
)
@click.pass_obj
def agents(invocation: Invocation, local: bool, as_json: bool) -> None:
    """List the app's agents and what they read: topics, and channels that others reach.

    Write to one of them with `send @NAME VALUE`. The tree of what runs in a worker is shown by `tree`.
    """
    app = invocation.app()
    every = sorted(app.agents.values(), key=lambda agent: agent.name)
    found = [agent for agent in every if local or not _is_local(agent)]
    if as_json:
        write_json([_facts(agent) for agent in found])
    elif found:
        isolated = any(agent.options.isolated_partitions for agent in found)
        columns = ["name", "topic", "concurrency", *(["partitions"] if isolated else []), "help"]
        write_table(columns, [_row(agent, isolated=isolated) for agent in found])
    elif not every:
        click.echo(f"app {app.id} has no agents")
    hidden = len(every) - len(found)
    if hidden:
        what = "1 agent reads a local channel and is" if hidden == 1 else f"{hidden} agents read local channels and are"
        click.echo(f"{what} not shown: --local", err=True)


def _is_local(agent: Agent[Any, Any]) -> bool:
    return not (isinstance(agent.channel, Topic) or agent.channel.is_foreign)


def _facts(agent: Agent[Any, Any]) -> dict[str, Any]:
    channel = agent.channel
    return {
        "name": agent.name,
        "channel": channel.name,
        "topic": channel.name if isinstance(channel, Topic) and len(channel.topics) == 1 else None,
        "local": _is_local(agent),
        "concurrency": agent.options.concurrency,
        "isolated_partitions": agent.options.isolated_partitions,
        "help": agent.help,
    }


def _row(agent: Agent[Any, Any], *, isolated: bool) -> list[str]:
    options = agent.options
    actors = "1 each" if options.isolated_partitions else str(options.concurrency)
    partitions = ["isolated" if options.isolated_partitions else ""] if isolated else []
    return [f"@{agent.name}", _source(agent.channel), actors, *partitions, agent.help.partition("\n")[0]]


def _source(channel: Channel[Any]) -> str:
    if isinstance(channel, Topic):
        return ", ".join(channel.topics) or f"{channel.name} (pattern)"
    return f"{channel.name} ({'foreign' if channel.is_foreign else 'local'} channel)"
