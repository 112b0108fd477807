"""Random faults on a real Kafka: workers that are killed, suspended, stopped and restarted, a broker that goes away.

Whatever happens, no offset is committed beyond a number that nobody has processed, none goes back, and in the end
every number was processed and its output is there. `FAMULUS_SEED` repeats the order of the faults.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from famulus.testing.kafka_broker import KafkaBroker
from famulus.testing.numbered import Numbered, numbered
from famulus.testing.worker_process import WorkerProcess

SCRIPT = Path(__file__).parents[1] / "kafka" / "numbers_app.py"
SESSION = 3.0
SETTINGS = {
    "broker_session_timeout": SESSION,
    "broker_commit_interval": 0.2,
    "broker_retry_backoff_max": 1,
    "stream_drain_timeout": 1,
}
PACE = {"NUMBERS_PACE": "0.001"}


class Place:
    """Room for one worker, and what befalls it: at every moment it has a process, or one that is being replaced.

    Args:
        instance_id: of a static member, which may find itself replaced or forgotten, and then must end.
    """

    def __init__(self, run: Numbered, rng: random.Random, say: Callable[[str], None], instance_id: str | None) -> None:
        self._run = run
        self._rng = rng
        self._say = say
        self._name = instance_id or "dynamic"
        self._arguments = [] if instance_id is None else ["--instance-id", instance_id]
        self.worker = self.start()

    def start(self) -> WorkerProcess:
        return self._run.start(*self._arguments, environment=PACE, settings=SETTINGS)

    async def suffer(self) -> None:
        """One fault after the other, until cancelled; each is put right again."""
        faults = {"kill": self.kill, "suspend": self.suspend, "restart": self.restart, "join": self.join}
        while True:
            await trio.sleep(self._rng.uniform(0, SESSION))
            fault = self._rng.choice(list(faults))
            self._say(f"{fault} {self._name}, pid {self.worker.pid}")
            with trio.CancelScope(shield=True):
                await faults[fault]()
            self.check()

    async def kill(self) -> None:
        self.worker.kill()
        await trio.sleep(self._rng.uniform(0, 2 * SESSION))
        self.worker = self.start()

    async def suspend(self) -> None:
        self.worker.suspend()
        try:
            await trio.sleep(self._rng.uniform(0, 2 * SESSION))
        finally:
            self.worker.resume()

    async def restart(self) -> None:
        """In order; the next one comes afterwards or at the same time."""
        worker, early = self.worker, self._rng.random() < 0.5
        worker.stop()
        if early:
            self.worker = self.start()
        code = await worker.wait()
        unborn = code == -signal.SIGTERM and not worker.log  # Python was still starting
        assert code == 0 or unborn or self.was_forgotten(worker), f"{worker!r}\n{worker.log}"
        if not early:
            self.worker = self.start()

    async def join(self) -> None:
        """One more comes, and goes again."""
        guest = self._run.start(environment=PACE, settings=SETTINGS)
        await trio.sleep(self._rng.uniform(0, SESSION))
        if self._rng.random() < 0.5:
            guest.kill()
        else:
            guest.stop()
        await guest.wait()

    def was_forgotten(self, worker: WorkerProcess) -> bool:
        """Whether this is the end that a static member has to come to."""
        return bool(self._arguments and worker.code == 1 and worker.lines("^Error: the worker ends: MemberReplaced"))

    def check(self) -> None:
        """A worker that has ended has been told to, or is a static one; whom nobody replaced yet, is replaced now."""
        if self.worker.code is not None:
            assert self.was_forgotten(self.worker), f"{self.worker!r} has ended by itself:\n{self.worker.log}"
            self._say(f"{self._name} was forgotten")
            self.worker = self.start()


async def stop_broker(broker: KafkaBroker, rng: random.Random, say: Callable[[str], None]) -> None:
    """Again and again, until cancelled."""
    while True:
        await trio.sleep(rng.uniform(5, 15))
        kill, seconds = rng.random() < 0.5, rng.choice([0, 1, 3, 6])
        say(f"broker {'killed' if kill else 'stopped'} for {seconds} s")
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(partial(broker.stop_process, kill=kill))
            await trio.sleep(seconds)
            await trio.to_thread.run_sync(broker.start_process)


async def write(run: Numbered, rate: int) -> None:
    """So many numbers a second, until cancelled."""
    while True:
        with trio.CancelScope(shield=True):  # whole, or nobody would know which are there
            await run.write(rate // 4)
        await trio.sleep(0.25)


async def torture(
    broker: KafkaBroker, directory: Path, rng: random.Random, *, seconds: float, rate: int, broker_too: bool
) -> None:
    """Faults for so long, while `rate` numbers a second come in; then peace, and the count."""
    name = f"torture-{uuid4().hex[:8]}"
    done: list[str] = []
    began = trio.current_time()

    def say(what: str) -> None:
        done.append(f"{trio.current_time() - began:.1f} {what}")

    async with numbered(broker.url, name=name, script=SCRIPT, directory=directory) as run:
        places = [Place(run, random.Random(rng.random()), say, name) for name in ("static", None, None)]
        try:
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write, run, rate)
                    for place in places:
                        nursery.start_soon(place.suffer)
                    if broker_too:
                        nursery.start_soon(stop_broker, broker, random.Random(rng.random()), say)
            say("peace")
            with trio.fail_after(90):
                while run.committed != run.ends:
                    await trio.sleep(0.2)
                    for place in places:
                        place.check()
            assert run.unseen() == 0
            for place in places:
                place.check()
                await place.worker.wait_for("ready")
                place.worker.stop()
            for place in places:  # a static one that was suspended last may only now have found out
                code = await place.worker.wait()
                assert code == 0 or place.was_forgotten(place.worker), place.worker.log
            outputs = await run.outputs()
            assert set(outputs) == {2 * number for number in range(sum(run.ends.values()))}
        except BaseException:
            print("\n".join(done))
            raise
        print(
            f"{len(done) - 1} faults, {len(run.workers)} workers, {sum(run.ends.values())} numbers, "
            f"{run.seen()} processed, {len(outputs)} outputs, {run.samples} looks at the committed offsets"
        )


@pytest.mark.real_time
@pytest.mark.slow
@pytest.mark.hard_timeout(150)
async def test_a_few_faults_lose_nothing_and_commit_nothing_unseen(
    own_kafka_broker: KafkaBroker, tmp_path: Path, seed: int
) -> None:
    await torture(own_kafka_broker, tmp_path, random.Random(seed), seconds=6, rate=200, broker_too=False)


@pytest.mark.real_time
@pytest.mark.torture
@pytest.mark.hard_timeout(400)
@pytest.mark.parametrize("number", range(3))
async def test_many_faults_lose_nothing_and_commit_nothing_unseen(
    own_kafka_broker: KafkaBroker, tmp_path: Path, seed: int, number: int
) -> None:
    await torture(own_kafka_broker, tmp_path, random.Random(seed + number), seconds=90, rate=300, broker_too=True)
