"""Topics and their logs in the tables: functions on a connection, each for use inside one transaction. Nothing waits here."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import attrs

from ..errors import MessageTooLarge, ProduceError, TopicExists, UnknownTopic
from ..message import TP, Headers, Message, ProducerRecord
from ..transport import ProduceResult, TopicDescription
from .codec import Damaged, decode, encode

__all__ = [
    "Place",
    "Read",
    "Row",
    "Wanted",
    "add_partitions",
    "append",
    "create_topic",
    "delete_topic",
    "describe",
    "names",
    "partition_count",
    "partition_counts",
    "place_of",
    "read",
    "result_of",
    "rows_of",
    "trim",
    "was_appended",
]

_ROW_RECORDS: Final = 500
_ROW_BYTES: Final = 256 * 1024  # a row is what is read, dropped and compacted at once
_FETCH_BYTES: Final = 8 * 1024 * 1024  # of one fetch, in all partitions


class Row(NamedTuple):
    """A batch as it is stored, and the number of its records."""

    data: bytes
    records: int


@attrs.frozen
class Place:
    """A partition in the tables.

    Attributes:
        id: never used again, so that it means the same log for ever.
        stamps: its broker gives all timestamps.
        compacted: its records need keys.
        most: bytes of the largest record that it takes; None: as SQLite takes them.
    """

    id: int
    stamps: bool
    compacted: bool
    most: int | None


def _unknown_topic(name: str) -> UnknownTopic:
    return UnknownTopic(
        f"the broker has no topic {name!r}: declare it on the app, or create it with "
        f"await transport.create_topic(TopicSpec(name={name!r}, partitions=...))"
    )


def place_of(db: sqlite3.Connection, tp: TP) -> Place:
    """Where a partition is.

    Raises:
        UnknownTopic: there is no such topic, or it has no such partition.
    """
    found = db.execute(
        "SELECT p.id, t.config FROM topics t JOIN partitions p ON p.topic = t.id WHERE t.name = ? AND p.number = ?", tp
    ).fetchone()
    if found is None:
        count = partition_count(db, tp.topic)
        raise UnknownTopic(f"topic {tp.topic!r} has partitions 0 to {count - 1}, no {tp.partition}")
    config = json.loads(found[1])
    return Place(
        found[0],
        config.get("message.timestamp.type") == "LogAppendTime",
        "compact" in config.get("cleanup.policy", ""),
        int(config["max.message.bytes"]) if config.get("max.message.bytes", "").isdecimal() else None,
    )


# -- writing ---------------------------------------------------------------------------------------------------


def rows_of(tp: TP, place: Place, records: Sequence[ProducerRecord], now: float) -> Iterator[Row]:
    """Records as they are stored, a few hundred to a row.

    Raises:
        ProduceError: one cannot be stored.
    """
    if place.compacted and any(record.key is None for record in records):
        raise ProduceError(f"{tp}: the topic is compacted, so each of its records needs a key, and one has none")
    sizes = [len(record.key or b"") + len(record.value or b"") for record in records]
    if any(record.headers for record in records):
        sizes = [size + _size_of(record.headers) for size, record in zip(sizes, records, strict=True)]
    if place.most is not None and max(sizes) > place.most:
        raise MessageTooLarge(f"{tp} takes no message of {max(sizes)} bytes: its max.message.bytes is {place.most}")
    start = 0
    while start < len(records):
        stop = min(start + _ROW_RECORDS, len(records))
        if sum(sizes[start:stop]) > _ROW_BYTES:
            ends = accumulate(sizes[start:stop])
            stop = start + max(1, sum(end <= _ROW_BYTES for end in ends))
        yield Row(encode(records[start:stop], now, stamp_all=place.stamps), stop - start)
        start = stop


def _size_of(headers: Headers) -> int:
    return sum(len(name.encode()) + len(value) for name, value in headers)


def append(db: sqlite3.Connection, place: Place, rows: Sequence[Row], mark: int, now: float) -> int | None:
    """Store encoded rows behind what there is; the first offset. None: the partition is gone.

    Args:
        mark: of the transaction, by which the rows can be found again.
        now: from then on counts their time to be kept.
    """
    found = db.execute("SELECT next FROM partitions WHERE id = ?", (place.id,)).fetchone()
    if found is None:
        return None
    base = at = int(found[0])
    values = []
    for data, count in rows:
        values.append((place.id, at, at + count, count, now, mark, len(data), data))
        at += count
    db.executemany(
        "INSERT INTO batches (partition, base, next, count, written, append, bytes, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )
    db.execute("UPDATE partitions SET next = ? WHERE id = ?", (at, place.id))
    return base


def was_appended(db: sqlite3.Connection, place: Place, base: int, mark: int) -> bool:
    """Whether the rows of a transaction are there, the first of them at `base`."""
    found = db.execute(
        "SELECT append = ? AND base = ? FROM batches WHERE partition = ? AND next > ? ORDER BY next LIMIT 1",
        (mark, base, place.id, base),
    ).fetchone()
    return bool(found and found[0])


def result_of(base: int, records: Sequence[ProducerRecord], place: Place, now: float) -> ProduceResult:
    """The receipt of a batch."""
    stamped = place.stamps or any(record.timestamp is None for record in records)
    return ProduceResult(base, now if stamped else None)


# -- reading ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Wanted:
    """What to read of a partition: up to `most` messages from `position` on."""

    tp: TP
    id: int
    position: int
    most: int


@attrs.frozen
class Read:
    """What was read.

    Attributes:
        first, next: the ends of the log.
        messages: none where the position is outside of it, or nothing is left behind it.
        position: where to go on.
        damage: why it does not go on there.
    """

    first: int
    next: int
    messages: list[Message]
    position: int
    damage: str | None = None


def read(
    db: sqlite3.Connection, wanted: Sequence[Wanted], generation: int, most: int | None = None
) -> dict[TP, Read | None]:
    """Read partitions, in this order while there is room for their bytes; None for one that is gone.

    Args:
        most: messages of all together.
    """
    found: dict[TP, Read | None] = {}
    room = _FETCH_BYTES
    for want in wanted:
        if room <= 0 or most == 0:
            break
        limit = want.most if most is None else min(want.most, most)
        ends = db.execute("SELECT first, next FROM partitions WHERE id = ?", (want.id,)).fetchone()
        if ends is None:
            found[want.tp] = None
            continue
        first, end = ends
        messages: list[Message] = []
        position, damage = want.position, None
        if first <= position < end:
            cursor = db.execute(
                "SELECT base, next, data FROM batches WHERE partition = ? AND next > ? ORDER BY next",
                (want.id, position),
            )
            for base, behind, data in cursor:
                try:
                    some, reached = decode(
                        data,
                        base,
                        position,
                        limit - len(messages),
                        topic=want.tp.topic,
                        partition=want.tp.partition,
                        generation=generation,
                    )
                except (Damaged, ValueError, IndexError) as error:
                    damage = None if messages else f"{want.tp}, offsets {base} to {behind - 1}: {error}"
                    break
                messages = messages + some if messages else some
                full = len(messages) >= limit
                position = reached if full else behind
                room -= len(data)
                if full or room <= 0:
                    break
            else:
                position = end  # what is left has no records
            cursor.close()
        if most is not None:
            most -= len(messages)
        found[want.tp] = Read(first, end, messages, position, damage)
    return found


# -- administration --------------------------------------------------------------------------------------------


def names(db: sqlite3.Connection) -> list[str]:
    """All topics, sorted."""
    return sorted(name for (name,) in db.execute("SELECT name FROM topics"))


def partition_counts(db: sqlite3.Connection) -> dict[str, int]:
    """The number of partitions of every topic, by name in order."""
    rows = db.execute("SELECT t.name, count(*) FROM topics t JOIN partitions p ON p.topic = t.id GROUP BY t.id")
    return dict(sorted(rows))


def partition_count(db: sqlite3.Connection, name: str) -> int:
    """How many partitions a topic has; raises UnknownTopic."""
    (count,) = db.execute(
        "SELECT count(*) FROM topics t JOIN partitions p ON p.topic = t.id WHERE t.name = ?", (name,)
    ).fetchone()
    if not count:
        raise _unknown_topic(name)
    return int(count)


def describe(db: sqlite3.Connection, name: str) -> TopicDescription:
    """A topic as it is; raises UnknownTopic."""
    count = partition_count(db, name)
    (config,) = db.execute("SELECT config FROM topics WHERE name = ?", (name,)).fetchone()
    return TopicDescription(name=name, partitions=count, replicas=1, config=json.loads(config))


def create_topic(db: sqlite3.Connection, name: str, partitions: int, config: Mapping[str, str]) -> None:
    """Create a topic.

    Raises:
        TopicExists: there is one of that name.
        ValueError: it would have no partitions.
    """
    if partitions < 1:
        raise ValueError(f"topic {name!r}, partitions={partitions}: expected at least 1")
    if db.execute("SELECT 1 FROM topics WHERE name = ?", (name,)).fetchone():
        raise TopicExists(f"the broker has a topic {name!r} already")
    topic = db.execute("INSERT INTO topics (name, config) VALUES (?, ?)", (name, json.dumps(dict(config)))).lastrowid
    _add(db, topic, range(partitions))


def add_partitions(db: sqlite3.Connection, name: str, total: int) -> None:
    """Raise a topic's number of partitions.

    Raises:
        UnknownTopic: there is none of that name.
        ValueError: it has as many.
    """
    count = partition_count(db, name)
    if total <= count:
        raise ValueError(f"topic {name!r} has {count} partitions, total={total}: expected more")
    (topic,) = db.execute("SELECT id FROM topics WHERE name = ?", (name,)).fetchone()
    _add(db, topic, range(count, total))


def _add(db: sqlite3.Connection, topic: int | None, numbers: range) -> None:
    db.executemany("INSERT INTO partitions (topic, number) VALUES (?, ?)", [(topic, number) for number in numbers])


def delete_topic(db: sqlite3.Connection, name: str) -> None:
    """Delete a topic with all that groups have committed of it; housekeeping deletes its records. Raises UnknownTopic."""
    partition_count(db, name)
    db.execute(
        "INSERT INTO dropped SELECT p.id FROM topics t JOIN partitions p ON p.topic = t.id WHERE t.name = ?", (name,)
    )
    db.execute("DELETE FROM topics WHERE name = ?", (name,))


def trim(db: sqlite3.Connection, before: Mapping[TP, int]) -> None:
    """Drop the records below these offsets; housekeeping deletes them.

    Raises:
        UnknownTopic: there is no such partition; nothing was dropped.
    """
    places = {tp: place_of(db, tp) for tp in before}
    for tp, offset in before.items():
        db.execute("UPDATE partitions SET first = max(first, min(?, next)) WHERE id = ?", (offset, places[tp].id))
