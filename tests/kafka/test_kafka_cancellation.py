"""Cancelled at any await, a call leaves the Kafka client as it should be; and one asyncio loop serves a run, if it needs one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio_asyncio

import famulus
from famulus.channels.message import TP
from famulus.channels.transport import ConsumerOptions, TopicSpec
from famulus.kafka import KafkaTransport
from famulus.testing.cancellation import each_wait
from famulus.testing.contract import GroupMember, Recorder
from famulus.testing.contract_kit import Changes, numbered
from famulus.testing.kafka import RunningKafka

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(90)]


class Member:
    """A member of a group of its own that owns one partition, and a way to see that all of it works."""

    def __init__(self, transport: KafkaTransport, member: GroupMember, tp: TP) -> None:
        self.transport = transport
        self.member = member
        self.consumer = member.consumer
        self.tp = tp
        self._numbers = count()

    async def write(self) -> int:
        number = next(self._numbers)
        await self.transport.produce({self.tp: numbered(number, number + 1)})
        return number

    async def works(self) -> None:
        """What is written is read, once and in order, and can be committed."""
        expected = await self.write()
        seen = await self.member.read(1)
        while seen[-1].value != b"%d" % expected:
            seen += await self.member.read(1)
        assert len({message.value for message in seen}) == len(seen)
        await self.member.commit({self.tp: seen[-1].offset + 1})
        assert await self.consumer.committed([self.tp]) == {self.tp: seen[-1].offset + 1}


@asynccontextmanager
async def joined(url: str) -> AsyncIterator[Member]:
    name = f"cancelled-{uuid4().hex[:8]}"
    transport, recorder, tp = KafkaTransport(url), Recorder(Changes()), TP(name, 0)
    async with transport.open():
        await transport.create_topic(TopicSpec(name=name, partitions=1))
        async with transport.open_consumer(ConsumerOptions(group=name), recorder) as consumer:
            await consumer.subscribe([name])
            yield Member(transport, GroupMember(transport, consumer, recorder), tp)


async def fetch(member: Member) -> None:
    await member.write()
    await member.consumer.fetch(member.member.room(1))


async def fetch_nothing(member: Member) -> None:
    with trio.move_on_after(0.02):
        await member.consumer.fetch({})


async def commit(member: Member) -> None:
    await member.member.commit({member.tp: 1})


async def committed(member: Member) -> None:
    await member.consumer.committed([member.tp])


async def subscribe(member: Member) -> None:
    """To something else, and back."""
    topics = [[member.tp.topic], []]
    for wanted in (topics[1], topics[0]):
        await member.consumer.subscribe(wanted)


async def produce(member: Member) -> None:
    await member.write()


async def administer(member: Member) -> None:
    await member.transport.partition_count(member.tp.topic)
    await member.transport.describe_topic(member.tp.topic)


@pytest.mark.parametrize("call", [fetch, fetch_nothing, commit, committed, subscribe, produce, administer])
async def test_a_call_that_is_cancelled_at_any_wait_leaves_a_client_that_works(
    kafka_broker: RunningKafka, call: Callable[[Member], Awaitable[None]]
) -> None:
    async with joined(kafka_broker.url) as member:

        async def one(number: int) -> None:
            try:
                await call(member)
            finally:
                with trio.CancelScope(shield=True):
                    await member.consumer.subscribe([member.tp.topic])
                    await member.works()

        ended = await each_wait(one)
        assert ended[-1]
        assert len(ended) > 1


async def test_opening_and_leaving_a_transport_and_a_consumer_can_be_cancelled_at_any_wait(
    kafka_broker: RunningKafka,
) -> None:
    """Nothing is left behind, and the next one works."""
    async with joined(kafka_broker.url) as member:

        async def one(number: int) -> None:
            transport = KafkaTransport(kafka_broker.url)
            options = ConsumerOptions(group=f"{member.tp.topic}-{number}")
            async with transport.open(), transport.open_consumer(options, Recorder(Changes())) as consumer:
                await consumer.subscribe([member.tp.topic])

        ended = await each_wait(one)
        assert ended[-1]
        await member.works()


async def test_a_run_opens_one_asyncio_loop_whatever_it_does(
    kafka_broker: RunningKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = 0
    open_loop = trio_asyncio.open_loop

    def counting() -> Any:
        nonlocal opened
        opened += 1
        return open_loop()

    monkeypatch.setattr(trio_asyncio, "open_loop", counting)
    name = f"one-loop-{uuid4().hex[:8]}"
    app = famulus.App(name, broker=kafka_broker.url)
    numbers = app.topic(name, value_type=int, partitions=2)
    doubled: list[int] = []

    @app.agent(numbers)
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            doubled.append(2 * number)
            yield 2 * number

    transport = KafkaTransport(kafka_broker.url)
    assert opened == 0
    async with transport.open():
        await transport.create_topic(TopicSpec(name=name, partitions=2))
    assert opened == 1
    async with famulus.open_app(app) as running:
        await (await numbers.send(1))
        assert await double.ask(2) == 4
        await running.commit()
        while sorted(doubled) != [2, 4]:
            await trio.sleep(0.01)
    assert opened == 2


def test_a_run_without_kafka_loads_no_asyncio_client() -> None:
    program = """
import sys, famulus, trio

async def main():
    async with famulus.open_app() as app:
        @app.agent()
        async def double(stream):
            async for n in stream:
                yield 2 * n
        assert await double.ask(21) == 42

trio.run(main)
print(sorted({"asyncio", "trio_asyncio", "aiokafka"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
