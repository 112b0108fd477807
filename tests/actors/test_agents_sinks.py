"""Sinks: where answers go as well, what belongs to the event's acknowledgement, and sinks that are added later."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.message import TP, ProducerRecord


def put(broker: MemoryBroker, topic: str, *values: int) -> None:
    if topic not in broker.topics:
        broker.create_topic(topic, 1)
    for value in values:
        broker.append(TP(topic, 0), [ProducerRecord(f"key-{value}".encode(), str(value).encode())])


async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
    async for number in stream:
        yield 2 * number


async def test_answers_go_to_topics_names_channels_agents_and_functions(broker: MemoryBroker) -> None:
    app = famulus.App("all-kinds", broker=f"memory://{broker.name}")
    put(broker, "numbers", 1, 2)
    channel = app.channel("local", value_type=int)
    heard: list[tuple[str, object, object]] = []

    @app.agent(key_type=str)
    async def listens(stream: famulus.Stream[int]) -> None:
        async for key, value in stream.items():
            heard.append(("agent", key, value))

    @app.agent(channel)
    async def of_channel(stream: famulus.Stream[int]) -> None:
        async for key, value in stream.items():
            heard.append(("channel", key, value))

    async def callback(value: int) -> None:
        await trio.lowlevel.checkpoint()
        heard.append(("async", None, value))

    def plain(value: int) -> None:
        heard.append(("plain", None, value))

    sinks: list[Any] = [app.topic("doubled", value_type=int), "by-name", channel, listens, callback, plain]
    app.agent(app.topic("numbers", key_type=str, value_type=int), sink=sinks)(double)
    async with famulus.open_app(app):
        await trio.sleep(1)
    assert sorted(heard, key=str) == sorted(
        [
            ("agent", "key-1", 2),
            ("agent", "key-2", 4),
            ("async", None, 2),
            ("async", None, 4),
            ("channel", "key-1", 2),
            ("channel", "key-2", 4),
            ("plain", None, 2),
            ("plain", None, 4),
        ],
        key=str,
    )
    for topic in ("doubled", "by-name"):
        assert [(record.key, record.value) for record in broker.messages(topic)] == [(b"key-1", b"2"), (b"key-2", b"4")]


async def test_an_answer_and_a_sink_go_together() -> None:
    app = famulus.App("both")
    heard: list[int] = []
    agent = app.agent(name="double", sink=[heard.append])(double)
    async with famulus.open_app(app):
        assert [await agent.ask(n) for n in (1, 2)] == [2, 4]
        await trio.testing.wait_all_tasks_blocked()
    assert heard == [2, 4]


async def test_the_offset_waits_for_what_goes_to_a_sink(broker: MemoryBroker) -> None:
    app = famulus.App("waits", broker=f"memory://{broker.name}", broker_commit_interval=1.0)
    put(broker, "numbers", 1, 2)
    broker.create_topic("doubled", 1)
    broker.faults.fail_produce(3, topic="doubled")
    app.agent(app.topic("numbers", value_type=int), sink=["doubled"], on_failure="retry")(double)
    async with famulus.open_app(app) as running:
        await trio.sleep(10)
        assert running.statistics().events_retried >= 2
        assert broker.group("waits").committed == {TP("numbers", 0): 2}
    assert sorted(record.value or b"" for record in broker.messages("doubled")) == [b"2", b"4"]


@pytest.mark.parametrize("policy", ["ack", "retry"])
async def test_a_sink_that_fails_is_a_failure_of_the_event(broker: MemoryBroker, policy: str) -> None:
    app = famulus.App("fails", broker=f"memory://{broker.name}")
    put(broker, "numbers", 1, 2, 3)
    got: list[int] = []
    trouble = [OSError("no room"), OSError("no room")]

    def sink(value: int) -> None:
        if value == 4 and trouble:
            raise trouble.pop()
        got.append(value)

    agent = app.agent(app.topic("numbers", value_type=int), sink=[sink], on_failure=policy)(double)  # type: ignore[arg-type]
    async with famulus.open_app(app):
        await trio.sleep(30)
        assert agent.info().failed == (2 if policy == "retry" else 1)
    assert got == ([2, 4, 6] if policy == "retry" else [2, 6])
    assert broker.group("fails").committed == {TP("numbers", 0): 3}


async def test_a_sink_added_to_a_running_agent_is_that_run_s() -> None:
    app = famulus.App("added")
    first: list[int] = []
    second: list[int] = []
    agent = app.agent(name="double")(double)
    agent.add_sink(first.append)
    async with famulus.open_app(app) as running:
        await agent.ask(1)
        agent.add_sink(second.append)
        running.agent(agent).add_sink("also-there")
        await agent.ask(2)
    async with famulus.open_app(app):
        await agent.ask(3)
    assert (first, second) == ([2, 4, 6], [4])


async def test_what_cannot_be_a_sink_cannot_be_added() -> None:
    app = famulus.App("refuses")

    @app.agent()
    async def silent(stream: famulus.Stream[int]) -> None: ...

    with pytest.raises(famulus.ImproperlyConfigured, match="yields nothing that could go to its sinks"):
        silent.add_sink(print)
    agent = app.agent(name="double")(double)
    with pytest.raises(famulus.ImproperlyConfigured, match="sink 3: expected an agent"):
        agent.add_sink(3)


async def test_an_agent_waits_for_the_topic_that_is_its_sink_before_it_takes_anything_and_holds_up_nobody_else(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = famulus.App("late-sink", broker=f"memory://{broker.name}", stream_ready_timeout=10)
    put(broker, "numbers", 1, 2)
    app.agent("numbers", name="double", sink=["doubled"], concurrency=2)(double)
    free = app.agent(name="free")(double)
    there = trio.Event()
    count = MemoryTransport.partition_count

    async def partition_count(transport: MemoryTransport, topic: str) -> int:
        if topic == "doubled" and not there.is_set():
            raise famulus.UnknownTopic("the broker has no topic 'doubled': create it")
        return await count(transport, topic)

    monkeypatch.setattr(MemoryTransport, "partition_count", partition_count)
    async with famulus.open_app(app) as running:
        assert await free.ask(2) == 4
        await trio.sleep(30)
        said = "agent double waits for its sink doubled: UnknownTopic: the broker has no topic 'doubled'"
        assert caplog.text.count(said) == 1
        assert running.statistics().messages_delivered == 1
        there.set()
        await trio.sleep(30)
        assert running.statistics().events_failed == 0
        assert running.statistics().messages_delivered == 3


async def test_an_agent_that_waits_for_its_sink_stops_at_once(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def partition_count(transport: MemoryTransport, topic: str) -> int:
        raise famulus.UnknownTopic(f"the broker has no topic {topic!r}")

    monkeypatch.setattr(MemoryTransport, "partition_count", partition_count)
    async with famulus.open_app("stopped", stream_ready_timeout=1) as running:
        running.agent(running.channel("numbers"), name="double", sink=["doubled"])(double)
        await trio.sleep(10)
        began = trio.current_time()
    assert trio.current_time() - began < 1
