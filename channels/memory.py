"""The ``memory://`` transport: a broker in this process, for tests and `open_app()` without configuration.

``memory://`` is private to the transport that was made with it; ``memory://name`` is shared by all transports
of the process, run after run (see `MemoryBroker`, also for what is kept and for how long). It passes the
same contract suite as the others, and takes faults to order: ``transport.broker.faults``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import trio

from .errors import CommitRefused, ImproperlyConfigured, ProduceError, TransportError
from .memory_broker import PRIVATE_MAX_RECORDS, MemoryBroker, MemoryStatistics
from .memory_consumer import MemoryConsumer
from .memory_faults import Hold, MemoryFaults
from .memory_reader import MemoryReader
from .message import TP, ProducerRecord
from .transport import (
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

__all__ = ["Hold", "MemoryBroker", "MemoryFaults", "MemoryStatistics", "MemoryTransport"]


class MemoryTransport(Transport):
    """A run's connection to a memory broker.

    Resource handling: a consumer that is left in order gets `on_revoked` first and then leaves its group. One
    that is left by cancellation gets it inside the cancelled scope, so its first await raises `Cancelled`: a
    listener that wants to commit then must shield itself.

    Attributes:
        broker: the broker that the URL names.
    """

    owns_topics = True
    crosses_processes = False

    def __init__(
        self,
        url: str = "memory://",
        options: TransportOptions | None = None,
        *,
        broker: MemoryBroker | None = None,
    ) -> None:
        """`broker` is used instead of the one that `url` names."""
        parts = urlsplit(url)
        if parts.scheme != "memory" or parts.path or parts.query or parts.fragment:
            raise ImproperlyConfigured(f"broker={url!r}: expected memory:// or memory://NAME")
        name = url.removeprefix("memory://")
        if broker is None:
            broker = (
                MemoryBroker.named(name) if name else MemoryBroker(keep="uncommitted", max_records=PRIVATE_MAX_RECORDS)
            )
        self.broker = broker
        self.options = options or TransportOptions()
        self._is_open = False
        self._consumers: dict[str, MemoryConsumer] = {}

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        if self._is_open:
            raise RuntimeError(f"{self!r} is open already: a transport serves one run")
        self.broker.attach()
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False
            self.broker.detach()

    def open(self) -> AbstractAsyncContextManager[None]:
        return self._opened()

    def open_consumer(
        self, options: ConsumerOptions, listener: RebalanceListener
    ) -> AbstractAsyncContextManager[Consumer]:
        return self._opened_consumer(options, listener)

    @asynccontextmanager
    async def _opened_consumer(
        self, options: ConsumerOptions, listener: RebalanceListener
    ) -> AsyncIterator[MemoryConsumer]:
        await self._ready()
        if options.group in self._consumers:
            raise RuntimeError(f"{self!r} has a consumer in group {options.group!r} already: one per group")
        consumer = MemoryConsumer(
            self.broker,
            options,
            listener,
            client_id=self.options.client_id,
            default_partitions=self.options.default_partitions,
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
    ) -> AsyncIterator[MemoryReader]:
        await self._ready()
        await self.broker.wait_up()
        reader = MemoryReader(self.broker, start, on_reset)
        try:
            yield reader
        finally:
            reader.close()

    async def _ready(self) -> None:
        """A checkpoint; then the transport must be open and the broker there."""
        await trio.lowlevel.checkpoint()
        if not self._is_open:
            raise trio.ClosedResourceError(f"{self!r} is not open")

    # -- writing -------------------------------------------------------------------------------------------

    async def produce(self, batches: Mapping[TP, Sequence[ProducerRecord]]) -> Mapping[TP, ProduceResult | Exception]:
        await self._ready()
        faults = self.broker.faults
        outcome: dict[TP, ProduceResult | Exception] = {}
        held = []
        for tp, records in batches.items():
            fault = faults.take_produce(tp)
            if fault is None or fault.after_write:
                outcome[tp] = self._append(tp, records)
            elif fault.error is not None:
                outcome[tp] = fault.error
            if fault is not None and fault.error is None:
                held.append((fault, tp, records))
        for fault, tp, records in held:
            await fault.wait()
            if not fault.after_write:
                outcome[tp] = self._append(tp, records)
        return outcome

    def _append(self, tp: TP, records: Sequence[ProducerRecord]) -> ProduceResult | Exception:
        try:
            self.broker.check_up()
            return self.broker.append(tp, records)
        except TransportError as error:
            return error

    async def transact(
        self,
        batches: Mapping[TP, Sequence[ProducerRecord]],
        offsets: Mapping[TP, int],
        *,
        group: str,
        generation: int,
    ) -> Mapping[TP, ProduceResult]:
        await self._ready()
        broker = self.broker
        for tp in batches:
            fault = broker.faults.take_produce(tp)
            if fault is not None:
                await fault.wait()
                if fault.error is not None:
                    raise ProduceError(f"{tp}: {fault.error}") from fault.error
        broker.check_up()
        try:
            for tp, records in batches.items():
                broker.log(tp)
                broker.topic(tp.topic).check_size(records)
        except TransportError as error:
            raise ProduceError(str(error)) from error
        if offsets:
            broker.faults.check_commit()
            consumer = self._consumers.get(group)
            if consumer is None:
                raise CommitRefused(f"this transport has no consumer in group {group!r}, so it owns nothing")
            consumer.check_ownership(offsets, generation)
        # From here on nothing can fail and nothing waits.
        results = {tp: broker.append(tp, records) for tp, records in batches.items()}
        if offsets:
            broker.commit(group, offsets)
        return results

    # -- administration ------------------------------------------------------------------------------------

    async def _admin(self) -> MemoryBroker:
        await self._ready()
        self.broker.check_up()
        return self.broker

    async def partition_count(self, topic: str) -> int:
        return len((await self._admin()).topic(topic).logs)

    async def committed(self, group: str, partitions: Collection[TP]) -> Mapping[TP, int | None]:
        known = (await self._admin()).groups.get(group)
        return {tp: None if known is None else known.committed.get(tp) for tp in partitions}

    async def create_topic(self, spec: TopicSpec) -> None:
        broker = await self._admin()
        partitions = self.options.default_partitions if spec.partitions is None else spec.partitions
        broker.create_topic(spec.name, partitions, replicas=spec.replicas or 1, config=spec.config)

    async def delete_topic(self, name: str) -> None:
        (await self._admin()).delete_topic(name)

    async def list_topics(self) -> Sequence[str]:
        return sorted((await self._admin()).topics)

    async def describe_topic(self, name: str) -> TopicDescription:
        topic = (await self._admin()).topic(name)
        return TopicDescription(
            name=name, partitions=len(topic.logs), replicas=topic.replicas, config=dict(topic.config)
        )

    async def add_partitions(self, name: str, total: int) -> None:
        (await self._admin()).add_partitions(name, total)

    async def delete_records(self, before: Mapping[TP, int]) -> None:
        broker = await self._admin()
        for tp in before:
            broker.log(tp)
        for tp, offset in before.items():
            broker.delete_records(tp, offset)

    def __repr__(self) -> str:
        return f"<MemoryTransport memory://{self.broker.name} {'open' if self._is_open else 'closed'}>"
