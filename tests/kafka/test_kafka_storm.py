"""A rebalance storm: members that come and go all the time, while slow agents work through a numbered input.

Each number is processed at least once, no offset is committed beyond one that nobody has processed, and nothing hangs.
"""

from __future__ import annotations

import random
from collections import Counter
from uuid import uuid4

import pytest
import trio

import famulus
from famulus.channels.errors import BrokerUnavailable
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import Assignment, Consumer, ConsumerOptions, ProduceResult, TopicSpec
from famulus.kafka import KafkaTransport
from famulus.testing.kafka import RunningKafka

PARTITIONS, COUNT, MEMBERS = 4, 2_000, 10


class Silent:
    async def on_assigned(self, assignment: Assignment) -> None:
        pass

    async def on_revoked(self, revoked: frozenset[TP], *, lost: bool) -> None:
        pass


class Storm:
    """What was processed, and what of it is committed: compared all the time."""

    def __init__(self, observer: Consumer, name: str) -> None:
        self.seen: Counter[TP] = Counter()
        self.processed: dict[TP, set[int]] = {TP(name, partition): set() for partition in range(PARTITIONS)}
        self.committed: dict[TP, int] = dict.fromkeys(self.processed, 0)
        self.samples = 0
        self._observer = observer

    @property
    def is_over(self) -> bool:
        return sum(self.committed.values()) == COUNT

    async def watch(self) -> None:
        while not self.is_over:
            try:
                committed = await self._observer.committed(list(self.committed))
            except BrokerUnavailable:
                continue
            for tp, offset in committed.items():
                offset = offset or 0
                assert offset >= self.committed[tp], f"{tp}: {offset} is committed after {self.committed[tp]}"
                missing = set(range(self.committed[tp], offset)) - self.processed[tp]
                assert not missing, f"{tp}: {offset} is committed, and nobody has processed {sorted(missing)[:5]}"
                self.committed[tp] = offset
            self.samples += 1
            await trio.sleep(0.05)


@pytest.mark.real_time
@pytest.mark.hard_timeout(120)
async def test_in_a_rebalance_storm_each_number_is_processed_and_no_commit_passes_one(
    kafka_broker: RunningKafka, seed: int
) -> None:
    name, rng = f"storm-{uuid4().hex[:8]}", random.Random(seed)
    app = famulus.App(
        name, broker=kafka_broker.url, broker_commit_interval=0.2, stream_drain_timeout=1, broker_session_timeout=10
    )
    joined = left = 0

    @app.agent(app.topic(name, value_type=int))
    async def slow(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            await trio.sleep(0.002)
            message = event.message
            storm.seen[message.tp] += 1
            storm.processed[message.tp].add(message.offset)

    async def guest(place: int) -> None:
        nonlocal joined, left
        pace = random.Random(rng.random())
        for _ in range(MEMBERS // 2):
            await trio.sleep(pace.uniform(0, 0.5))
            async with famulus.open_app(app):
                joined += 1
                await trio.sleep(pace.uniform(0, 0.5))
            left += 1

    transport = KafkaTransport(kafka_broker.url)
    async with transport.open():
        await transport.create_topic(TopicSpec(name=name, partitions=PARTITIONS))
        batches = {
            TP(name, partition): [
                ProducerRecord(None, b"%d" % number) for number in range(partition, COUNT, PARTITIONS)
            ]
            for partition in range(PARTITIONS)
        }
        assert all(isinstance(each, ProduceResult) for each in (await transport.produce(batches)).values())
        async with transport.open_consumer(ConsumerOptions(group=name), Silent()) as observer:
            storm = Storm(observer, name)
            with trio.fail_after(100):
                async with trio.open_nursery() as watching:
                    watching.start_soon(storm.watch)
                    async with famulus.open_app(app) as running:
                        async with trio.open_nursery() as guests:
                            for place in range(2):
                                guests.start_soon(guest, place)
                        while not storm.is_over:
                            await trio.sleep(0.05)
                        rebalances = running.statistics().rebalances
    assert (joined, left) == (MEMBERS, MEMBERS)
    assert rebalances >= MEMBERS // 2
    assert storm.processed == {TP(name, partition): set(range(COUNT // PARTITIONS)) for partition in range(PARTITIONS)}
    assert storm.committed == dict.fromkeys(storm.processed, COUNT // PARTITIONS)
    assert storm.samples >= 10
    assert storm.seen.total() <= 2 * COUNT  # the drain lets most of it be done once
