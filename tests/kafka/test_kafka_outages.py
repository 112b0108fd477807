"""Workers as real processes while the broker is away, at the start and in the middle, or has not what they ask for."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
import trio

from famulus.channels.transport import TopicSpec
from famulus.kafka import KafkaTransport
from famulus.testing.kafka_broker import KafkaBroker
from famulus.testing.numbered import numbered
from famulus.testing.worker_process import WorkerProcess

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(180), pytest.mark.slow]

SCRIPT = Path(__file__).with_name("numbers_app.py")
QUICK = {"broker_commit_interval": 0.2, "broker_retry_backoff_max": 0.5}
PACE = {"NUMBERS_PACE": "0.002"}
MB = 1_000_000
SIDES = ("reading as group .* waits for the broker", "sending waits for the broker", "commit of .* failed")
GO_ON = ("reading as group .* goes on", "sending goes on", "commits go on")


@pytest.fixture
def name() -> str:
    return f"numbers-{uuid4().hex[:8]}"


async def down(broker: KafkaBroker) -> None:
    await trio.to_thread.run_sync(broker.stop_process)


async def up(broker: KafkaBroker) -> None:
    await trio.to_thread.run_sync(broker.start_process)


@pytest.mark.parametrize(
    ("seconds", "kill"),
    [
        (2, True),
        pytest.param(20, True, marks=pytest.mark.torture),
        pytest.param(20, False, marks=pytest.mark.torture),
    ],
)
async def test_a_broker_that_is_away_for_a_while_costs_nothing_and_each_side_says_once_what_it_waits_for(
    own_kafka_broker: KafkaBroker, tmp_path: Path, name: str, seconds: int, kill: bool
) -> None:
    fed, room, most = 40_000, 4 * MB, 30 * MB  # 40 MB are sent while there is room for 4
    async with numbered(own_kafka_broker.url, name=name, script=SCRIPT, directory=tmp_path, fed=True) as run:
        worker = run.start(
            url=f"{own_kafka_broker.url}?produce_timeout=1",  # after which a write that has no answer is mentioned
            environment={**PACE, "NUMBERS_FEED": str(fed), "NUMBERS_FEED_FROM": str(tmp_path / "feed")},
            settings={**QUICK, "producer_buffer_bytes": room},
        )
        await worker.wait_for("ready")
        await run.write(1000)
        await run.wait_seen(100)
        memory = worker.resident
        try:
            await trio.to_thread.run_sync(lambda: own_kafka_broker.stop_process(kill=kill))
            (tmp_path / "feed").touch()
            for side in SIDES:
                await worker.wait_for(side)
            await trio.sleep(seconds)
            assert not worker.lines("^fed")
            assert worker.resident - memory < most
        finally:
            await up(own_kafka_broker)
        await worker.wait_for("^fed")
        await run.wait_committed()
        assert worker.resident - memory < most
        worker.stop()
        assert await worker.wait() == 0, worker.log
        assert run.unseen() == 0
        assert sorted(set(await run.outputs())) == [2 * number for number in range(1000)]
        assert {int(value) for value in await run.values_of(f"{name}-fed")} == set(range(fed))
        assert {line: len(worker.lines(line)) for line in SIDES} == dict.fromkeys(SIDES, 1), worker.log
        assert {line: len(worker.lines(line)) for line in GO_ON} == dict.fromkeys(GO_ON, 1), worker.log
        assert not worker.lines("ERROR|aiokafka|Traceback"), worker.log


async def test_without_a_broker_a_worker_waits_with_one_line_and_with_fail_fast_exits_with_one(
    own_kafka_broker: KafkaBroker, tmp_path: Path, name: str
) -> None:
    async with numbered(own_kafka_broker.url, name=name, script=SCRIPT, directory=tmp_path) as run:
        try:
            await down(own_kafka_broker)
            patient, hasty = run.start(settings=QUICK), run.start("--fail-fast", settings=QUICK)
            assert await hasty.wait() == 1
            await patient.wait_for("connecting waits for the broker")
            await trio.sleep(1)  # some more attempts
        finally:
            await up(own_kafka_broker)
        (told,), (gave_up,) = patient.lines("WARNING|ERROR"), hasty.log.splitlines()
        assert gave_up.startswith("Error: the worker ends: BrokerUnavailable: ")
        for line in (told, gave_up):
            assert f"no Kafka broker answers at {own_kafka_broker.address}: see that it runs there" in line
            assert "--broker kafka://HOST:PORT" in line
        await patient.wait_for("connecting goes on")
        await patient.wait_for("ready")
        await run.write(100)
        await run.wait_committed()


async def test_a_worker_names_a_missing_topic_once_with_the_command_and_starts_when_it_is_there(
    own_kafka_broker: KafkaBroker, tmp_path: Path, name: str
) -> None:
    worker = WorkerProcess(
        [str(SCRIPT), "--broker", own_kafka_broker.url, "--set=broker_retry_backoff_max=0.2", "worker", "--no-banner"],
        log=tmp_path / "worker.log",
        environment={"NUMBERS": name},
    )
    try:
        await worker.wait_for(f"the broker has no topic '{name}': create it with ")
        await trio.sleep(1)
        assert len(worker.log.splitlines()) == 1
        transport = KafkaTransport(own_kafka_broker.url)
        async with transport.open():
            await transport.create_topic(TopicSpec(name=name, partitions=4))
        await worker.wait_for(": 4 partitions assigned")
        await worker.wait_for("ready")
        worker.stop()
        assert await worker.wait() == 0
    finally:
        worker.kill()
