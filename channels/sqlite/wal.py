"""The write-ahead log, kept from growing without end."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from typing import Final

from .url import SqliteSettings

__all__ = ["LogBound"]

_LOG_BYTES: Final = 128 * 1024 * 1024  # after a peak it keeps half (see file.py); from here on readers are waited for
_PATIENCE_MS: Final = 200  # for them


class LogBound:
    """Lets the write-ahead log begin anew where it has become long.

    SQLite does so by itself when nobody reads just then, which under load never happens.
    """

    def __init__(self, settings: SqliteSettings) -> None:
        self._settings = settings
        self._most = _LOG_BYTES

    def keep(self, db: sqlite3.Connection) -> None:
        """Called after each transaction, with the connection that wrote it."""
        try:
            size = os.stat(f"{self._settings.path}-wal").st_size
        except OSError:
            return
        if size <= self._most:
            return
        with suppress(sqlite3.Error):
            db.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS}")
            try:
                (busy, _, _) = db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            finally:
                db.execute(f"PRAGMA busy_timeout = {int(self._settings.busy_timeout * 1000)}")
            # Who reads for longer than that is not waited for again and again.
            self._most = size + _LOG_BYTES // 2 if busy else _LOG_BYTES
