"""What is kept and what is dropped: rows, retention, compaction, trimming; and that a repeated write is in the log once."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from famulus.channels.errors import BrokerUnavailable, ProduceError
from famulus.channels.message import TP, Message, ProducerRecord
from famulus.channels.sqlite import SqliteTransport
from famulus.channels.sqlite.chores import sweep
from famulus.channels.sqlite.codec import Damaged, decode, encode, entries, keep
from famulus.channels.sqlite.compaction import compact
from famulus.channels.sqlite.engine import Engine
from famulus.channels.transport import ConsumerOptions, OffsetReset, ProduceResult, TopicSpec
from famulus.testing.contract_kit import Changes, GroupMember, Recorder

TOPIC = TP("t", 0)
HOUR = 3600


@asynccontextmanager
async def topic(tmp_path: Path, **config: str) -> AsyncIterator[SqliteTransport]:
    transport = SqliteTransport(f"sqlite://{tmp_path}/broker.db")
    async with transport.open():
        named = {name.replace("_", "."): value for name, value in config.items()}
        await transport.create_topic(TopicSpec(name="t", partitions=1, config=named))
        yield transport


@asynccontextmanager
async def transport_of(tmp_path: Path) -> AsyncIterator[SqliteTransport]:
    transport = SqliteTransport(f"sqlite://{tmp_path}/broker.db")
    async with transport.open():
        yield transport


def keyed(*pairs: tuple[str, str | None]) -> list[ProducerRecord]:
    return [ProducerRecord(key.encode(), None if value is None else value.encode()) for key, value in pairs]


async def write(transport: SqliteTransport, records: list[ProducerRecord]) -> int:
    result = (await transport.produce({TOPIC: records}))[TOPIC]
    assert isinstance(result, ProduceResult), result
    return result.base_offset


async def read(transport: SqliteTransport, resets: list[OffsetReset] | None = None) -> list[Message]:
    """All that is left, up to the present end."""
    found: list[Message] = []
    recorder = Recorder(Changes())
    options = ConsumerOptions(group="reader", on_reset=None if resets is None else resets.append)
    async with transport.open_consumer(options, recorder) as consumer:
        await consumer.subscribe(["t"])
        member = GroupMember(transport, consumer, recorder)
        end = consumer.highwater(TOPIC)
        while consumer.position(TOPIC) < end:
            with trio.move_on_after(1):
                found += [message for batch in await member.consumer.fetch({TOPIC: 7}) for message in batch.messages]
    return found


def rows(tmp_path: Path) -> int:
    db = sqlite3.connect(tmp_path / "broker.db")
    (count,) = db.execute("SELECT count(*) FROM batches").fetchone()
    db.close()
    return int(count)


def make_older(tmp_path: Path, seconds: float) -> None:
    db = sqlite3.connect(tmp_path / "broker.db")
    with db:
        db.execute("UPDATE batches SET written = written - ?", (seconds,))
    db.close()


# How records are stored.

BYTES = st.none() | st.binary(max_size=20)
RECORDS = st.lists(
    st.builds(
        ProducerRecord,
        BYTES,
        BYTES,
        st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=3).map(tuple),
        st.none() | st.floats(0, 1e10),
    ),
    min_size=1,
    max_size=20,
)


@given(RECORDS, st.integers(0, 25), st.integers(1, 25), st.booleans())
def test_any_part_of_a_batch_is_read_as_it_was_written(
    records: list[ProducerRecord], skip: int, most: int, stamped: bool
) -> None:
    data = encode(records, 5.0, stamp_all=stamped)
    messages, position = decode(data, 100, 100 + skip, most, topic="t", partition=3, generation=7)
    expected = records[skip : skip + most]
    assert [(m.key, m.value, m.headers) for m in messages] == [(r.key, r.value, r.headers) for r in expected]
    times = [5.0 if stamped or r.timestamp is None else r.timestamp for r in expected]
    assert [m.timestamp for m in messages] == times
    assert [m.offset for m in messages] == list(range(100 + skip, 100 + skip + len(expected)))
    assert position == 100 + skip + len(expected)
    assert {(m.tp, m.generation, m.timestamp_type) for m in messages} <= {(TP("t", 3), 7, int(stamped))}


@given(RECORDS, st.data())
def test_what_compaction_keeps_has_its_offsets_and_the_rest_is_passed(
    records: list[ProducerRecord], data: st.DataObject
) -> None:
    blob = encode(records, 5.0, stamp_all=False)
    before = list(entries(blob, 100))
    numbers = data.draw(st.sets(st.integers(0, len(records) - 1), min_size=1))
    kept = [before[number] for number in sorted(numbers)]
    again = keep(blob, 100, kept)
    assert list(entries(again, 100)) == kept
    start = data.draw(st.integers(100, 100 + len(records)))
    messages, _ = decode(again, 100, start, 1000, topic="t", partition=0, generation=0)
    assert [m.offset for m in messages] == [entry.offset for entry in kept if entry.offset >= start]


@given(RECORDS, st.data())
def test_a_changed_byte_is_noticed(records: list[ProducerRecord], data: st.DataObject) -> None:
    blob = bytearray(encode(records, 5.0, stamp_all=False))
    place = data.draw(st.integers(8, len(blob) - 1).filter(lambda at: not 12 <= at < 20))
    blob[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Damaged):
        decode(bytes(blob), 0, 0, 1000, topic="t", partition=0, generation=0)


async def test_large_batches_and_large_records_come_back_whole(tmp_path: Path) -> None:
    async with topic(tmp_path) as transport:
        values = [b"x" * 3_000_000, b"", *(b"%d" % number for number in range(3000)), b"y" * 300_000]
        assert await write(transport, [ProducerRecord(None, value) for value in values]) == 0
        assert [message.value for message in await read(transport)] == values
    assert rows(tmp_path) > 6


# Retention.


async def test_records_older_than_the_retention_are_dropped(tmp_path: Path) -> None:
    async with topic(tmp_path, retention_ms=str(HOUR * 1000)) as transport:
        await write(transport, keyed(("a", "1"), ("b", "2")))
        make_older(tmp_path, 2 * HOUR)
        await write(transport, keyed(("c", "3")))
        await transport._housekeeping.round(at_once=True)
        assert [message.offset for message in await read(transport)] == [2]
        assert await write(transport, keyed(("d", "4"))) == 3
    assert rows(tmp_path) == 2


async def test_when_all_is_dropped_offsets_go_on(tmp_path: Path) -> None:
    async with topic(tmp_path, retention_ms="0") as transport:
        await write(transport, keyed(("a", "1"), ("b", "2")))
        make_older(tmp_path, 1)
        await transport._housekeeping.round(at_once=True)
        assert await read(transport) == []
        assert await write(transport, keyed(("c", "3"))) == 2


async def test_the_timestamp_of_a_record_is_not_its_age(tmp_path: Path) -> None:
    async with topic(tmp_path) as transport:
        await write(transport, [ProducerRecord(b"a", b"1", (), 1_000_000_000.0)])
        await transport._housekeeping.round(at_once=True)
        assert len(await read(transport)) == 1
        make_older(tmp_path, 8 * 24 * HOUR)  # the default is a week
        await transport._housekeeping.round(at_once=True)
        assert await read(transport) == []


async def test_a_topic_that_keeps_everything_does(tmp_path: Path) -> None:
    async with topic(tmp_path, retention_ms="-1") as transport:
        await write(transport, keyed(("a", "1")))
        make_older(tmp_path, 1e9)
        await transport._housekeeping.round(at_once=True)
        assert len(await read(transport)) == 1


async def test_the_oldest_rows_beyond_the_retention_in_bytes_are_dropped(tmp_path: Path) -> None:
    async with topic(tmp_path, retention_bytes="5000") as transport:
        for number in range(20):
            await write(transport, [ProducerRecord(None, (b"%d" % number).ljust(1000))])
        await transport._housekeeping.round(at_once=True)
        assert [message.offset for message in await read(transport)] == [16, 17, 18, 19]


async def test_a_reader_that_was_overtaken_by_retention_is_told(tmp_path: Path) -> None:
    async with topic(tmp_path, retention_bytes="2000") as transport:
        resets: list[OffsetReset] = []
        recorder = Recorder(Changes())
        options = ConsumerOptions(group="slow", on_reset=resets.append)
        async with transport.open_consumer(options, recorder) as consumer:
            await consumer.subscribe(["t"])
            for number in range(5):
                await write(transport, [ProducerRecord(None, (b"%d" % number).ljust(1000))])
            await transport._housekeeping.round(at_once=True)
            messages = await GroupMember(transport, consumer, recorder).read(1)
        assert messages[0].offset == 4
        assert resets == [OffsetReset(TOPIC, 0, 4)]


async def test_deleted_records_and_topics_leave_no_rows(tmp_path: Path) -> None:
    async with topic(tmp_path) as transport:
        for number in range(250):
            await write(transport, keyed(("a", str(number))))
        await transport.delete_records({TOPIC: 240})
        assert [message.offset for message in await read(transport)] == list(range(240, 250))
        while rows(tmp_path) > 10:
            await trio.sleep(0.01)
        await transport.delete_topic("t")
        while rows(tmp_path):
            await trio.sleep(0.01)
        await transport.create_topic(TopicSpec(name="t", partitions=1))
        assert await write(transport, keyed(("b", "1"))) == 0
        assert [message.key for message in await read(transport)] == [b"b"]


async def test_space_that_is_free_goes_back_to_the_disk(tmp_path: Path) -> None:
    async with topic(tmp_path) as transport:
        for _ in range(8):
            await write(transport, [ProducerRecord(None, b"x" * 1_000_000)])
        await transport.delete_records({TOPIC: 8})
        await transport._housekeeping.round(at_once=True)
    assert (tmp_path / "broker.db").stat().st_size < 5_000_000


async def test_one_process_keeps_house_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with topic(tmp_path) as transport:
        other = SqliteTransport(transport.settings.path.as_uri().replace("file", "sqlite"))
        async with other.open():
            swept: list[int] = []

            def count(db: sqlite3.Connection) -> bool:
                swept.append(1)
                return sweep(db)

            monkeypatch.setattr("famulus.channels.sqlite.chores.sweep", count)
            await transport._housekeeping.round()
            await other._housekeeping.round()
            assert len(swept) == 1


async def test_closing_just_when_there_is_something_to_delete_is_no_error(tmp_path: Path) -> None:
    async with topic(tmp_path) as transport:
        await write(transport, keyed(("a", "1")))
        for _ in range(3):
            async with transport_of(tmp_path) as other:
                await other.delete_records({TOPIC: 1})


# Compaction.


async def compacted(transport: SqliteTransport, *, forget_before: float = 0.0) -> dict[str, tuple[int, str | None]]:
    engine: Engine = transport._engine
    first, end, clean = await engine.read(lambda db: db.execute("SELECT first, next, clean FROM partitions").fetchone())
    await compact(engine, 1, first, clean, end, forget_before=forget_before, force=True)
    found = await read(transport)
    return {
        (message.key or b"").decode(): (message.offset, None if message.value is None else message.value.decode())
        for message in found
    }


async def test_compaction_keeps_the_newest_of_each_key_at_its_offset(tmp_path: Path) -> None:
    async with topic(tmp_path, cleanup_policy="compact") as transport:
        await write(transport, keyed(("a", "1"), ("b", "1"), ("a", "2")))
        await write(transport, keyed(("c", "1"), ("b", "2"), ("a", "3")))
        assert await compacted(transport) == {"a": (5, "3"), "b": (4, "2"), "c": (3, "1")}
        await write(transport, keyed(("a", "4")))
        assert await compacted(transport) == {"a": (6, "4"), "b": (4, "2"), "c": (3, "1")}
        assert len(await read(transport)) == 3


async def test_a_deletion_stays_until_its_time_is_over(tmp_path: Path) -> None:
    async with topic(tmp_path, cleanup_policy="compact") as transport:
        await write(transport, keyed(("a", "1"), ("b", "1"), ("a", None)))
        assert await compacted(transport) == {"a": (2, None), "b": (1, "1")}
        await write(transport, keyed(("c", "1")))
        assert await compacted(transport, forget_before=time.time() + 1) == {"b": (1, "1"), "c": (3, "1")}


async def test_a_compacted_topic_is_not_dropped_by_age_and_takes_no_record_without_a_key(tmp_path: Path) -> None:
    async with topic(tmp_path, cleanup_policy="compact") as transport:
        await write(transport, keyed(("a", "1")))
        make_older(tmp_path, 1e9)
        await transport._housekeeping.round(at_once=True)
        assert len(await read(transport)) == 1
        outcome = (await transport.produce({TOPIC: [ProducerRecord(None, b"1")]}))[TOPIC]
        assert isinstance(outcome, ProduceError)
        assert "needs a key" in str(outcome)


async def test_housekeeping_compacts_what_is_mostly_new(tmp_path: Path) -> None:
    async with topic(tmp_path, cleanup_policy="compact") as transport:
        for number in range(1000):
            await write(transport, keyed((f"key-{number % 10}", str(number))))
        await transport._housekeeping.round(at_once=True)
        assert [message.offset for message in await read(transport)] == list(range(990, 1000))


# Writes that got no answer.


def slow_commit(transport: SqliteTransport, monkeypatch: pytest.MonkeyPatch, until: Callable[[], bool]) -> None:
    """Let the next transactions be under way until that is true: after they were committed."""
    transact = transport._engine._transact

    def slow(jobs: list[object]) -> set[bytes]:
        pokes = transact(jobs)  # type: ignore[arg-type]  # the jobs of the engine's own
        while not until():
            time.sleep(0.005)
        return pokes

    monkeypatch.setattr(transport._engine, "_transact", slow)


@pytest.mark.real_time
async def test_a_write_that_got_no_answer_is_in_the_log_once_when_it_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = SqliteTransport(f"sqlite://{tmp_path}/broker.db?produce_timeout=0.1")
    async with transport.open():
        await transport.create_topic(TopicSpec(name="t", partitions=1))
        await write(transport, keyed(("z", "0")))
        released = False
        slow_commit(transport, monkeypatch, lambda: released)
        records = keyed(("a", "1"), ("b", "2"))
        error = (await transport.produce({TOPIC: records}))[TOPIC]
        assert isinstance(error, BrokerUnavailable)
        assert error.in_doubt
        released = True
        more = keyed(("c", "3"))
        while True:
            outcome = (await transport.produce({TOPIC: [*records[1:], *more]}))[
                TOPIC
            ]  # its sender has given up the first
            if isinstance(outcome, ProduceResult):
                break
        assert outcome.base_offset == 2
        assert [message.key for message in await read(transport)] == [b"z", b"a", b"b", b"c"]


@pytest.mark.real_time
async def test_a_write_that_was_cancelled_is_in_the_log_once_when_it_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with topic(tmp_path) as transport:
        released = False
        slow_commit(transport, monkeypatch, lambda: released)
        records = keyed(("a", "1"), ("b", "2"))
        with trio.move_on_after(0.1) as waiting:
            await transport.produce({TOPIC: records})
        assert waiting.cancelled_caught
        released = True
        assert await write(transport, records) == 0
        assert [message.key for message in await read(transport)] == [b"a", b"b"]


async def test_a_write_whose_commit_failed_is_looked_up_when_it_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with topic(tmp_path) as transport:
        engine = transport._engine
        transact = engine._transact
        for really in (True, False):
            records = keyed((f"a-{really}", "1"), ("b", "2"))

            def fail(jobs: list[object], really: bool = really) -> set[bytes]:
                """The answer of COMMIT is an error; whether it was done nobody knows."""
                connection = engine._writer
                engine._writer = Failing(connection, really)  # type: ignore[assignment]  # stands in for it
                try:
                    return transact(jobs)  # type: ignore[arg-type]  # the jobs of the engine's own
                finally:
                    engine._writer = connection

            with monkeypatch.context() as patched:
                patched.setattr(engine, "_transact", fail)
                error = (await transport.produce({TOPIC: records}))[TOPIC]
                assert isinstance(error, BrokerUnavailable)
                assert error.in_doubt
            base = await write(transport, records)
            assert base == (0 if really else 2)
        assert [message.key for message in await read(transport)] == [b"a-True", b"b", b"a-False", b"b"]


class Failing:
    """A connection whose COMMIT fails, having been done or not."""

    def __init__(self, db: sqlite3.Connection | None, really: bool) -> None:
        assert db is not None
        self._db = db
        self._really = really

    def execute(self, sql: str, *parameters: object) -> object:
        if sql == "COMMIT":
            if self._really:
                self._db.execute(sql)
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return self._db.execute(sql, *parameters)  # type: ignore[arg-type]  # as they come

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)
