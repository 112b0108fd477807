"""What one agent, one topic or one partition suffers on a real Kafka is not the others' trouble."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import trio

import famulus
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import Assignment, ConsumerOptions, ProduceResult, TopicSpec
from famulus.kafka import KafkaTransport
from famulus.testing.kafka import RunningKafka
from famulus.testing.worker_process import WorkerProcess

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(120)]

SCRIPT = Path(__file__).with_name("blocked_app.py")
PATIENCE = 60.0


@pytest.fixture
def name() -> str:
    return f"isolation-{uuid4().hex[:8]}"


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.02)


async def write(transport: KafkaTransport, topic: str, *numbers: int, partition: int = 0) -> None:
    for start in range(0, len(numbers), 5_000):
        batch = [ProducerRecord(None, b"%d" % number) for number in numbers[start : start + 5_000]]
        (result,) = (await transport.produce({TP(topic, partition): batch})).values()
        assert isinstance(result, ProduceResult), result


class Silent:
    async def on_assigned(self, assignment: Assignment) -> None:
        pass

    async def on_revoked(self, revoked: frozenset[TP], *, lost: bool) -> None:
        pass


@asynccontextmanager
async def opened(broker: RunningKafka, *topics: str, partitions: int = 1) -> AsyncIterator[KafkaTransport]:
    transport = KafkaTransport(broker.url)
    async with transport.open():
        for topic in topics:
            await transport.create_topic(TopicSpec(name=topic, partitions=partitions))
        yield transport


def read_all(app: famulus.App, seen: list[str], *topics: str, pattern: str | None = None) -> None:
    @app.agent(app.topic(*topics, pattern=pattern, value_type=int), name="-".join(topics) or "pattern")
    async def read(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            seen.append(f"{event.message.topic}:{event.value}")


async def test_pain_1_a_blocked_agent_keeps_neither_memory_nor_the_others_and_stays_a_member(
    kafka_broker: RunningKafka, name: str, tmp_path: Path
) -> None:
    """300,000 messages of 1 kB behind it would be 300 MB; the settings allow it a fraction of that."""
    count, buffer, fetch = 300_000, 1_000, 262_144
    session = 6.0
    blocked, free = f"{name}-blocked", f"{name}-free"
    gate = tmp_path / "gate"
    gate.touch()
    async with opened(kafka_broker, blocked, free, partitions=2) as transport:
        worker = WorkerProcess(
            [
                str(SCRIPT),
                "--broker",
                f"{kafka_broker.url}?partition_fetch_bytes={fetch}",
                f"--set=stream_buffer_maxsize={buffer}",
                f"--set=broker_session_timeout={session}",
                "--set=broker_commit_interval=0.2",
                "worker",
                "--no-banner",
            ],
            log=tmp_path / "worker.log",
            environment={"BLOCKED": name, "BLOCKED_GATE": str(gate)},
        )
        try:
            await worker.wait_for("ready")
            await write(transport, blocked, -1)
            await worker.wait_for("blocked now")
            blocked_since = trio.current_time()
            before = worker.resident
            value = b"x" * 1_000
            for start in range(0, count, 2_000):
                batch = [ProducerRecord(None, b"%07d" % number + value) for number in range(start, start + 1_000)]
                other = [
                    ProducerRecord(None, b"%07d" % number + value) for number in range(start + 1_000, start + 2_000)
                ]
                results = await transport.produce({TP(blocked, 0): batch, TP(blocked, 1): other})
                assert all(isinstance(result, ProduceResult) for result in results.values()), results
                if start % 20_000 == 0:
                    await write(transport, free, *range(start, start + 2_000))
            await worker.wait_for(f"free {count // 10}")  # all of the other agent's, meanwhile
            await trio.sleep(max(0.0, blocked_since + 1.5 * session - trio.current_time()))
            grown = worker.resident - before
            # What waits in the inbox, and what is fetched ahead of each partition: as it came, and unpacked.
            bound = (
                buffer * 3_000 + 2 * 3 * fetch + 48_000_000
            )  # and 48 MB for what the other agent's work leaves behind
            assert grown < bound, f"{grown:,} bytes of {bound:,}"
            gate.unlink()
            await worker.wait_for(f"all {count + 1}")
            assert len(worker.lines("partitions assigned")) == 1  # it was a member all the time
            assert not worker.lines("twice")
            worker.stop()
            assert await worker.wait() == 0
        finally:
            worker.kill()
        async with transport.open_consumer(ConsumerOptions(group=name), Silent()) as observer:
            committed = await observer.committed([TP(blocked, 0), TP(blocked, 1)])
            assert sum(offset or 0 for offset in committed.values()) == count + 1


async def test_a_topic_that_is_deleted_under_a_worker_is_waited_for_and_the_other_one_goes_on(
    kafka_broker: RunningKafka, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    goes, stays = f"{name}-goes", f"{name}-stays"
    app = famulus.App(name, broker=f"{kafka_broker.url}?metadata_max_age=1", broker_retry_backoff_max=0.5)
    seen: list[str] = []
    read_all(app, seen, goes)
    read_all(app, seen, stays)
    async with opened(kafka_broker, goes, stays, partitions=2) as transport:
        with trio.fail_after(PATIENCE):
            async with famulus.open_app(app) as running:
                await write(transport, goes, 1, 2, 3)
                await until(lambda: len(seen) == 3)
                await transport.delete_topic(goes)
                await until(lambda: f"has no topic '{goes}': create it with `famulus --broker" in caplog.text)
                await write(transport, stays, *range(100))
                await until(lambda: len(seen) == 103)
                await transport.create_topic(TopicSpec(name=goes, partitions=2))
                await write(transport, goes, 4, 5)
                await until(lambda: len(seen) == 105)
                assert all(node.restarts == 0 for node in running.tree().walk())
        assert seen[:3] == [f"{goes}:1", f"{goes}:2", f"{goes}:3"]
        assert seen[-2:] == [f"{goes}:4", f"{goes}:5"]
        assert caplog.text.count(f"has no topic '{goes}'") == 1
        async with transport.open_consumer(ConsumerOptions(group=name), Silent()) as observer:
            assert await observer.committed([TP(goes, 0), TP(stays, 0)]) == {TP(goes, 0): 2, TP(stays, 0): 100}


async def test_offsets_outside_of_the_log_are_reported_and_counted_and_reading_goes_on(
    kafka_broker: RunningKafka, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    trimmed, short, empty = f"{name}-trimmed", f"{name}-short", f"{name}-empty"
    caplog.set_level(logging.WARNING)
    async with opened(kafka_broker, trimmed, short, empty) as transport:
        await write(transport, trimmed, *range(100))
        await write(transport, empty, *range(20))
        await write(transport, short, 0, 1)
        wanted = {TP(trimmed, 0): 10, TP(short, 0): 500, TP(empty, 0): 5}
        async with transport.open_consumer(ConsumerOptions(group=name), Silent()) as member:
            await member.subscribe([trimmed, short, empty])
            await member.commit(wanted, generation=member.assignment.generation)
        await transport.delete_records({TP(trimmed, 0): 60, TP(empty, 0): 20})
        app = famulus.App(name, broker=kafka_broker.url)
        seen: list[str] = []
        read_all(app, seen, trimmed, short, empty)
        with trio.fail_after(PATIENCE):
            async with famulus.open_app(app) as running:
                await until(lambda: len(seen) == 42)
                await until(lambda: running.statistics().messages_gone == 50 + 15)
        assert sorted(seen) == sorted(
            [*(f"{trimmed}:{number}" for number in range(60, 100)), f"{short}:0", f"{short}:1"]
        )
        assert f"{trimmed}-0: 50 messages from 10 on are gone" in caplog.text
        assert f"{empty}-0: 15 messages from 5 on are gone" in caplog.text
        assert caplog.text.count(f"{short}-0 ends before 500") == 1
        async with transport.open_consumer(ConsumerOptions(group=name), Silent()) as observer:
            committed = await observer.committed(list(wanted))
            assert committed == {TP(trimmed, 0): 100, TP(short, 0): 2, TP(empty, 0): 20}


async def test_partitions_that_are_added_while_running_are_read_from_their_start(
    kafka_broker: RunningKafka, name: str
) -> None:
    app = famulus.App(name, broker=f"{kafka_broker.url}?metadata_max_age=0.5")
    seen: list[str] = []
    read_all(app, seen, name)
    async with opened(kafka_broker, name) as transport:
        with trio.fail_after(PATIENCE):
            async with famulus.open_app(app) as running:
                await write(transport, name, 0)
                await transport.add_partitions(name, 3)
                for partition in (1, 2):
                    await write(transport, name, partition, partition=partition)
                await until(lambda: len(seen) == 3)
                await running.commit()
                assert sum(each.committed for each in running.statistics().partitions.values()) == 3
        assert sorted(seen) == [f"{name}:{number}" for number in range(3)]


async def test_topics_of_a_pattern_are_picked_up_and_the_same_topics_by_another_way_too(
    kafka_broker: RunningKafka, name: str
) -> None:
    first, later = f"{name}-eu", f"{name}-us"
    app = famulus.App(name, broker=f"{kafka_broker.url}?metadata_max_age=0.5")
    by_name: list[str] = []
    by_pattern: list[str] = []
    read_all(app, by_name, first)
    async with opened(kafka_broker, first) as transport:
        with trio.fail_after(PATIENCE):
            async with famulus.open_app(app) as running:
                # The pattern matches what is subscribed to already, and nothing more: that is to stand at once.
                topic = running.topic(pattern=f"{name}-..", value_type=int)

                @running.agent(topic, name="late")
                async def read(stream: famulus.Stream[int]) -> None:
                    async for event in stream.events():
                        by_pattern.append(f"{event.message.topic}:{event.value}")

                await until(lambda: "late" in str(running.tree()))
                await running._run.conductor.wait_assigned()
                await write(transport, first, 1)
                await until(lambda: by_name and by_pattern)
                await transport.create_topic(TopicSpec(name=later, partitions=1))
                await write(transport, later, 2)
                await until(lambda: len(by_pattern) == 2)
        assert by_name == [f"{first}:1"]
        assert by_pattern == [f"{first}:1", f"{later}:2"]
