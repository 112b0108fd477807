"""A cluster of three brokers loses the leader of what is written and read, again and again: nothing is lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from uuid import uuid4

import pytest
import trio

import famulus
from famulus.channels.transport import TopicSpec
from famulus.kafka import KafkaTransport
from famulus.testing.kafka_broker import KafkaBroker

REPLICATED = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
}
KEYS = 16


@pytest.fixture(scope="module")
def cluster(kafka_jars: object) -> Iterator[list[KafkaBroker]]:
    """Three nodes; the first is the controller too."""
    with ExitStack() as stack:
        first = stack.enter_context(KafkaBroker(settings=REPLICATED))
        others = [stack.enter_context(KafkaBroker(settings=REPLICATED, joins=first)) for _ in range(2)]
        yield [first, *others]


@pytest.mark.torture
@pytest.mark.real_time
@pytest.mark.hard_timeout(600)
async def test_leaders_are_killed_while_an_app_reads_changes_and_writes(cluster: list[KafkaBroker], seed: int) -> None:
    rng = random.Random(seed)
    unique = uuid4().hex[:6]
    url = "kafka://" + ",".join(broker.address for broker in cluster) + "?metadata_max_age=2&request_timeout=5"
    app = famulus.App(
        f"cluster-{unique}",
        broker=url,
        broker_commit_interval=0.2,
        topic_replication_factor=3,
        broker_session_timeout=6.0,
    )
    numbers = app.topic(f"numbers-{unique}", key_type=str, value_type=int)
    doubled = app.topic(f"doubled-{unique}", key_type=str, value_type=int)
    processed: Counter[int] = Counter()
    arrived: dict[str, list[int]] = {}
    ended = False
    number = 0

    @app.agent(numbers, name="doubles", on_failure="retry")
    async def double(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            processed[event.value] += 1
            await doubled.send(2 * event.value, key=event.key)

    @app.agent(doubled, name="arrives")
    async def arrive(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            arrived.setdefault(event.key, []).append(event.value)

    async def send() -> None:
        nonlocal number
        while not ended:
            await numbers.send(number, key=f"k{number % KEYS}")
            number += 1
            await trio.sleep(0.001)

    transport = KafkaTransport(url)
    async with transport.open():
        for topic in (numbers, doubled):
            await transport.create_topic(TopicSpec(name=topic.name, partitions=6, replicas=3))
            assert (await transport.describe_topic(topic.name)).replicas == 3
    async with famulus.open_app(app) as running:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for _ in range(6):
                victim = rng.choice(cluster[1:])  # each leads a third of the partitions
                kill = rng.random() < 0.7
                await trio.to_thread.run_sync(partial(victim.stop_process, kill=kill))
                await trio.sleep(rng.uniform(1, 8))
                await trio.to_thread.run_sync(victim.start_process)
                await trio.sleep(rng.uniform(1, 8))
            ended = True
        with trio.fail_after(120):
            while sum(map(len, arrived.values())) < number or running.statistics().lag:
                await trio.sleep(0.1)
        statistics = running.statistics()
    assert statistics.deliveries_failed == 0
    assert set(processed) == set(range(number))
    # What is processed twice (a rebalance lost the commit) is sent twice; every key's first times are in order.
    for key, values in arrived.items():
        firsts = list(dict.fromkeys(values))
        assert firsts == [2 * n for n in range(number) if f"k{n % KEYS}" == key]
    print(f"{number} numbers, {sum(processed.values()) - number} of them twice, {statistics.rebalances} rebalances")
