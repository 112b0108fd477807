"""The ``kafka://`` transport: one run's connection to a Kafka cluster.

One asyncio loop per run (`bridge.py`), three kinds of clients on it: one for administration from the start, one for
writing from the first write on, one for each consumer group. Nothing is opened by importing or making a transport.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

import trio
from aiokafka.admin import AIOKafkaAdminClient

from ..channels.errors import BrokerUnavailable, CommitRefused, MemberReplaced, ProduceError
from ..channels.message import TP, ProducerRecord
from ..channels.transport import (
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
from .admin import KafkaAdmin, command_to
from .bridge import Bridge
from .clients import start_client
from .consumer import KafkaConsumer
from .errors import CALL_FAILURES, translated
from .opening import check_partitions, consumer_client, reader_client, started_consumer, when_there
from .producer import KafkaProducer, check_compression
from .reader import KafkaReader, reading_of
from .reading import ReadingInside
from .transactions import KafkaTransactions
from .url import parse_url

__all__ = ["KafkaTransport"]


class KafkaTransport(Transport):
    """Made for ``kafka://`` and ``aiokafka://`` URLs; `kafka/url.py` lists the options.

    Resource handling: a consumer that is left in order gets `on_revoked` first and then leaves its group. One
    that is left by cancellation gets it inside the cancelled scope, so its first await raises `Cancelled`: a
    listener that wants to commit then must shield itself.

    Attributes:
        settings: what the URL says.
    """

    def __init__(self, url: str, options: TransportOptions | None = None) -> None:
        """
        Raises:
            ImproperlyConfigured: the URL is wrong, or a file that it names; the message names the part.
        """
        self.settings = parse_url(url)
        self.settings.check()
        check_compression(self.settings.compression)
        self.options = options or TransportOptions()
        self._bridge = Bridge()
        self._admin: KafkaAdmin | None = None
        self._producer: KafkaProducer | None = None
        self._transactions: KafkaTransactions | None = None
        self._consumers: dict[str, KafkaConsumer] = {}

    # -- the connection ------------------------------------------------------------------------------------

    def open(self) -> AbstractAsyncContextManager[None]:
        return self._opened()

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        if self._admin is not None:
            raise RuntimeError(f"{self!r} is open already: a transport serves one run")
        bridge = self._bridge = Bridge()
        async with bridge.open():
            client = await self._connected(bridge)
            self._admin = KafkaAdmin(bridge, client, timeout=self.settings.request_timeout, broker=self.settings.url)
            self._producer = KafkaProducer(
                bridge,
                self._admin,
                self.settings,
                client_id=self.options.client_id,
                stop_timeout=self.options.shutdown_timeout,
            )
            self._transactions = KafkaTransactions(
                bridge,
                self.settings,
                client_id=self.options.client_id,
                stop_timeout=self.options.shutdown_timeout,
            )
            try:
                yield
            finally:
                producer, transactions = self._producer, self._transactions
                self._producer = self._transactions = self._admin = None
                await producer.close()
                await transactions.close()
                await bridge.try_call(self.options.shutdown_timeout, client.close)

    async def _connected(self, bridge: Bridge) -> AIOKafkaAdminClient:
        hosts = ", ".join(self.settings.servers)
        doing = f"connecting to {hosts}"
        try:
            return await start_client(
                bridge,
                self._admin_client,
                AIOKafkaAdminClient.close,
                settings=self.settings,
                doing=doing,
            )
        except BrokerUnavailable as error:
            reason = str(error).removeprefix(f"{doing}: ").removesuffix("; it is tried again")
            raise BrokerUnavailable(
                f"no Kafka broker answers at {hosts}: see that it runs there, or give its address as "
                f"--broker kafka://HOST:PORT, in FAMULUS_BROKER or to the App ({reason})"
            ) from error

    def _admin_client(self) -> AIOKafkaAdminClient:
        return AIOKafkaAdminClient(
            client_id=self.options.client_id,
            request_timeout_ms=round(self.settings.request_timeout * 1000),
            **self.settings.client_options(),
        )

    async def _ready(self) -> tuple[KafkaAdmin, KafkaProducer]:
        await trio.lowlevel.checkpoint()
        if self._admin is None or self._producer is None:
            raise trio.ClosedResourceError(f"{self!r} is not open")
        return self._admin, self._producer

    # -- reading -------------------------------------------------------------------------------------------

    def open_consumer(
        self, options: ConsumerOptions, listener: RebalanceListener
    ) -> AbstractAsyncContextManager[Consumer]:
        return self._opened_consumer(options, listener)

    def open_reader(
        self, start: Mapping[TP, StartOffset], *, on_reset: Callable[[OffsetReset], object] | None = None
    ) -> AbstractAsyncContextManager[Reader]:
        return self._opened_reader(checked_start(start), on_reset)

    @asynccontextmanager
    async def _opened_consumer(
        self, options: ConsumerOptions, listener: RebalanceListener
    ) -> AsyncIterator[KafkaConsumer]:
        await self._ready()
        if options.group in self._consumers:
            raise RuntimeError(f"{self!r} has a consumer in group {options.group!r} already: one per group")
        client = await started_consumer(
            self._bridge,
            lambda: consumer_client(self.settings, self.options.client_id, options),
            self.settings,
            f"reading as group {options.group!r}",
        )
        consumer = KafkaConsumer(
            self._bridge,
            client,
            options,
            listener,
            list_topics=self.list_topics,
            commit_timeout=self.options.commit_timeout,
            broker=self.settings.url,
        )
        self._consumers[options.group] = consumer
        errors: list[BaseException] = []
        try:
            async with trio.open_nursery() as nursery:
                ended = trio.Event()
                nursery.start_soon(_until_end, consumer, ended, name=f"member of {options.group}")
                try:
                    yield consumer
                except Exception as error:
                    errors.append(error)  # it shall leave bare, not in the nursery's group
                finally:
                    consumer.membership.ask_close()
                    await ended.wait()
        except BaseExceptionGroup as group:
            errors += group.exceptions
        finally:
            del self._consumers[options.group]
            consumer.wake()  # other tasks; what waited in the body was cancelled
            await self._bridge.try_call(self.options.shutdown_timeout, consumer.leave)
        for failure in errors:
            if len(errors) == 1 or isinstance(failure, MemberReplaced):  # what else failed came of it
                raise failure
        if errors:
            raise BaseExceptionGroup(f"a consumer of group {options.group!r} failed", errors)

    @asynccontextmanager
    async def _opened_reader(
        self, start: Mapping[TP, StartOffset], on_reset: Callable[[OffsetReset], object] | None
    ) -> AsyncIterator[KafkaReader]:
        admin, _ = await self._ready()
        name = reading_of(start)

        async def check() -> None:
            await check_partitions(admin, start)

        await when_there(check, name)
        client = await started_consumer(
            self._bridge, lambda: reader_client(self.settings, self.options.client_id), self.settings, name
        )
        reader: KafkaReader | None = None
        try:
            inside = ReadingInside(self._bridge, client)

            async def look_up() -> Mapping[TP, tuple[int, int]]:
                await check()
                try:
                    return await self._bridge.call(inside.look_up, tuple(start))
                except CALL_FAILURES as error:
                    raise translated(error, "looking up where the logs begin and end") from error

            reader = KafkaReader(inside, start, await when_there(look_up, name), on_reset, check=check)
            await self._bridge.call(inside.assign, dict(reader.positions))
            yield reader
        finally:
            if reader is not None:
                reader.close()
            await self._bridge.try_call(self.options.shutdown_timeout, client.stop)

    # -- writing -------------------------------------------------------------------------------------------

    async def produce(self, batches: Mapping[TP, Sequence[ProducerRecord]]) -> Mapping[TP, ProduceResult | Exception]:
        await trio.lowlevel.checkpoint_if_cancelled()  # it will wait
        if self._producer is None:
            raise trio.ClosedResourceError(f"{self!r} is not open")
        return await self._producer.produce(batches)

    async def transact(
        self,
        batches: Mapping[TP, Sequence[ProducerRecord]],
        offsets: Mapping[TP, int],
        *,
        group: str,
        generation: int,
    ) -> Mapping[TP, ProduceResult]:
        _, producer = await self._ready()
        consumer = self._consumers.get(group) if offsets else None
        if consumer is not None:
            consumer.check_ownership(offsets, generation)
        elif offsets:
            raise CommitRefused(f"this transport has no consumer in group {group!r}, so it owns nothing")
        for error in (await producer.unwritable(batches)).values():
            if error.retriable:
                raise error
            raise ProduceError(str(error)) from error
        assert self._transactions is not None, "open with the producer"
        return await self._transactions.transact(batches, offsets, group=group, owner=consumer, generation=generation)

    # -- administration ------------------------------------------------------------------------------------

    async def partition_count(self, topic: str) -> int:
        admin, _ = await self._ready()
        return (await admin.topic(topic)).partitions

    async def committed(self, group: str, partitions: Collection[TP]) -> Mapping[TP, int | None]:
        admin, _ = await self._ready()
        return await admin.committed(group, partitions)

    async def create_topic(self, spec: TopicSpec) -> None:
        admin, _ = await self._ready()
        await admin.create(spec, self.options.default_partitions if spec.partitions is None else spec.partitions)
        self._refresh()

    async def delete_topic(self, name: str) -> None:
        admin, _ = await self._ready()
        await admin.delete(name)
        self._refresh()

    async def list_topics(self) -> Sequence[str]:
        admin, _ = await self._ready()
        return sorted(await admin.topics())

    async def describe_topic(self, name: str) -> TopicDescription:
        admin, _ = await self._ready()
        return await admin.describe(name)

    async def add_partitions(self, name: str, total: int) -> None:
        admin, _ = await self._ready()
        await admin.add_partitions(name, total)
        self._refresh()

    async def delete_records(self, before: Mapping[TP, int]) -> None:
        admin, _ = await self._ready()
        await admin.delete_records(before)

    def command_to(
        self,
        change: Literal["grow", "configure", "delete"],
        topic: str,
        *,
        partitions: int = 0,
        config: Mapping[str, str] | None = None,
    ) -> str:
        return command_to(self.settings, change, topic, partitions=partitions, config=config or {})

    def _refresh(self) -> None:
        """Our own consumers shall not have to wait for their metadata to age."""
        for consumer in self._consumers.values():
            consumer.inside.refresh_metadata()

    def __repr__(self) -> str:
        state = "closed" if self._admin is None else "open"
        return f"<KafkaTransport {','.join(self.settings.servers)} {state}>"


async def _until_end(consumer: KafkaConsumer, ended: trio.Event) -> None:
    try:
        await consumer.membership.run()
    finally:
        ended.set()
