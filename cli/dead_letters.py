"""``dead-letters``: look at messages that could not be processed, and send them back once the cause is mended."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..channels.errors import UnknownTopic
from ..channels.letters import DeadLetter
from ..channels.message import Message
from ..channels.transport import Reader, Transport
from .broker import BrokerCall
from .invocation import Invocation
from .letter_reading import Selection, Stack, letter_topics, look, parse_offsets, parse_since, read_to
from .letter_replay import Replay, survey
from .letter_showing import Decoder, as_json, write_letters
from .output import console, write_json

__all__ = ["dead_letters"]

_MANY = 10  # letters that are replayed without asking
_WORTH_A_BAR = 1000  # letters from which on progress is shown


@click.group(
    name="dead-letters",
    invoke_without_command=True,
    epilog="""\b
Examples:
  famulus -A shop dead-letters list
  famulus -A shop dead-letters list orders --traceback
  famulus -A shop dead-letters replay orders --dry-run
  famulus -A shop dead-letters replay orders
""",
)
@click.pass_context
def dead_letters(ctx: click.Context) -> None:
    """Messages that could not be processed: list them, and send them back.

    They lie in topics beside their own, orders.dead-letter for orders: what an agent with on_failure="dead_letter"
    or "retry" gave up, and what could not be decoded where on_decode_error="dead_letter". List them, mend the cause,
    restart the workers, then replay them.

    With -A they are those of the app, and their values are decoded as the app declares them; with --broker alone
    those of the whole broker.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The argument and the options that say which letters are meant."""
    for decorate in reversed(
        (
            click.argument("topics", metavar="[TOPIC]...", nargs=-1),
            click.option("--agent", metavar="NAME", help="Only what this agent failed on."),
            click.option("--since", metavar="WHEN", help="Only letters written since then: 30m, 2h, 7d, or a time."),
            click.option(
                "--partition",
                "partitions",
                type=click.IntRange(min=0),
                multiple=True,
                help="Only this partition of the letters' topic; may be given again.",
            ),
            click.option("--offset", "offsets", metavar="N[-M]", help="Only the letters at these offsets."),
        )
    ):
        command = decorate(command)
    return command


@dead_letters.command(
    name="list",
    epilog="""\b
Examples:
  famulus -A shop dead-letters list
  famulus -A shop dead-letters list orders --since 2h --agent tally
  famulus -A shop dead-letters list orders --partition 0 --offset 17 --traceback
  famulus -A shop dead-letters list --json | jq -r '.[].error.type' | sort | uniq -c
""",
)
@_selecting
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The oldest so many.")
@click.option("--all", "every", is_flag=True, help="Those that were replayed already, too.")
@click.option("--traceback", "tracebacks", is_flag=True, help="Where the errors came from, below the table.")
@click.option(
    "--json",
    "as_document",
    is_flag=True,
    help="A JSON list: topic, partition, offset, written, source, timestamp, agent, attempts, replays, replayed, "
    'undecodable, error, key, value, headers, left_out. Bytes that are no text are {"base64": ...}.',
)
@click.pass_obj
def list_letters(
    invocation: Invocation,
    /,
    topics: Sequence[str],
    limit: int,
    every: bool,
    tracebacks: bool,
    as_document: bool,
    **selecting: Any,
) -> None:
    """Show dead letters, the oldest first: where each lies, which message it is, and what was wrong.

    TOPIC is a topic of letters, or the one that the messages came from; without one all are shown. Nothing is
    changed, and nobody's reading is disturbed.
    """
    selection = _selection(**selecting)
    call = BrokerCall(invocation)

    async def collect(transport: Transport) -> None:
        names = await letter_topics(transport, call.app, topics)
        stack = await look(transport, names, selection.partitions)
        found, total = await _oldest(transport, stack, selection, limit, every)
        shown = [(letter, letter.message.offset < stack.marks[letter.message.tp]) for letter in found]
        decoder = Decoder(call, transport)
        if as_document:
            write_json([as_json(letter, decoder, replayed=replayed) for letter, replayed in shown])
        elif shown:
            write_letters(shown, decoder, tracebacks=tracebacks, with_replayed=every)
        _say_of_list(names, stack, total, limit, every=every, quiet=as_document)

    call.run(collect, limit=inf)


async def _oldest(
    transport: Transport, stack: Stack, selection: Selection, limit: int, every: bool
) -> tuple[list[DeadLetter], int]:
    """The first letters by the time when they were written, and how many there are."""
    found: list[DeadLetter] = []
    total = 0

    def cut() -> None:
        found.sort(key=lambda letter: (letter.message.timestamp, letter.message.tp, letter.message.offset))
        del found[limit:]

    async def collect(_: Reader, messages: Sequence[Message]) -> bool:
        nonlocal total
        progress(len(messages))
        for message in messages:
            letter = DeadLetter.of(message)
            if letter is not None and selection.wants(letter):
                total += 1
                found.append(letter)
        if len(found) > 2 * limit:
            cut()
        return True

    start = stack.start(from_beginning=every)
    with _progress(stack.size(start), "reading") as progress:
        await read_to(transport, start, stack.ends, collect)
    cut()
    return found, total


def _say_of_list(names: Sequence[str], stack: Stack, total: int, limit: int, *, every: bool, quiet: bool) -> None:
    before = sum(stack.marks[tp] - stack.beginnings[tp] for tp in stack.marks)
    notes = []
    if not names:
        notes.append(
            "no topic of dead letters: it is created with the first letter, of an agent with on_failure='dead_letter' or "
            "'retry', or of a topic with on_decode_error='dead_letter'"
        )
    elif not total:
        notes.append(f"no dead letters in {', '.join(names)}")
    if total > limit:
        notes.append(f"{limit} of {_letters(total)}; --limit {total} shows all")
    if before and not every:
        notes.append(f"up to {_letters(before)} that were replayed before are not shown: --all")
    for note in notes:
        click.echo(note, err=quiet)


@dead_letters.command(
    epilog="""\b
Examples:
  famulus -A shop dead-letters replay orders --dry-run
  famulus -A shop dead-letters replay orders --yes
  famulus -A shop dead-letters replay orders --partition 0 --offset 17
  famulus -A shop dead-letters replay --agent tally --since 2h
  famulus -A shop dead-letters replay orders --from-beginning
""",
)
@_selecting
@click.option("--limit", type=click.IntRange(min=1), help="No more than so many.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent where.")
@click.option("-y", "--yes", is_flag=True, help=f"Do not ask, which more than {_MANY} letters need.")
@click.option("--from-beginning", is_flag=True, help="Those that were replayed already, too.")
@click.option(
    "--by-key",
    is_flag=True,
    help="To the partition that the key chooses now, for a topic that has grown. By default to the one that the "
    "message came from.",
)
@click.pass_obj
def replay(
    invocation: Invocation,
    /,
    topics: Sequence[str],
    limit: int | None,
    dry_run: bool,
    yes: bool,
    from_beginning: bool,
    by_key: bool,
    **selecting: Any,
) -> None:
    """Send dead letters back to the topics that they came from, as the messages that they were.

    Key, value, timestamp and headers are the original ones; a header counts how often a message was sent back, and
    `list` shows it when it fails again. All readers of the topic get it, those too that had no trouble with it.

    The letters stay where they are, since a log cannot lose single messages; how far they were replayed is
    remembered at the broker, in the consumer group famulus-dead-letters, once the messages are acknowledged. So the
    next replay goes on there. One that is cut off may send up to 500 letters twice, and leaves out none. With a
    selection that leaves letters out, what comes behind them is sent and not remembered.
    """
    selection = _selection(**selecting, limit=limit)
    call = BrokerCall(invocation)

    async def send_back(transport: Transport) -> None:
        names = await letter_topics(transport, call.app, topics)
        stack = await look(transport, names, selection.partitions)
        start = stack.start(from_beginning=from_beginning)
        with _progress(stack.size(start), "looking at") as progress:
            goals, homeless = await survey(transport, stack, start, selection, progress)
        count = goals.total() + homeless
        if not count:
            click.echo(_nothing(names, stack, from_beginning=from_beginning))
            return
        await _check_goals(transport, goals)
        plan = ", ".join(f"{_letters(number)} to {topic}" for topic, number in sorted(goals.items()))
        if dry_run:
            click.echo(f"would send back {plan or 'nothing'}")
            if homeless:
                click.echo(
                    f"{_letters(homeless)} cannot be sent back: they came from local channels, which no log has, or do not say "
                    "where from"
                )
            return
        if count > _MANY and not yes:
            click.confirm(f"Send back {plan}, at {call.shown}?", abort=True)
        with _progress(count, "sending back") as progress:
            replay = Replay(
                transport,
                selection,
                by_key=by_key,
                batch_bytes=call.settings.producer_max_batch_bytes,
                delivery_timeout=call.settings.producer_delivery_timeout,
                say=lambda text: click.echo(f"not sent back: {text}", err=True),
                progress=progress,
            )
            await replay.run(stack, start)
        whole = replay.sent == goals.total()
        click.echo(f"sent back {plan if whole and plan else _letters(replay.sent)}")
        if replay.unmarked:
            click.echo(
                f"{_letters(replay.unmarked)} of them stand behind others that were left out: a `replay` without a selection "
                "sends them again"
            )
        if replay.refused:
            raise click.ClickException(f"{_letters(replay.refused)} could not be sent back, see above")

    call.run(send_back, limit=inf)


async def _check_goals(transport: Transport, goals: Counter[str]) -> None:
    for topic in sorted(goals):
        try:
            await transport.partition_count(topic)
        except UnknownTopic as error:
            raise click.ClickException(
                f"nothing was sent: {_letters(goals[topic])} came from topic {topic!r}, which is not there any more: {error}; "
                "or name the other topics whose letters are to be sent back"
            ) from error


def _nothing(names: Sequence[str], stack: Stack, *, from_beginning: bool) -> str:
    if not names:
        return "nothing to replay: there is no topic of dead letters"
    before = sum(stack.marks[tp] - stack.beginnings[tp] for tp in stack.marks)
    again = f"; up to {_letters(before)} were replayed before, --from-beginning sends them again"
    return f"nothing to replay in {', '.join(names)}{again if before and not from_beginning else ''}"


def _selection(
    agent: str | None,
    since: str | None,
    partitions: Sequence[int],
    offsets: str | None,
    limit: int | None = None,
) -> Selection:
    return Selection(
        agent=agent,
        since=parse_since(since),
        partitions=frozenset(partitions) or None,
        offsets=parse_offsets(offsets),
        limit=limit,
    )


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], object]]:
    """A bar on standard error, where that is a terminal and there is much to do."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = total >= _WORTH_A_BAR and sys.stderr.isatty()
    with Progress(*columns, console=console(stderr=True), disable=not shown) as progress:
        task = progress.add_task(what, total=total)
        yield lambda more: progress.advance(task, more)


def _letters(count: int) -> str:
    return "1 letter" if count == 1 else f"{count} letters"
