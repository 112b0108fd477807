"""Dead letters as the commands see them: whose topics they lie in, which are meant, and how far they were replayed."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import attrs
import click
import trio

from ..app.app import App
from ..channels.errors import UnknownTopic
from ..channels.letters import LETTERS, DeadLetter
from ..channels.message import TP, Message
from ..channels.subscription import interest_in
from ..channels.topic import Topic
from ..channels.transport import Assignment, ConsumerOptions, Reader, Transport
from .broker import LIMIT

__all__ = [
    "GROUP",
    "Listener",
    "Selection",
    "Stack",
    "letter_topics",
    "look",
    "parse_offsets",
    "parse_since",
    "read_to",
]

GROUP: Final = "famulus-dead-letters"
"""The consumer group whose committed offsets say how far the letters of each topic were replayed."""

MOST: Final = 500
"""Messages that are read and handled at once."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Listener:
    """A group member that notes when its partitions are taken away."""

    def __init__(self) -> None:
        self.revoked = False

    async def on_assigned(self, assignment: Assignment) -> None: ...

    async def on_revoked(self, revoked: frozenset[TP], *, lost: bool) -> None:
        self.revoked = True


@attrs.frozen(kw_only=True)
class Selection:
    """Which letters are meant.

    Attributes:
        agent: who failed, by name, or by its last part.
        since: when the letter was written or later, in seconds since the epoch.
        partitions: of the letters' topic; None: all.
        offsets: the first and the last one, of the letter.
        limit: how many; None: all.
    """

    agent: str | None = None
    since: float | None = None
    partitions: frozenset[int] | None = None
    offsets: tuple[int, int] | None = None
    limit: int | None = None

    def wants(self, letter: DeadLetter) -> bool:
        """Whether it is one of them, whatever `limit` says."""
        message = letter.message
        name = (self.agent or "").removeprefix("@")
        return (
            (self.agent is None or letter.agent == name or letter.agent.endswith(f".{name}"))
            and (self.since is None or message.timestamp >= self.since)
            and (self.partitions is None or message.partition in self.partitions)
            and (self.offsets is None or self.offsets[0] <= message.offset <= self.offsets[1])
        )


@attrs.frozen
class Stack:
    """The partitions that letters lie in: of each, where its log begins, how far it was replayed, and its end now."""

    beginnings: Mapping[TP, int]
    marks: Mapping[TP, int]
    ends: Mapping[TP, int]

    def start(self, *, from_beginning: bool) -> dict[TP, int]:
        """Where to read: from what was not replayed yet on, or all."""
        return dict(self.beginnings) if from_beginning else {**self.marks}

    def size(self, start: Mapping[TP, int]) -> int:
        """How many messages there are from here on, at the most."""
        return sum(max(0, self.ends[tp] - offset) for tp, offset in start.items())


async def letter_topics(transport: Transport, app: App | None, names: Sequence[str]) -> list[str]:
    """The topics of letters that are meant by these names, or all of the app, or all of the broker.

    Args:
        names: of topics of letters, or of the topics that the messages came from.

    Raises:
        click.ClickException: there is no such topic.
    """
    there = await transport.list_topics()
    given = {} if app is None else {topic.name: topic.dead_letter for topic in app.topics.values() if topic.dead_letter}
    if names:
        return [_meant(name, there, given) for name in dict.fromkeys(names)]
    found = [name for name in there if name.endswith(LETTERS) or name in given.values()]
    return found if app is None else [name for name in found if name in given.values() or _is_of(app, name)]


def _meant(name: str, there: Sequence[str], given: Mapping[str, str]) -> str:
    for topic in (given.get(name), f"{name}{LETTERS}"):
        if topic is not None and topic in there:
            return topic
    if name not in there:
        raise click.ClickException(
            f"the broker has neither a topic {name!r} nor {name + LETTERS!r}: `dead-letters list` without a name shows the "
            "letters that there are"
        )
    if name.endswith(LETTERS) or name in given.values():
        return name
    raise click.ClickException(
        f"topic {name} has no dead letters: there is no topic {given.get(name) or name + LETTERS!r}. It is created with the "
        'first letter, of an agent with on_failure="dead_letter" or "retry", or of a topic with on_decode_error="dead_letter"'
    )


def _is_of(app: App, letters: str) -> bool:
    """Whether letters of this name are for a topic that the app declares, makes or reads."""
    source = letters.removesuffix(LETTERS)
    if source in app.topics or source.startswith(f"{app.id}-"):
        return True
    return any(
        isinstance(agent.channel, Topic) and interest_in(agent.channel).wants(source) for agent in app.agents.values()
    )


async def look(transport: Transport, topics: Sequence[str], partitions: frozenset[int] | None) -> Stack:
    """What there is to read. Joins no group, so that a replay under way goes on.

    Args:
        partitions: only these of each topic, where it has them.
    """
    tps: list[TP] = []
    for topic in topics:
        numbers = range(await transport.partition_count(topic))
        tps += [TP(topic, number) for number in numbers if partitions is None or number in partitions]
    if not tps:
        return Stack({}, {}, {})
    async with transport.open_reader(dict.fromkeys(tps, "latest")) as reader:
        beginnings = {tp: reader.beginning(tp) for tp in tps}
        ends = {tp: reader.highwater(tp) for tp in tps}
    async with transport.open_consumer(ConsumerOptions(group=GROUP), Listener()) as consumer:
        committed = await consumer.committed(tps)
    # A topic that was made anew has fewer messages than were replayed of the one before.
    marks = {
        tp: beginnings[tp] if (mark := committed[tp]) is None or mark > ends[tp] else max(mark, beginnings[tp])
        for tp in tps
    }
    return Stack(beginnings, marks, ends)


async def read_to(
    transport: Transport,
    start: Mapping[TP, int],
    ends: Mapping[TP, int],
    handle: Callable[[Reader, Sequence[Message]], Awaitable[bool]],
) -> None:
    """Have all messages between these offsets handled, some at a time, until that returns False.

    Raises:
        trio.TooSlowError: the broker does not answer.
    """
    rest = {tp: offset for tp, offset in start.items() if offset < ends[tp]}
    if not rest:
        return
    try:
        async with transport.open_reader(rest) as reader:
            while any(reader.position(tp) < ends[tp] for tp in rest):
                with trio.fail_after(LIMIT):
                    batches = await reader.fetch(MOST)
                messages = [
                    message for batch in batches for message in batch.messages if message.offset < ends[batch.tp]
                ]
                if messages and not await handle(reader, messages):
                    return
    except UnknownTopic as error:
        raise click.ClickException(f"{error}; it was there a moment ago") from error


def parse_since(text: str | None) -> float | None:
    """Seconds since the epoch, for ``2h`` (ago) or a date and time; local time unless it says otherwise.

    Raises:
        click.BadParameter: it is neither.
    """
    if text is None:
        return None
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if ago is not None:
        return time.time() - float(ago[1]) * _UNITS[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
        raise click.BadParameter(
            f"{text!r}: expected how long ago, as 90s, 30m, 2h or 7d, or a time, as {now}", param_hint="--since"
        ) from None


def parse_offsets(text: str | None) -> tuple[int, int] | None:
    """The first and the last of ``17`` or ``17-40``.

    Raises:
        click.BadParameter: it is neither.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise click.BadParameter(f"{text!r}: expected an offset, as 17, or some, as 17-40", param_hint="--offset")
    return int(match[1]), int(match[2] or match[1])
