"""Calls through the reply topic, at their corners: garbage in it, its configuration, sizes, codecs, names that last."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import pytest
import trio

import famulus
from famulus.actors import requests
from famulus.actors.replies import Replies
from famulus.app import connecting
from famulus.channels.errors import TransportError
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import TopicSpec, TransportOptions
from famulus.testing import StubRegistry


class Wire(MemoryTransport):
    """A memory broker that seems to be far away, and may allow nobody to make topics for replies."""

    crosses_processes = True
    denied = False

    async def create_topic(self, spec: TopicSpec) -> None:
        if self.denied and "-reply-" in spec.name:
            raise TransportError(f"creating topic {spec.name!r}: denied")
        await super().create_topic(spec)


@pytest.fixture(autouse=True)
def wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run finds another one in this process."""

    def load(url: str, options: TransportOptions) -> Wire:
        return Wire(url, options)

    monkeypatch.setattr(connecting, "load_transport", load)
    monkeypatch.setattr(requests, "replies_at", lambda address: None)


class Program:
    """An App and its agents, as each process has them."""

    def __init__(self, broker: MemoryBroker, **options: Any) -> None:
        self.app = app = famulus.App("shop", broker=f"memory://{broker.name}", broker_commit_interval=0.1)

        @app.agent(app.topic("words", value_type=str, partitions=1), name="repeat", **options)
        async def repeat(stream: famulus.Stream[str]) -> AsyncIterator[str]:
            async for word in stream:
                if word == "fail":
                    raise ValueError("é" * 5_000_000)
                if word == "slow":
                    await trio.sleep(5)
                yield word
                yield word * 1_000

        @app.agent(app.topic("noted", value_type=str, partitions=1, acks=False), name="note")
        async def note(stream: famulus.Stream[str]) -> AsyncIterator[str]:
            async for event in stream.events():
                event.reply(event.value * 1_000)
                event.ack()
                yield ""

        self.repeat, self.note = repeat, note


def replies_of(running: Any) -> Replies:
    return Replies.of(running._run)


def write(broker: MemoryBroker, topic: str, *headers: tuple[str, bytes], value: bytes | None = None) -> None:
    broker.append(TP(topic, 0), [ProducerRecord(None, value, headers)])


async def test_garbage_in_the_reply_topic_is_counted_and_nobody_dies(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    here = Program(broker)
    async with famulus.open_app(Program(broker).app), famulus.open_client(here.app) as client:
        topic = replies_of(client).address.decode()
        promise = await here.repeat.ask_nowait("slow", correlation_id="q")
        for kind in (b"value", b"part", b"end", b"failure", b"?", b""):
            for number in (b"9" * 5000, b"-1", b"\xff", b"\xb2", b""):
                header = ("famulus-reply", kind), ("famulus-reply-part", number)
                write(broker, topic, *header)
                write(broker, topic, *header, ("famulus-correlation-id", b"\xff"), value=b"\xff")
        write(broker, topic, ("famulus-correlation-id", b"q"), ("famulus-reply", b"end"))
        write(broker, topic, ("famulus-correlation-id", b"q"), ("famulus-reply", b"part"), value=b'"wrong"')
        with trio.fail_after(10):
            assert await promise == "slow"
        assert client.statistics().replies_dropped >= 62
        broken = await here.repeat.ask_nowait("slow", correlation_id="r")
        write(broker, topic, ("famulus-correlation-id", b"r"), ("famulus-reply", b"failure"), value=b"[" * 100_000)
        with trio.fail_after(2), pytest.raises(famulus.AgentError):
            await broken
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("policy", ["ack", "retry", "dead_letter"])
async def test_an_answer_that_is_too_large_is_a_failure_at_the_caller_at_once(
    broker: MemoryBroker, policy: str
) -> None:
    here = Program(broker)
    there = Program(broker, on_failure=policy, max_attempts=5)
    async with famulus.open_app(there.app) as worker, famulus.open_client(here.app) as client:
        broker.topic(replies_of(client).address.decode()).config["max.message.bytes"] = "1500"
        with trio.fail_after(5), pytest.raises(famulus.AgentError, match="MessageTooLarge"):
            await here.repeat.ask("long" * 500)
        with (
            trio.fail_after(5),
            pytest.raises(famulus.AgentError, match=r"MessageTooLarge|parts of its answer were lost"),
        ):
            async for part in here.repeat.ask_stream("hello"):
                assert part == "hello"
        with trio.fail_after(5), pytest.raises(famulus.AgentError, match="MessageTooLarge"):
            await here.note.ask("hello")  # what its user acknowledges would come again without end
        await trio.sleep(10)
        failed = worker.statistics().events_failed
        await trio.sleep(10)
        assert worker.statistics().events_failed == failed
        assert await here.repeat.ask("a") == "a"
        await trio.sleep(1)
    assert broker.group("shop").committed == {TP("words", 0): 3, TP("noted", 0): 1}


async def test_a_failure_is_cut_to_what_the_topic_takes(broker: MemoryBroker) -> None:
    here = Program(broker)
    async with famulus.open_app(Program(broker).app) as worker, famulus.open_client(here.app) as client:
        broker.topic(replies_of(client).address.decode()).config["max.message.bytes"] = "3000"
        with trio.fail_after(5), pytest.raises(famulus.AgentError, match="ValueError") as caught:
            await here.repeat.ask("fail")
        assert caught.value.remote_type == "ValueError"
        assert caught.value.remote_message.startswith("éé")
        assert worker.statistics().replies_dropped == 0


async def test_a_caller_whose_lasting_name_was_gone_a_moment_ago_is_answered(broker: MemoryBroker) -> None:
    here = Program(broker)
    async with famulus.open_app(Program(broker).app) as worker:
        async with famulus.open_client(here.app, consumer_group_instance_id="till-1"):
            with trio.move_on_after(1):
                await here.repeat.ask("slow")
        while worker.statistics().replies_dropped == 0:
            await trio.sleep(0.01)
        async with famulus.open_client(here.app, consumer_group_instance_id="till-1"):
            with trio.fail_after(10):
                assert await here.repeat.ask("quick") == "quick"


async def test_two_clients_with_one_instance_id_each_get_their_answers(broker: MemoryBroker) -> None:
    here = Program(broker)
    async with (
        famulus.open_app(Program(broker).app),
        famulus.open_client(here.app, consumer_group_instance_id="till-1") as first,
    ):
        async with famulus.open_client(here.app, consumer_group_instance_id="till-1") as second:
            with trio.fail_after(5):
                assert await first.agent(here.repeat).ask("a") == "a"
                assert await second.agent(here.repeat).ask("b") == "b"
        with trio.fail_after(5):
            assert await first.agent(here.repeat).ask("c") == "c"
        assert first.statistics().replies_dropped == 0


async def test_who_may_not_make_topics_is_told_what_to_allow(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wire, "denied", True)
    here = Program(broker)
    async with famulus.open_app(Program(broker).app):
        async with famulus.open_client(here.app):
            with trio.fail_after(5), pytest.raises(famulus.AgentError, match=r"denied.*'shop-reply-'.*reply_to_prefix"):
                await here.repeat.ask("a")
        name = "shop-reply-client-till-1"
        broker.create_topic(name, 3)  # by somebody who may
        async with famulus.open_client(here.app, consumer_group_instance_id="till-1"):
            with trio.fail_after(5):
                assert await here.repeat.ask("a") == "a"
        assert name in broker.topics


async def test_a_reply_topic_that_is_compacted_is_refused_with_what_mends_it(broker: MemoryBroker) -> None:
    here = Program(broker)
    name = "shop-reply-client-till-1"
    broker.create_topic(name, 1, config={"cleanup.policy": "compact"})
    async with (
        famulus.open_app(Program(broker).app),
        famulus.open_client(here.app, consumer_group_instance_id="till-1"),
    ):
        with trio.fail_after(5), pytest.raises(famulus.AgentError, match="is compacted"):
            await here.repeat.ask("a")
        broker.topic(name).config["cleanup.policy"] = "delete"
        with trio.fail_after(60):
            while True:
                try:
                    assert await here.repeat.ask("a") == "a"
                    break
                except famulus.AgentError:
                    await trio.sleep(1)


@pytest.fixture
def stub() -> Iterator[StubRegistry]:
    with StubRegistry() as stub:
        yield stub


@pytest.mark.real_time
async def test_an_answer_waits_for_its_schema_and_holds_no_other_up(broker: MemoryBroker, stub: StubRegistry) -> None:
    class Program:
        def __init__(self) -> None:
            codec = famulus.SchemaRegistry(stub.url).avro(subject="record")

            class Sum(famulus.Record, serializer=codec):
                total: int

            self.app = app = famulus.App("shop", broker=f"memory://{broker.name}")

            @app.agent(app.topic("numbers", value_type=int, partitions=1), name="add")
            async def add(stream: famulus.Stream[int]) -> AsyncIterator[Any]:
                async for number in stream:
                    for each in range(number):
                        yield Sum(each)

            @app.agent(app.topic("others", value_type=int, partitions=1), name="plain")
            async def plain(stream: famulus.Stream[int]) -> AsyncIterator[int]:
                async for number in stream:
                    yield number

            add.answer_type = Sum
            self.add, self.plain = add, plain

    here = Program()
    with trio.fail_after(60):
        async with famulus.open_app(Program().app), famulus.open_client(here.app):
            parts = [part.total async for part in here.add.ask_stream(5)]
            assert parts == [0, 1, 2, 3, 4]
            assert (await here.add.ask(1)).total == 0
        fresh = Program()
        async with famulus.open_app(Program().app), famulus.open_client(fresh.app):
            assert [answer.total for answer in await fresh.add.join([1, 1, 1])] == [0, 0, 0]
            assert await fresh.plain.ask(4) == 4


@pytest.mark.parametrize("policy", ["ack", "retry"])
async def test_what_is_yielded_later_does_not_stand_in_for_an_answer_that_was_lost(
    broker: MemoryBroker, policy: Literal["ack", "retry"]
) -> None:
    def make() -> tuple[famulus.App, famulus.Agent[int, str]]:
        app = famulus.App("shop", broker=f"memory://{broker.name}", broker_commit_interval=0.1)

        @app.agent(app.topic("numbers", value_type=int, partitions=1), name="tell", on_failure=policy)
        async def tell(stream: famulus.Stream[int]) -> AsyncIterator[str]:
            async for _ in stream:
                yield "first"
                await trio.sleep(1)
                yield "second"

        return app, tell

    there, _ = make()
    here, tell = make()
    async with famulus.open_app(there), famulus.open_client(here) as client:
        topic = replies_of(client).address.decode()
        broker.faults.fail_produce(1, topic=topic, error=famulus.ProduceError("lost"))
        with trio.fail_after(10):
            if policy == "retry":
                assert await tell.ask(1) == "first"
            else:
                with pytest.raises(famulus.AgentError, match="lost"):
                    await tell.ask(1)
        await trio.sleep(5)
        assert broker.group("shop").committed[TP("numbers", 0)] == 1
