"""The file of a SQLite broker: opening it, its schema and that schema's versions, and what SQLite's errors mean."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..errors import BrokerUnavailable, ImproperlyConfigured, ProduceError, TransportError
from .codec import Damaged
from .filesystem import check_filesystem
from .url import SqliteSettings

__all__ = ["MIGRATIONS", "open_reading", "open_writing", "translated"]

_APPLICATION: Final = 0x46414D55  # "FAMU", in the file's header
_PAGES_PER_CHECKPOINT: Final = 4000  # 16 MB: fewer, and the disk is synchronised too often under load
_JOURNAL_BYTES: Final = 64 * 1024 * 1024  # what the write-ahead log keeps of the disk after a peak
_PAGE: Final = 4096
_RETRY: Final = 0.02  # seconds before a file that is just being made is tried again

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE topics (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, config TEXT NOT NULL
    );
    -- first and next: the offsets of the first record that is left and of the next one that comes.
    -- clean: below this offset no key occurs twice (compaction). Ids are never used again.
    CREATE TABLE partitions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        topic INTEGER NOT NULL REFERENCES topics (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        first INTEGER NOT NULL DEFAULT 0,
        next INTEGER NOT NULL DEFAULT 0,
        clean INTEGER NOT NULL DEFAULT 0,
        UNIQUE (topic, number)
    );
    -- base and next: the first offset of the batch and the first behind it. written: when, seconds since the epoch.
    -- append: the transaction that wrote it. There is no reference to partitions: housekeeping deletes orphans in steps.
    CREATE TABLE batches (
        id INTEGER PRIMARY KEY,
        partition INTEGER NOT NULL,
        base INTEGER NOT NULL,
        next INTEGER NOT NULL,
        count INTEGER NOT NULL,
        written REAL NOT NULL,
        append INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        data BLOB NOT NULL
    );
    CREATE UNIQUE INDEX batches_in_order ON batches (partition, next);
    CREATE TABLE dropped (partition INTEGER PRIMARY KEY);
    -- round: counts rebalances begun, generation: those completed.
    CREATE TABLE consumer_groups (
        name TEXT PRIMARY KEY,
        generation INTEGER NOT NULL DEFAULT 0,
        round INTEGER NOT NULL DEFAULT 0,
        preparing INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    -- peer: whose it is (a file in the directory of peers). granted: the wish that `owned` fulfils.
    -- gone: why it is no member any more; replaced: it may not come back.
    CREATE TABLE members (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        consumer_group TEXT NOT NULL REFERENCES consumer_groups (name),
        peer TEXT NOT NULL,
        client TEXT NOT NULL,
        instance TEXT,
        wish INTEGER NOT NULL,
        topics TEXT NOT NULL,
        session_timeout REAL NOT NULL,
        rebalance_timeout REAL NOT NULL,
        joined INTEGER NOT NULL DEFAULT 0,
        generation INTEGER NOT NULL DEFAULT -1,
        granted INTEGER NOT NULL DEFAULT 0,
        owned TEXT NOT NULL DEFAULT '[]',
        gone TEXT,
        replaced INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX members_of_groups ON members (consumer_group);
    CREATE TABLE committed (
        consumer_group TEXT NOT NULL,
        partition INTEGER NOT NULL REFERENCES partitions (id) ON DELETE CASCADE,
        next INTEGER NOT NULL,
        PRIMARY KEY (consumer_group, partition)
    ) WITHOUT ROWID;
    CREATE INDEX committed_of_partitions ON committed (partition);
    CREATE TABLE chores (name TEXT PRIMARY KEY, due REAL NOT NULL) WITHOUT ROWID;
    """,
)
"""The schema, version by version: the n-th brings a file from version n - 1 to n."""


def open_writing(settings: SqliteSettings) -> sqlite3.Connection:
    """Open the file for writing; make it, or bring it to this version, where that is due.

    Raises:
        ImproperlyConfigured: it cannot be a broker: no right to write, a network file system, another program's file, one
            of a newer version of Famulus.
        BrokerUnavailable: another process keeps it locked.
        TransportError: it is damaged.
    """
    path = settings.path
    _check_place(path)
    check_filesystem(path.parent)
    until = time.monotonic() + settings.busy_timeout
    try:
        while True:
            try:
                return _opened(settings)
            except sqlite3.Error as error:
                # To make the write-ahead log SQLite does not wait: others may be making it in the same moment.
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(_RETRY)
    except sqlite3.Error as error:
        if _code(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            raise ImproperlyConfigured(
                f"{path} cannot be written ({error}): give this user the right to write the file and its directory, "
                "or name another with broker='sqlite:///PATH'"
            ) from error
        if _code(error) == sqlite3.SQLITE_NOTADB:
            raise ImproperlyConfigured(
                f"{path} is no database ({error}): name another file with broker='sqlite:///PATH'"
            ) from error
        raise translated(error, settings) from error


def _opened(settings: SqliteSettings) -> sqlite3.Connection:
    db = _connect(settings)
    try:
        db.execute("BEGIN")  # one look at all, while another process may be making it
        _check_owner(db, settings.path)
        db.execute("COMMIT")
        _prepare(db, settings)
        _migrate(db, settings.path)
        db.execute("BEGIN IMMEDIATE")  # can it be written?
        db.execute("ROLLBACK")
    except BaseException:
        db.close()
        raise
    return db


def open_reading(settings: SqliteSettings) -> sqlite3.Connection:
    """Open the file, which `open_writing` has prepared, for reading beside it."""
    try:
        db = _connect(settings)
        db.execute("PRAGMA query_only = ON")
    except sqlite3.Error as error:
        raise translated(error, settings) from error
    return db


def _check_place(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(
            f"the directory of {path} cannot be made ({error}): make it, or name another with broker='sqlite:///PATH'"
        ) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ImproperlyConfigured(
            f"{path.parent} is not writable: SQLite writes its log beside the file. Give this user the right, "
            "or name another directory with broker='sqlite:///PATH'"
        )


def _connect(settings: SqliteSettings) -> sqlite3.Connection:
    return sqlite3.connect(
        settings.path,
        timeout=settings.busy_timeout,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=64,
    )


def _check_owner(db: sqlite3.Connection, path: Path) -> None:
    """Before anything is changed: is it ours, and do we know it?"""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION and (tables or application):
        raise ImproperlyConfigured(
            f"{path} is a database of another program: name another file with broker='sqlite:///PATH'"
        )
    if version > len(MIGRATIONS):
        raise ImproperlyConfigured(
            f"{path} was written by a newer Famulus (file version {version}, this one knows {len(MIGRATIONS)}): "
            "update Famulus, or name another file; nothing in it was changed"
        )


def _prepare(db: sqlite3.Connection, settings: SqliteSettings) -> None:
    (size,) = db.execute("PRAGMA page_count").fetchone()
    if not size:
        db.execute(f"PRAGMA page_size = {_PAGE}")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # space that retention frees goes back to the disk
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ImproperlyConfigured(
            f"{settings.path}: SQLite cannot have a write-ahead log there (it stays with {mode!r}), which several processes "
            "need: take a directory on a local disk"
        )
    db.execute(f"PRAGMA synchronous = {settings.durability}")
    db.execute(f"PRAGMA wal_autocheckpoint = {_PAGES_PER_CHECKPOINT}")
    db.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
    db.execute("PRAGMA foreign_keys = ON")
    if settings.max_bytes:
        (page,) = db.execute("PRAGMA page_size").fetchone()
        db.execute(f"PRAGMA max_page_count = {max(1, settings.max_bytes // page)}")


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    if _version(db) == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        _check_owner(db, path)  # again: another process may have been faster
        for script in MIGRATIONS[_version(db) :]:
            for statement in _statements(script):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {_APPLICATION}")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def _statements(script: str) -> list[str]:
    """Its statements one by one, since `executescript` would commit the transaction."""
    found: list[str] = []
    rest = ""
    for line in script.splitlines(keepends=True):
        rest += line
        if sqlite3.complete_statement(rest):
            found.append(rest)
            rest = ""
    return found


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary code; 0 where the module itself raised."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def translated(error: Exception, settings: SqliteSettings) -> TransportError:
    """What an error of SQLite means for a broker. The one place that knows SQLite's codes."""
    path = settings.path
    if isinstance(error, TransportError):
        return error
    if isinstance(error, Damaged):
        return TransportError(f"{path} is damaged: {error}")
    code = _code(error) if isinstance(error, sqlite3.Error) else 0
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return BrokerUnavailable(
            f"{path}: another process has held its write lock for more than busy_timeout={settings.busy_timeout:g} s; is it "
            "open in a tool, in the middle of a transaction?"
        )
    if code == sqlite3.SQLITE_FULL:
        quota = f"; max_bytes={settings.max_bytes}" if settings.max_bytes else ""
        return BrokerUnavailable(
            f"{path}: no room for more ({error}{quota}): free space on the disk, let retention keep less, or raise max_bytes; "
            "nothing that is in it is lost"
        )
    if code == sqlite3.SQLITE_TOOBIG or isinstance(error, sqlite3.DataError | OverflowError):
        return ProduceError(f"{path}: a record is larger than SQLite takes: {error}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return TransportError(
            f"{path} is damaged ({error}): stop all that use it, keep a copy of it with its -wal file, and save what can be "
            f"read with `sqlite3 {path} .recover`"
        )
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM):
        return BrokerUnavailable(f"{path}: {error}; is its disk there, and writable?")
    return TransportError(f"{path}: {error!r}")
