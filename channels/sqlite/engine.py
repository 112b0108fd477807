"""The connections of one transport to its file, and the tasks around them: all work on SQLite happens in threads.

Writes are collected: while one transaction is under way the next ones wait, and then go together, each in a savepoint,
so that the disk is synchronised once for all of them. Reads have a connection of their own and wait for no write.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import Final, TypeVar

import attrs
import trio

from ..errors import BrokerUnavailable, TransportError
from .codec import Damaged
from .file import open_reading, open_writing, translated
from .identity import Identity
from .jobs import Job, Transaction, transact
from .peers import CHANGE, NEWS, Peers
from .signs import Signs
from .url import SqliteSettings
from .wal import LogBound

__all__ = ["Engine"]

T = TypeVar("T")
log = logging.getLogger("famulus.sqlite")

_PULSE: Final = 1.0  # seconds between signs of life, and between looks for what a lost poke would have told
_LOOK: Final = 0.03  # seconds between looks where there are no named pipes
_MOST_JOBS: Final = 100  # of one transaction
_LAST: Final = 0.1  # seconds that closing may take where all of the time was spent on writing


class Engine:
    """Made closed; `opened` opens it. Its methods may be called by any task of its run.

    Attributes:
        peers: those who share the file; `signs`: of life, ours and theirs.
        on_news, on_change: called when records, or groups and topics, may have changed, wherever that was.
        transactions: how many were made.
    """

    def __init__(self, settings: SqliteSettings, shutdown_timeout: float = 10.0) -> None:
        # The program may change its directory, and others may come by another name of the file: they share one of peers.
        self.settings = attrs.evolve(settings, path=Path(os.path.realpath(settings.path)))
        self.peers = Peers(self.settings.path)
        self._identity = Identity(self.settings.path)
        self._log_bound = LogBound(self.settings)
        self.signs = Signs(self.peers, self._identity, _PULSE)
        self.on_news: dict[Callable[[], None], None] = {}
        self.on_change: dict[Callable[[], None], None] = {}
        self.transactions = 0
        self._shutdown_timeout = shutdown_timeout
        self._pending: list[Job] = []
        self._work = trio.Event()
        self._last_writes = trio.CancelScope(shield=True)  # has a deadline once it is told to stop
        self._stopping = False
        self._open = False
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(1)
        self._read_lock, self._write_lock = threading.Lock(), threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._version: int | None = None

    # -- lifetime --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self, *more: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Open the file, and leave nothing of ours open in the end, unless the disk stands still for longer than the
        shutdown timeout: then its threads are left to themselves. `more`: tasks to run meanwhile.

        The tasks are shielded, so that a consumer which is left by cancellation can still commit and leave its group.

        Raises:
            ImproperlyConfigured, TransportError: as `open_writing`.
        """
        if self._open:
            raise RuntimeError(f"{self!r} is open already: a transport serves one run")
        await trio.to_thread.run_sync(self._connect, limiter=self._writing)
        self._open, self._stopping = True, False
        errors: list[BaseException] = []
        scopes: list[trio.CancelScope] = []
        end = inf
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                for task in (self.signs.renew, self._look, self._listen, *more):
                    scopes.append(trio.CancelScope(shield=True))
                    nursery.start_soon(_run_in, scopes[-1], task)
                try:
                    yield
                except Exception as error:
                    errors.append(error)  # it shall leave bare, not in the nursery's group
                finally:
                    for scope in scopes:
                        scope.cancel()
                    self._last_writes.deadline = end = trio.current_time() + self._shutdown_timeout
                    self._stopping = True
                    self._work.set()
        except BaseExceptionGroup as group:
            errors += group.exceptions
        finally:
            self._open = False
            closed = trio.Event()
            end = max(end, trio.current_time() + _LAST)
            with trio.CancelScope(shield=True, deadline=end):
                # Cancelled reads may still be at work: it waits for them there, also when it is not waited for any more.
                limiter = trio.CapacityLimiter(1)
                await trio.to_thread.run_sync(self._disconnect, limiter=limiter, abandon_on_cancel=True)
                closed.set()
            if not closed.is_set():
                text = "%s was not closed within %g s, since its disk does not answer; what was acknowledged is in it"
                log.warning(text, self.settings.path, self._shutdown_timeout)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup(f"{self!r} failed", errors)

    def _connect(self) -> None:
        try:
            self._writer = open_writing(self.settings)
            self._reader = open_reading(self.settings)
            self._identity.take()
            self.peers.open()
            self.peers.clear_dead()
        except BaseException as error:
            self._disconnect()
            if isinstance(error, OSError):
                raise TransportError(f"{self.settings.path}: {error}") from error
            raise

    def _disconnect(self) -> None:
        with self._read_lock, self.signs.lock, self._write_lock:
            self.peers.close()
            for db in (self._reader, self._writer):
                if db is not None:
                    with suppress(sqlite3.Error):
                        db.close()
            self._reader = self._writer = None

    def check_open(self) -> None:
        """Raise `trio.ClosedResourceError` unless it is open."""
        if not self._open or self._stopping:
            raise trio.ClosedResourceError(f"{self!r} is not open")

    # -- reading ---------------------------------------------------------------------------------------------

    async def read(self, do: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function with a connection, in a thread and in a transaction. Cancelled, it is left to itself.

        Raises:
            TransportError: SQLite failed; see `translated`.
        """
        self.check_open()
        return await trio.to_thread.run_sync(partial(self._run_read, do), limiter=self._reading, abandon_on_cancel=True)

    def _run_read(self, do: Callable[[sqlite3.Connection], T]) -> T:
        with self._read_lock:
            if self._reader is None:
                raise trio.ClosedResourceError(f"{self!r} is not open")
            return self._read_from(self._reader, do)

    def _read_from(self, db: sqlite3.Connection, do: Callable[[sqlite3.Connection], T]) -> T:
        try:
            db.execute("BEGIN")
            try:
                return do(db)
            finally:
                if db.in_transaction:
                    db.execute("COMMIT")
        except (sqlite3.Error, Damaged) as error:
            raise translated(error, self.settings) from error

    # -- writing ---------------------------------------------------------------------------------------------

    async def write(
        self,
        do: Callable[[Transaction], T],
        *,
        prepare: Callable[[sqlite3.Connection], object] | None = None,
        within: float | None = None,
    ) -> T:
        """Call a function in a transaction, in a thread; return when it is committed.

        Whoever is cancelled before it has begun withdraws it; afterwards it is done all the same.

        Args:
            prepare: called before the transaction, while others may still write: for what takes long.
            within: seconds to wait for it.

        Raises:
            TransportError: what `do` raised, SQLite or the lack of time; `in_doubt` where it may have been done.
        """
        self.check_open()
        job = Job(do, prepare)
        self._pending.append(job)
        self._work.set()
        withdrawn = False
        try:
            with trio.move_on_after(inf if within is None else within):
                await job.done.wait()
        finally:
            if job in self._pending:
                self._pending.remove(job)
                withdrawn = True
        if not job.done.is_set():
            error = BrokerUnavailable(f"{self.settings.path}: no answer within {within:g} s; is its disk very slow?")
            error.in_doubt = not withdrawn
            raise error
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    async def _write(self) -> None:
        """The task that writes, until it is told to stop and nothing is left."""
        with self._last_writes:
            while self._pending or not self._stopping:
                if not self._pending:
                    self._work = trio.Event()
                    await self._work.wait()
                    continue
                jobs, self._pending = self._pending[:_MOST_JOBS], self._pending[_MOST_JOBS:]
                pokes = await trio.to_thread.run_sync(
                    partial(self._transact, jobs), limiter=self._writing, abandon_on_cancel=True
                )
                self.transactions += 1
                for job in jobs:
                    job.done.set()
                self._tell(pokes)

    def _transact(self, jobs: list[Job]) -> set[bytes]:
        with self._write_lock:
            assert self._writer is not None, "open while the writing task runs"
            return self._transact_on(self._writer, jobs)

    def _transact_on(self, db: sqlite3.Connection, jobs: list[Job]) -> set[bytes]:
        pokes = transact(db, jobs, self.settings, self._identity.check)
        for kind in pokes:
            self.peers.poke(kind)
        self._log_bound.keep(db)
        return pokes

    # -- noticing --------------------------------------------------------------------------------------------

    def _tell(self, kinds: Iterable[bytes]) -> None:
        for kind in kinds:
            for listener in list(self.on_news if kind == NEWS else self.on_change):
                listener()

    async def _listen(self) -> None:
        """Pass on what others poke us with."""
        while self.peers.pipes:
            await trio.lowlevel.wait_readable(self.peers.fd)
            self._tell(bytes([kind]) for kind in self.peers.read())

    async def _look(self) -> None:
        """Look whether anything was written: seldom, for the case that a poke was lost; often, where there are none."""
        while True:
            await trio.sleep(_PULSE if self.peers.pipes else _LOOK)
            with suppress(TransportError):  # who has work to do meets it too, and reports it
                (version,) = await self.read(lambda db: db.execute("PRAGMA data_version").fetchone())
                if version != self._version:
                    self._version = version
                    self._tell((NEWS, CHANGE))

    def __repr__(self) -> str:
        return f"<Engine of {self.settings.path} {'open' if self._open else 'closed'}>"


async def _run_in(scope: trio.CancelScope, task: Callable[[], Awaitable[None]]) -> None:
    with scope:
        try:
            await task()
        except trio.ClosedResourceError:  # it was about to ask for something when the end came
            if not scope.cancel_called:
                raise
