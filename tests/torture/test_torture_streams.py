"""Streams under a storm, in real processes on a real Kafka: members come and go, partitions are added, readers are slow.

Whatever happens, no offset is committed beyond a number that nobody has processed, and in the end all are. `FAMULUS_SEED`
repeats the order of events.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from famulus.testing.kafka_broker import KafkaBroker
from famulus.testing.numbered import Numbered, numbered
from famulus.testing.worker_process import WorkerProcess

SCRIPT = Path(__file__).parents[1] / "kafka" / "numbers_app.py"
SETTINGS = {
    "broker_session_timeout": 6,
    "broker_commit_interval": 0.2,
    "broker_retry_backoff_max": 1,
    "stream_drain_timeout": 1,
    "stream_buffer_maxsize": 50,
}
JOINS = 10


class Visitors:
    """Members that come and go; some leave in order, some are killed, some are slower than a drain may take."""

    def __init__(self, run: Numbered, rng: random.Random) -> None:
        self._run = run
        self._rng = rng
        self.joined = self.left = 0

    def start(self, pace: float) -> WorkerProcess:
        return self._run.start(settings=SETTINGS, environment={"NUMBERS_PACE": str(pace)})

    async def come_and_go(self, times: int) -> None:
        rng = random.Random(self._rng.random())
        for _ in range(times):
            worker = self.start(rng.choice([0.0, 0.005, 1.5]))
            await worker.wait_for("ready")
            self.joined += 1
            await trio.sleep(rng.uniform(0, 3))
            if rng.random() < 0.3:
                worker.kill()
            else:
                worker.stop()
            code = await worker.wait()
            assert code in (0, -signal.SIGKILL), f"{worker!r}\n{worker.log}"
            self.left += 1


async def write(run: Numbered, rate: int) -> None:
    """So many numbers a second, until cancelled."""
    while True:
        with trio.CancelScope(shield=True):
            await run.write(rate // 4)
        await trio.sleep(0.25)


@pytest.mark.real_time
@pytest.mark.torture
@pytest.mark.hard_timeout(400)
@pytest.mark.parametrize("number", range(2))
async def test_a_storm_of_members_loses_nothing_and_commits_nothing_unseen(
    own_kafka_broker: KafkaBroker, tmp_path: Path, seed: int, number: int
) -> None:
    rng = random.Random(seed + number)
    name = f"storm-{uuid4().hex[:8]}"
    async with numbered(own_kafka_broker.url, name=name, script=SCRIPT, directory=tmp_path, partitions=6) as run:
        visitors = Visitors(run, rng)
        stays = visitors.start(0.001)
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, run, 200)
                async with trio.open_nursery() as guests:
                    for _ in range(2):
                        guests.start_soon(visitors.come_and_go, JOINS // 2)
                nursery.cancel_scope.cancel()
        await run.wait_committed()
        assert (visitors.joined, visitors.left) == (JOINS, JOINS)
        assert run.unseen() == 0
        assert run.samples > 10
        assert set(await run.outputs()) == {2 * each for each in range(sum(run.ends.values()))}
        stays.stop()
        assert await stays.wait() == 0
        assert len(stays.lines("generation .* partitions assigned")) >= JOINS // 2  # some of them at one time
        print(
            f"{JOINS} joins and leaves, {sum(run.ends.values())} numbers, {run.seen()} processed, {run.samples} samples"
        )
