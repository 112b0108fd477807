"""Reads partitions without a group. `SqliteTransport.open_reader` makes it."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import trio

from ..errors import BrokerUnavailable
from ..message import TP
from ..transport import Batch, OffsetReset, Reader, StartOffset, log_reset
from .engine import Engine
from .log import Read, Wanted, place_of, read

__all__ = ["SqliteReader"]

log = logging.getLogger("famulus.sqlite")

_PAUSE: Final = 0.5  # seconds before the file is tried again when it could not be read


class SqliteReader(Reader):
    """Closed until `begin`; `close` ends it."""

    def __init__(
        self, engine: Engine, start: Mapping[TP, StartOffset], on_reset: Callable[[OffsetReset], object] | None
    ) -> None:
        self._engine = engine
        self._start = start
        self._tell_of_reset = on_reset or log_reset
        self._ids: dict[TP, int] = {}
        self._positions: dict[TP, int] = {}
        self._ends: dict[TP, tuple[int, int]] = {}
        self._read_at: dict[TP, int] = {}  # by partition, what `_heard` was when it was last read
        self._damaged: set[TP] = set()
        self._turn = list(start)
        self._heard = 0
        self._news = trio.Event()
        self._closed = False
        self._waits = False

    async def begin(self) -> None:
        """Find where the partitions begin; wait while the file cannot be read.

        Raises:
            UnknownTopic: a topic is missing, or has no such partition.
        """
        self._engine.on_news[self._tell] = None
        self._engine.on_change[self._tell] = None
        while not self._ids:
            try:
                found = await self._engine.read(partial(_ends, partitions=self._turn))
            except BrokerUnavailable as error:
                await self._wait_for_broker(error)
            else:
                self._goes_on()
                for tp, offset in self._start.items():
                    self._ids[tp], first, end = found[tp]
                    self._ends[tp] = first, end
                    self._positions[tp] = first if offset == "earliest" else end if offset == "latest" else offset

    def close(self) -> None:
        """End the wait of a `fetch`."""
        self._closed = True
        self._engine.on_news.pop(self._tell, None)
        self._engine.on_change.pop(self._tell, None)
        self._news.set()

    def _tell(self) -> None:
        self._heard += 1
        self._news.set()

    async def _wait_for_broker(self, error: BrokerUnavailable) -> None:
        if not self._waits:
            self._waits = True
            log.warning("reading waits: %s", error)
        await trio.sleep(_PAUSE)

    def _goes_on(self) -> None:
        if self._waits:
            self._waits = False
            log.info("reading goes on")

    @property
    def partitions(self) -> frozenset[TP]:
        return frozenset(self._positions)

    async def fetch(self, most: int) -> list[Batch]:
        if most < 1:
            raise ValueError(f"fetch({most}): expected at least 1")
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this reader is closed")
            self._news = trio.Event()
            wanted = [
                Wanted(tp, self._ids[tp], position, most)
                for tp in self._turn
                if (position := self._positions[tp]) != self._ends[tp][1] or self._read_at.get(tp) != self._heard
                if tp not in self._damaged
            ]
            if not wanted:
                await self._news.wait()
                continue
            heard = self._heard
            try:
                found = await self._engine.read(partial(read, wanted=wanted, generation=-1, most=most))
                if None in found.values():
                    await self._follow([tp for tp, got in found.items() if got is None])
                    continue
            except BrokerUnavailable as error:
                await self._wait_for_broker(error)
                continue
            self._goes_on()
            moved, batches = self._accept(wanted, found, heard)
            if moved:
                return batches

    async def _follow(self, gone: list[TP]) -> None:
        """Go on in the log that has a partition's name now, from its beginning.

        Raises:
            UnknownTopic: there is none.
        """
        for tp, (id_, first, end) in (await self._engine.read(partial(_ends, partitions=gone))).items():
            position = self._positions[tp]
            self._ids[tp], self._positions[tp] = id_, first
            self._ends[tp] = first, end
            self._read_at.pop(tp, None)
            if position != first:
                self._tell_of_reset(OffsetReset(tp, position, first))

    def _accept(self, wanted: list[Wanted], found: Mapping[TP, Read | None], heard: int) -> tuple[bool, list[Batch]]:
        """Whether any position has moved, and what there is to read. Positions move here and in `seek`."""
        for tp, got in found.items():
            position = self._positions[tp]
            if got is not None and not got.first <= position <= got.next:  # before anything is read: this may raise
                self._ends[tp] = got.first, got.next
                self._positions[tp] = got.first
                self._tell_of_reset(OffsetReset(tp, position, got.first))
        moved, batches = False, list[Batch]()
        for want in wanted:
            tp, got = want.tp, found.get(want.tp)
            if got is None or self._positions[tp] != want.position:
                continue
            self._read_at[tp] = heard
            self._ends[tp] = got.first, got.next
            if got.damage is not None:
                self._damaged.add(tp)
                log.error("%s cannot be read on: %s", tp, got.damage)
            if got.position != want.position:
                moved = True
                self._positions[tp] = got.position
            if got.messages:
                batches.append(Batch(tp, -1, got.messages, got.position, got.next))
        if batches:  # whose turn it was is the last one the next time
            self._turn.remove(batches[0].tp)
            self._turn.append(batches[0].tp)
        return moved, batches

    def position(self, tp: TP) -> int:
        return self._positions[tp]

    def beginning(self, tp: TP) -> int:
        return self._ends[tp][0]

    def highwater(self, tp: TP) -> int:
        return self._ends[tp][1]

    async def seek(self, tp: TP, offset: int) -> None:
        await trio.lowlevel.checkpoint()
        if tp not in self._positions:
            raise KeyError(tp)
        if offset < 0:
            raise ValueError(f"seek of {tp} to {offset}: expected an offset of at least 0")
        self._positions[tp] = offset
        self._damaged.discard(tp)
        self._tell()

    def __repr__(self) -> str:
        return f"<SqliteReader {'closed' if self._closed else 'open'} {len(self._positions)} partitions>"


def _ends(db: sqlite3.Connection, partitions: list[TP]) -> dict[TP, tuple[int, int, int]]:
    """Id, first and next offset of partitions; raises UnknownTopic."""
    found: dict[TP, tuple[int, int, int]] = {}
    for tp in partitions:
        place = place_of(db, tp)
        first, end = db.execute("SELECT first, next FROM partitions WHERE id = ?", (place.id,)).fetchone()
        found[tp] = place.id, first, end
    return found
