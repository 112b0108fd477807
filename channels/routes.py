"""Where the producer keeps messages: a queue for each partition, and which of them a message goes to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import inf

import trio

from .future import FutureMessage
from .message import TP
from .options import MessagingOptions
from .partitioner import DefaultPartitioner, partition_for

__all__ = ["NOWHERE", "Queue", "Route", "size_of"]

_RECORD_OVERHEAD = 64
"""Bytes counted for a record besides its key, value and headers: about what Kafka's record format adds, generously."""

_HEADER_OVERHEAD = 8
"""The same for each header."""

NOWHERE = -1
"""The partition of a message whose topic's partitions are not known yet."""


def size_of(future: FutureMessage) -> int:
    """The bytes that a message counts in the buffer."""
    size = _RECORD_OVERHEAD
    if future.key is not None:
        size += len(future.key)
    if future.value is not None:
        size += len(future.value)
    for name, value in future.headers:
        size += _HEADER_OVERHEAD + len(name) + len(value)
    return size


class Queue:
    """Messages for one partition, in order, and when to try again after a failure."""

    __slots__ = ("apart", "attempted", "delay", "in_doubt", "messages", "not_before", "tp")

    def __init__(self, tp: TP) -> None:
        self.tp = tp
        self.messages: deque[FutureMessage] = deque()
        self.attempted = 0  # messages of the last batch, whose outcome is open: repeated as it was
        self.in_doubt = False  # whether the last batch may have been written all the same
        self.apart = 0  # messages at the head that are written one by one: together they were refused
        self.not_before = -inf
        self.delay = 0.0

    def put_off(self, options: MessagingOptions) -> None:
        """Try again later, each time later still. What was sent before there was trouble gets its deadline now."""
        now = trio.current_time()
        most = options.broker_retry_backoff_max
        self.delay = min(2 * self.delay, most) if self.delay else options.broker_retry_backoff
        self.not_before = now + self.delay
        for future in self.messages:
            if not future.deadline:
                future.deadline = now + options.producer_delivery_timeout

    def fine(self) -> None:
        self.in_doubt = False
        self.delay = 0.0
        self.not_before = -inf


class Route:
    """Where the messages of one topic go: a queue for each partition, among those of the producer."""

    __slots__ = ("_all", "_queues", "_topic", "count", "learned", "partitioner")

    def __init__(self, topic: str, count: int, queues: dict[TP, Queue]) -> None:
        self._topic = topic
        self.count = count
        self.learned = trio.current_time()
        self._all = queues
        tps = [TP(topic, partition) for partition in range(count)]
        self._queues = [queues.setdefault(tp, Queue(tp)).messages for tp in tps]
        self.partitioner = DefaultPartitioner(count)

    def add(self, future: FutureMessage) -> None:
        """Choose the partition, where the caller did not, and queue it there."""
        partition = future.partition
        if partition < 0:
            key = future.key
            partition = self.partitioner.choose() if key is None else partition_for(key, self.count)
            future.partition = partition
        if partition < self.count:
            self._queues[partition].append(future)
        else:  # made since we looked, or never: the broker knows
            tp = TP(self._topic, partition)
            self._all.setdefault(tp, Queue(tp)).messages.append(future)

    def add_all(self, futures: Iterable[FutureMessage]) -> None:
        """`add` for several whose partition nobody has chosen."""
        count, queues = self.count, self._queues
        for future in futures:
            key = future.key
            partition = self.partitioner.choose() if key is None else partition_for(key, count)
            future.partition = partition
            queues[partition].append(future)
