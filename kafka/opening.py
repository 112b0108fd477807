"""Clients that read: made as the settings say, started when the broker is there."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

import trio
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from ..channels.errors import BrokerUnavailable, UnknownTopic
from ..channels.message import TP
from ..channels.transport import ConsumerOptions
from .admin import KafkaAdmin
from .bridge import Bridge
from .clients import start_client
from .settings import KafkaSettings

__all__ = ["check_partitions", "consumer_client", "reader_client", "started_consumer", "when_there"]

log = logging.getLogger("famulus.kafka")

T = TypeVar("T")

_NEVER = 2**31 - 1  # milliseconds; see `consumer_client`
_POLL = 0.5  # seconds between two looks for a broker that is away


def consumer_client(settings: KafkaSettings, client_id: str, options: ConsumerOptions) -> AIOKafkaConsumer:
    """For a member of a group."""
    return AIOKafkaConsumer(
        group_id=options.group,
        group_instance_id=options.instance_id,
        auto_offset_reset=options.offset_reset,
        session_timeout_ms=round(options.session_timeout * 1000),
        heartbeat_interval_ms=max(1, round(options.session_timeout * 1000 / 3)),
        rebalance_timeout_ms=round(options.rebalance_timeout * 1000),
        # Counted by calls of `getmany`, which we do not make (`reading.py`). A conductor that hangs is its
        # supervisor's business, and a blocked loop sends no heartbeats either.
        max_poll_interval_ms=_NEVER,
        # A member that joins waits for all others, so this must be longer than they may take.
        request_timeout_ms=round((max(options.rebalance_timeout, settings.request_timeout) + 5) * 1000),
        # Co-partitioned topics stay together.
        partition_assignment_strategy=(RangePartitionAssignor,),
        **_reading_options(settings, client_id),
    )


def reader_client(settings: KafkaSettings, client_id: str) -> AIOKafkaConsumer:
    """For reading without a group."""
    return AIOKafkaConsumer(
        auto_offset_reset="earliest",
        request_timeout_ms=round(settings.request_timeout * 1000),
        **_reading_options(settings, client_id),
    )


def _reading_options(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    return {
        "client_id": client_id,
        "enable_auto_commit": False,
        "isolation_level": settings.isolation,
        "max_partition_fetch_bytes": settings.partition_fetch_bytes,
        "fetch_max_wait_ms": round(settings.fetch_wait * 1000),
        "fetch_min_bytes": 1,
        **settings.client_options(),
    }


async def when_there(call: Callable[[], Awaitable[T]], reading: str) -> T:
    """Call until the broker is there; log once that it is not. `reading` names what for."""
    waiting = False
    while True:
        try:
            outcome = await call()
        except BrokerUnavailable as error:
            if not waiting:
                log.warning("%s waits for the broker: %s", reading, error)
                waiting = True
            await trio.sleep(_POLL)
        else:
            if waiting:
                log.info("%s goes on", reading)
            return outcome


async def started_consumer(
    bridge: Bridge, make: Callable[[], AIOKafkaConsumer], settings: KafkaSettings, reading: str
) -> AIOKafkaConsumer:
    """A started client, without a subscription; waits while the broker is away."""

    async def start() -> AIOKafkaConsumer:
        return await start_client(
            bridge, make, AIOKafkaConsumer.stop, settings=settings, doing=f"connecting for {reading}"
        )

    return await when_there(start, reading)


async def check_partitions(admin: KafkaAdmin, partitions: Collection[TP]) -> None:
    """
    Raises:
        UnknownTopic: the cluster does not have one of them.
    """
    counts: dict[str, int] = {}
    for topic, partition in partitions:
        if topic not in counts:
            counts[topic] = (await admin.topic(topic)).partitions
        if not 0 <= partition < counts[topic]:
            raise UnknownTopic(f"topic {topic!r} has partitions 0 to {counts[topic] - 1}, no {partition}")
