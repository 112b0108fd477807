"""Reads partitions without a group. `KafkaTransport.open_reader` makes it.

The client is one like a group member's, and what it has read ahead is taken in the same way (`ahead.py`); only it owns
what it is told, and nobody can take that away.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import trio

from ..channels.errors import BrokerUnavailable, TransportError
from ..channels.message import TP
from ..channels.transport import Batch, OffsetReset, Reader, StartOffset, log_reset
from .ahead import ReadAhead
from .errors import CALL_FAILURES, translated
from .reading import ReadingInside

__all__ = ["KafkaReader", "reading_of"]

_LOOK = 1.0  # seconds between two looks whether the topics are still there


def reading_of(partitions: Mapping[TP, object]) -> str:
    """For the log.

    >>> reading_of({TP("replies", 0): 0, TP("replies", 1): 0, TP("orders", 0): 0})
    'reading topics orders, replies'
    """
    topics = sorted({tp.topic for tp in partitions})
    return f"reading {'topic' if len(topics) == 1 else 'topics'} {', '.join(topics)}"


class KafkaReader(Reader):
    """Made for a client that is started and reads nothing yet; `begin` lets it.

    Args:
        ends: the first offset of each log, and the one after its last.
        check: asks the broker for the partitions, and raises `UnknownTopic` where it does not have one.
    """

    def __init__(
        self,
        inside: ReadingInside,
        start: Mapping[TP, StartOffset],
        ends: Mapping[TP, tuple[int, int]],
        on_reset: Callable[[OffsetReset], object] | None,
        *,
        check: Callable[[], Awaitable[None]],
    ) -> None:
        self.inside = inside
        self.positions = {tp: _resolved(offset, *ends[tp]) for tp, offset in start.items()}
        self._beginnings = {tp: beginning for tp, (beginning, _) in ends.items()}
        self._ends = {tp: end for tp, (_, end) in ends.items()}
        self._tell_of_reset = on_reset or log_reset
        self._check = check
        self._name = reading_of(start)
        self._topics = sorted({tp.topic for tp in start})
        self._turn = list(start)
        self._next_look = trio.current_time() + _LOOK
        self._closed = False
        self._ahead = ReadAhead(inside, self._name, self.position)

    def close(self) -> None:
        """End the wait of a `fetch`."""
        self._closed = True
        self._ahead.tell()

    @property
    def partitions(self) -> frozenset[TP]:
        return frozenset(self.positions)

    async def fetch(self, most: int) -> list[Batch]:
        if most < 1:
            raise ValueError(f"fetch({most}): expected at least 1")
        await self._ahead.begin()
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this reader is closed")
            if trio.current_time() >= self._next_look:
                await self._check_topics()
            try:
                self.inside.check_errors()
            except CALL_FAILURES as error:
                raise translated(error, self._name) from error
            moved, batches = self._collect(most)
            if moved:
                return batches
            await self._ahead.wait(until=self._next_look)

    def _collect(self, most: int) -> tuple[bool, list[Batch]]:
        """Whether any position has moved, and what there is to read. Without a checkpoint."""
        if self.inside.resets:
            self._report_resets()
        moved, batches = False, list[Batch]()
        for tp in self._turn:
            if most < 1:
                break
            before = self.positions[tp]
            try:
                messages = self._ahead.take(tp, most, -1)
            except TransportError:
                if moved:
                    break  # what was taken has moved its position; the error comes again, or is over
                raise
            moved = moved or self.position(tp) != before
            if messages:
                most -= len(messages)
                batches.append(Batch(tp, -1, messages, self.position(tp), self.highwater(tp)))
        if batches:  # whose turn it was is the last one the next time
            self._turn.remove(batches[0].tp)
            self._turn.append(batches[0].tp)
        return moved, batches

    def _report_resets(self) -> None:
        """Tell of partitions that go on elsewhere, once it is known where."""
        resets = self.inside.resets
        for tp, wanted in list(resets.items()):
            position = self.inside.position(tp)
            if position is None:
                continue
            del resets[tp]
            if position != wanted:
                self.positions[tp] = self._beginnings[tp] = self._ends[tp] = position
                self._tell_of_reset(OffsetReset(tp, wanted, position))

    async def _check_topics(self) -> None:
        """The client waits for a topic that was deleted as for one that has no leader at the moment."""
        self._next_look = trio.current_time() + _LOOK
        if all(self.inside.has(topic) for topic in self._topics):
            return
        with suppress(BrokerUnavailable):
            await self._check()

    def position(self, tp: TP) -> int:
        known = self.positions[tp]
        position = self.inside.position(tp)
        if position is None:
            return known
        self.positions[tp] = position
        return position

    def beginning(self, tp: TP) -> int:
        return self._beginnings[tp]

    def highwater(self, tp: TP) -> int:
        return max(self._ends[tp], self.inside.highwater(tp), self.position(tp))

    async def seek(self, tp: TP, offset: int) -> None:
        await trio.lowlevel.checkpoint()
        if tp not in self.positions:
            raise KeyError(tp)
        if offset < 0:
            raise ValueError(f"seek of {tp} to {offset}: expected an offset of at least 0")
        self.inside.resets.pop(tp, None)
        self.inside.seek(tp, offset)
        self.positions[tp] = offset
        self._ahead.tell()

    def __repr__(self) -> str:
        return f"<KafkaReader {'closed' if self._closed else 'open'} {len(self.positions)} partitions>"


def _resolved(offset: StartOffset, beginning: int, end: int) -> int:
    return beginning if offset == "earliest" else end if offset == "latest" else offset
