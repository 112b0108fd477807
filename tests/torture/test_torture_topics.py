"""Topics that change under a running app on a real Kafka: partitions are added, a topic is deleted and made again, at random.

Short ones, each change alone, are in tests/kafka/test_kafka_isolation.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from uuid import uuid4

import pytest
import trio

import famulus
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import ProduceResult, TopicSpec
from famulus.kafka import KafkaTransport
from famulus.testing.kafka import RunningKafka

PATIENCE = 60.0  # seconds for one change to come through; only a broken program takes them


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.02)


@pytest.mark.real_time
@pytest.mark.torture
@pytest.mark.hard_timeout(600)
@pytest.mark.parametrize("number", range(2))
async def test_topics_that_grow_and_go_lose_nothing_and_hold_up_nobody(
    kafka_broker: RunningKafka, seed: int, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, name = random.Random(f"{seed}-{number}"), f"changes-{uuid4().hex[:8]}"
    grows, goes = f"{name}-grows", f"{name}-goes"
    partitions = {grows: 1, goes: 2}
    app = famulus.App(name, broker=f"{kafka_broker.url}?metadata_max_age=0.5", broker_retry_backoff_max=0.5)
    seen: Counter[int] = Counter()
    written = 0

    @app.agent(app.topic(grows, goes, value_type=int))
    async def read(stream: famulus.Stream[int]) -> None:
        async for each in stream:
            seen[each] += 1

    transport = KafkaTransport(kafka_broker.url)

    async def write(topic: str) -> None:
        nonlocal written
        batches: dict[TP, list[ProducerRecord]] = {}
        for _ in range(rng.randint(1, 200)):
            tp = TP(topic, rng.randrange(partitions[topic]))
            batches.setdefault(tp, []).append(ProducerRecord(None, b"%d" % written))
            written += 1
        for result in (await transport.produce(batches)).values():
            assert isinstance(result, ProduceResult), result

    async with transport.open():
        for topic, count in partitions.items():
            await transport.create_topic(TopicSpec(name=topic, partitions=count))
        async with famulus.open_app(app) as running:
            for _ in range(12):
                await write(grows)
                if rng.random() < 0.5:
                    partitions[grows] += rng.randint(1, 2)
                    await transport.add_partitions(grows, partitions[grows])
                else:
                    await write(goes)
                    await until(lambda: len(seen) == written)  # what is deleted unread is lost, as it has to be
                    await transport.delete_topic(goes)
                    await write(grows)
                    await until(lambda: len(seen) == written)
                    partitions[goes] = rng.randint(1, 3)
                    await transport.create_topic(TopicSpec(name=goes, partitions=partitions[goes]))
                    await write(goes)
                await trio.sleep(rng.random())
            await until(lambda: len(seen) == written)
            await running.commit()
            assert all(each.lag == 0 for each in running.statistics().partitions.values())
            assert all(node.restarts == 0 for node in running.tree().walk())
            with capsys.disabled():
                print(f"{written} numbers, {seen.total()} processed, {partitions[grows]} partitions in the end")
    assert sorted(seen) == list(range(written))
