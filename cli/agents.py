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
  famulus -A shop agents --json | jq -r '.[].topic'
""",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="A JSON list: name, channel, topic (null for a channel, several topics or a pattern), concurrency, help.",
)
@click.pass_obj
def agents(invocation: Invocation, as_json: bool) -> None:
    """List the app's agents and the topics or channels that they read.

    Write to one of them with `send @NAME VALUE`.
    """
    app = invocation.app()
    found = sorted(app.agents.values(), key=lambda agent: agent.name)
    if as_json:
        write_json([_facts(agent) for agent in found])
    elif found:
        write_table(["name", "topic", "concurrency", "help"], [_row(agent) for agent in found])
    else:
        click.echo(f"app {app.id} has no agents")


def _facts(agent: Agent[Any, Any]) -> dict[str, Any]:
    channel = agent.channel
    return {
        "name": agent.name,
        "channel": channel.name,
        "topic": channel.name if isinstance(channel, Topic) and len(channel.topics) == 1 else None,
        "concurrency": agent.options.concurrency,
        "help": agent.help,
    }


def _row(agent: Agent[Any, Any]) -> list[str]:
    return [f"@{agent.name}", _source(agent.channel), str(agent.options.concurrency), agent.help.partition("\n")[0]]


def _source(channel: Channel[Any]) -> str:
    if isinstance(channel, Topic):
        return ", ".join(channel.topics) or f"{channel.name} (pattern)"
    return f"{channel.name} ({'foreign' if channel.is_foreign else 'local'} channel)"
