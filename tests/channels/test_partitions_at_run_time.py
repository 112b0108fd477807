"""Partitions that come and go while an app runs: the producer looks again now and then, consumers rebalance."""

import pytest
import trio

import famulus
from famulus.channels.errors import BrokerUnavailable
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.partitioner import partition_for


async def test_added_partitions_are_written_and_read_within_the_metadata_age(broker: MemoryBroker) -> None:
    app = famulus.App("grows", broker=f"memory://{broker.name}", topic_metadata_age=10.0)
    numbers = app.topic("numbers", key_type=str, value_type=int, partitions=2)
    seen: list[tuple[int, int]] = []

    @app.agent(numbers)
    async def read(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            seen.append((event.value, event.message.partition))

    async with famulus.open_app(app) as running:
        for number in range(20):
            await numbers.send(number, key=f"k{number}")
        await trio.sleep(1)
        broker.add_partitions("numbers", 5)
        await trio.sleep(10)
        await numbers.send(-1, key="looks", partition=0)  # what is written after the age makes it look
        await trio.sleep(1)
        for number in range(100, 120):
            await numbers.send(number, key=f"k{number}")
        await trio.sleep(1)
        assert running.statistics().rebalances == 2
    assert {number: p for number, p in seen if 0 <= number < 100} == {
        number: partition_for(b"k%d" % number, 2) for number in range(20)
    }
    assert {number: p for number, p in seen if number >= 100} == {
        number: partition_for(b"k%d" % number, 5) for number in range(100, 120)
    }


async def test_looking_again_that_fails_changes_nothing(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(self: MemoryTransport, topic: str) -> int:
        raise BrokerUnavailable("away")

    app = famulus.App("blind", broker=f"memory://{broker.name}", topic_metadata_age=1.0)
    numbers = app.topic("numbers", value_type=int, partitions=2)
    async with famulus.open_app(app):
        await (await numbers.send(0))
        monkeypatch.setattr(MemoryTransport, "partition_count", away)
        for number in range(1, 6):
            await trio.sleep(2)
            await (await numbers.send(number))
    assert len(broker.messages("numbers")) == 6


async def test_a_topic_that_was_made_anew_with_fewer_partitions_is_found_out(broker: MemoryBroker) -> None:
    app = famulus.App("shrinks", broker=f"memory://{broker.name}")
    numbers = app.topic("numbers", key_type=str, value_type=int, partitions=8)
    async with famulus.open_app(app):
        for number in range(20):
            await (await numbers.send(number, key=f"k{number}"))
        broker.delete_topic("numbers")
        broker.create_topic("numbers", 1)
        failed = 0
        for number in range(20, 40):
            try:
                await (await numbers.send(number, key=f"k{number}"))
            except famulus.TransportError:
                failed += 1
        assert failed <= 1
    assert len(broker.messages("numbers")) == 20 - failed
