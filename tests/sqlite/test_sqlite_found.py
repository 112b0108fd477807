"""What a hostile reading of the SQLite broker found: each test is a way in which it lost, repeated or hung."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from famulus.channels.errors import BrokerUnavailable, TransportError
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.sqlite import SqliteTransport, engine, file, groups, jobs, log
from famulus.channels.sqlite.peers import CHANGE, NEWS, Peers
from famulus.channels.sqlite.url import parse_url
from famulus.channels.transport import ConsumerOptions, OffsetReset, ProduceResult, TopicSpec, TransportOptions
from famulus.testing.cancellation import each_step
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


# Topics that are replaced.


async def test_what_was_read_of_a_deleted_topic_is_not_committed_to_its_successor(tmp_path: Path) -> None:
    async with opened(tmp_path) as transport:
        await write(transport, records("a", "b", "c"))
        committed = trio.Event()

        class Draining(Recorder):
            async def on_revoked(self, revoked: frozenset[TP], *, lost: bool) -> None:
                with trio.CancelScope(shield=True):
                    if not committed.is_set():
                        await consumer.commit({TOPIC: 3}, generation=consumer.assignment.generation)
                        committed.set()
                await super().on_revoked(revoked, lost=lost)

        recorder = Draining(Changes())
        async with transport.open_consumer(ConsumerOptions(group="g"), recorder) as consumer:
            await consumer.subscribe(["t"])
            await GroupMember(transport, consumer, recorder).read(3)

            def replace(tx: jobs.Transaction) -> None:
                log.delete_topic(tx.db, "t")
                log.create_topic(tx.db, "t", 1, {})
                groups.topics_changed(tx.db, "t")
                tx.pokes.add(CHANGE)

            await transport._engine.write(replace)
            await write(transport, records("d", "e", "f", "g"))
            await committed.wait()
            messages = await GroupMember(transport, consumer, recorder).read(4)
            assert [message.value for message in messages] == [b"d", b"e", b"f", b"g"]


async def test_a_reader_whose_topic_was_replaced_begins_at_the_beginning_of_the_new_one_and_is_told(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as transport:
        await write(transport, records("a", "b"))
        resets: list[OffsetReset] = []
        async with transport.open_reader({TOPIC: "earliest"}, on_reset=resets.append) as reader:
            await reader.fetch(10)
            await transport.delete_topic("t")
            await transport.create_topic(TopicSpec(name="t", partitions=1))
            await write(transport, records("c", "d", "e"))
            found: list[bytes | None] = []
            with trio.fail_after(20):
                while len(found) < 3:
                    found += [message.value for batch in await reader.fetch(10) for message in batch.messages]
            assert found == [b"c", b"d", b"e"]
            assert resets == [OffsetReset(TOPIC, 2, 0)]


# Peers.


def test_who_has_no_descriptor_left_takes_nobody_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Peers(tmp_path / "broker.db"), Peers(tmp_path / "broker.db")
    one.open()
    two.open()
    try:

        def none_left(*_: object) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", none_left)
            patched.setattr(os, "listdir", none_left)
            assert one.sign_of(two.name) is not None
            one.clear_dead()
            one.poke(NEWS)
        two.renew()
    finally:
        one.close()
        two.close()


async def test_a_change_of_directory_parts_nobody_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "_PULSE", 0.02)
    (tmp_path / "elsewhere").mkdir()
    async with opened(Path(".")) as transport:
        await trio.sleep(0.1)
        os.chdir(tmp_path / "elsewhere")
        await trio.sleep(0.2)
        await write(transport, records("a"))
    assert sorted(os.listdir(tmp_path)) == ["broker.db", "elsewhere"]


async def test_who_comes_by_a_link_to_the_file_is_a_peer_like_others(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "broker.db")
    async with opened(tmp_path) as transport:
        other = SqliteTransport(f"sqlite://{tmp_path}/link.db")
        async with other.open():
            assert transport._engine.peers.sign_of(other._engine.peers.name) is not None


async def test_a_file_may_be_named_as_databases_in_memory_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    transport = SqliteTransport("sqlite://./:memory:")
    async with transport.open():
        await transport.create_topic(TopicSpec(name="t", partitions=1))
        assert await transport.list_topics() == ["t"]
    assert (tmp_path / ":memory:").exists()


# Housekeeping.


async def test_a_damaged_record_of_one_topic_does_not_stop_the_housekeeping_of_others(tmp_path: Path) -> None:
    async with opened(tmp_path, cleanup_policy="compact") as transport:
        await write(transport, records("a", "b"))
        await transport.create_topic(TopicSpec(name="u", partitions=1, config={"retention.ms": "0"}))
        await transport.produce({TP("u", 0): records("old")})
        db = sqlite3.connect(tmp_path / "broker.db")
        with db:
            db.execute("UPDATE batches SET data = substr(data, 1, length(data) - 1) || x'00' WHERE partition = 1")
            db.execute("UPDATE batches SET written = written - 10")
        await transport._housekeeping.round(at_once=True)
        assert db.execute("SELECT partition FROM batches").fetchall() == [(1,)]
        db.close()


async def test_the_newest_batch_is_kept_though_it_is_larger_than_the_retention(tmp_path: Path) -> None:
    async with opened(tmp_path, retention_bytes="1000") as transport:
        await write(transport, records("a"))
        await write(transport, [ProducerRecord(None, b"x" * 400) for _ in range(10)])
        await transport._housekeeping.round(at_once=True)
        assert await values(transport) == [b"x" * 400] * 10


# Leaving, and what may become of the file.


async def test_leaving_takes_no_longer_than_its_timeout_though_the_disk_stands_still(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gates = [threading.Event(), threading.Event()]
    transport = SqliteTransport(f"sqlite://{tmp_path}/broker.db", TransportOptions(shutdown_timeout=0.3))
    try:
        with trio.fail_after(20):
            async with transport.open(), trio.open_nursery() as nursery:
                nursery.start_soon(transport._engine.write, lambda tx: gates[0].wait(60))
                nursery.start_soon(transport._engine.read, lambda db: gates[1].wait(60))
                await trio.sleep(0.1)
                nursery.cancel_scope.cancel()
        assert "was not closed within 0.3 s, since its disk does not answer" in caplog.text
    finally:
        for gate in gates:
            gate.set()
    while transport._engine._writer is not None:  # it is closed when the disk answers at last
        await trio.sleep(0.01)


@pytest.mark.parametrize("replaced", [False, True])
async def test_nothing_is_acknowledged_once_the_file_was_removed_or_replaced(tmp_path: Path, replaced: bool) -> None:
    with pytest.raises(TransportError, match="was removed or replaced while it was in use: start this process again"):
        async with opened(tmp_path) as transport:
            await write(transport, records("a"))
            for name in ("broker.db", "broker.db-wal", "broker.db-shm"):
                (tmp_path / name).unlink()
            if replaced:
                async with opened(tmp_path):
                    pass
            error = (await transport.produce({TOPIC: records("b")}))[TOPIC]
            assert isinstance(error, TransportError)
            assert not error.retriable
            with trio.fail_after(20):
                await trio.sleep_forever()


# Groups.


async def test_a_group_rebalances_though_all_threads_of_trio_are_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("famulus.channels.sqlite.consumer._PACE", 0.05)
    gate = threading.Event()
    async with opened(tmp_path) as one, opened(tmp_path) as two, trio.open_nursery() as nursery:
        options = ConsumerOptions(group="g")
        async with one.open_consumer(options, Recorder(Changes())) as first:
            await first.subscribe(["t"])
            for _ in range(int(trio.to_thread.current_default_thread_limiter().total_tokens)):
                nursery.start_soon(trio.to_thread.run_sync, lambda: gate.wait(30))
            try:
                with trio.fail_after(10):
                    async with two.open_consumer(options, Recorder(Changes())) as second:
                        await second.subscribe(["t"])
                        await trio.sleep(0.3)  # both watch each other
                    async with two.open_consumer(options, Recorder(Changes())) as second:
                        await second.subscribe(["t"])
            finally:
                gate.set()


async def test_a_subscription_that_changes_while_a_lost_member_joins_anew_is_fulfilled(tmp_path: Path) -> None:
    async with opened(tmp_path) as transport:
        await transport.create_topic(TopicSpec(name="u", partitions=1))
        async with transport.open_consumer(ConsumerOptions(group="g"), Recorder(Changes())) as consumer:
            await consumer.subscribe(["t"])
            own = transport._engine
            other = sqlite3.connect(tmp_path / "broker.db", isolation_level=None)
            other.execute("UPDATE members SET gone = 'as ordered'")
            other.close()
            async with trio.open_nursery() as nursery:
                async with held_back(transport):
                    transport._engine._tell([CHANGE])
                    while not own._pending:  # it wants to join anew
                        await trio.sleep(0.01)
                    nursery.start_soon(consumer.subscribe, ["t", "u"])
                    await trio.sleep(0.1)
                with trio.fail_after(20):
                    while len(consumer.assignment.partitions) < 2:
                        await trio.sleep(0.01)


@pytest.mark.slow
async def test_a_member_with_a_short_session_stays_in_its_group(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        await one.add_partitions("t", 2)
        options = ConsumerOptions(group="g", session_timeout=0.9)
        async with (
            one.open_consumer(options, Recorder(Changes())) as first,
            two.open_consumer(options, Recorder(Changes())) as second,
        ):
            await first.subscribe(["t"])
            await second.subscribe(["t"])
            with trio.fail_after(20):
                while first.assignment.generation != second.assignment.generation:
                    await trio.sleep(0.01)
            before = first.assignment
            await trio.sleep(3)
            assert first.assignment == before


@pytest.mark.slow
async def test_a_disk_that_takes_no_signs_of_life_costs_nobody_its_partitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_PULSE", 0.1)
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        await one.add_partitions("t", 2)
        options = ConsumerOptions(group="g", session_timeout=0.6)
        async with (
            one.open_consumer(options, Recorder(Changes())) as first,
            two.open_consumer(options, Recorder(Changes())) as second,
        ):
            await first.subscribe(["t"])
            await second.subscribe(["t"])
            with trio.fail_after(20):
                while first.assignment.generation != second.assignment.generation:
                    await trio.sleep(0.01)
            before = first.assignment
            gate = threading.Event()
            with monkeypatch.context() as patched:
                patched.setattr(os, "utime", lambda path: gate.wait(20))
                try:
                    await trio.sleep(2)
                finally:
                    gate.set()
            await trio.sleep(0.5)
            assert first.assignment == before


# The write-ahead log.


@pytest.mark.slow
async def test_the_write_ahead_log_stays_bounded_while_somebody_always_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("famulus.channels.sqlite.wal._LOG_BYTES", 2_000_000)
    monkeypatch.setattr("famulus.channels.sqlite.file._JOURNAL_BYTES", 1_000_000)
    monkeypatch.setattr("famulus.channels.sqlite.file._PAGES_PER_CHECKPOINT", 100)
    ends = threading.Event()

    def read() -> None:
        db = sqlite3.connect(tmp_path / "broker.db", isolation_level=None)
        while not ends.is_set():
            db.execute("BEGIN")
            db.execute("SELECT next FROM partitions").fetchone()
            ends.wait(0.01)
            db.execute("COMMIT")
        db.close()

    async with opened(tmp_path, "?durability=normal") as transport:
        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        try:
            largest = 0
            for _ in range(100):
                await write(transport, [ProducerRecord(None, b"x" * 200_000)])
                largest = max(largest, (tmp_path / "broker.db-wal").stat().st_size)
        finally:
            ends.set()
            for reader in readers:
                reader.join()
    assert largest < 6_000_000


# Opening.


class Interrupted(sqlite3.Connection):
    """A connection before one of whose statements something happens, once."""

    before = ""
    happens: ClassVar[list[Callable[[], object]]] = []

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == self.before and self.happens:
            self.happens.pop()()
        return super().execute(sql, *parameters)


def interrupt(monkeypatch: pytest.MonkeyPatch, before: str, happens: Callable[[], object]) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(Interrupted, "before", before)
    monkeypatch.setattr(Interrupted, "happens", [happens])
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kinds: connect(*args, **kinds, factory=Interrupted))


async def test_a_file_that_another_process_makes_while_it_is_looked_at_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> None:
        with suppress(BrokerUnavailable):
            file.open_writing(parse_url(f"sqlite://{tmp_path}/broker.db?busy_timeout=0.01", tmp_path)).close()

    interrupt(monkeypatch, "PRAGMA user_version", make)
    async with opened(tmp_path) as transport:
        await write(transport, records("a"))


async def test_a_file_whose_write_ahead_log_another_process_is_making_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy() -> None:
        error = sqlite3.OperationalError("database is locked")  # SQLite does not wait here
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error

    interrupt(monkeypatch, "PRAGMA journal_mode = WAL", busy)
    async with opened(tmp_path) as transport:
        await write(transport, records("a"))


# Cancellation at every moment.


@pytest.mark.slow
async def test_a_run_that_is_cancelled_at_any_step_leaves_no_member_no_file_and_no_half_batch(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass

    async def call(number: int) -> None:
        async with opened(tmp_path) as transport:
            recorder = Recorder(Changes())
            async with transport.open_consumer(ConsumerOptions(group="g"), recorder) as consumer:
                await consumer.subscribe(["t"])
                await transport.produce({TOPIC: records(f"{number}a", f"{number}b")})
                await GroupMember(transport, consumer, recorder).read(1)
                await consumer.commit({TOPIC: 1}, generation=consumer.assignment.generation)

    async def checked(number: int) -> None:
        try:
            await call(number)
        finally:
            assert os.listdir(tmp_path) == ["broker.db"]
            db = sqlite3.connect(tmp_path / "broker.db")
            assert db.execute("SELECT * FROM members").fetchall() == []
            db.close()

    with trio.fail_after(100):
        await each_step(checked)
        async with opened(tmp_path) as transport:
            found = [(value or b"").decode() for value in await values(transport)]
    assert found == [part for first in found[::2] for part in (first, first[:-1] + "b")]
    assert len(found) == len(set(found))


async def test_a_write_that_was_cancelled_at_any_step_and_repeated_is_in_the_log_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as transport:
        sent: list[bytes | None] = []

        async def call(number: int) -> None:
            some = records(f"{number}a", f"{number}b")
            sent.extend(record.value for record in some)
            result: object = None
            try:
                result = (await transport.produce({TOPIC: some}))[TOPIC]
            finally:
                with trio.CancelScope(shield=True):
                    for patience in (0, 0.0005, 20):
                        with trio.move_on_after(patience):
                            result = result or (await transport.produce({TOPIC: some}))[TOPIC]
                assert isinstance(result, ProduceResult)
                assert result.base_offset == len(sent) - 2

        with trio.fail_after(100):
            for _ in range(20):
                await each_step(call)
        assert await values(transport) == sent
