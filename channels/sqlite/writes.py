"""The writing side of a transport: batches, each written once however often it is repeated."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence

from ..errors import ProduceError, TransportError, UnknownTopic
from ..message import TP, ProducerRecord
from ..transport import ProduceResult
from .engine import Engine
from .file import translated
from .jobs import Transaction
from .log import Place, Row, append, place_of, result_of, rows_of, was_appended
from .peers import NEWS

__all__ = ["Batches", "Write", "Writes"]

Batches = Mapping[TP, Sequence[ProducerRecord]]


class Write:
    """One batch on its way to one partition.

    Attributes:
        earlier: a write of the same records that got no answer; `start`: where they begin in it.
        rest: what of the records no earlier one has written.
        place, base, transaction: where the rest was written, if that transaction was committed.
        outcome: once it was tried.
    """

    __slots__ = ("base", "earlier", "now", "outcome", "place", "records", "rest", "rows", "start", "tp", "transaction")

    def __init__(self, tp: TP, records: Sequence[ProducerRecord], earlier: Write | None) -> None:
        self.tp = tp
        self.records = tuple(records)
        self.start = None if earlier is None else earlier.index(self.records)
        self.earlier = None if self.start is None else earlier
        self.rest: Sequence[ProducerRecord] = self.records
        self.rows: list[Row] = []
        self.now = 0.0
        self.place: Place | None = None
        self.base: int | None = None
        self.transaction: Transaction | None = None
        self.outcome: ProduceResult | Exception | None = None

    def index(self, records: Sequence[ProducerRecord]) -> int | None:
        """Where these begin among ours, if they are the same records again: all, or the last of them, and perhaps more."""
        start = next((index for index, mine in enumerate(self.records) if records and mine is records[0]), None)
        if start is None or not all(
            mine is theirs for mine, theirs in zip(self.records[start:], records, strict=False)
        ):
            return None
        return start

    def is_in(self, db: sqlite3.Connection) -> bool:
        """Whether the transaction that wrote it was committed. What is known needs no look: its rows may be gone by now."""
        if self.place is None or self.base is None or self.transaction is None:
            return False
        if self.transaction.committed is not None:
            return self.transaction.committed
        return was_appended(db, self.place, self.base, self.transaction.mark)

    def written_before(self, db: sqlite3.Connection) -> tuple[int, Write] | None:
        """How many of the records earlier writes have brought into the log, and which of them the last."""
        behind, one = self, self.earlier
        start = 0  # where our records begin in those of `one`
        while one is not None:
            start += behind.start or 0
            if start >= len(one.records):
                return None
            if one.is_in(db):
                return len(one.records) - start, one
            behind, one = one, one.earlier
        return None

    @property
    def first(self) -> int:
        """The offset of the first record. Where others wrote between two parts, only those of the second are right."""
        return (self.base or 0) - len(self.records) + len(self.rest)


class Writes:
    """Made by the transport, one for each."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._places: dict[TP, Place] = {}  # touched in the writing thread alone
        self._unanswered: dict[TP, Write] = {}

    async def produce(self, batches: Batches) -> dict[TP, ProduceResult | Exception]:
        """See `Transport.produce`."""
        writes = [Write(tp, records, self._unanswered.get(tp)) for tp, records in batches.items() if records]
        if not writes:
            return {}
        self._unanswered.update((write.tp, write) for write in writes)
        within = self._engine.settings.produce_timeout
        try:
            await self._engine.write(lambda tx: self.append(tx, writes), prepare=self.encoder(writes), within=within)
        except TransportError as error:
            if not error.in_doubt:
                for write in writes:
                    write.outcome = error  # what it says otherwise was not committed
                self._answered(writes)
            return {write.tp: error for write in writes}
        self._answered(writes)
        return {write.tp: write.outcome or ProduceError(f"{write.tp}: not written") for write in writes}

    def _answered(self, writes: Sequence[Write]) -> None:
        """What came to the log is known; what was to be found out about an earlier one, and was not, stays to be."""
        for write in writes:
            if write.earlier is not None and not isinstance(write.outcome, ProduceResult):
                self._unanswered[write.tp] = write.earlier
            else:
                del self._unanswered[write.tp]

    def encoder(self, writes: Sequence[Write]) -> Callable[[sqlite3.Connection], None]:
        """What makes rows of these, before the transaction; who cannot be written has that for an outcome."""

        def encode(db: sqlite3.Connection) -> None:
            now = time.time()
            for write in writes:
                write.now = now
                try:
                    self._encode(db, write)
                except Exception as error:
                    write.outcome = translated(error, self._engine.settings)

        return encode

    def _encode(self, db: sqlite3.Connection, write: Write) -> None:
        place = self._places.get(write.tp)
        if place is None:
            place = self._places[write.tp] = place_of(db, write.tp)
        write.place = place
        before = write.written_before(db)
        if before is not None:
            count, earlier = before
            write.rest = write.records[count:]
            if not write.rest:
                write.place, write.transaction = earlier.place, earlier.transaction
                write.base = earlier.first + len(earlier.records) - count + len(write.records)
                write.outcome = result_of(write.first, write.records, place, earlier.now)
                return
        write.rows = list(rows_of(write.tp, place, write.rest, write.now))

    def append(self, tx: Transaction, writes: Sequence[Write]) -> None:
        """Append batches; one that cannot be written leaves the others alone."""
        for write in writes:
            if write.outcome is not None:
                continue
            tx.db.execute("SAVEPOINT batch")
            try:
                self._append_one(tx, write)
            except Exception as error:
                if not tx.db.in_transaction:
                    raise
                tx.db.execute("ROLLBACK TO batch")
                write.base = None
                write.outcome = translated(error, self._engine.settings)
            tx.db.execute("RELEASE batch")

    def _append_one(self, tx: Transaction, write: Write) -> None:
        assert write.place is not None, "set when it was encoded"
        found = append(tx.db, write.place, write.rows, tx.mark, write.now)
        if found is None:  # the topic was deleted; perhaps there is a new one of that name
            self._places.pop(write.tp, None)
            place = write.place = place_of(tx.db, write.tp)  # not remembered: this transaction may yet be undone
            write.rows = list(rows_of(write.tp, place, write.rest, write.now))
            found = append(tx.db, place, write.rows, tx.mark, write.now)
            if found is None:
                raise UnknownTopic(f"the broker has no partition {write.tp}")
        write.base, write.transaction = found, tx
        tx.pokes.add(NEWS)
        write.outcome = result_of(write.first, write.records, write.place, write.now)
