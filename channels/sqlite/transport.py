"""The ``sqlite://`` transport: a broker in one file, for the processes of one machine. docs/sqlite.md describes it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import trio

from ..errors import CommitRefused
from ..message import TP, ProducerRecord
from ..transport import (
    Consumer,
    ConsumerOptions,
    OffsetReset,
    ProduceResult,
    Reader,
    RebalanceListener,
    StartOffset,
    TopicDescription,
    TopicSpec,
    Transport,
    TransportOptions,
    checked_start,
)
from . import log as logs
from .chores import Housekeeping
from .consumer import SqliteConsumer
from .engine import Engine
from .groups import committed, topics_changed
from .jobs import Transaction
from .peers import CHANGE
from .reader import SqliteReader
from .transactions import Owner, Transactions
from .url import parse_url
from .writes import Writes

__all__ = ["SqliteTransport"]


class SqliteTransport(Transport):
    """A run's connection to a broker's file.

    Resource handling: as with `MemoryTransport`, a consumer that is left by cancellation gets its `on_revoked` inside the
    cancelled scope; a listener that wants to commit then must shield itself, and the transport still answers it.

    Attributes:
        settings: what the URL says.
    """

    owns_topics = True

    def __init__(self, url: str = "sqlite://", options: TransportOptions | None = None) -> None:
        self.options = options or TransportOptions()
        self.settings = parse_url(url, self.options.datadir)
        self._engine = Engine(self.settings, self.options.shutdown_timeout)
        self._writes = Writes(self._engine)
        self._transactions = Transactions(self._engine, self._writes)
        self._housekeeping = Housekeeping(self._engine)
        self._consumers: dict[str, SqliteConsumer] = {}

    def open(self) -> AbstractAsyncContextManager[None]:
        return self._engine.opened(self._housekeeping.run)

    def open_consumer(
        self, options: ConsumerOptions, listener: RebalanceListener
    ) -> AbstractAsyncContextManager[Consumer]:
        return self._opened_consumer(options, listener)

    @asynccontextmanager
    async def _opened_consumer(
        self, options: ConsumerOptions, listener: RebalanceListener
    ) -> AsyncIterator[SqliteConsumer]:
        await trio.lowlevel.checkpoint()
        self._engine.check_open()
        if options.group in self._consumers:
            raise RuntimeError(f"{self!r} has a consumer in group {options.group!r} already: one per group")
        consumer = SqliteConsumer(
            self._engine,
            options,
            listener,
            client_id=self.options.client_id,
            commit_timeout=self.options.commit_timeout,
            shutdown_timeout=self.options.shutdown_timeout,
        )
        self._consumers[options.group] = consumer
        errors: list[BaseException] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(consumer.run_membership, name=f"member of {options.group}")
                try:
                    yield consumer
                except Exception as error:
                    errors.append(error)  # it shall leave bare, not in the nursery's group
                finally:
                    consumer.ask_close()
                    await consumer.closed.wait()
        except BaseExceptionGroup as group:
            errors += group.exceptions
        finally:
            del self._consumers[options.group]
            consumer.release_waiters()
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup(f"a consumer of group {options.group!r} failed", errors)

    def open_reader(
        self, start: Mapping[TP, StartOffset], *, on_reset: Callable[[OffsetReset], object] | None = None
    ) -> AbstractAsyncContextManager[Reader]:
        return self._opened_reader(checked_start(start), on_reset)

    @asynccontextmanager
    async def _opened_reader(
        self, start: Mapping[TP, StartOffset], on_reset: Callable[[OffsetReset], object] | None
    ) -> AsyncIterator[SqliteReader]:
        reader = SqliteReader(self._engine, start, on_reset)
        try:
            await reader.begin()
            yield reader
        finally:
            reader.close()

    # -- writing -------------------------------------------------------------------------------------------

    async def produce(self, batches: Mapping[TP, Sequence[ProducerRecord]]) -> Mapping[TP, ProduceResult | Exception]:
        await trio.lowlevel.checkpoint()
        return await self._writes.produce(batches)

    async def transact(
        self,
        batches: Mapping[TP, Sequence[ProducerRecord]],
        offsets: Mapping[TP, int],
        *,
        group: str,
        generation: int,
    ) -> Mapping[TP, ProduceResult]:
        await trio.lowlevel.checkpoint()

        def owner() -> Owner:
            consumer = self._consumers.get(group)
            if not offsets:
                return Owner()
            if consumer is None:
                raise CommitRefused(f"this transport has no consumer in group {group!r}, so it owns nothing")
            return Owner(consumer.member, consumer.check_ownership(offsets))

        return await self._transactions.transact(batches, offsets, group=group, generation=generation, owner=owner)

    # -- administration ------------------------------------------------------------------------------------

    async def _change(self, do: Callable[[sqlite3.Connection], None], topic: str) -> None:
        """Change a topic, and let the groups that want it rebalance."""

        def job(tx: Transaction) -> None:
            do(tx.db)
            topics_changed(tx.db, topic)
            tx.pokes.add(CHANGE)

        await self._engine.write(job, within=self.settings.produce_timeout)

    async def partition_count(self, topic: str) -> int:
        return await self._engine.read(partial(logs.partition_count, name=topic))

    async def committed(self, group: str, partitions: Collection[TP]) -> Mapping[TP, int | None]:
        return await self._engine.read(partial(committed, group=group, partitions=list(partitions)))

    async def create_topic(self, spec: TopicSpec) -> None:
        partitions = self.options.default_partitions if spec.partitions is None else spec.partitions
        create = partial(logs.create_topic, name=spec.name, partitions=partitions, config=spec.config)
        await self._change(create, spec.name)

    async def delete_topic(self, name: str) -> None:
        await self._change(partial(logs.delete_topic, name=name), name)
        self._housekeeping.hurry()

    async def list_topics(self) -> Sequence[str]:
        return await self._engine.read(logs.names)

    async def describe_topic(self, name: str) -> TopicDescription:
        return await self._engine.read(partial(logs.describe, name=name))

    async def add_partitions(self, name: str, total: int) -> None:
        await self._change(partial(logs.add_partitions, name=name, total=total), name)

    async def delete_records(self, before: Mapping[TP, int]) -> None:
        await self._engine.write(lambda tx: logs.trim(tx.db, before), within=self.settings.produce_timeout)
        self._housekeeping.hurry()

    def __repr__(self) -> str:
        return f"<SqliteTransport {self.settings.path}>"
