"""Batches on their way to their partitions, in asyncio. See `producer.py`, which says what for.

Written for aiokafka 0.14: like everything that is private of the client's, what is used here of its accumulator is
tried by `tests/kafka`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import trio
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError
from aiokafka.structs import TopicPartition

from ..channels.errors import BrokerUnavailable, ProduceError, TransportError
from ..channels.message import TP, ProducerRecord
from ..channels.transport import ProduceResult
from .errors import CALL_FAILURES, translated

__all__ = ["MOST_BATCH_BYTES", "Write", "Writes", "Writing", "fill", "is_lost", "withdraw"]

log = logging.getLogger("famulus.kafka")

_LOOK = 0.5  # seconds between two looks whether what is written to is still there
_GRACE = 2.0  # seconds that other partitions' writes wait for one that is not answered

MOST_BATCH_BYTES = 64 * 1024 * 1024
"""Of the client's builder, so that what is too large is for the broker to say."""


class Write:
    """One batch on its way to one partition.

    Attributes:
        outcome: set once it is known; an error means that it is not in the log.
        builder: the client's batch, once it is handed over: it may reach the log from then on.
    """

    __slots__ = ("_settled", "builder", "outcome", "records")

    def __init__(self, records: Sequence[ProducerRecord], settled: Callable[[], None]) -> None:
        self.records = records
        self.outcome: asyncio.Future[ProduceResult | TransportError] = asyncio.get_running_loop().create_future()
        self.builder: object = None
        self._settled = settled

    def settle(self, outcome: ProduceResult | TransportError) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)
            settled, self._settled = (
                self._settled,
                _nothing,
            )  # they know each other, and would wait for the garbage collector
            settled()

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


def _nothing() -> None:
    """For a write that is settled."""


class Writes:
    """The writes of one call, and how long it waits for them, whether or not its caller still does.

    Attributes:
        of: each partition's.
        over: set when all have an outcome, or the time is up.
    """

    def __init__(self, most: float, give_up: Callable[[TP, Write], None], is_lost: Callable[[TP], bool]) -> None:
        self.of: dict[TP, Write] = {}
        self.over = trio.Event()
        self._most = most
        self._give_up = give_up
        self._is_lost = is_lost
        self._left = 0
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + most
        self._timer = self._loop.call_later(min(most, _LOOK), self._look)
        self._grace = False

    def add(self, tp: TP, records: Sequence[ProducerRecord]) -> Write:
        """One more; each is added before any has an outcome."""
        write = self.of[tp] = Write(records, self._settled)
        self._left += 1
        return write

    def _settled(self) -> None:
        self._left -= 1
        if not self._left:
            self._timer.cancel()
            self.over.set()
        elif not self._grace:  # a leader that is silent holds up its own partitions, and the others only so long
            self._grace = True
            self._timer.cancel()
            self._timer = self._loop.call_later(min(_GRACE, self._most), self._late)

    def _look(self) -> None:
        """Wait no longer where the client has found out that none of the topics is there any more."""
        left = self._until - self._loop.time()
        if left <= 0 or all(map(self._is_lost, self.of)):
            self._late()
        else:
            self._timer = self._loop.call_later(min(left, _LOOK), self._look)

    def _late(self) -> None:
        self._grace = True
        for tp, write in self.of.items():
            self._give_up(tp, write)
        self.over.set()


class Writing:
    """What one producer writes, whichever client it has at the time. Its tasks are asyncio's, and never cancelled.

    Attributes:
        closed: nothing is written any more.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._sent: dict[TP, Write] = {}  # not settled, or written and its receipt not handed over
        self._turns: dict[TP, asyncio.Lock] = {}
        self._queued: Counter[TP] = Counter()  # writes that have a task or a batch and are not done
        self._tasks: set[asyncio.Task[None]] = set()
        self._waited_for: set[trio.Event] = set()
        self.closed = False

    def close(self) -> None:
        """There will be no more outcomes: end the waits."""
        self.closed = True
        for over in self._waited_for:
            over.set()

    async def wait(self, writes: Writes) -> None:
        """In trio: wait until they are over, or all is.

        Raises:
            trio.ClosedResourceError: it is, and some have no outcome.
        """
        over = writes.over
        if not self.closed:
            self._waited_for.add(over)
            try:
                await over.wait()
            finally:
                self._waited_for.discard(over)
        if self.closed and not all(write.outcome.done() for write in writes.of.values()):
            raise trio.ClosedResourceError("the connection to the broker was closed")

    def begin(self, client: AIOKafkaProducer, batches: Mapping[TP, Sequence[ProducerRecord]]) -> Writes:
        """Write these, each when it is its turn."""

        def give_up(tp: TP, write: Write) -> None:
            """The caller has waited long enough. What has certainly not been sent will not be."""
            if not write.outcome.done() and (write.builder is None or withdraw(client, tp, write.builder)):
                write.settle(BrokerUnavailable(f"{tp}: the broker takes no writes at the moment; it is tried again"))

        writes = Writes(self._most, give_up, partial(is_lost, client))
        for tp, records in batches.items():
            writes.add(tp, records)
        for tp, write in writes.of.items():
            if tp in self._sent or self._queued[tp] or not self._write_at_once(client, tp, write):
                self._queued[tp] += 1
                task = asyncio.ensure_future(self._write(client, tp, write))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return writes

    def taken(self, tp: TP, write: Write) -> None:
        """Its outcome was handed over."""
        if self._sent.get(tp) is write:
            del self._sent[tp]

    def forget(self, tp: TP) -> None:
        """Its topic is not there."""
        self._sent.pop(tp, None)
        if (turn := self._turns.get(tp)) is not None and not turn.locked():
            del self._turns[tp]

    def _write_at_once(self, client: AIOKafkaProducer, tp: TP, write: Write) -> bool:
        """Write without a task, as nothing is on its way to that partition; False where the client has to wait for something."""
        inside: Any = client  # aiokafka has no types for its inside
        accumulator = inside._message_accumulator
        partitions = inside.client.cluster.partitions_for_topic(tp.topic)
        if not partitions or tp.partition not in partitions:
            return False
        if accumulator._closed or accumulator._exception is not None or accumulator._batches.get(tp):
            return False
        builder = _built(client, tp, write.records)
        if isinstance(builder, TransportError):
            write.settle(builder)
            return True
        partition = TopicPartition(*tp)
        number = inside._txn_manager._sequence_numbers[partition]
        write.builder = builder
        self._sent[tp] = write
        self._queued[tp] += 1

        def written(receipt: asyncio.Future[Any]) -> None:
            self._one_less(tp)
            if receipt.cancelled():  # as nobody of ours does
                return
            error = receipt.exception()
            result = _written(receipt.result()) if error is None else _failed(client, partition, number, error)
            if error is not None:
                self.taken(tp, write)
            write.settle(result)

        accumulator._append_batch(builder, partition).future.add_done_callback(written)
        return True

    async def _write(self, client: AIOKafkaProducer, tp: TP, write: Write) -> None:
        try:
            async with self._turns.setdefault(tp, asyncio.Lock()):
                await self._write_in_turn(client, tp, write)
        finally:
            self._one_less(tp)

    def _one_less(self, tp: TP) -> None:
        """A write is done, and has put the client's numbers right: the next one may count on them."""
        self._queued[tp] -= 1
        if not self._queued[tp]:
            del self._queued[tp]

    async def _write_in_turn(self, client: AIOKafkaProducer, tp: TP, write: Write) -> None:
        """Write after what was sent before; leave it in `_sent` if it may be in the log and nobody knows yet."""
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
        result = await _send(client, tp, rest, write)
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
    client: AIOKafkaProducer, tp: TP, records: Sequence[ProducerRecord], write: Write
) -> ProduceResult | TransportError:
    builder = _built(client, tp, records)
    if isinstance(builder, TransportError):
        return builder
    partition = TopicPartition(*tp)
    inside: Any = client  # aiokafka has no types for its inside
    number = inside._txn_manager._sequence_numbers[partition]
    write.builder = builder
    try:
        return _written(await (await client.send_batch(builder, tp.topic, partition=tp.partition)))
    except Exception as error:
        return _failed(client, partition, number, error)


def _built(client: AIOKafkaProducer, tp: TP, records: Sequence[ProducerRecord]) -> Any:
    """A batch of the client's with these records, or the error that says why there is none."""
    builder = client.create_batch()
    try:
        fill(builder, records)
    except Exception as error:  # what the client cannot encode
        return error if isinstance(error, TransportError) else ProduceError(f"writing to {tp}: {error!r}")
    return builder


def _written(receipt: Any) -> ProduceResult:
    by_broker = receipt.timestamp_type == 1
    return ProduceResult(receipt.offset, receipt.timestamp / 1000 if by_broker else None)


def _failed(client: AIOKafkaProducer, partition: TopicPartition, number: int, error: BaseException) -> TransportError:
    """
    Args:
        number: of the partition's next record, before this was tried.
    """
    tp = TP(*partition)
    if isinstance(error, CALL_FAILURES):
        # What was refused used up no sequence number on the broker; aiokafka has counted it, and would be
        # out of order from here on.
        inside: Any = client
        inside._txn_manager._sequence_numbers[partition] = number
        return translated(error, f"writing to {tp}")
    log.error("writing to %s failed in an unforeseen way", tp, exc_info=error)
    return ProduceError(f"writing to {tp}: {error!r}")


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
                f"a batch of {len(records)} records has more than {MOST_BATCH_BYTES} bytes: send less at once"
            )
    builder._relative_offset = len(records)
    builder.close()


def withdraw(client: AIOKafkaProducer, tp: TP, builder: object, *, sent: bool = False) -> bool:
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


def is_lost(client: AIOKafkaProducer, tp: TP) -> bool:
    """Whether a broker has told the client that the topic is not there."""
    return client.client.cluster.partitions_for_topic(tp.topic) is None
