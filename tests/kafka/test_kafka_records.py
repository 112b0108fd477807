"""What aiokafka has fetched becomes our messages: in pieces, from the middle of a batch, over markers and aborted batches."""

from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from famulus.channels.message import TP
from famulus.kafka.records import Unpacker

ORDERS = TP("orders", 2)
READ_COMMITTED = 1


def batch(first: int, count: int, *, producer: int = -1, transactional: bool = False) -> bytes:
    """A batch as the log has it: offsets from `first` on, each value its own offset."""
    builder = DefaultRecordBatchBuilder(2, 0, int(transactional), producer, 0, 0, 1_000_000)
    for index in range(count):
        builder.append(
            index, 1_385_000_000_500, b"key", str(first + index).encode(), [("source", b"web"), ("flag", None)]
        )
    return moved(bytes(builder.build()), first)


def abort_marker(offset: int, producer: int) -> bytes:
    """The end of an aborted transaction: one control record."""
    builder = DefaultRecordBatchBuilder(2, 0, 1, producer, 0, 0, 1_000_000)
    builder.append(0, 1_385_000_000_500, ABORT_KEY, b"\x00" * 6, [])
    data = bytearray(builder.build())
    data[22] |= 0x20  # the control bit of the attributes; the checksum is not made anew
    return moved(bytes(data), offset)


ABORT_KEY = b"\x00\x00\x00\x00"  # version 0, type 0: ABORT


def moved(data: bytes, base: int) -> bytes:
    """With another base offset, which the checksum does not cover."""
    return base.to_bytes(8, "big") + data[8:]


def unpacker(
    data: bytes, *, position: int = 0, aborted: list[tuple[int, int]] | None = None, check: bool = True
) -> tuple[Unpacker, PartitionRecords]:
    records = PartitionRecords(ORDERS, MemoryRecords(data), aborted or [], position, None, None, check, READ_COMMITTED)
    return Unpacker(records, ORDERS, generation=7), records


def offsets(taken: Unpacker, most: int) -> list[int]:
    return [message.offset for message in taken.take(most)]


def test_a_record_becomes_a_message_with_all_that_it_has() -> None:
    taken, _ = unpacker(batch(5, 1), position=5)
    (message,) = taken.take(10)
    assert (message.tp, message.offset, message.generation) == (ORDERS, 5, 7)
    assert (message.key, message.value) == (b"key", b"5")
    assert message.headers == (("source", b"web"), ("flag", b""))
    assert (message.timestamp, message.timestamp_type) == (1_385_000_000.5, 0)


def test_batches_are_taken_in_pieces_of_any_size() -> None:
    taken, records = unpacker(batch(0, 4) + batch(4, 3))
    assert offsets(taken, 3) == [0, 1, 2]
    assert records.next_fetch_offset == 3
    assert offsets(taken, 3) == [3, 4, 5]
    assert not taken.ended
    assert offsets(taken, 3) == [6]
    assert taken.ended
    assert records.next_fetch_offset == 7


def test_a_batch_comes_whole_and_what_is_before_the_position_is_passed_over() -> None:
    taken, _ = unpacker(batch(0, 10), position=7)
    assert offsets(taken, 100) == [7, 8, 9]


def test_the_position_goes_past_a_marker_and_an_aborted_batch() -> None:
    data = batch(0, 2) + batch(2, 3, producer=9, transactional=True) + abort_marker(5, 9) + batch(6, 1)
    taken, records = unpacker(data, aborted=[(9, 2)], check=False)
    assert offsets(taken, 100) == [0, 1, 6]
    assert records.next_fetch_offset == 7


def test_a_producer_whose_transaction_was_aborted_is_read_again_afterwards() -> None:
    data = (
        batch(0, 1, producer=9, transactional=True) + abort_marker(1, 9) + batch(2, 2, producer=9, transactional=True)
    )
    taken, _ = unpacker(data, aborted=[(9, 0)], check=False)
    assert offsets(taken, 100) == [2, 3]


def test_nothing_but_a_marker_moves_the_position() -> None:
    taken, records = unpacker(abort_marker(0, 9), check=False)
    assert offsets(taken, 100) == []
    assert taken.ended
    assert records.next_fetch_offset == 1
