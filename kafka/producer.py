"""Writing batches to partitions: idempotent, whole or not at all, with an answer within a bound.

The client retries an idempotent batch for ever once it may have reached the broker, so a write can outlast the call
that asked for it. It is remembered then, and nothing else is written to its partition before it is settled: who
repeats the same records gets the outcome of that write, not a second one. (`channels.producer` repeats what was not answered.)
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import trio
from aiokafka import AIOKafkaProducer, codec

from ..channels.errors import BrokerUnavailable, ImproperlyConfigured, ProduceError, TransportError, UnknownTopic
from ..channels.message import TP, ProducerRecord
from ..channels.transport import ProduceResult
from .admin import KafkaAdmin
from .bridge import Bridge
from .clients import start_client
from .errors import StaleProducer, unknown_topic
from .url import KafkaSettings
from .writing import MOST_BATCH_BYTES, Writing, is_lost, withdraw

__all__ = ["KafkaProducer", "check_compression", "make_producer"]


class KafkaProducer:
    """The writing side of one transport; its client is started by the first write."""

    def __init__(
        self, bridge: Bridge, admin: KafkaAdmin, settings: KafkaSettings, *, client_id: str, stop_timeout: float
    ) -> None:
        self._bridge = bridge
        self._admin = admin
        self._settings = settings
        self._client_id = client_id
        self._stop_timeout = stop_timeout
        self._client: AIOKafkaProducer | None = None
        self._starting = trio.Lock()
        self._partitions: dict[str, int] = {}
        self._writing = Writing(settings.produce_timeout)
        bridge.at_end(self._writing.close)

    async def produce(self, batches: Mapping[TP, Sequence[ProducerRecord]]) -> dict[TP, ProduceResult | Exception]:
        """See `Transport.produce`."""
        outcome: dict[TP, ProduceResult | Exception] = {}
        outcome.update(await self.unwritable(batches))
        good = {tp: tuple(records) for tp, records in batches.items() if tp not in outcome}
        if not good:
            await trio.lowlevel.checkpoint()
            return outcome
        try:
            client = await self._started()
        except TransportError as error:
            return {**outcome, **dict.fromkeys(good, error)}
        writes = self._bridge.run(self._writing.begin, client, good)
        await self._writing.wait(writes)
        for tp, write in writes.of.items():
            if write.outcome.done():
                result = outcome[tp] = write.outcome.result()
                self._writing.taken(tp, write)
                if isinstance(result, StaleProducer):
                    self._replace(client)
            else:
                self._partitions.pop(tp.topic, None)  # look again whether it is there
                doubt = outcome[tp] = BrokerUnavailable(
                    f"{tp}: no answer within {self._settings.produce_timeout:g} s; the write goes on, repeat it to see"
                )
                doubt.in_doubt = True
        late = [tp for tp, write in writes.of.items() if not write.outcome.done() and is_lost(client, tp)]
        if late:  # deleted, it seems: then there is nothing to repeat
            bad = await self.unwritable(dict.fromkeys(late))
            for tp, reason in bad.items():
                if isinstance(reason, UnknownTopic):
                    outcome[tp] = reason
                    withdraw(client, tp, writes.of[tp].builder, sent=True)
        return outcome

    async def unwritable(self, partitions: Mapping[TP, object]) -> dict[TP, TransportError]:
        """What cannot be written: to topics and partitions that do not exist, or nobody is there to say so."""
        unknown = {tp.topic for tp in partitions if tp.partition >= self._partitions.get(tp.topic, 0)}
        failed = await self._look_at(sorted(unknown)) if unknown else {}
        bad: dict[TP, TransportError] = {}
        for tp in partitions:
            if tp.topic in failed:
                bad[tp] = failed[tp.topic]
                continue
            count = self._partitions.get(tp.topic)
            if count is None:
                bad[tp] = unknown_topic(tp.topic, self._settings.url)
                self._writing.forget(tp)
            elif tp.partition >= count:
                bad[tp] = ProduceError(
                    f"topic {tp.topic!r} has {count} partitions: there is no partition {tp.partition}"
                )
        return bad

    async def _look_at(self, topics: Sequence[str]) -> dict[str, TransportError]:
        """Learn the partitions of these topics; the errors of those that cannot be looked at."""
        try:
            found = await self._admin.topics(topics, within=self._settings.produce_timeout)
        except TransportError as error:
            if error.retriable or len(topics) == 1:
                return dict.fromkeys(topics, error)
            failed: dict[str, TransportError] = {}  # one that we may not see hides the others
            for topic in topics:
                failed.update(await self._look_at([topic]))
            return failed
        self._partitions.update((name, topic.partitions) for name, topic in found.items())
        return {}

    # -- the client ----------------------------------------------------------------------------------------

    async def _started(self) -> AIOKafkaProducer:
        if self._client is not None:  # taking the lock would pass control to all other tasks first
            return self._client
        async with self._starting:
            client = self._client
            if client is None:
                if self._writing.closed:  # a client made now would be left behind
                    raise trio.ClosedResourceError("the connection to the broker was closed")
                client = self._client = await start_client(
                    self._bridge,
                    self._make,
                    AIOKafkaProducer.stop,
                    settings=self._settings,
                    doing="connecting to write",
                )
            return client

    def _make(self) -> AIOKafkaProducer:
        return make_producer(self._settings, self._client_id)

    def _replace(self, client: AIOKafkaProducer) -> None:
        """Have the next write made by a new client, with a new id for the broker's sequence numbers."""
        current = self._client is client
        if not current:
            return
        self._client = None
        stop: Callable[[], Coroutine[Any, Any, None]] = client.stop
        self._bridge.start(stop)

    async def close(self) -> None:
        """Flush and disconnect, within the time there is; with the broker away the client would flush for ever."""
        client, self._client = self._client, None
        if client is not None:
            await self._bridge.try_call(self._stop_timeout, client.stop)
        self._writing.close()


def check_compression(name: str) -> None:
    """
    Raises:
        ImproperlyConfigured: its library is not installed.
    """
    there = {"gzip": codec.has_gzip, "snappy": codec.has_snappy, "lz4": codec.has_lz4, "zstd": codec.has_zstd}
    if name in there and not there[name]():
        raise ImproperlyConfigured(f"compression={name}: its library is not installed; `pip install cramjam`")


def make_producer(settings: KafkaSettings, client_id: str, **more: Any) -> AIOKafkaProducer:
    """An idempotent producer for these settings."""
    return AIOKafkaProducer(
        client_id=client_id,
        enable_idempotence=True,
        acks=settings.acks,
        compression_type=None if settings.compression == "none" else settings.compression,
        max_batch_size=MOST_BATCH_BYTES,
        max_request_size=MOST_BATCH_BYTES,
        request_timeout_ms=round(settings.request_timeout * 1000),
        **settings.client_options(),
        **more,
    )
