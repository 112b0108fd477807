"""``topics tail``: shows the messages of a topic as they come, undecoded, as the broker holds them. Joins no group."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import inf
from typing import Any

import click
import orjson
import trio

from ..channels.message import TP, Message
from ..channels.transport import Transport
from .broker import LIMIT, BrokerCall
from .invocation import Invocation

__all__ = ["tail"]

_MOST = 500  # messages that are read and shown at once


@click.command(
    epilog="""\b
Examples:
  famulus --broker kafka://localhost:9092 topics tail orders            from now on
  famulus --broker sqlite:///var/lib/shop/ topics tail orders --last 10
  famulus -A shop topics tail orders --all --no-follow --json | jq .value
""",
)
@click.argument("name")
@click.option(
    "-n", "--last", type=click.IntRange(min=0), default=0, help="The last so many offsets of each partition first."
)
@click.option("--all", "every", is_flag=True, help="All that is there first.")
@click.option(
    "--partition", "partitions", type=click.IntRange(min=0), multiple=True, help="Only this one; may be given again."
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many messages.")
@click.option("--no-follow", is_flag=True, help="End with what is there now.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="A JSON object a line: partition, offset, timestamp, key, value, headers. "
    'What is no text is {"base64": ...} there.',
)
@click.pass_obj
def tail(
    invocation: Invocation,
    name: str,
    last: int,
    every: bool,
    partitions: Sequence[int],
    count: int | None,
    no_follow: bool,
    as_json: bool,
) -> None:
    """Show the messages of a topic, from now on or with some of what is there, until Ctrl-C."""
    if every and last:
        raise click.UsageError("--all and --last: expected one of them")
    if no_follow and not (every or last):
        raise click.UsageError(
            "--no-follow: expected --all or --last with it, since nothing that is there is shown without"
        )
    show = _as_json if as_json else _as_line
    wanted = inf if every else last

    async def work(transport: Transport) -> None:
        start, ends = await _span(transport, name, partitions, wanted)
        await _show(transport, start, ends if no_follow else None, inf if count is None else count, show)

    BrokerCall(invocation).run(work, limit=inf)


async def _span(
    transport: Transport, name: str, partitions: Sequence[int], last: float
) -> tuple[dict[TP, int], dict[TP, int]]:
    """Where to begin in each partition, and where it ends now."""
    with trio.fail_after(LIMIT):
        number = await transport.partition_count(name)
        for partition in partitions:
            if partition >= number:
                raise click.ClickException(f"topic {name} has partitions 0 to {number - 1}, no {partition}")
        tps = [TP(name, partition) for partition in sorted(set(partitions)) or range(number)]
        async with transport.open_reader(dict.fromkeys(tps, "latest")) as reader:
            ends = {tp: reader.highwater(tp) for tp in tps}
            start = {tp: int(max(reader.beginning(tp), ends[tp] - last)) for tp in tps}
    return start, ends


async def _show(
    transport: Transport,
    start: Mapping[TP, int],
    ends: Mapping[TP, int] | None,
    most: float,
    show: Callable[[Message], str],
) -> None:
    """Write the messages, up to these ends or for ever."""
    left = most
    async with transport.open_reader(start) as reader:
        while left > 0 and (ends is None or any(reader.position(tp) < end for tp, end in ends.items())):
            batches = await reader.fetch(int(min(left, _MOST)))
            for batch in batches:
                messages = [m for m in batch.messages if ends is None or m.offset < ends[batch.tp]]
                left -= len(messages)
                click.echo("".join(f"{show(message)}\n" for message in messages), nl=False)


def _as_line(message: Message) -> str:
    time = datetime.fromtimestamp(message.timestamp).astimezone().isoformat(" ", "milliseconds")
    headers = " ".join(f"{name}={_text(value)}" for name, value in message.headers)
    parts = [f"{message.tp}@{message.offset}", time, _text(message.key), _text(message.value), headers]
    return "  ".join(part for part in parts if part)


def _as_json(message: Message) -> str:
    shown = {
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": datetime.fromtimestamp(message.timestamp, UTC).isoformat(timespec="milliseconds"),
        "key": _plain(message.key),
        "value": _plain(message.value),
        "headers": [[name, _plain(value)] for name, value in message.headers],
    }
    return orjson.dumps(shown).decode()


def _plain(data: bytes | None) -> Any:
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _text(data: bytes | None) -> str:
    if data is None:
        return "(none)"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"0x{data.hex()}"
    return "".join(char if char.isprintable() else " " for char in text)
