"""Reply topics on a Kafka that makes what is missing by itself, which is its default: those of callers who left stay away."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

import famulus
from famulus.actors import requests
from famulus.actors.replies import Replies
from famulus.channels.message import TP
from famulus.testing.kafka_broker import KafkaBroker

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(120)]


@pytest.fixture
def willing(kafka_jars: Path) -> Iterator[KafkaBroker]:
    with KafkaBroker(settings={"auto.create.topics.enable": "true"}) as broker:
        yield broker


async def test_topics_of_callers_who_left_do_not_come_back_and_hold_no_offset(
    willing: KafkaBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(requests, "replies_at", lambda address: None)
    app = famulus.App(f"left-{uuid4().hex[:8]}", broker=willing.url, broker_commit_interval=0.1, topic_partitions=1)
    release = trio.Event()

    @app.agent(name="slow")
    async def slow(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            if number:
                await release.wait()
            yield number

    with trio.fail_after(100):
        async with famulus.open_app(app) as worker:
            transport: Any = worker._run.transport
            async with famulus.open_client(app) as client:
                topic = Replies.of(client._run).address.decode()
                assert await client.agent(slow).ask(0) == 0
                await client.agent(slow).ask_nowait(1)
                while True:  # its last answer is a moment ago when it leaves
                    if slow_is_busy(worker.agent(slow).info().actors):
                        break
                    await trio.sleep(0.01)
            release.set()
            before = trio.current_time()
            while worker.statistics().replies_dropped == 0:
                await trio.sleep(0.01)
            while worker.statistics().lag:
                await trio.sleep(0.01)
            assert trio.current_time() - before < 10, "it would be 15 s and more, if nobody looked"
            producer = transport._producer._client  # the client that has written to the topic
            for _ in range(3):
                await transport._bridge.call(look, producer.client)
                await trio.sleep(0.5)
            assert topic not in await transport.list_topics()
            assert topic not in producer.client._topics
            assert TP(topic, 0) not in transport._producer._writing._sent
    assert not [
        record for record in caplog.records if record.name.startswith("famulus") and record.levelno > logging.INFO
    ]


async def look(client: Any) -> None:
    await client.force_metadata_update()


def slow_is_busy(actors: tuple[famulus.ActorInfo, ...]) -> bool:
    return any(actor.state == "working" and actor.offset == 1 for actor in actors)
