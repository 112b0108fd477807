"""What a hostile reading of the SQLite broker found: each test is a way in which it lost, repeated or hung."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from famulus.channels.errors import BrokerUnavailable, TransportError
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.sqlite import SqliteTransport, engine
from famulus.channels.sqlite.peers import NEWS, Peers
from famulus.channels.transport import ConsumerOptions, OffsetReset, ProduceResult, TopicSpec, TransportOptions
from famulus.testing.contract_kit import Changes, GroupMember, Recorder

pytestmark = [pytest.mark.real_time]

TOPIC = TP("t", 0)


@asynccontextmanager
async def opened(path: Path, options: str = "", **config: str) -> AsyncIterator[SqliteTransport]:
    """A transport with the topic "t", which has one partition."""
    transport = SqliteTransport(f"sqlite://{path}/broker.db{options}")
    async with transport.open():
        if "t" not in await transport.list_topics():
            named = {name.replace("_", "."): value for name, value in config.items()}
            await transport.create_topic(TopicSpec(name="t", partitions=1, config=named))
        yield transport


def records(*values: str) -> list[ProducerRecord]:
    return [ProducerRecord(value.encode(), value.encode()) for value in values]


async def write(transport: SqliteTransport, some: list[ProducerRecord]) -> ProduceResult:
    result = (await transport.produce({TOPIC: some}))[TOPIC]
    assert isinstance(result, ProduceResult), result
    return result


async def values(transport: SqliteTransport) -> list[bytes | None]:
    """What is in the log."""
    found: list[bytes | None] = []
    async with transport.open_reader({TOPIC: "earliest"}) as reader:
        while reader.position(TOPIC) < reader.highwater(TOPIC):
            found += [message.value for batch in await reader.fetch(1000) for message in batch.messages]
    return found


@asynccontextmanager
async def held_back(transport: SqliteTransport) -> AsyncIterator[trio.Event]:
    """The writing thread is busy until this is left; the event tells when it has begun to be."""
    gate = threading.Event()
    busy = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hold(_: object) -> None:
        token.run_sync_soon(busy.set)
        gate.wait(20)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport._engine.write, hold)
        await busy.wait()
        try:
            yield busy
        finally:
            gate.set()


async def cancelled(transport: SqliteTransport, some: list[ProducerRecord]) -> None:
    """Send, and be cancelled while that waits for the writing thread."""
    with trio.move_on_after(0.05) as scope:
        await transport.produce({TOPIC: some})
    assert scope.cancelled_caught


class Failing:
    """A connection on which one statement fails, having been executed or not."""

    def __init__(self, db: Any, statement: str, code: int, *, really: bool) -> None:
        self._db, self._statement, self._code, self._really = db, statement, code, really

    def execute(self, sql: str, *parameters: object) -> object:
        if sql != self._statement:
            return self._db.execute(sql, *parameters)
        if self._really:
            self._db.execute(sql)
        error = sqlite3.OperationalError("as ordered")
        error.sqlite_errorcode = self._code
        raise error

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)


async def fails(
    transport: SqliteTransport, some: list[ProducerRecord], statement: str, code: int, *, really: bool = False
) -> BrokerUnavailable:
    """Send while that statement fails."""
    own = transport._engine
    db = own._writer
    own._writer = Failing(db, statement, code, really=really)  # type: ignore[assignment]  # stands in for it
    try:
        error = (await transport.produce({TOPIC: some}))[TOPIC]
    finally:
        own._writer = db
    assert isinstance(error, BrokerUnavailable)
    return error


# Writes that are repeated.


async def test_a_write_in_doubt_is_in_the_log_once_though_its_repetition_was_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as transport:
        some = records("a", "b")
        assert (await fails(transport, some, "COMMIT", sqlite3.SQLITE_IOERR, really=True)).in_doubt
        assert not (await fails(transport, some, "BEGIN IMMEDIATE", sqlite3.SQLITE_BUSY)).in_doubt
        assert (await write(transport, some)).base_offset == 0
        assert await values(transport) == [b"a", b"b"]


async def test_a_write_in_doubt_is_in_the_log_once_though_its_repetition_with_more_is_in_doubt_too(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as transport:
        first, more = records("a", "b"), records("c")
        assert (await fails(transport, first, "COMMIT", sqlite3.SQLITE_IOERR, really=True)).in_doubt
        assert (await fails(transport, [*first, *more], "COMMIT", sqlite3.SQLITE_IOERR)).in_doubt
        assert (await write(transport, [*first[1:], *more])).base_offset == 1
        assert await values(transport) == [b"a", b"b", b"c"]


async def test_a_write_in_doubt_is_in_the_log_once_though_its_repetition_was_cancelled(tmp_path: Path) -> None:
    async with opened(tmp_path) as transport:
        some = records("a", "b")
        assert (await fails(transport, some, "COMMIT", sqlite3.SQLITE_IOERR, really=True)).in_doubt
        async with held_back(transport):
            await cancelled(transport, some)
        assert (await write(transport, some)).base_offset == 0
        assert await values(transport) == [b"a", b"b"]


async def test_the_receipt_of_a_repetition_is_right_where_only_a_part_was_new(tmp_path: Path) -> None:
    async with opened(tmp_path) as transport:
        first, more = records("a", "b"), records("c")
        await fails(transport, first, "COMMIT", sqlite3.SQLITE_IOERR, really=True)
        both = [*first, *more]
        await fails(transport, both, "COMMIT", sqlite3.SQLITE_IOERR, really=True)
        assert (await write(transport, both)).base_offset == 0
        assert await values(transport) == [b"a", b"b", b"c"]


async def test_a_cancelled_write_is_in_the_log_once_though_its_rows_were_dropped_before_it_was_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention or compaction may be faster than the repetition, which would bring back what they took away."""
    async with opened(tmp_path) as transport:
        some = records("old")
        gate = threading.Event()
        with monkeypatch.context() as patched:  # it has been committed, and its sender does not know yet
            patched.setattr(transport._engine.peers, "poke", lambda kind: gate.wait(20))
            await cancelled(transport, some)
            gate.set()
            await transport.delete_records({TOPIC: 1})
        await transport._housekeeping.round(at_once=True)
        assert (await write(transport, some)).base_offset == 0
        assert await values(transport) == []
