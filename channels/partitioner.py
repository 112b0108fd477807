"""Which partition a key belongs to: the answer every Kafka client gives. Pure; the producer asks.

Keys are hashed with murmur2 as the Java client does it (`org.apache.kafka.common.utils.Utils.murmur2` and
`toPositive`), so that Famulus, Java and librdkafka with ``partitioner=murmur2_random`` put a key on the same
partition. Messages without a key stick to one partition for a batch, then go on to the next (KIP-480).
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

__all__ = ["CACHED_KEYS", "CACHED_KEY_BYTES", "DefaultPartitioner", "murmur2", "partition_for"]

CACHED_KEYS: Final = 8192
"""Keys whose hash is remembered, the least recently used forgotten first."""

CACHED_KEY_BYTES: Final = 64
"""Longer keys are hashed every time, so that the cache holds at most `CACHED_KEYS` times this."""

_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF

_WORDS: Final = tuple(Struct(f"<{words}I") for words in range(CACHED_KEY_BYTES // 4 + 1))
"""Unpackers of the whole 32-bit words of a short key, by their number."""


def murmur2(data: bytes) -> int:
    """The 32-bit murmur2 hash of a key, unsigned, with Kafka's seed.

    >>> hex(murmur2(b"21"))
    '0xc5f2f8ec'
    """
    length = len(data)
    count = length >> 2
    words = _WORDS[count] if length <= CACHED_KEY_BYTES else Struct(f"<{count}I")
    h = _SEED ^ length
    for word in words.unpack_from(data):
        k = word * _M & _MASK
        h = (h * _M & _MASK) ^ ((k ^ k >> 24) * _M & _MASK)
    tail = length & 3
    if tail:
        h = (h ^ int.from_bytes(data[-tail:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def _positive_hash(key: bytes) -> int:
    return murmur2(key) & 0x7FFFFFFF


_cached_hash = lru_cache(maxsize=CACHED_KEYS)(_positive_hash)


def partition_for(key: bytes | None, partitions: int) -> int:
    """The partition of a key among so many. No key counts as an empty one; `DefaultPartitioner` knows better.

    >>> partition_for(b"ada", 8)
    5
    """
    if key is None:
        key = b""
    if len(key) <= CACHED_KEY_BYTES:
        return _cached_hash(key) % partitions
    return _positive_hash(key) % partitions


class DefaultPartitioner:
    """Chooses partitions for one topic, messages without a key included.

    The producer calls `new_batch` when a batch of messages without a key is complete. Until then they all go
    to one partition, which makes few large batches out of many small ones.
    """

    __slots__ = ("_sticky", "partitions")

    def __init__(self, partitions: int, *, start: int = 0) -> None:
        """Start with the partition `start` for messages without a key; `partitions` may be raised later."""
        if partitions < 1:
            raise ValueError(f"partitions={partitions}: expected at least 1")
        self.partitions = partitions
        self._sticky = start

    def choose(self, key: bytes | None = None) -> int:
        """The partition of the next message."""
        if key is None:
            return self._sticky % self.partitions
        return partition_for(key, self.partitions)

    def new_batch(self) -> None:
        """The messages without a key that come now go to the next partition."""
        self._sticky = (self._sticky + 1) % self.partitions

    def __repr__(self) -> str:
        return f"<DefaultPartitioner sticky={self._sticky} of {self.partitions}>"
