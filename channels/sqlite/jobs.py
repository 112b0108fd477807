"""What the writing thread does: many jobs in one transaction, so that the disk is synchronised once for all of them."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import trio

from .codec import Damaged
from .file import translated
from .url import SqliteSettings

__all__ = ["Job", "Transaction", "transact"]


class Transaction:
    """What a job has at hand, in a thread.

    Attributes:
        db: the connection, in a transaction.
        mark: the number of the transaction, by which what it appended can be found again.
        committed: whether it is in the file; None while nobody knows.
        pokes: what this process and the others are told once it is done.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.mark = secrets.randbits(62)
        self.committed: bool | None = None
        self.pokes: set[bytes] = set()


class Job:
    """Something to write, and how it ended.

    Attributes:
        do: called in the transaction; `prepare`: before it, while others may still write.
    """

    __slots__ = ("do", "done", "error", "prepare", "result")

    def __init__(
        self, do: Callable[[Transaction], Any], prepare: Callable[[sqlite3.Connection], object] | None
    ) -> None:
        self.do = do
        self.prepare = prepare
        self.result: Any = None
        self.error: Exception | None = None
        self.done = trio.Event()


def transact(
    db: sqlite3.Connection, jobs: Sequence[Job], settings: SqliteSettings, check: Callable[[], None]
) -> set[bytes]:
    """Do these in one transaction, and say whom to poke. Each failure stays with its job, and one of all with all.

    Args:
        check: called first; what it raises is a failure of all.
    """
    ready = [job for job in jobs if _prepared(db, job, settings)]
    done: list[Transaction] = []
    begun_commit = False
    try:
        check()
        db.execute("BEGIN IMMEDIATE")
        for job in ready:
            transaction = Transaction(db)
            done.append(transaction)
            if not _did(job, transaction, settings):
                done.remove(transaction)
        begun_commit = True
        db.execute("COMMIT")
        for tx in done:
            tx.committed = True
    except Exception as error:
        for job in ready:
            meant = translated(error, settings)
            meant.in_doubt = begun_commit
            if meant is not error:
                meant.__cause__ = error
            job.error = meant
        if not begun_commit:
            for tx in done:
                tx.committed = False
        done = []
    finally:
        if db.in_transaction:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
    return {kind for tx in done for kind in tx.pokes}


def _prepared(db: sqlite3.Connection, job: Job, settings: SqliteSettings) -> bool:
    try:
        if job.prepare is not None:
            job.prepare(db)
    except Exception as error:
        job.error = _meaning(error, settings)
        return False
    return True


def _did(job: Job, transaction: Transaction, settings: SqliteSettings) -> bool:
    """Do one of several in a savepoint; False if it failed. Raises what has ended the whole transaction."""
    db = transaction.db
    db.execute("SAVEPOINT job")
    try:
        job.result = job.do(transaction)
    except Exception as error:
        if not db.in_transaction:  # SQLite has given it up, as on a full disk
            raise
        db.execute("ROLLBACK TO job")
        db.execute("RELEASE job")
        job.error = _meaning(error, settings)
        transaction.committed = False
        return False
    db.execute("RELEASE job")
    return True


def _meaning(error: Exception, settings: SqliteSettings) -> Exception:
    return translated(error, settings) if isinstance(error, sqlite3.Error | Damaged) else error
