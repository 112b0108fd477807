"""Calls on a real Kafka: between two runs that do not find each other in this process, and from a client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import trio

import famulus
from famulus.actors import requests
from famulus.actors.replies import Replies
from famulus.testing.kafka import RunningKafka

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(120)]


class Program:
    """An App as each process has it."""

    def __init__(self, url: str, name: str) -> None:
        self.app = app = famulus.App(name, broker=url, broker_commit_interval=0.1, topic_partitions=2)

        @app.agent(name="double")
        async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for number in stream:
                if number < 0:
                    raise ValueError(f"{number} is negative")
                yield 2 * number

        @app.agent(name="count")
        async def count(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for number in stream:
                for each in range(number):
                    yield each

        @app.agent(name="slow")
        async def slow(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for number in stream:
                await trio.sleep(2)
                yield number

        self.double, self.count, self.slow = double, count, slow


@pytest.fixture
def there(kafka_broker: RunningKafka, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program of the worker. No run finds another one in this process."""
    monkeypatch.setattr(requests, "replies_at", lambda address: None)
    return Program(kafka_broker.url, f"asks-{uuid4().hex[:8]}")


async def reply_topics(running: Any) -> list[str]:
    """The reply topics of the app, as the broker has them."""
    run = running._run
    return [name for name in await run.transport.list_topics() if name.startswith(f"{run.app.id}-reply-")]


async def test_a_client_asks_a_worker_over_kafka(kafka_broker: RunningKafka, there: Program) -> None:
    here = Program(kafka_broker.url, there.app.id)
    with trio.fail_after(100):
        async with famulus.open_app(there.app) as worker:
            async with famulus.open_client(here.app) as client:
                assert await here.double.ask(21) == 42
                with pytest.raises(famulus.AgentError, match="-1 is negative") as caught:
                    await here.double.ask(-1)
                assert "raise ValueError" in caught.value.remote_traceback
                assert [part async for part in here.count.ask_stream(100)] == [*range(100)]
                assert await here.double.join(range(2000)) == [2 * number for number in range(2000)]
                answers = [answer async for answer in here.double.kvmap((str(n), n) for n in range(50))]
                assert sorted(answers) == [2 * number for number in range(50)]
                promise = await here.double.ask_nowait(5, correlation_id="five")
                assert await promise == 10
                replies = Replies.of(client._run)
                assert await reply_topics(worker) == [replies.address.decode()]
                described = await worker._run.transport.describe_topic(replies.address.decode())
                assert (described.partitions, described.config["retention.ms"]) == (1, "86400000")
                assert replies.waiting == 0
                with trio.move_on_after(0.5):
                    await here.slow.ask(1)
            assert await reply_topics(worker) == []
            # The client has gone: its answer is dropped, and its offset is committed.
            while worker.statistics().replies_dropped == 0:
                await trio.sleep(0.05)
            while worker.statistics().lag:
                await trio.sleep(0.05)
            assert worker.statistics().events_failed == 1


async def test_a_worker_asks_another_and_makes_its_reply_topic_for_that(
    kafka_broker: RunningKafka, there: Program
) -> None:
    other = famulus.App(f"{there.app.id}-caller", broker=kafka_broker.url)
    with trio.fail_after(100):
        async with famulus.open_app(there.app), famulus.open_app(other) as caller:
            assert await reply_topics(caller) == []
            double: Any = other.agent(other.topic(f"{there.app.id}-double", value_type=int), name="d")(there.double.fun)
            with trio.fail_after(30):
                assert await double.ask(4) == 8
            (topic,) = await reply_topics(caller)
            await caller._run.transport.delete_topic(topic)  # somebody has cleared up
            answer = None
            while answer is None:  # it is made again; what was answered meanwhile is lost
                with trio.move_on_after(5):
                    answer = await caller.agent(double).ask(5)
            assert answer == 10
