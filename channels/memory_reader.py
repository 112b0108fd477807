"""Reads partitions of a memory broker without a group. `MemoryTransport.open_reader` makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from .memory_broker import MemoryBroker
from .message import TP
from .transport import Batch, OffsetReset, Reader, StartOffset, log_reset

__all__ = ["MemoryReader"]


class MemoryReader(Reader):
    """Open from the beginning; `close` ends it."""

    def __init__(
        self, broker: MemoryBroker, start: Mapping[TP, StartOffset], on_reset: Callable[[OffsetReset], object] | None
    ) -> None:
        """
        Raises:
            UnknownTopic: a topic is missing, or has no such partition.
        """
        self._broker = broker
        self._tell_of_reset = on_reset or log_reset
        self._logs = {tp: broker.log(tp) for tp in start}
        self._positions = {tp: self._resolved(tp, offset) for tp, offset in start.items()}
        self._turn = list(start)
        self._news = trio.Event()
        self._closed = False
        for log in self._logs.values():
            log.listeners[self._tell] = None
        broker.listeners[self._tell] = None
        broker.readers[self] = None

    def _resolved(self, tp: TP, offset: StartOffset) -> int:
        log = self._logs[tp]
        return log.start if offset == "earliest" else log.end if offset == "latest" else offset

    def close(self) -> None:
        """End the wait of a `fetch`, and keep nothing at the broker any more."""
        self._closed = True
        for log in self._logs.values():
            log.listeners.pop(self._tell, None)
        self._broker.listeners.pop(self._tell, None)
        self._broker.readers.pop(self, None)
        self._news.set()

    def _tell(self) -> None:
        self._news.set()

    @property
    def partitions(self) -> frozenset[TP]:
        return frozenset(self._positions)

    def reads(self, tp: TP) -> bool:
        """Whether this is one of its partitions."""
        return tp in self._positions

    async def fetch(self, most: int) -> list[Batch]:
        if most < 1:
            raise ValueError(f"fetch({most}): expected at least 1")
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this reader is closed")
            if self._broker.up:
                self._broker.faults.check_fetch()
                moved, batches = self._collect(most)
                if moved:
                    return batches
            self._news = trio.Event()
            await self._news.wait()

    def _collect(self, most: int) -> tuple[bool, list[Batch]]:
        """Whether any position has moved, and what there is to read. Without a checkpoint."""
        for tp in self._turn:  # before anything is read: these may raise
            self._follow(tp)
        moved, batches = False, list[Batch]()
        for tp in self._turn:
            log, position = self._logs[tp], self._positions[tp]
            if position == log.end or most < 1:
                continue
            messages, next_offset = log.read(position, most, -1)
            self._positions[tp] = next_offset
            moved = True
            if messages:
                most -= len(messages)
                batches.append(Batch(tp, -1, messages, next_offset, log.end))
        if batches:  # whose turn it was is the last one the next time
            self._turn.remove(batches[0].tp)
            self._turn.append(batches[0].tp)
        return moved, batches

    def _follow(self, tp: TP) -> None:
        """Go on in the log that has the partition's name now, at an offset that it has."""
        log = self._broker.log(tp)
        if log is not self._logs[tp]:
            self._logs[tp].listeners.pop(self._tell, None)
            self._logs[tp] = log
            log.listeners[self._tell] = None
        wanted = self._positions[tp]
        if not log.start <= wanted <= log.end:
            self._positions[tp] = log.start
            self._tell_of_reset(OffsetReset(tp, wanted, log.start))

    def position(self, tp: TP) -> int:
        return self._positions[tp]

    def beginning(self, tp: TP) -> int:
        return self._logs[tp].start

    def highwater(self, tp: TP) -> int:
        return self._logs[tp].end

    async def seek(self, tp: TP, offset: int) -> None:
        await trio.lowlevel.checkpoint()
        if tp not in self._positions:
            raise KeyError(tp)
        if offset < 0:
            raise ValueError(f"seek of {tp} to {offset}: expected an offset of at least 0")
        self._positions[tp] = offset
        self._news.set()

    def __repr__(self) -> str:
        return f"<MemoryReader {'closed' if self._closed else 'open'} {len(self._positions)} partitions>"
