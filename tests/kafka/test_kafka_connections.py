"""Connections of aiokafka's clients that the broker has closed."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from typing import Any

import pytest
import trio
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import BrokerMetadata

from famulus.kafka.bridge import Bridge
from famulus.kafka.clients import start_client
from famulus.kafka.url import parse_url
from famulus.testing.kafka import RunningKafka

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(60)]


async def test_one_that_was_closed_is_closed_here_too_before_another_takes_its_place(
    kafka_broker: RunningKafka,
) -> None:
    settings = parse_url(kafka_broker.url)

    async def use(client: AIOKafkaAdminClient) -> None:
        inside: Any = client._client
        node = next(iter(inside.cluster.brokers())).nodeId
        connection = await inside._get_conn(node)
        transport = connection._writer.transport
        waiting = asyncio.ensure_future(connection.send(MetadataRequest([], allow_auto_topic_creation=False)))
        await asyncio.sleep(0)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        inside.cluster.broker_metadata = lambda _: BrokerMetadata(node, "127.0.0.1", port, None)
        connection._reader.feed_eof()  # the broker has gone, and nobody has noticed yet
        del connection
        assert await inside._get_conn(node) is None
        assert transport.is_closing()
        with pytest.raises(KafkaConnectionError, match="closed"):
            await waiting

    async with Bridge().open() as bridge:
        client = await start_client(
            bridge,
            lambda: AIOKafkaAdminClient(**settings.client_options()),
            AIOKafkaAdminClient.close,
            settings=settings,
            doing="connecting",
        )
        try:
            await bridge.call(use, client)
        finally:
            await bridge.call(client.close)


async def test_one_whose_first_answer_is_not_waited_for_any_more_is_closed(
    kafka_broker: RunningKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = parse_url(kafka_broker.url)
    asked = trio.Event()
    send: Any = AIOKafkaConnection.send
    transports: list[asyncio.Transport] = []

    async def silent(connection: Any, request: Any, *more: Any) -> Any:
        if isinstance(request, MetadataRequest):
            transports.append(connection._writer.transport)
            asked.set()
            await asyncio.get_running_loop().create_future()
        return await send(connection, request, *more)

    def make() -> AIOKafkaProducer:
        return AIOKafkaProducer(**settings.client_options())

    async def start(bridge: Bridge) -> None:
        await start_client(bridge, make, AIOKafkaProducer.stop, settings=settings, doing="connecting")

    monkeypatch.setattr(AIOKafkaConnection, "send", silent)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        async with Bridge().open() as bridge, trio.open_nursery() as nursery:
            nursery.start_soon(start, bridge)
            await asked.wait()
            nursery.cancel_scope.cancel()
        gc.collect()
    assert [str(warning.message) for warning in told if warning.category is ResourceWarning] == []
    assert [transport.is_closing() for transport in transports] == [True]
