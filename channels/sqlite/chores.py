"""Housekeeping of a SQLite broker: retention, compaction, and giving space back. One process does each round for all.

Everything is done in small transactions, so that nobody waits long for the write lock, and each may be the last: the ends
of a log are moved first, and what is outside of them is deleted row by row later.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Mapping
from functools import partial
from typing import Final

import attrs
import trio

from ..errors import BrokerUnavailable, TransportError
from .compaction import compact
from .engine import Engine
from .groups import leave
from .jobs import Transaction
from .peers import CHANGE

__all__ = ["RETENTION_MS", "Housekeeping", "retain", "sweep", "table_of_logs"]

log = logging.getLogger("famulus.sqlite")

RETENTION_MS: Final = 7 * 24 * 3600 * 1000
"""How long records are kept where the topic's ``retention.ms`` does not say."""

_ROWS: Final = 100  # deleted in one transaction
_PAGES: Final = 1000  # given back to the disk in one transaction
_DAY_MS: Final = 24 * 3600 * 1000


@attrs.frozen
class Log:
    """A partition as housekeeping sees it."""

    id: int
    config: Mapping[str, str]
    first: int
    next: int
    clean: int

    def number(self, name: str, default: int) -> int:
        """A setting of its topic that is a number; the default where it is none."""
        try:
            return int(self.config.get(name, default))
        except ValueError:
            return default

    @property
    def policies(self) -> frozenset[str]:
        return frozenset(part.strip() for part in self.config.get("cleanup.policy", "delete").split(","))


class Housekeeping:
    """Of one transport; `run` is its task."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._hurry = trio.Event()

    def hurry(self) -> None:
        """There is something to delete now."""
        self._hurry.set()

    async def run(self) -> None:
        """Keep house now and then. What fails is tried again in the next round."""
        while True:
            with trio.move_on_after(self._engine.settings.housekeeping):
                await self._hurry.wait()
            hurried = self._hurry.is_set()
            self._hurry = trio.Event()
            try:
                await self.round(at_once=hurried)
            except BrokerUnavailable as error:
                log.debug("housekeeping: %s", error)
            except TransportError as error:
                log.warning("housekeeping: %s", error)

    async def round(self, *, at_once: bool = False) -> None:
        """Do all that is due, unless another process has done so since."""
        if not await self._engine.write(partial(_claim, pace=self._engine.settings.housekeeping, at_once=at_once)):
            return
        for one in await self._engine.read(table_of_logs):
            try:
                await self._keep(one)
            except BrokerUnavailable:
                raise
            except TransportError as error:  # one that is damaged keeps the others from nothing
                log.warning("housekeeping of partition %d: %s", one.id, error)
        while await self._engine.write(lambda tx: sweep(tx.db)):
            pass
        while await self._engine.write(lambda tx: _give_back(tx.db)):
            pass
        await self._engine.write(self._forget_the_dead)
        await self._engine.signs.clear_dead()

    async def _keep(self, one: Log) -> None:
        if "delete" in one.policies:
            await self._engine.write(lambda tx: retain(tx.db, one, time.time()))
        if "compact" in one.policies:
            grave = one.number("delete.retention.ms", _DAY_MS) / 1000
            await compact(self._engine, one.id, one.first, one.clean, one.next, forget_before=time.time() - grave)

    def _forget_the_dead(self, tx: Transaction) -> None:
        """Take members whose process has ended out of groups in which nobody else has noticed."""
        rows = tx.db.execute("SELECT DISTINCT consumer_group, peer FROM members").fetchall()
        for group, peer in rows:
            if self._engine.peers.sign_of(peer) is None:
                leave(tx.db, group, peer)
                tx.pokes.add(CHANGE)


def _claim(tx: Transaction, pace: float, at_once: bool) -> bool:
    """Whether this round is ours."""
    now = time.time()
    row = tx.db.execute("SELECT due FROM chores WHERE name = 'round'").fetchone()
    if row is not None and now < row[0] <= now + pace and not at_once:  # not after the clock was set back
        return False
    tx.db.execute("INSERT OR REPLACE INTO chores (name, due) VALUES ('round', ?)", (now + pace / 2,))
    return True


def table_of_logs(db: sqlite3.Connection) -> list[Log]:
    """All partitions."""
    rows = db.execute(
        "SELECT p.id, t.config, p.first, p.next, p.clean FROM topics t JOIN partitions p ON p.topic = t.id"
    )
    return [Log(id_, json.loads(config), first, end, clean) for id_, config, first, end, clean in rows]


def retain(db: sqlite3.Connection, one: Log, now: float) -> int:
    """Let a log begin where its retention wants it; that offset. Rows are dropped as a whole.

    The age of a record is the time since it was written, whatever its timestamp: one of last year may be sent today.
    Too many bytes never cost the newest row, however large it is.
    """
    first = one.first
    age = one.number("retention.ms", RETENTION_MS)
    if age >= 0:
        row = db.execute(
            "SELECT min(base) FROM batches WHERE partition = ? AND next > ? AND written >= ?",
            (one.id, first, now - age / 1000),
        ).fetchone()
        first = max(first, one.next if row[0] is None else row[0])
    most = one.number("retention.bytes", -1)
    if most >= 0:
        size = 0
        rows = db.execute(
            "SELECT base, next, bytes FROM batches WHERE partition = ? AND next > ? ORDER BY next DESC", (one.id, first)
        )
        for _, behind, bytes_ in rows:
            size += bytes_
            if size > most and behind < one.next:
                first = max(first, behind)
                break
    db.execute("UPDATE partitions SET first = max(first, ?) WHERE id = ?", (first, one.id))
    return first


def sweep(db: sqlite3.Connection) -> bool:
    """Delete some rows that are outside of their logs; whether there may be more."""
    deleted = db.execute(
        "DELETE FROM batches WHERE id IN (SELECT b.id FROM partitions p JOIN batches b ON b.partition = p.id "
        "AND b.next <= p.first LIMIT ?)",
        (_ROWS,),
    ).rowcount
    if deleted:
        return True
    orphaned = db.execute("SELECT partition FROM dropped LIMIT 1").fetchone()
    if orphaned is None:
        return False
    deleted = db.execute(
        "DELETE FROM batches WHERE id IN (SELECT id FROM batches WHERE partition = ? LIMIT ?)", (*orphaned, _ROWS)
    ).rowcount
    if not deleted:
        db.execute("DELETE FROM dropped WHERE partition = ?", orphaned)
    return True


def _give_back(db: sqlite3.Connection) -> bool:
    """Return unused space to the disk where that is a quarter of the file; whether there is more."""
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (unused,) = db.execute("PRAGMA freelist_count").fetchone()
    if unused < _PAGES or 4 * unused < pages:
        return False
    db.execute(f"PRAGMA incremental_vacuum({_PAGES})").fetchall()
    return True
