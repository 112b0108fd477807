"""The producer of a run: a bounded buffer before the transport, partitioning, batches, receipts.

Callers only ever touch the buffer; one task (`run`) writes. So a cancelled sender leaves nothing half done, and the
broker sees batches. Order within a partition is the order of the sends. A batch that fails for a passing reason
goes back to the head of its queue until `producer_delivery_timeout` is over.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio

from ..supervision import trap_stop
from .counters import Counters
from .errors import BufferFull, ProduceError, TransportError
from .future import FutureMessage
from .message import TP, ProducerRecord
from .options import MessagingOptions
from .partitioner import DefaultPartitioner, partition_for
from .retry import Retry
from .transport import ProduceResult, Transport

__all__ = ["Producer"]

log = logging.getLogger("famulus.producer")

_RECORD_OVERHEAD = 64
"""Bytes counted for a record besides its key and value: about what Kafka's record format adds, generously."""


class _Route:
    """Where the messages of one topic go: a queue for each partition, among those of the producer."""

    __slots__ = ("_count", "_other", "_queues", "_topic", "partitioner")

    def __init__(self, topic: str, count: int, queues: dict[TP, deque[FutureMessage]]) -> None:
        self._topic = topic
        self._count = count
        self._other = queues
        self._queues = [queues.setdefault(TP(topic, partition), deque()) for partition in range(count)]
        self.partitioner = DefaultPartitioner(count)

    def add(self, future: FutureMessage) -> None:
        """Choose the partition, where the caller did not, and queue it there."""
        partition = future.partition
        if partition < 0:
            key = future.record.key
            partition = self.partitioner.choose() if key is None else partition_for(key, self._count)
            future.partition = partition
        if partition < self._count:
            self._queues[partition].append(future)
        else:  # made since we looked, or never: the broker knows
            self._other.setdefault(TP(self._topic, partition), deque()).append(future)


class Producer:
    """Buffers messages and delivers them in batches. One per run.

    Attributes:
        declare: by topic, what to do before the first message is written to it (create it, where that is ours to do).
    """

    def __init__(self, transport: Transport, options: MessagingOptions, counters: Counters) -> None:
        self._transport = transport
        self._options = options
        self._counters = counters
        self._queues: dict[TP, deque[FutureMessage]] = {}
        self._unrouted: dict[str, deque[FutureMessage]] = {}
        self._routes: dict[str, _Route] = {}
        self._most = options.producer_buffer_maxsize
        self._most_bytes = options.producer_buffer_bytes
        self._buffered = 0
        self._buffered_bytes = 0
        self._waiting_for_room = trio.lowlevel.ParkingLot()
        self._work = trio.Event()
        self.declare: dict[str, Callable[[], Awaitable[None]]] = {}
        self._hurry = False
        self._stopping = False
        self._callbacks: deque[FutureMessage] = deque()
        self._retry = Retry("sending", options, log)

    @property
    def buffered(self) -> int:
        """Messages that have no receipt yet."""
        return self._buffered

    @property
    def has_room(self) -> bool:
        """Whether the buffer takes another message now. A message may exceed the bytes that are left."""
        return self._buffered < self._most and self._buffered_bytes < self._most_bytes

    async def wait_room(self) -> None:
        """Wait until the buffer takes another message. A checkpoint only when it has to wait."""
        while not self.has_room:
            self._hurry = True
            self._work.set()
            await self._waiting_for_room.park()

    def enqueue(self, future: FutureMessage, *, partition: int | None, beyond_bounds: bool = False) -> None:
        """Take a message into the buffer.

        Args:
            partition: where the caller wants it; None leaves it to the key.
            beyond_bounds: take it although the buffer is full; for what is bounded elsewhere (dead letters).

        Raises:
            BufferFull: no room.
            ValueError: a negative partition.
        """
        if not (beyond_bounds or self.has_room):
            raise BufferFull(
                f"the producer's buffer holds {self._buffered} messages of {self._buffered_bytes} bytes: wait with "
                "`await send(...)`, or raise producer_buffer_maxsize / producer_buffer_bytes"
            )
        topic = future.topic
        future.deadline = trio.current_time() + self._options.producer_delivery_timeout
        route = self._routes.get(topic)
        if partition is not None:
            if partition < 0:
                raise ValueError(f"partition={partition!r}: expected a whole number of at least 0")
            future.partition = partition
        if route is None:
            self._unrouted.setdefault(topic, deque()).append(future)
        else:
            route.add(future)
        key, value = future.record.key, future.record.value
        future.size = _RECORD_OVERHEAD + (0 if key is None else len(key)) + (0 if value is None else len(value))
        self._buffered += 1
        self._buffered_bytes += future.size
        self._counters.messages_sent += 1
        if not self._work.is_set():
            self._work.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver what is buffered; asked to stop, deliver the rest and end. The run's one writing task."""
        trap_stop(self._ask_stop)
        task_status.started()
        while not self._stopping or self._buffered:
            await self._work.wait()
            if self._options.producer_linger and not self._hurry:
                with trio.move_on_after(self._options.producer_linger):
                    await trio.sleep_forever()
            self._work = trio.Event()
            self._hurry = False
            try:
                await self._learn_partitions()
                await self._write_once()
            except TransportError as error:
                self._expire(error)
                await self._retry.wait(error)
            else:
                self._retry.clear()
            await self._run_callbacks()
            if self._buffered or self._stopping:
                self._work.set()

    def _ask_stop(self) -> None:
        self._stopping = self._hurry = True
        self._work.set()

    async def _learn_partitions(self) -> None:
        """Route what was sent before the number of its topic's partitions was known."""
        for topic in list(self._unrouted):
            try:
                if topic in self.declare:
                    await self.declare[topic]()
                count = await self._transport.partition_count(topic)
            except TransportError as error:
                if error.retriable:
                    raise
                log.error("messages to %s cannot be delivered: %s", topic, error)
                for future in self._unrouted.pop(topic):
                    self._settle_failed(future, error)
                continue
            route = self._routes[topic] = _Route(topic, count, self._queues)
            for future in self._unrouted.pop(topic):
                route.add(future)

    def _next_batches(self) -> dict[TP, list[FutureMessage]]:
        limit = self._options.producer_max_batch_bytes
        batches: dict[TP, list[FutureMessage]] = {}
        for tp, queue in self._queues.items():
            batch: list[FutureMessage] = []
            size = 0
            for future in queue:
                size += future.size
                if size > limit and batch:
                    break
                batch.append(future)
            if batch:
                batches[tp] = batch
        return batches

    async def _write_once(self) -> None:
        """Write the head of each queue.

        What is being written stays in its queue until its outcome is known: a cancelled or crashed write is repeated.

        Raises:
            TransportError: retriable; what it concerns is still in the queues.
        """
        batches = self._next_batches()
        if not batches:
            return
        for topic in {tp.topic for tp in batches}:
            self._routes[topic].partitioner.new_batch()
        records: Mapping[TP, Sequence[ProducerRecord]] = {
            tp: [future.record for future in batch] for tp, batch in batches.items()
        }
        outcome = await self._transport.produce(records)
        passing: TransportError | None = None
        for tp, batch in batches.items():
            result = outcome[tp]
            if isinstance(result, ProduceResult):
                self._settle_batch(tp, batch, result)
            elif isinstance(result, TransportError) and result.retriable:
                passing = result
            else:
                log.error("%d messages to %s were not delivered: %s", len(batch), tp, result)
                self._drop(tp, batch)
                for future in batch:
                    self._settle_failed(future, result)
        if passing is not None:
            raise passing

    def _drop(self, tp: TP, batch: list[FutureMessage]) -> None:
        queue = self._queues[tp]
        for _ in batch:
            queue.popleft()

    def _settle_batch(self, tp: TP, batch: list[FutureMessage], result: ProduceResult) -> None:
        self._drop(tp, batch)
        self._counters.messages_delivered += len(batch)
        for index, future in enumerate(batch):
            self._buffered_bytes -= future.size
            future.settle(result, index)
            if future.callback is not None:
                self._callbacks.append(future)
        self._release_room(len(batch))

    def _settle_failed(self, future: FutureMessage, error: Exception) -> None:
        self._counters.deliveries_failed += 1
        self._buffered_bytes -= future.size
        future.fail(error)
        if future.callback is not None:
            self._callbacks.append(future)
        self._release_room(1)

    def _release_room(self, count: int) -> None:
        self._buffered -= count
        if self._waiting_for_room and self.has_room:
            self._waiting_for_room.unpark(count=count)

    def _expire(self, error: TransportError) -> None:
        """Fail what has waited longer than its delivery timeout; only whole heads, so order is kept."""
        now = trio.current_time()
        expired = 0
        for queue in [*self._queues.values(), *self._unrouted.values()]:
            while queue and queue[0].deadline <= now:
                future = queue.popleft()
                waited = self._options.producer_delivery_timeout
                self._settle_failed(
                    future, ProduceError(f"{future.topic}: not delivered within {waited:g} s; last: {error}")
                )
                expired += 1
        if expired:
            log.error(
                "%d messages were not delivered in time and given up, %d wait: %s", expired, self._buffered, error
            )

    async def _run_callbacks(self) -> None:
        while self._callbacks:
            future = self._callbacks.popleft()
            try:
                result = future.callback(future) if future.callback is not None else None
                if result is not None:
                    await result
            except Exception:
                log.exception("the delivery callback of a message to %s raised", future.topic)

    async def flush(self) -> None:
        """Wait until all that is buffered now is delivered or has failed. Later sends are not waited for."""
        lasts = [queue[-1] for queue in [*self._queues.values(), *self._unrouted.values()] if queue]
        self._hurry = True
        for future in lasts:
            await future.wait_settled()

    def fail_all(self, error: Exception) -> None:
        """The run ends: whoever still waits for a delivery is told that it was not confirmed."""
        if self._buffered:
            log.error("%d messages were not delivered: %s", self._buffered, error)
        for queue in [*self._queues.values(), *self._unrouted.values()]:
            while queue:
                self._settle_failed(queue.popleft(), error)

    def __repr__(self) -> str:
        return f"<Producer buffered={self._buffered} of {self._options.producer_buffer_maxsize}>"
