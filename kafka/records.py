"""What aiokafka has fetched of a partition, made into our messages. Used by `inside.py`, and as private as that.

aiokafka's own `PartitionRecords` hands out one record after the other, through a generator and three calls each. This
does what that does, batch by batch as they lie in the log: half the cost of a message until it is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import dropwhile, islice
from typing import Any

from aiokafka import errors as kafka_errors

from ..channels.message import TP, Message

__all__ = ["Unpacker"]

_READ_COMMITTED = 1


class Unpacker:
    """Unpacks the records of one fetch, for one generation.

    Args:
        records: aiokafka's `PartitionRecords`, of which nothing was taken; its `next_fetch_offset` is kept up to date.

    Attributes:
        ended: whether all was taken.
    """

    __slots__ = ("_generation", "_next_offset", "_partition", "_records", "_rest", "_topic", "_unpacking", "ended")

    def __init__(self, records: Any, tp: TP, generation: int) -> None:
        self._records = records
        # Its own iterator over them, which nobody starts, refers back to it: what was fetched would stay in memory until
        # the garbage collector comes.
        records._records_iterator = None
        self._topic, self._partition = tp
        self._generation = generation
        self._unpacking = False
        self._next_offset = 0
        self._rest: Iterator[Any] = iter(())
        self.ended = False

    def take(self, most: int) -> list[Message]:
        """Up to `most` messages; fewer only at the end.

        Raises:
            CorruptRecordException: the next batch is damaged. Nothing more can be taken.
            Exception: it cannot be unpacked.
        """
        messages: list[Message] = []
        try:
            self._fill(messages, most)
        except Exception:
            if not messages:
                raise
            # What comes before is good, and the rest is to be fetched again.
            self._records.next_fetch_offset = max(self._records.next_fetch_offset, messages[-1].offset + 1)
            self.ended = True
        return messages

    def _fill(self, messages: list[Message], most: int) -> None:
        while len(messages) < most:
            if not (self._unpacking or self._begin_batch()):
                self.ended = True
                break
            wanted = most - len(messages)
            taken = self._messages(islice(self._rest, wanted))
            messages += taken
            if len(taken) == wanted:
                self._records.next_fetch_offset = taken[-1].offset + 1
            else:
                # Not the offset behind its last record: compaction may have removed what came after it.
                self._records.next_fetch_offset = self._next_offset
                self._unpacking = False

    def _messages(self, records: Iterable[Any]) -> list[Message]:
        topic, partition, generation = self._topic, self._partition, self._generation
        new = Message.__new__  # without `__init__`: its call costs as much as all that it does
        messages: list[Message] = []
        add = messages.append
        for record in records:
            message = new(Message)
            message.topic = topic
            message.partition = partition
            message.offset = record.offset
            message.timestamp = (record.timestamp or 0) / 1000
            message.timestamp_type = record.timestamp_type or 0
            headers = record.headers
            message.headers = tuple([(name, value or b"") for name, value in headers]) if headers else ()
            message.key = record.key
            message.value = record.value
            message.generation = generation
            message.refcount = 0
            message.tracker = None
            add(message)
        return messages

    def _begin_batch(self) -> bool:
        """Go on to the next batch that has something to read; False when there is none."""
        records: Any = self._records
        while records._records.has_next():
            batch = records._records.next_batch()
            if records._check_crcs and not batch.validate_crc():
                raise kafka_errors.CorruptRecordException(f"Invalid CRC - {self._topic}-{self._partition}")
            if self._is_aborted(batch) or batch.is_control_batch:
                records.next_fetch_offset = batch.next_offset
                continue
            self._unpacking = True
            self._next_offset = batch.next_offset
            # A batch comes whole, also when its middle was asked for.
            self._rest = dropwhile(partial(_is_before, records.next_fetch_offset), batch)
            return True
        return False

    def _is_aborted(self, batch: Any) -> bool:
        """Whether it belongs to a transaction that was aborted; takes note of markers that end one."""
        records: Any = self._records
        if records._isolation_level != _READ_COMMITTED or batch.producer_id is None:
            return False
        records._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch and records._contains_abort_marker(batch):
            records._aborted_producers.discard(batch.producer_id)
        return bool(batch.is_transactional and batch.producer_id in records._aborted_producers)


def _is_before(offset: int, record: Any) -> bool:
    return bool(record.offset < offset)
