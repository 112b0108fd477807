"""Sending dead letters back: in order, acknowledged before the mark moves, so that each goes back at least once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import click
import trio

from ..channels.errors import CommitRefused, MessageTooLarge, TransportError, UnknownTopic
from ..channels.letters import REPLAYS, DeadLetter, replayed
from ..channels.message import TP, Message, ProducerRecord
from ..channels.partitioner import partition_for
from ..channels.transport import Consumer, ConsumerOptions, ProduceResult, Reader, Transport
from .letter_reading import GROUP, MOST, Listener, Selection, Stack, read_to

__all__ = ["Replay", "survey"]

_JOINING = 30.0  # seconds that joining the group may take
_ORIGINAL = 10.0  # seconds that fetching one message from its log may take
_POLL = 0.5  # seconds between two attempts to write while the broker is away


async def survey(
    transport: Transport,
    stack: Stack,
    start: Mapping[TP, int],
    selection: Selection,
    progress: Callable[[int], object] = lambda _: None,
) -> tuple[Counter[str], int]:
    """Without sending anything: how many letters would go back to each topic, and how many cannot (they are in no log).

    Args:
        progress: told how many more messages were looked at.
    """
    goals: Counter[str] = Counter()
    homeless = 0

    async def count(_: Reader, messages: Sequence[Message]) -> bool:
        nonlocal homeless
        progress(len(messages))
        for message in messages:
            letter = DeadLetter.of(message)
            if letter is not None and selection.wants(letter):
                if is_homeless(letter):
                    homeless += 1
                else:
                    goals[letter.topic] += 1
                if goals.total() + homeless == selection.limit:
                    return False
        return True

    await read_to(transport, start, stack.ends, count)
    return goals, homeless


def is_homeless(letter: DeadLetter) -> bool:
    """Whether there is nowhere to send it back to: it came from a local channel, or does not say where from."""
    return letter.offset < 0 or not letter.topic


class Replay:
    """One replay of letters, over an open transport.

    Args:
        by_key: write to the partition that the key chooses, and not to the one that the message came from.
        batch_bytes: written to one partition at once.
        delivery_timeout: seconds to try while the broker is away.
        say: told each letter that cannot be sent back.
        progress: told how many more are done.

    Attributes:
        sent: how many went back, and are acknowledged.
        refused: how many cannot be sent back.
        unmarked: how many of those sent are not remembered as replayed, since letters before them were left out.
    """

    def __init__(
        self,
        transport: Transport,
        selection: Selection,
        *,
        by_key: bool,
        batch_bytes: int,
        delivery_timeout: float,
        say: Callable[[str], object],
        progress: Callable[[int], object],
    ) -> None:
        self._transport = transport
        self._selection = selection
        self._by_key = by_key
        self._batch_bytes = batch_bytes
        self._delivery_timeout = delivery_timeout
        self._say = say
        self._progress = progress
        self._counts: dict[str, int] = {}
        self._marks: dict[TP, int] = {}
        self._behind: set[TP] = set()  # partitions with a letter that was left out; their marks stay before it
        self.sent = self.refused = self.unmarked = 0

    async def run(self, stack: Stack, start: Mapping[TP, int]) -> None:
        """
        Raises:
            click.ClickException: somebody else replays the same letters, or the broker did not take one.
        """
        self._marks = dict(stack.marks)
        listener = Listener()
        options = ConsumerOptions(group=GROUP)
        async with self._transport.open_consumer(options, listener) as consumer:
            with trio.move_on_after(_JOINING) as joining:
                await consumer.subscribe({tp.topic for tp in start})
            if joining.cancelled_caught or not consumer.assignment.partitions.issuperset(start):
                raise click.ClickException(
                    f"another `dead-letters replay` is at it (consumer group {GROUP}): wait for its end, then look with "
                    "`dead-letters list` what is left"
                )

            async def handle(_: Reader, messages: Sequence[Message]) -> bool:
                return await self._handle(consumer, listener, messages)

            await read_to(self._transport, start, stack.ends, handle)

    async def _handle(self, consumer: Consumer, listener: Listener, messages: Sequence[Message]) -> bool:
        """Send back those that are meant, then remember how far. Whether there may be more."""
        batches: dict[TP, list[ProducerRecord]] = {}
        marks: dict[TP, int] = {}
        going, more = 0, True
        for message in messages:
            letter = DeadLetter.of(message)
            tp = message.tp
            if letter is not None and not self._selection.wants(letter):
                self._behind.add(tp)
                continue
            if letter is not None:
                goal = await self._goal(letter)
                if goal is not None:
                    batches.setdefault(goal[0], []).append(goal[1])
                    going += 1
                    self.unmarked += tp in self._behind
            if tp not in self._behind:
                marks[tp] = message.offset + 1
            if self.sent + going + self.refused == self._selection.limit:
                more = False
                break
        await self._write(batches)
        self.sent += going
        self._progress(going)
        marks = {tp: mark for tp, mark in marks.items() if mark > self._marks[tp]}
        if marks:
            await self._commit(consumer, listener, marks)
        return more

    async def _commit(self, consumer: Consumer, listener: Listener, marks: Mapping[TP, int]) -> None:
        try:
            if listener.revoked:
                raise CommitRefused("another one has joined")
            await consumer.commit(marks, generation=consumer.assignment.generation)
        except CommitRefused as error:
            raise click.ClickException(
                f"stopped after {_letters(self.sent)}: another `dead-letters replay` has begun (consumer group {GROUP}). The "
                "last ones are not remembered as replayed and may be sent again; begin anew when the other one has ended"
            ) from error
        self._marks.update(marks)

    async def _goal(self, letter: DeadLetter) -> tuple[TP, ProducerRecord] | None:
        """Where it goes, and as what; None if it cannot, which is said."""
        where = f"{letter.message.tp}@{letter.message.offset}"
        original: Message | None = letter.message
        if not letter.topic:
            original = None
            self._say(f"{where}: its headers do not say where it came from")
        elif is_homeless(letter):
            original = None
            self._say(f"{where}: it came from {letter.topic}, which no log has: only its own process can send there")
        elif letter.left_out:
            original = await self._original(letter)
            if original is None:
                source = f"{letter.source}@{letter.offset}"
                self._say(f"{where}: what it left out is gone, since {source} is not in its log any more")
        if original is None:
            self.refused += 1
            return None
        times = ((name, text) for name, text in letter.message.headers if name == REPLAYS)
        headers = letter.message.headers if original is letter.message else (*original.headers, *times)
        timestamp = letter.message.timestamp if letter.timestamp is None else letter.timestamp
        record = ProducerRecord(original.key, original.value, replayed(headers), timestamp)
        return TP(letter.topic, await self._partition(letter, original.key)), record

    async def _partition(self, letter: DeadLetter, key: bytes | None) -> int:
        count = self._counts.get(letter.topic)
        if count is None:
            count = self._counts[letter.topic] = await self._transport.partition_count(letter.topic)
        if 0 <= letter.partition < count and not (self._by_key and key is not None):
            return letter.partition
        return letter.partition % count if key is None else partition_for(key, count)

    async def _original(self, letter: DeadLetter) -> Message | None:
        """The message itself, from its log; None if it is not there any more.

        Raises:
            click.ClickException: the broker does not tell.
        """
        tp = letter.source
        with trio.move_on_after(_ORIGINAL) as fetching:
            try:
                async with self._transport.open_reader({tp: letter.offset}, on_reset=lambda _: None) as reader:
                    if reader.beginning(tp) <= letter.offset < reader.highwater(tp):
                        while reader.position(tp) == letter.offset:
                            for batch in await reader.fetch(1):
                                message = batch.messages[0]
                                whole = len(message.value or b"") == letter.size
                                return message if message.offset == letter.offset and whole else None
            except UnknownTopic:
                return None
        if fetching.cancelled_caught:
            raise click.ClickException(
                f"stopped after {_letters(self.sent)}: {tp}@{letter.offset}, which a letter left out, could not be fetched "
                f"within {_ORIGINAL:g} s; the next replay goes on there"
            )
        return None

    async def _write(self, batches: Mapping[TP, Sequence[ProducerRecord]]) -> None:
        """Until all are acknowledged.

        Raises:
            click.ClickException: some cannot be written.
        """
        rest = {tp: list(records) for tp, records in batches.items()}
        most = dict.fromkeys(rest, self._batch_bytes)
        deadline = trio.current_time() + self._delivery_timeout
        while rest:
            heads = {tp: _head(records, most[tp]) for tp, records in rest.items()}
            outcome = await self._transport.produce(heads)
            waits = False
            for tp, result in outcome.items():
                if isinstance(result, ProduceResult):
                    del rest[tp][: len(heads[tp])]
                elif isinstance(result, MessageTooLarge) and len(heads[tp]) > 1:
                    most[tp] = 0  # one by one
                elif isinstance(result, TransportError) and result.retriable and trio.current_time() < deadline:
                    waits = True
                else:
                    raise click.ClickException(self._stopped(tp, result))
            rest = {tp: records for tp, records in rest.items() if records}
            if waits:
                await trio.sleep(_POLL)

    def _stopped(self, tp: TP, error: Exception) -> str:
        text = " ".join(str(error).split())
        return (
            f"stopped after {_letters(self.sent)}: {tp} does not take the next ones: {text}. Up to {MOST} more went back and "
            "are not remembered, so the next replay sends them again"
        )


def _head(records: Sequence[ProducerRecord], most: int) -> Sequence[ProducerRecord]:
    """The first ones, of no more bytes than that together; at least one."""
    size = count = 0
    for record in records:
        size += len(record.key or b"") + len(record.value or b"") + sum(len(text) for _, text in record.headers) + 100
        if size > most and count:
            break
        count += 1
    return records[:count]


def _letters(count: int) -> str:
    return "1 letter" if count == 1 else f"{count} letters"
