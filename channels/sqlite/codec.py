"""How the records of a batch are stored: as one blob, column by column. Pure.

A row per record would cost an insert each. A batch is written and read as a whole, so its keys, values and headers
stand behind each other, their lengths before them: they are joined and cut by C code, and a part of a batch is read
without touching the rest.

    header    version, flags, records, checksum of what follows, the time of all records
    columns   offsets (relative to the first; only with gaps), times (only if they differ), lengths of keys (only if
              there are any), of values, of headers (only if there are any); -1 for no key and no value
    bodies    keys, values, headers
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise, repeat
from typing import Final, NamedTuple, TypeVar
from zlib import crc32

from ..message import Headers, Message, ProducerRecord

__all__ = ["Damaged", "Entry", "decode", "encode", "entries", "keep"]

Number = TypeVar("Number", int, float)

_VERSION: Final = 1
_HEADER: Final = struct.Struct("<BBHIId")
_HAS_GAPS, _HAS_TIMES, _HAS_KEYS, _HAS_HEADERS, _STAMPED = 1, 2, 4, 8, 16
_U32: Final = struct.Struct("<I")
_SWAP: Final = sys.byteorder == "big"


class Damaged(Exception):
    """A blob is not what was written."""


class Entry(NamedTuple):
    """One record with its offset, for compaction."""

    offset: int
    timestamp: float
    headers: Headers
    key: bytes | None
    value: bytes | None


def encode(records: Sequence[ProducerRecord], now: float, *, stamp_all: bool) -> bytes:
    """The blob of these records.

    Args:
        now: the time of records that have none, or with `stamp_all` of all.
    """
    own = [None if stamp_all else record.timestamp for record in records]
    times = [now if time is None else time for time in own]
    return _encode(
        [record.key for record in records],
        [record.value for record in records],
        [record.headers for record in records],
        times,
        None,
        stamped=stamp_all,
    )


def _encode(
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
    headers: Sequence[Headers],
    times: Sequence[float],
    gaps: Sequence[int] | None,
    *,
    stamped: bool,
) -> bytes:
    flags = _STAMPED if stamped else 0
    columns: list[bytes] = []
    bodies: list[bytes] = []
    if gaps is not None:
        flags |= _HAS_GAPS
        columns.append(_packed("I", gaps))
    if times.count(times[0]) != len(times):
        flags |= _HAS_TIMES
        columns.append(_packed("d", times))
    if any(key is not None for key in keys):
        flags |= _HAS_KEYS
        columns.append(_packed("i", [-1 if key is None else len(key) for key in keys]))
        bodies += [key for key in keys if key]
    columns.append(_packed("i", [-1 if value is None else len(value) for value in values]))
    bodies += [value for value in values if value]
    if any(headers):
        flags |= _HAS_HEADERS
        packed = [_pack_headers(some) for some in headers]
        columns.append(_packed("i", [len(one) for one in packed]))
        bodies += packed
    body = b"".join(columns + bodies)
    return _HEADER.pack(_VERSION, flags, 0, len(values), crc32(body), times[0]) + body


def decode(
    data: bytes, base: int, position: int, most: int, *, topic: str, partition: int, generation: int
) -> tuple[list[Message], int]:
    """Up to `most` messages of a batch from the offset `position` on, and the offset behind the last of them.

    Raises:
        Damaged: the blob is not what was written.
    """
    batch = _Batch(data)
    start, stop = batch.part(position - base, most)
    offsets: Sequence[int] = range(base + start, base + stop)
    if batch.gaps is not None:
        offsets = [base + gap for gap in batch.gaps[start:stop]]
    headers: Iterable[Headers] = repeat(())
    if batch.headers is not None:
        headers = [_unpack_headers(packed or b"") for packed in batch.cut(batch.headers, start, stop)]
    messages = list(
        map(
            Message,
            repeat(topic),
            repeat(partition),
            offsets,
            repeat(batch.time) if batch.times is None else batch.times[start:stop],
            repeat(1 if batch.flags & _STAMPED else 0),
            headers,
            repeat(None) if batch.keys is None else batch.cut(batch.keys, start, stop),
            batch.cut(batch.values, start, stop),
            repeat(generation),
        )
    )
    return messages, offsets[-1] + 1 if offsets else position


def entries(data: bytes, base: int) -> Iterator[Entry]:
    """All records of a batch."""
    for message in decode(data, base, base, 2**62, topic="", partition=0, generation=-1)[0]:
        yield Entry(message.offset, message.timestamp, message.headers, message.key, message.value)


def keep(data: bytes, base: int, some: Sequence[Entry]) -> bytes:
    """The blob of some records, at least one, of the batch `data`; their offsets stay."""
    flags = _HEADER.unpack_from(data)[1]
    return _encode(
        [entry.key for entry in some],
        [entry.value for entry in some],
        [entry.headers for entry in some],
        [entry.timestamp for entry in some],
        [entry.offset - base for entry in some],
        stamped=bool(flags & _STAMPED),
    )


class _Column(NamedTuple):
    lengths: Sequence[int]
    begin: int


class _Batch:
    """A blob whose columns are unpacked, its bodies not yet."""

    __slots__ = ("_at", "_data", "count", "flags", "gaps", "headers", "keys", "time", "times", "values")

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise Damaged(f"only {len(data)} bytes are left of it")
        version, self.flags, _, self.count, checksum, self.time = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise Damaged(f"it has format {version}, known is {_VERSION}")
        if crc32(memoryview(data)[_HEADER.size :]) != checksum:
            raise Damaged("its checksum is wrong")
        self._data = data
        self._at = _HEADER.size
        flags = self.flags
        self.gaps = self._column(array("I")) if flags & _HAS_GAPS else None
        self.times = self._column(array("d")) if flags & _HAS_TIMES else None
        keys = self._column(array("i")) if flags & _HAS_KEYS else None
        values = self._column(array("i"))
        headers = self._column(array("i")) if flags & _HAS_HEADERS else None
        self.keys = self._body(keys)
        self.values = self._body(values) or _Column((), 0)
        self.headers = self._body(headers)

    def _column(self, column: array[Number]) -> array[Number]:
        size = self.count * column.itemsize
        column.frombytes(self._data[self._at : self._at + size])
        if _SWAP:
            column.byteswap()
        self._at += size
        return column

    def _body(self, lengths: Sequence[int] | None) -> _Column | None:
        if lengths is None:
            return None
        column = _Column(lengths, self._at)
        self._at += sum(lengths) + lengths.count(-1)
        return column

    def part(self, first: int, most: int) -> tuple[int, int]:
        """Which records are at least `first` behind the base, and no more than `most`."""
        start = bisect_left(self.gaps, first) if self.gaps is not None else max(0, first)
        return min(start, self.count), min(start + most, self.count)

    def cut(self, column: _Column, start: int, stop: int) -> list[bytes | None]:
        """These bodies of a column."""
        data, lengths = self._data, column.lengths
        before = lengths[:start]
        begin = column.begin + sum(before) + before.count(-1)
        some = lengths[start:stop]
        if -1 not in some:
            ends = list(accumulate(some, initial=begin))
            return [data[a:b] for a, b in pairwise(ends)]
        bodies: list[bytes | None] = []
        for length in some:
            bodies.append(None if length < 0 else data[begin : begin + length])
            begin += max(0, length)
        return bodies


def _packed(kind: str, numbers: Sequence[float]) -> bytes:
    column = array(kind, numbers)
    if _SWAP:
        column.byteswap()
    return column.tobytes()


def _pack_headers(headers: Headers) -> bytes:
    if not headers:
        return b""
    parts = []
    for name, value in headers:
        encoded = name.encode()
        parts += [_U32.pack(len(encoded)), encoded, _U32.pack(len(value)), value]
    return b"".join(parts)


def _unpack_headers(packed: bytes) -> Headers:
    if not packed:
        return ()
    found: list[bytes] = []
    at = 0
    while at < len(packed):
        (length,) = _U32.unpack_from(packed, at)
        at += _U32.size
        found.append(packed[at : at + length])
        at += length
    return tuple((name.decode(), value) for name, value in zip(found[::2], found[1::2], strict=True))
