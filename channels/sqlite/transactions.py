"""Batches and a group's offsets in one transaction of SQLite's, which is done once however often it is repeated."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Final

import attrs

from ..errors import CommitRefused, ProduceError, TransportError
from ..message import TP, ProducerRecord
from ..transport import ProduceResult
from .engine import Engine
from .groups import check_ownership, commit, stands_at
from .jobs import Transaction
from .writes import Batches, Write, Writes

__all__ = ["Owner", "Transactions"]

_MOST_WITHOUT_OFFSETS: Final = 100  # in doubt, whose repetition is waited for; nothing else tells that none will come


@attrs.frozen
class Owner:
    """Who commits: the number of a member, and the offsets by the ids of the partitions that it has read."""

    member: int = -1
    by_id: Mapping[int, int] = attrs.field(factory=dict)


@attrs.frozen
class _Attempt:
    """A transaction that came as far as COMMIT."""

    transaction: Transaction
    writes: Sequence[Write]
    owner: Owner

    def was_done(self, db: sqlite3.Connection, group: str) -> bool | None:
        """Whether it was committed. None: it had offsets alone, and others stand there now; these may have come later."""
        if self.transaction.committed is not None:
            return self.transaction.committed
        if self.writes:
            return any(write.is_in(db) for write in self.writes)
        return stands_at(db, group, self.owner.by_id) or None

    def results(self) -> dict[TP, ProduceResult]:
        return {write.tp: write.outcome for write in self.writes if isinstance(write.outcome, ProduceResult)}


@attrs.define(eq=False)
class _Asked:
    """What somebody wants done, and what has come of it.

    Attributes:
        attempts: those whose end is perhaps not known; touched in the writing thread alone.
        in_doubt: whether one of them may have been done, as far as the one who asked can know.
    """

    batches: Mapping[TP, tuple[ProducerRecord, ...]]
    offsets: Mapping[TP, int]
    group: str
    generation: int
    attempts: list[_Attempt] = attrs.field(factory=list)
    in_doubt: bool = False

    def is_same(self, other: _Asked) -> bool:
        """Whether it is the same again: the very same records."""
        mine, theirs = self.batches, other.batches
        return (
            (self.group, self.generation, self.offsets) == (other.group, other.generation, other.offsets)
            and mine.keys() == theirs.keys()
            and all(len(mine[tp]) == len(theirs[tp]) for tp in mine)
            and all(one is another for tp in mine for one, another in zip(mine[tp], theirs[tp], strict=True))
        )

    def is_passed_by(self, other: _Asked) -> bool:
        """Whether the group goes on with another one at a partition of these offsets, so that this is not repeated."""
        return self.group == other.group and not self.offsets.keys().isdisjoint(other.offsets)


class Transactions:
    """Made by the transport, one for each."""

    def __init__(self, engine: Engine, writes: Writes) -> None:
        self._engine = engine
        self._writes = writes
        self._in_doubt: list[_Asked] = []

    async def transact(
        self,
        batches: Batches,
        offsets: Mapping[TP, int],
        *,
        group: str,
        generation: int,
        owner: Callable[[], Owner],
    ) -> dict[TP, ProduceResult]:
        """See `Transport.transact`.

        Args:
            owner: who commits; raises `CommitRefused` if nobody may.
        """
        some = {tp: tuple(records) for tp, records in batches.items() if records}
        asked = self._recalled(_Asked(some, dict(offsets), group, generation))
        who: Owner | CommitRefused
        try:
            who = owner()
        except CommitRefused as error:
            if not asked.in_doubt:
                raise
            who = error  # unless it was done when it was not yet refused
        writes = [Write(tp, records, None) for tp, records in asked.batches.items()]
        doubt = asked.in_doubt  # about earlier attempts

        def do(tx: Transaction) -> dict[TP, ProduceResult]:
            nonlocal doubt
            ends = [(attempt, attempt.was_done(tx.db, asked.group)) for attempt in asked.attempts]
            for attempt, was_done in ends:
                if was_done:
                    return attempt.results()
            doubt = any(was_done is None for _, was_done in ends)
            return self._attempt(tx, asked, who, writes).results()

        within = self._engine.settings.produce_timeout
        asked.in_doubt = True  # until there is an answer: whoever is cancelled has none
        try:
            results = await self._engine.write(do, prepare=self._writes.encoder(writes), within=within)
            asked.in_doubt = False
        except Exception as error:
            certain = not (isinstance(error, TransportError) and error.in_doubt)
            asked.in_doubt = doubt or not certain
            if doubt and certain and isinstance(error, TransportError):
                doubtful = copy(error)  # others may have been given the same one
                doubtful.in_doubt = True
                raise doubtful from error
            raise
        finally:
            self._remember_or_forget(asked)
        return results

    def _attempt(self, tx: Transaction, asked: _Asked, who: Owner | CommitRefused, writes: Sequence[Write]) -> _Attempt:
        if isinstance(who, CommitRefused):
            raise who
        if asked.offsets:
            check_ownership(tx.db, asked.group, who.member, asked.offsets, asked.generation)
        self._writes.append(tx, writes)
        for write in writes:
            if isinstance(write.outcome, Exception):
                raise ProduceError(str(write.outcome)) from write.outcome
        if asked.offsets:
            commit(tx.db, asked.group, who.by_id)
        attempt = _Attempt(tx, writes, who)
        asked.attempts.append(attempt)
        return attempt

    def _recalled(self, asked: _Asked) -> _Asked:
        """The same one where it is in doubt; what it shows to be given up is forgotten."""
        if not self._in_doubt:
            return asked
        asked = next((one for one in self._in_doubt if one.is_same(asked)), asked)
        self._in_doubt = [one for one in self._in_doubt if one is asked or not one.is_passed_by(asked)]
        return asked

    def _remember_or_forget(self, asked: _Asked) -> None:
        if asked in self._in_doubt:
            self._in_doubt.remove(asked)
        if asked.in_doubt:
            self._in_doubt.append(asked)
            free = [one for one in self._in_doubt if not one.offsets]
            if len(free) > _MOST_WITHOUT_OFFSETS:
                self._in_doubt.remove(free[0])
