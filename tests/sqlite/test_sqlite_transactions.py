"""Transactions of the SQLite broker that got no answer: who repeats one learns what became of it, and it is done once."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from famulus.channels.errors import BrokerUnavailable, CommitRefused, ProduceError, TransportError
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.sqlite import SqliteTransport, transactions
from famulus.channels.transport import Consumer, ConsumerOptions, ProduceResult, TopicSpec
from famulus.testing.cancellation import each_step
from famulus.testing.contract_kit import Changes, Recorder

pytestmark = [pytest.mark.real_time]

SOURCE, SINK = TP("source", 0), TP("sink", 0)


class Failing:
    """A connection on which one statement fails, having been executed or not."""

    def __init__(self, db: Any, statement: str, *, really: bool) -> None:
        self._db, self._statement, self._really = db, statement, really

    def execute(self, sql: str, *parameters: object) -> object:
        if sql != self._statement:
            return self._db.execute(sql, *parameters)
        if self._really:
            self._db.execute(sql)
        error = sqlite3.OperationalError("as ordered")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)


@attrs.frozen
class Member:
    """The one member of a group that reads "source" and writes to "sink", in transactions."""

    transport: SqliteTransport
    consumer: Consumer
    path: Path
    generation: int

    async def transact(self, some: Sequence[ProducerRecord], offset: int | None) -> ProduceResult | None:
        offsets = {} if offset is None else {SOURCE: offset}
        batches = {SINK: some} if some else {}
        found = await self.transport.transact(batches, offsets, group="g", generation=self.generation)
        assert isinstance(found, Mapping)
        return found.get(SINK)

    async def fails(
        self, some: Sequence[ProducerRecord], offset: int | None, statement: str, *, really: bool = False
    ) -> TransportError:
        """A transaction while that statement fails."""
        own = self.transport._engine
        db = own._writer
        own._writer = Failing(db, statement, really=really)  # type: ignore[assignment]  # stands in for it
        try:
            with pytest.raises(TransportError) as caught:
                await self.transact(some, offset)
        finally:
            own._writer = db
        return caught.value

    async def found(self) -> tuple[list[bytes | None], int | None]:
        """The values that are in the log, and the group's offset."""
        values: list[bytes | None] = []
        async with self.transport.open_reader({SINK: "earliest"}) as reader:
            while reader.position(SINK) < reader.highwater(SINK):
                values += [message.value for batch in await reader.fetch(1000) for message in batch.messages]
        return values, (await self.transport.committed("g", [SOURCE]))[SOURCE]

    def lose(self, offset: int | None = None) -> None:
        """Its generation is over, which it has not noticed yet; whoever came then has committed that."""
        db = sqlite3.connect(self.path)
        with db:
            db.execute("UPDATE consumer_groups SET generation = generation + 1")
            if offset is not None:
                db.execute("UPDATE committed SET next = ?", (offset,))
        db.close()

    @contextmanager
    def unanswered(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """What is committed meanwhile is answered at the end."""
        gate = threading.Event()
        with monkeypatch.context() as patched:
            patched.setattr(self.transport._engine.peers, "poke", lambda kind: gate.wait(20))
            try:
                yield
            finally:
                gate.set()


@asynccontextmanager
async def joined(path: Path, options: str = "") -> AsyncIterator[Member]:
    transport = SqliteTransport(f"sqlite://{path}/broker.db{options}")
    async with transport.open():
        for tp in (SOURCE, SINK):
            await transport.create_topic(TopicSpec(name=tp.topic, partitions=1))
        async with transport.open_consumer(ConsumerOptions(group="g"), Recorder(Changes())) as consumer:
            await consumer.subscribe(["source"])
            yield Member(transport, consumer, path / "broker.db", consumer.assignment.generation)


def records(*values: str) -> list[ProducerRecord]:
    return [ProducerRecord(None, value.encode()) for value in values]


def base(result: ProduceResult | None) -> int:
    assert result is not None
    return result.base_offset


# Repeated, it is done once.


@pytest.mark.parametrize("with_offsets", [True, False])
async def test_a_transaction_that_was_cancelled_at_any_step_and_repeated_is_done_once(
    tmp_path: Path, with_offsets: bool
) -> None:
    async with joined(tmp_path) as member:
        sent: list[bytes | None] = []

        async def call(number: int) -> None:
            some = records(f"{number}a", f"{number}b")
            sent.extend(record.value for record in some)
            offset = len(sent) if with_offsets else None
            result: ProduceResult | None = None
            try:
                result = await member.transact(some, offset)
            finally:
                with trio.CancelScope(shield=True):
                    for patience in (0, 0.0005, 20):
                        with trio.move_on_after(patience):
                            result = result or await member.transact(some, offset)
                    assert (await member.transport.committed("g", [SOURCE]))[SOURCE] == offset
                assert base(result) == len(sent) - 2

        with trio.fail_after(100):
            for _ in range(20):
                await each_step(call)
        assert (await member.found())[0] == sent
        assert member.transport._transactions._in_doubt == []


@pytest.mark.parametrize("really", [True, False])
async def test_a_transaction_whose_commit_failed_is_looked_up_when_it_is_repeated(tmp_path: Path, really: bool) -> None:
    async with joined(tmp_path) as member:
        some = records("a", "b")
        assert (await member.fails(some, 5, "COMMIT", really=really)).in_doubt
        assert await member.found() == (([b"a", b"b"], 5) if really else ([], None))
        assert base(await member.transact(some, 5)) == 0
        assert await member.found() == ([b"a", b"b"], 5)
        assert base(await member.transact(some, 5)) == 2  # it was answered: now it is another one


async def test_a_repetition_that_did_not_come_to_it_leaves_the_doubt(tmp_path: Path) -> None:
    async with joined(tmp_path) as member:
        some = records("a", "b")
        await member.fails(some, 5, "COMMIT", really=True)
        assert (await member.fails(some, 5, "BEGIN IMMEDIATE")).in_doubt
        assert (await member.fails(some, 5, "COMMIT")).in_doubt
        assert base(await member.transact(some, 5)) == 0
        assert await member.found() == ([b"a", b"b"], 5)


async def test_a_transaction_that_got_no_answer_in_time_is_done_once_when_it_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with joined(tmp_path, "?produce_timeout=0.2") as member:
        some = records("a", "b")
        with member.unanswered(monkeypatch):
            for _ in range(2):  # the second one is not even begun
                with pytest.raises(BrokerUnavailable) as caught:
                    await member.transact(some, 5)
                assert caught.value.in_doubt
        result: ProduceResult | None = None
        with trio.fail_after(20):
            while result is None:
                try:
                    result = await member.transact(some, 5)
                except BrokerUnavailable:  # the machine is slow
                    continue
        assert result.base_offset == 0
        assert await member.found() == ([b"a", b"b"], 5)


async def test_it_is_not_done_again_though_its_records_were_dropped_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with joined(tmp_path) as member:
        some = records("old")
        with member.unanswered(monkeypatch), trio.move_on_after(0.05) as scope:
            await member.transact(some, 5)
        assert scope.cancelled_caught
        await member.transport.delete_records({SINK: 1})
        await member.transport._housekeeping.round(at_once=True)
        assert base(await member.transact(some, 5)) == 0
        assert await member.found() == ([], 5)


# What is the same one.


@pytest.mark.parametrize("change", ["records", "more", "offset"])
async def test_another_transaction_is_done_whatever_became_of_one_like_it(tmp_path: Path, change: str) -> None:
    async with joined(tmp_path) as member:
        some = records("a")
        await member.fails(some, 5, "COMMIT", really=True)
        other = {"records": records("a"), "more": [*some, *records("b")], "offset": some}[change]
        assert base(await member.transact(other, 6 if change == "offset" else 5)) == 1


async def test_one_in_doubt_is_forgotten_when_its_group_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "_MOST_WITHOUT_OFFSETS", 2)
    async with joined(tmp_path) as member:
        remembered = member.transport._transactions
        for offset in (1, 2, 3):
            await member.fails(records("a"), offset, "COMMIT")
            assert len(remembered._in_doubt) == 1
        await member.transact(records("b"), 4)
        assert remembered._in_doubt == []
        for _ in range(3):
            await member.fails(records("a"), None, "COMMIT")
        assert len(remembered._in_doubt) == 2


# A group that has gone on without it.


async def test_who_has_lost_its_partitions_learns_that_it_was_done(tmp_path: Path) -> None:
    async with joined(tmp_path) as member:
        some = records("a", "b")
        await member.fails(some, 5, "COMMIT", really=True)
        member.lose(offset=9)
        assert base(await member.transact(some, 5)) == 0
        assert await member.found() == ([b"a", b"b"], 9)


async def test_who_has_lost_its_partitions_learns_that_it_was_not_done(tmp_path: Path) -> None:
    async with joined(tmp_path) as member:
        some = records("a", "b")
        await member.fails(some, 5, "COMMIT")
        member.lose()
        with pytest.raises(CommitRefused) as refused:
            await member.transact(some, 5)
        assert not refused.value.in_doubt
        assert await member.found() == ([], None)


@pytest.mark.parametrize("really", [True, False])
async def test_who_has_left_its_group_learns_what_became_of_it(tmp_path: Path, really: bool) -> None:
    transport = SqliteTransport(f"sqlite://{tmp_path}/broker.db")
    async with transport.open():
        some = records("a", "b")
        for tp in (SOURCE, SINK):
            await transport.create_topic(TopicSpec(name=tp.topic, partitions=1))
        async with transport.open_consumer(ConsumerOptions(group="g"), Recorder(Changes())) as consumer:
            await consumer.subscribe(["source"])
            member = Member(transport, consumer, tmp_path / "broker.db", consumer.assignment.generation)
            await member.fails(some, 5, "COMMIT", really=really)
        if really:
            assert base(await member.transact(some, 5)) == 0
        else:
            with pytest.raises(CommitRefused) as refused:
                await member.transact(some, 5)
            assert not refused.value.in_doubt
        assert await member.found() == (([b"a", b"b"], 5) if really else ([], None))


async def test_offsets_alone_are_found_by_where_they_stand(tmp_path: Path) -> None:
    async with joined(tmp_path) as member:
        await member.fails([], 5, "COMMIT", really=True)
        member.lose()
        assert await member.transact([], 5) is None
        with pytest.raises(CommitRefused) as refused:  # it was answered: now it is another one
            await member.transact([], 5)
        assert not refused.value.in_doubt


async def test_offsets_alone_that_others_have_replaced_are_refused_in_doubt(tmp_path: Path) -> None:
    async with joined(tmp_path) as member:
        await member.fails([], 5, "COMMIT", really=True)
        member.lose(offset=9)
        with pytest.raises(CommitRefused) as refused:
            await member.transact([], 5)
        assert refused.value.in_doubt
        assert await member.found() == ([], 9)


# Certain failures.


async def test_what_failed_before_commit_was_not_done_and_says_so(tmp_path: Path) -> None:
    async with joined(tmp_path) as member:
        some = records("a")
        assert not (await member.fails(some, 5, "BEGIN IMMEDIATE")).in_doubt
        with pytest.raises(ProduceError) as failed:
            await member.transport.transact(
                {TP("missing", 0): some}, {SOURCE: 5}, group="g", generation=member.generation
            )
        assert not failed.value.in_doubt
        with pytest.raises(CommitRefused) as refused:
            await member.transport.transact({SINK: some}, {SOURCE: 5}, group="g", generation=member.generation - 1)
        assert not refused.value.in_doubt
        assert member.transport._transactions._in_doubt == []
        assert await member.found() == ([], None)
