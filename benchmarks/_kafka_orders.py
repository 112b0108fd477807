"""The orders that `kafka_agents.py` puts into Kafka, and the look at what a program has left there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import orjson
from _kafka_meter import RAISE
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError

__all__ = [
    "PARTITIONS",
    "check_output",
    "check_regrouped",
    "create_topic",
    "delete_topic",
    "encoded",
    "total_cents",
    "write_orders",
]

PARTITIONS = 4
_PATIENCE = 60.0  # seconds that reading what was written may take


def _cents(number: int) -> int:
    return 1000 + number * 7919 % 9000


def encoded(number: int) -> bytes:
    """About 100 bytes of JSON."""
    return orjson.dumps(
        {
            "number": number,
            "account": f"account-{number % 1000:04}",
            "cents": _cents(number),
            "currency": "EUR",
            "placed": "2013-01-01T10:00:00Z",
        }
    )


def total_cents(messages: int) -> int:
    """The sum of the cents of that many orders."""
    return sum(map(_cents, range(messages)))


@asynccontextmanager
async def _admin(address: str) -> AsyncIterator[Any]:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def create_topic(address: str, name: str, partitions: int = PARTITIONS) -> None:
    """Create a topic, and wait until the broker serves it: what comes earlier is answered late."""
    async with _admin(address) as admin:
        created = await admin.create_topics([NewTopic(name, partitions, 1)])
        failed = [error for error in created.topic_errors if error[1]]
        if failed:
            raise RuntimeError(f"creating topic {name}: {failed}")
    consumer = AIOKafkaConsumer(bootstrap_servers=address, enable_auto_commit=False)
    await consumer.start()
    try:
        await consumer.end_offsets([TopicPartition(name, partition) for partition in range(partitions)])
    finally:
        await consumer.stop()


async def delete_topic(address: str, name: str) -> None:
    async with _admin(address) as admin:
        await admin.delete_topics([name])


async def write_orders(address: str, topic: str, messages: int, partitions: int = PARTITIONS) -> None:
    """Write the orders 0 to `messages` - 1, in turn to each partition."""
    await create_topic(address, topic, partitions)
    producer = AIOKafkaProducer(bootstrap_servers=address)
    await producer.start()
    try:
        for number in range(messages):
            await producer.send(topic, encoded(number), partition=number % partitions)
        await producer.flush()
    finally:
        await producer.stop()


class _Found(NamedTuple):
    orders: int
    distinct: int
    cents: int
    committed: int


async def check_output(
    address: str, topic: str, output: str, group: str, messages: int, *, raised: int = RAISE
) -> None:
    """Check that `output` has each order once, with its cents raised, and that the group's offsets are past all of `topic`.

    Raises:
        AssertionError: something is missing, came twice, or is not committed.
    """
    async with asyncio.timeout(_PATIENCE):
        found = await _look(address, topic, output, group)
    expected = _Found(messages, messages, total_cents(messages) + raised * messages, messages)
    if found != expected:
        raise AssertionError(f"{group} left {found}, expected {expected}")


async def check_regrouped(address: str, topic: str, group: str, messages: int) -> None:
    """Check that the group's offsets are past all of `topic`, and that the topic between has each order under its account.

    That topic is deleted. What a program has trimmed of it is not missed: it has counted what it got.

    Raises:
        AssertionError: something is not committed, or is where it does not belong.
    """
    async with asyncio.timeout(_PATIENCE):
        committed = await _committed(address, topic, group)
        if committed != messages:
            raise AssertionError(f"{group} committed {committed} of the orders, expected {messages}")
        for between in await _topics_between(address, group):
            places: dict[bytes, int] = {}
            async for message in _read_all(address, between):
                account = orjson.loads(message.value)["account"].encode()
                key = message.key.strip(b'"') if message.key else b""
                place = places.setdefault(account, message.partition)
                if (key, message.partition) != (account, place):
                    raise AssertionError(f"{between}: {account!r} has key {key!r} in partition {message.partition}")
            await delete_topic(address, between)


async def _topics_between(address: str, group: str) -> list[str]:
    async with _admin(address) as admin:
        return [name for name in await admin.list_topics() if group in name and "repartition" in name]


async def _committed(address: str, topic: str, group: str) -> int:
    """The sum of the group's offsets."""
    async with _admin(address) as admin:
        while True:
            try:
                offsets = await admin.list_consumer_group_offsets(group)
            except GroupCoordinatorNotAvailableError:  # a broker makes the topic of offsets when the first group asks
                await asyncio.sleep(0.1)
            else:
                return sum(found.offset for tp, found in offsets.items() if tp.topic == topic and found.offset > 0)


async def _look(address: str, topic: str, output: str, group: str) -> _Found:
    numbers: list[int] = []
    cents = 0
    async for message in _read_all(address, output):
        assert message.value is not None, "a tombstone, which no program sends"
        order = orjson.loads(message.value)
        numbers.append(order["number"])
        cents += order["cents"]
    return _Found(len(numbers), len(set(numbers)), cents, await _committed(address, topic, group))


async def _read_all(address: str, topic: str) -> AsyncIterator[Any]:
    """Every message that a topic has now."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        partitions = consumer.assignment()
        ends = await consumer.end_offsets(partitions)
        while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
            for messages in (await consumer.getmany(timeout_ms=1000)).values():
                for message in messages:
                    yield message
    finally:
        await consumer.stop()
