"""Writing batches to partitions: idempotent, whole or not at all, with an answer within a bound.

The client retries an idempotent batch for ever once it may have reached the broker, so a write can outlast the call
that asked for it. It is remembered then, and nothing else is written to its partition before it is settled: who
repeats the same records gets the outcome of that write, not a second one. (`channels.producer` repeats what was not answered.)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import trio
from aiokafka import AIOKafkaProducer, codec
from aiokafka.errors import KafkaTimeoutError
from aiokafka.structs import TopicPartition

from ..channels.errors import BrokerUnavailable, ImproperlyConfigured, ProduceError, TransportError, UnknownTopic
from ..channels.message import TP, ProducerRecord
from ..channels.transport import ProduceResult
from .admin import KafkaAdmin
from .bridge import Bridge
from .clients import start_client
from .errors import CALL_FAILURES, StaleProducer, translated, unknown_topic
from .url import KafkaSettings

__all__ = ["KafkaProducer", "check_compression", "fill", "make_producer"]

log = logging.getLogger("famulus.kafka")

_LOOK = 0.5  # seconds between two looks whether what is written to is still there
_GRACE = 2.0  # seconds that other partitions' writes wait for one that is not answered
_MOST_BATCH_BYTES = 64 * 1024 * 1024  # of the client's builder, so that what is too large is for the broker to say


class _Write:
    """One batch on its way to one partition.

    Attributes:
        outcome: set once it is known; an error means that it is not in the log.
        builder: the client's batch, once it is handed over: it may reach the log from then on.
    """

    __slots__ = ("builder", "outcome", "records")

    def __init__(self, records: Sequence[ProducerRecord]) -> None:
        self.records = records
        self.outcome: asyncio.Future[ProduceResult | TransportError] = asyncio.get_running_loop().create_future()
        self.builder: object = None

    def settle(self, outcome: ProduceResult | TransportError) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def index(self, records: Sequence[ProducerRecord]) -> int | None:
        """Where these begin among ours, if they are the same records again: all, or the last of them, and perhaps more.

        The first ones are missing where their sender has given them up.
        """
        start = next((index for index, mine in enumerate(self.records) if mine is records[0]), None)
        if start is None or not all(
            mine is theirs for mine, theirs in zip(self.records[start:], records, strict=False)
        ):
            return None
        return start


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
        self._sent: dict[TP, _Write] = {}  # not settled, or written and its receipt not handed over
        self._turns: dict[TP, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def produce(self, batches: Mapping[TP, Sequence[ProducerRecord]]) -> dict[TP, ProduceResult | Exception]:
        """See `Transport.produce`."""
        outcome: dict[TP, ProduceResult | Exception] = {}
        outcome.update(await self.unwritable(batches))
        good = {tp: tuple(records) for tp, records in batches.items() if tp not in outcome}
        if not good:
            return outcome
        try:
            client = await self._started()
        except TransportError as error:
            return {**outcome, **dict.fromkeys(good, error)}
        writes = await self._bridge.call(self._produce, client, good)
        for tp, write in writes.items():
            if write.outcome.done():
                result = outcome[tp] = write.outcome.result()
                if self._sent.get(tp) is write:
                    del self._sent[tp]
                if isinstance(result, StaleProducer):
                    self._replace(client)
            else:
                self._partitions.pop(tp.topic, None)  # look again whether it is there
                doubt = outcome[tp] = BrokerUnavailable(
                    f"{tp}: no answer within {self._settings.produce_timeout:g} s; the write goes on, repeat it to see"
                )
                doubt.in_doubt = True
        late = [tp for tp, write in writes.items() if not write.outcome.done() and _is_lost(client, tp)]
        if late:  # deleted, it seems: then there is nothing to repeat
            bad = await self.unwritable(dict.fromkeys(late))
            for tp, reason in bad.items():
                if isinstance(reason, UnknownTopic):
                    outcome[tp] = reason
                    _withdraw(client, tp, writes[tp].builder, sent=True)
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
                self._sent.pop(tp, None)
                if (turn := self._turns.get(tp)) is not None and not turn.locked():
                    del self._turns[tp]
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

    # -- in asyncio, never cancelled -----------------------------------------------------------------------

    async def _produce(
        self, client: AIOKafkaProducer, batches: Mapping[TP, Sequence[ProducerRecord]]
    ) -> dict[TP, _Write]:
        writes: dict[TP, _Write] = {}
        for tp, records in batches.items():
            write = writes[tp] = _Write(records)
            task = asyncio.ensure_future(self._write(client, tp, write))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        most = self._settings.produce_timeout
        done, late = await _first_outcome(client, writes, most)
        if done and late:  # a leader that is silent holds up its own partitions, and the others only so long
            _, late = await asyncio.wait(late, timeout=min(_GRACE, most))
        if late:
            for tp, write in writes.items():
                self._give_up(client, tp, write)
        return writes

    def _give_up(self, client: AIOKafkaProducer, tp: TP, write: _Write) -> None:
        """The caller has waited long enough. What has certainly not been sent will not be."""
        if not write.outcome.done() and (write.builder is None or _withdraw(client, tp, write.builder)):
            write.settle(BrokerUnavailable(f"{tp}: the broker takes no writes at the moment; it is tried again"))

    async def _write(self, client: AIOKafkaProducer, tp: TP, write: _Write) -> None:
        """Write when it is its turn; leave it in `_sent` if it may be in the log and nobody knows yet."""
        async with self._turns.setdefault(tp, asyncio.Lock()):
            sent = self._sent.get(tp)
            if sent is not None:
                await asyncio.wait({sent.outcome, write.outcome}, return_when=asyncio.FIRST_COMPLETED)
            unknown = None if write.outcome.done() else await _unknown(client, tp)
            if write.outcome.done():  # the caller has given up
                return
            if unknown is not None:
                write.settle(unknown)
                return
            earlier = None if sent is None else sent.outcome.result()
            start = sent.index(write.records) if sent is not None and isinstance(earlier, ProduceResult) else None
            if sent is None or start is None:
                sent, rest = None, write.records
            else:
                rest = write.records[len(sent.records) - start :]
            if isinstance(earlier, ProduceResult) and start is not None and not rest:
                self._sent[tp] = write
                write.settle(ProduceResult(earlier.base_offset + start, earlier.timestamp))
                return
            self._sent[tp] = write
            result = await self._send(client, tp, rest, write)
            if isinstance(result, ProduceResult):
                # Where others wrote between the two parts, only the offsets of the second are right.
                base = result.base_offset - len(write.records) + len(rest)
                result = result if sent is None else ProduceResult(base, result.timestamp)
            elif sent is not None:
                self._sent[tp] = sent
            else:
                self._sent.pop(tp, None)
            write.settle(result)

    async def _send(
        self, client: AIOKafkaProducer, tp: TP, records: Sequence[ProducerRecord], write: _Write
    ) -> ProduceResult | TransportError:
        builder = client.create_batch()
        try:
            fill(builder, records)
        except Exception as error:  # what the client cannot encode
            return error if isinstance(error, TransportError) else ProduceError(f"writing to {tp}: {error!r}")
        partition = TopicPartition(*tp)
        inside: Any = client  # aiokafka has no types for its inside
        numbers = inside._txn_manager._sequence_numbers
        number = numbers[partition]
        write.builder = builder
        try:
            receipt = await (await client.send_batch(builder, tp.topic, partition=tp.partition))
        except CALL_FAILURES as error:
            # What was refused used up no sequence number on the broker; aiokafka has counted it, and would be
            # out of order from here on.
            numbers[partition] = number
            return translated(error, f"writing to {tp}")
        except Exception as error:
            log.exception("writing to %s failed in an unforeseen way", tp)
            return ProduceError(f"writing to {tp}: {error!r}")
        by_broker = receipt.timestamp_type == 1
        return ProduceResult(receipt.offset, receipt.timestamp / 1000 if by_broker else None)


async def _first_outcome(
    client: AIOKafkaProducer, writes: Mapping[TP, _Write], most: float
) -> tuple[set[asyncio.Future[Any]], set[asyncio.Future[Any]]]:
    """Wait so long for the first one; no longer where the client has found out that none of the topics is there any more."""
    outcomes = [write.outcome for write in writes.values()]
    until = time.monotonic() + most
    while True:
        left = until - time.monotonic()
        done, late = await asyncio.wait(outcomes, timeout=min(left, _LOOK), return_when=asyncio.FIRST_COMPLETED)
        if done or left <= _LOOK or all(_is_lost(client, tp) for tp in writes):
            return done, late


def _is_lost(client: AIOKafkaProducer, tp: TP) -> bool:
    """Whether a broker has told the client that the topic is not there."""
    return client.client.cluster.partitions_for_topic(tp.topic) is None


async def _unknown(client: AIOKafkaProducer, tp: TP) -> TransportError | None:
    """A partition that was added a moment ago is there, and the client may not know it yet; what it then says is final."""
    try:
        if tp.partition in await client.partitions_for(tp.topic):
            return None
        await client.client.force_metadata_update()
        if tp.partition in await client.partitions_for(tp.topic):
            return None
    except CALL_FAILURES as error:
        return translated(error, f"writing to {tp}")
    return BrokerUnavailable(f"{tp}: the brokers do not all know this partition yet; it is tried again")


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
        max_batch_size=_MOST_BATCH_BYTES,
        max_request_size=_MOST_BATCH_BYTES,
        request_timeout_ms=round(settings.request_timeout * 1000),
        **settings.client_options(),
        **more,
    )


def fill(builder: Any, records: Sequence[ProducerRecord]) -> None:
    """Put records into an empty batch of the client; those without a time get the present."""
    now = round(time.time() * 1000)
    append = builder._builder.append  # the wrapper around it costs as much again
    for index, record in enumerate(records):
        stamp = record.timestamp
        appended = append(
            index,
            now if stamp is None else round(stamp * 1000),
            record.key,
            record.value,
            list(record.headers) if record.headers else [],
        )
        if appended is None:
            raise ProduceError(
                f"a batch of {len(records)} records has more than {_MOST_BATCH_BYTES} bytes: send less at once"
            )
    builder._relative_offset = len(records)
    builder.close()


def _withdraw(client: AIOKafkaProducer, tp: TP, builder: object, *, sent: bool = False) -> bool:
    """Take a batch back that has not been sent yet, or with `sent` one that waits to be sent again; False: it may arrive."""
    inside: Any = client  # aiokafka has no types for its inside
    accumulator = inside._message_accumulator
    queue = accumulator._batches.get(tp)
    for batch in queue or ():
        if batch._builder is builder and (sent or batch.retry_count == 0):
            queue.remove(batch)
            if not queue:
                del accumulator._batches[tp]
            if batch.retry_count:  # the client takes it from there as if it were being sent
                accumulator._pending_batches.add(batch)
            batch.future.set_exception(KafkaTimeoutError())
            return True
    return False
