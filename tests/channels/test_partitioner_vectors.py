"""The partitioner against what the Java client answers.

`data/murmur2_vectors.json` was printed by a Java program that called `Utils.murmur2` and `Utils.toPositive`
of org.apache.kafka:kafka-clients:4.1.1 on keys of every length from 0 to 64, bytes above 0x7f among them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from famulus.channels.partitioner import (
    CACHED_KEY_BYTES,
    CACHED_KEYS,
    DefaultPartitioner,
    _cached_hash,
    murmur2,
    partition_for,
)

VECTORS = json.loads(Path(__file__).with_name("data").joinpath("murmur2_vectors.json").read_text())["vectors"]


def test_murmur2_is_the_java_clients() -> None:
    lengths = set()
    for key, expected, _ in VECTORS:
        assert murmur2(bytes.fromhex(key)) == expected, key
        lengths.add(len(key) // 2)
    assert lengths >= set(range(65))


def test_keys_land_where_the_java_client_puts_them() -> None:
    for key, _, partitions in VECTORS:
        data = bytes.fromhex(key)
        assert [partition_for(data, count) for count in (1, 3, 8, 1000)] == partitions, key
        assert DefaultPartitioner(8).choose(data) == partitions[2]


def test_the_cache_is_bounded_in_keys_and_bytes() -> None:
    for number in range(CACHED_KEYS + 100):
        partition_for(b"key-%d" % number, 8)
    held = _cached_hash.cache_info().currsize
    assert held == CACHED_KEYS
    misses = _cached_hash.cache_info().misses
    partition_for(b"x" * (CACHED_KEY_BYTES + 1), 8)
    assert _cached_hash.cache_info().misses == misses


def test_messages_without_a_key_stick_to_a_partition_for_a_batch() -> None:
    partitioner = DefaultPartitioner(4, start=2)
    chosen = []
    for _ in range(4):
        chosen.append({partitioner.choose() for _ in range(10)})
        partitioner.new_batch()
    assert chosen == [{2}, {3}, {0}, {1}]


def test_a_topic_that_grew_is_used_whole_by_messages_without_a_key() -> None:
    partitioner = DefaultPartitioner(2)
    partitioner.partitions = 6
    seen = set()
    for _ in range(6):
        seen.add(partitioner.choose())
        partitioner.new_batch()
    assert seen == set(range(6))


def test_keyed_messages_do_not_move_the_sticky_partition() -> None:
    partitioner = DefaultPartitioner(8)
    before = partitioner.choose()
    partitioner.choose(b"ada")
    assert partitioner.choose() == before


def test_a_topic_without_partitions_is_refused() -> None:
    with pytest.raises(ValueError, match="partitions=0"):
        DefaultPartitioner(0)
