"""The SQLite transport keeps the contract of transports, with faults that are ordered from its file."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from famulus.channels.errors import BrokerUnavailable, ProduceError
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.sqlite import SqliteTransport
from famulus.channels.sqlite.chores import Housekeeping
from famulus.channels.sqlite.compaction import drop
from famulus.channels.sqlite.engine import Engine
from famulus.channels.sqlite.groups import ask_rebalance, throw_out
from famulus.channels.sqlite.jobs import Transaction
from famulus.channels.sqlite.log import place_of
from famulus.channels.sqlite.peers import CHANGE, NEWS, Peers
from famulus.channels.sqlite.transactions import Transactions
from famulus.channels.sqlite.writes import Write, Writes
from famulus.channels.transport import ProduceResult, TransportOptions
from famulus.testing.contract import BrokerFaults, BrokerHarness, TransportContract

T = TypeVar("T")


class FaultyWrites(Writes):
    """Writes that fail inside their transaction, or get no answer, as `SqliteFaults` has ordered."""

    faults: SqliteFaults

    def _append_one(self, tx: Transaction, write: Write) -> None:
        super()._append_one(tx, write)
        if self.faults.failing.get(write.tp, 0) > 0:
            self.faults.failing[write.tp] -= 1
            raise ProduceError(f"{write.tp}: failed by an ordered fault")

    async def produce(self, batches: Mapping[TP, Sequence[ProducerRecord]]) -> dict[TP, ProduceResult | Exception]:
        held = {tp: records for tp, records in batches.items() if self.faults.holds.get(tp) == "before"}
        outcome = await super().produce({tp: records for tp, records in batches.items() if tp not in held})
        if held or any(self.faults.holds.get(tp) for tp in batches):
            await self.faults.released.wait()
            outcome |= await super().produce(held)
        return outcome


class FaultyEngine(Engine):
    """One whose file cannot be reached while the broker is to be away."""

    faults: SqliteFaults

    def _check(self) -> None:
        if self.faults.away:
            raise BrokerUnavailable("stopped by an ordered fault")

    def _connect(self) -> None:
        self._check()
        super()._connect()

    def _run_read(self, do: Callable[[sqlite3.Connection], T]) -> T:
        self._check()
        return super()._run_read(do)


class SqliteFaults(BrokerFaults):
    """Faults of a broker's file: another connection locks and changes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: sqlite3.Connection | None = None
        self.away = False
        self.failing: dict[TP, int] = {}
        self.holds: dict[TP, str] = {}
        self.released = trio.Event()

    async def stop(self) -> None:
        """No one can write while another holds the write lock, and to read is refused as by a disk that is gone."""
        self.away = True
        self._lock = sqlite3.connect(self._path, isolation_level=None, timeout=5)
        self._lock.execute("BEGIN IMMEDIATE")

    async def start(self) -> None:
        self.away = False
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _change(self, do: Callable[[sqlite3.Connection], object], poke: bytes) -> None:
        db = sqlite3.connect(self._path, isolation_level=None, timeout=5)
        db.execute("BEGIN IMMEDIATE")
        do(db)
        db.execute("COMMIT")
        db.close()
        peers = Peers(self._path)
        peers.open()
        peers.poke(poke)
        peers.close()

    async def rebalance(self, group: str) -> None:
        self._change(lambda db: ask_rebalance(db, group), CHANGE)

    async def lose_member(self, group: str, client_id: str) -> None:
        def lose(db: sqlite3.Connection) -> None:
            (member,) = db.execute(
                "SELECT id FROM members WHERE consumer_group = ? AND client = ? AND gone IS NULL", (group, client_id)
            ).fetchone()
            throw_out(db, member, "its session has expired")

        self._change(lose, CHANGE)

    async def refuse_commits(self, times: int) -> None:
        """As if a rebalance had been missed, so that they are fenced: for as long as it takes."""
        self._change(lambda db: db.execute("UPDATE consumer_groups SET generation = generation + 1"), NEWS)

    async def fail_produce(self, tp: TP, times: int) -> None:
        self.failing[tp] = times

    def holding_produce(self, tp: TP, *, after_write: bool) -> AbstractAsyncContextManager[None]:
        return self._holding(tp, after_write)

    @asynccontextmanager
    async def _holding(self, tp: TP, after_write: bool) -> AsyncIterator[None]:
        self.holds[tp] = "after" if after_write else "before"
        self.released = trio.Event()
        try:
            yield
        finally:
            del self.holds[tp]
            self.released.set()

    async def compact(self, tp: TP, offsets: Collection[int]) -> None:
        gone = set(offsets)
        self._change(
            lambda db: drop(db, place_of(db, tp).id, 0, 2**62, lambda entry, _: entry.offset not in gone), NEWS
        )

    async def skip_offsets(self, tp: TP, count: int) -> None:
        self._change(
            lambda db: db.execute("UPDATE partitions SET next = next + ? WHERE id = ?", (count, place_of(db, tp).id)),
            NEWS,
        )


class SqliteHarness(BrokerHarness):
    """Transports on one file."""

    def __init__(self, path: Path, options: str = "") -> None:
        self.sqlite_faults = SqliteFaults(path)
        super().__init__(f"sqlite://{path}?busy_timeout=0.2{options}", faults=self.sqlite_faults)

    def transport(self, client_id: str = "contract") -> SqliteTransport:
        transport = SqliteTransport(self.url, TransportOptions(client_id=client_id, default_partitions=4))
        transport._engine = engine = FaultyEngine(transport.settings)
        engine.faults = self.sqlite_faults
        transport._housekeeping = Housekeeping(engine)
        transport._writes = writes = FaultyWrites(engine)
        transport._transactions = Transactions(engine, writes)
        writes.faults = self.sqlite_faults
        return transport


class TestSqliteTransport(TransportContract):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path

    @asynccontextmanager
    async def open_broker(self) -> AsyncIterator[BrokerHarness]:
        yield SqliteHarness(self.directory / "broker.db")
        assert [path.name for path in self.directory.iterdir()] == ["broker.db"], "something is left beside the file"
