"""Compaction: of each key only the newest record is kept, and of a deleted key after a while none.

A pass remembers the newest offset of each key of the part that was not compacted yet, as many keys as memory is granted
for, and then drops older records of those keys, row by row. Every row is a transaction of its own, and dropping a record
that a newer one supersedes is right at any time: a pass that is broken off has done no harm. Offsets stay.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from typing import Final

from .codec import Entry, entries, keep
from .engine import Engine
from .jobs import Transaction

__all__ = ["compact", "drop", "newest_offsets"]

_MOST_KEYS: Final = 500_000  # of a pass: about 60 MB
_ROWS: Final = 20  # read or rewritten in one transaction
_DIRTY: Final = 0.3  # the part of a log that must be new, for a pass to be worth it


def _hash(key: bytes | None) -> bytes:
    return blake2b(key or b"", digest_size=16).digest()


async def compact(
    engine: Engine, partition: int, first: int, clean: int, end: int, *, forget_before: float, force: bool = False
) -> None:
    """Compact one partition.

    Args:
        clean: below this offset it was compacted before.
        forget_before: deletions (records without a value) that are older are dropped too.
        force: also where little is new.
    """
    dirty = max(clean, first)
    if end <= dirty or (end - dirty < _DIRTY * (end - first) and not force):
        return
    newest: dict[bytes, int] = {}
    reached = dirty
    while reached < end and len(newest) < _MOST_KEYS:
        found, behind = await engine.read(partial(newest_offsets, partition=partition, position=reached, end=end))
        newest.update(found)
        reached = behind
    position = first
    while position < reached:
        position = await engine.write(
            partial(
                _drop_some, partition=partition, position=position, until=reached, newest=newest, forget=forget_before
            )
        )

    def remember(tx: Transaction) -> None:
        tx.db.execute("UPDATE partitions SET clean = ? WHERE id = ?", (reached, partition))

    await engine.write(remember)


def newest_offsets(db: sqlite3.Connection, partition: int, position: int, end: int) -> tuple[dict[bytes, int], int]:
    """The newest offset of each key in the next rows, and where they end."""
    found: dict[bytes, int] = {}
    rows = db.execute(
        "SELECT base, next, data FROM batches WHERE partition = ? AND next > ? AND base < ? ORDER BY next LIMIT ?",
        (partition, position, end, _ROWS),
    ).fetchall()
    for base, behind, data in rows:
        found.update((_hash(entry.key), entry.offset) for entry in entries(data, base) if entry.offset < end)
        position = behind
    return found, min(position, end) if rows else end


def _drop_some(
    tx: Transaction, partition: int, position: int, until: int, newest: Mapping[bytes, int], forget: float
) -> int:
    """Drop what is superseded in the next rows; where they end."""

    def stays(entry: Entry, written: float) -> bool:
        if entry.value is None and written < forget and entry.offset < until:
            return False
        return newest.get(_hash(entry.key), -1) <= entry.offset

    return drop(tx.db, partition, position, until, stays)


def drop(
    db: sqlite3.Connection, partition: int, position: int, until: int, stays: Callable[[Entry, float], bool]
) -> int:
    """Keep of the next rows, those that begin below `until`, only what stays, given when it was written; where they end."""
    rows = db.execute(
        "SELECT id, base, next, written, data FROM batches WHERE partition = ? AND next > ? AND base < ? ORDER BY next LIMIT ?",
        (partition, position, until, _ROWS),
    ).fetchall()
    for row, base, behind, written, data in rows:
        position = behind
        before = list(entries(data, base))
        after = [entry for entry in before if stays(entry, written)]
        if not after:
            db.execute("DELETE FROM batches WHERE id = ?", (row,))
        elif len(after) < len(before):
            kept = keep(data, base, after)
            db.execute(
                "UPDATE batches SET data = ?, bytes = ?, count = ? WHERE id = ?", (kept, len(kept), len(after), row)
            )
    return position if rows else until
