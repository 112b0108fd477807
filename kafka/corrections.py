"""What is put right in clients of aiokafka's of any kind, before they are started.

Written for aiokafka 0.14; `tests/kafka` fails where a release changes one of these. Why at all:

- Connections that the broker has closed are replaced without being closed here, where somebody asks for one in the moment
  before the client has noticed. Its socket was left to the garbage collector, its requests to their timeout.
- The first connection is known only to the coroutine that waits for its answer. When that was cancelled, the socket was
  left to the garbage collector.
- Each look at a topic asks the broker to make it, where brokers do that by themselves, which is their default.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Generator
from functools import partial
from types import coroutine
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.protocol.metadata import MetadataRequest

from .errors import by_code

__all__ = ["close_what_is_dropped", "close_what_is_replaced", "create_no_topics"]

log = logging.getLogger("famulus.kafka")


def close_what_is_replaced(client: Any) -> None:
    """Have a client of any kind close each connection that has ended before it makes another in its place."""
    inside: Any = getattr(client, "_client", None) or client.client
    get_connection = inside._get_conn

    async def close_and_get(node: int, *, group: Any = ConnectionGroup.DEFAULT, **more: Any) -> Any:
        connection = inside._conns.get((node, group))
        if connection is not None and not connection.connected():
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
        return await get_connection(node, group=group, **more)

    inside._get_conn = close_and_get


def close_what_is_dropped(client: Any) -> None:
    """Have a client of any kind close its first connection when it is cancelled while it waits for the first answer."""
    inside: Any = getattr(client, "_client", None) or client.client
    begin = inside.bootstrap

    @coroutine
    def begin_or_close() -> Generator[Any, Any, None]:
        waiting = begin()
        step = partial(waiting.send, None)
        connection: Any = None
        try:
            while True:
                try:
                    awaited = step()
                except StopIteration:
                    return
                try:
                    step = partial(waiting.send, (yield awaited))
                except BaseException as error:  # the cancellation; other errors are raised inside
                    connection = waiting.cr_frame.f_locals.get("bootstrap_conn")
                    step = partial(waiting.throw, error)
        finally:
            if connection is not None:
                connection.close()

    inside.bootstrap = begin_or_close


def create_no_topics(client: Any) -> None:
    """Have a client of any kind look at its topics without making them, which brokers do for those who do not forbid it.

    A topic that it had written to, and that was deleted, would come back with the next look, as long as the client lives. It
    is not looked at any more instead, until it is used again.
    """
    inside: Any = getattr(client, "_client", None) or client.client
    unsent: Any = getattr(getattr(client, "_message_accumulator", None), "_batches", ())

    async def update(cluster: Any, topics: set[str]) -> bool:
        request = MetadataRequest(list(topics) if topics else None, allow_auto_topic_creation=False)
        nodes: list[Any] = [broker.nodeId for broker in cluster.brokers()]
        bootstrap = ("bootstrap", ConnectionGroup.DEFAULT)
        if bootstrap in inside._conns:
            nodes.append("bootstrap")
        random.shuffle(nodes)
        for node in nodes:
            connection = await inside._get_conn(node)
            if connection is None:
                continue
            try:
                metadata = await connection.send(request)
            except (kafka_errors.KafkaError, TimeoutError) as error:
                log.debug("no metadata from node %s: %r", node, error)
                continue
            if not metadata.brokers:
                return False
            for topic in metadata.to_object()["topics"]:
                name = topic["topic"]
                unknown = by_code(topic["error_code"]) is kafka_errors.UnknownTopicOrPartitionError
                if unknown and cluster.partitions_for_topic(name) and not any(tp.topic == name for tp in unsent):
                    topics.discard(name)
            cluster.update_metadata(metadata)
            if bootstrap in inside._conns and cluster.brokers():
                inside._conns.pop(bootstrap).close()
            return True
        log.debug("no broker tells of its topics: %s", nodes)
        cluster.failed_update(None)
        return False

    inside._metadata_update = update
