"""Workers as real processes on a real broker, which are killed, suspended and replaced: law 2 holds all the time.

`numbered` compares the group's committed offsets with what the workers have written down, ten times a second.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from famulus.testing.kafka import RunningKafka
from famulus.testing.numbered import Numbered, numbered

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(180), pytest.mark.slow]

SCRIPT = Path(__file__).with_name("numbers_app.py")
QUICK = {"broker_session_timeout": 2, "broker_commit_interval": 0.2}
PACE = {"NUMBERS_PACE": "0.002"}

Numbers = Callable[[], AbstractAsyncContextManager[Numbered]]


@pytest.fixture
def numbers(kafka_broker: RunningKafka, tmp_path: Path) -> Numbers:
    """Numbers in four partitions, under a name of their own."""
    name = f"numbers-{uuid4().hex[:8]}"
    return lambda: numbered(kafka_broker.url, name=name, script=SCRIPT, directory=tmp_path)


class Hold:
    """While it is on, events in hand wait, in the workers that have its environment."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.environment = {**PACE, "NUMBERS_HOLD": str(file)}

    def on(self) -> None:
        self._file.touch()

    def off(self) -> None:
        self._file.unlink()


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    return Hold(tmp_path / "hold")


async def stop(run: Numbered, count: int) -> None:
    """All is processed and committed, and was sent on; who still runs stops in order."""
    await run.wait_committed()
    assert run.unseen() == 0
    for worker in run.workers:
        if worker.code is None:
            worker.stop()
            assert await worker.wait() == 0, worker.log
    assert sorted(set(await run.outputs())) == [2 * number for number in range(count)]


@pytest.mark.parametrize("session", [2, pytest.param(10, marks=pytest.mark.torture)])
async def test_what_a_killed_worker_had_goes_to_the_other_and_none_is_committed_unseen(
    numbers: Numbers, session: int
) -> None:
    async with numbers() as run:
        one, two = (run.start(environment=PACE, settings={**QUICK, "broker_session_timeout": session}) for _ in "12")
        for worker in (one, two):
            await worker.wait_for(r"generation \d+: 2 partitions assigned")
        await run.write(1000)
        await run.wait_seen(200, one)
        await run.wait_seen(200, two)
        one.kill()
        killed = trio.current_time()
        await two.wait_for(": 4 partitions assigned", times=len(two.lines(": 4 partitions assigned")) + 1)
        assert trio.current_time() - killed < session + 10  # the session, and patience with a busy machine
        await stop(run, 1000)


async def test_a_suspended_worker_cannot_commit_when_it_comes_back_and_joins_anew(numbers: Numbers, hold: Hold) -> None:
    async with numbers() as run:
        zombie = run.start(environment=hold.environment, settings={**QUICK, "broker_commit_interval": 1})
        await zombie.wait_for("ready")
        await run.write(1000)
        await run.wait_seen(300, zombie)
        zombie.suspend()
        other = run.start(environment=hold.environment, settings={**QUICK, "stream_drain_timeout": 3})
        await other.wait_for(": 4 partitions assigned")
        await run.wait_seen(100, other)
        hold.on()
        await run.write(100)  # the others may all have been processed just before
        await other.wait_for("^held$")
        await run.wait_committed_of(other)  # from here on only the zombie has anything to commit
        await run.sample()
        before = dict(run.committed)
        zombie.resume()
        await zombie.wait_for("lost |refused")
        await zombie.wait_for("partitions assigned", times=2)
        await run.sample()
        assert run.committed == before
        assert "Traceback" not in zombie.log
        hold.off()
        await stop(run, 1100)


async def test_a_suspended_static_worker_that_was_replaced_commits_nothing_and_ends(
    numbers: Numbers, hold: Hold
) -> None:
    async with numbers() as run:
        zombie = run.start(
            "--instance-id", "a", environment=hold.environment, settings={**QUICK, "broker_commit_interval": 1}
        )
        await zombie.wait_for("ready")
        await run.write(1000)
        await run.wait_seen(300, zombie)
        zombie.suspend()
        other = run.start("--instance-id", "a", environment=hold.environment, settings=QUICK)
        await other.wait_for(": 4 partitions assigned")
        await run.wait_seen(100, other)
        hold.on()
        await run.write(100)  # the others may all have been processed just before
        await other.wait_for("^held$")
        await run.wait_committed_of(other)
        await run.sample()
        before = dict(run.committed)
        zombie.resume()
        assert await zombie.wait() == 1
        (reason,) = zombie.lines("^Error: the worker ends")
        assert "MemberReplaced: " in reason
        assert "static member 'a'" in reason
        await run.sample()
        assert run.committed == before
        hold.off()
        await stop(run, 1100)
        assert other.lines("partitions assigned") == other.lines(": 4 partitions assigned")[:1]


async def test_of_two_workers_with_one_instance_id_the_older_ends_with_the_reason(numbers: Numbers) -> None:
    async with numbers() as run:
        older = run.start("--instance-id", "a", environment=PACE, settings=QUICK)
        await older.wait_for("ready")
        await run.write(1000)
        await run.wait_seen(100, older)
        newer = run.start("--instance-id", "a", environment=PACE, settings=QUICK)
        assert await older.wait() == 1
        (reason,) = older.lines("^Error: the worker ends")
        assert "MemberReplaced: " in reason
        assert "only one process runs with this id" in reason
        await newer.wait_for("ready")
        await stop(run, 1000)


async def test_a_static_worker_that_is_restarted_in_time_causes_no_rebalance(numbers: Numbers) -> None:
    async with numbers() as run:
        settings = {**QUICK, "broker_session_timeout": 9}
        one, two = (run.start("--instance-id", name, environment=PACE, settings=settings) for name in "ab")
        for worker in (one, two):
            await worker.wait_for(r"generation \d+: 2 partitions assigned")
        await run.write(1000)
        await run.wait_seen(100, one)
        one.stop()
        assert await one.wait() == 0
        assigned = two.lines("partitions assigned")
        again = run.start("--instance-id", "a", environment=PACE, settings=settings)
        await again.wait_for(": 2 partitions assigned")
        await run.wait_committed()
        assert not run.seen_in(again) & run.seen_in(two)
        assert two.lines("partitions assigned") == assigned
        await stop(run, 1000)


async def test_rebalances_in_the_middle_of_commits_commit_nothing_unseen(numbers: Numbers) -> None:
    async with numbers() as run:
        settings = {**QUICK, "broker_commit_interval": 0.001}  # one commit after the other
        stays = run.start(environment=PACE, settings=settings)
        await stays.wait_for("ready")
        for _ in range(3):
            comes = run.start(environment=PACE, settings=settings)
            await run.write(200)
            await comes.wait_for("ready")
            await run.write(300)
            await run.wait_seen(50, comes)
            comes.stop()
            assert await comes.wait() == 0, comes.log
        await stop(run, 1500)


@pytest.mark.parametrize("first", ["rebalance", "SIGTERM"])
async def test_a_rebalance_and_a_shutdown_at_once_both_come_to_their_end(
    numbers: Numbers, hold: Hold, first: str
) -> None:
    """One worker has an event in hand, for which both wait."""
    async with numbers() as run:
        one = run.start(
            environment=hold.environment, settings={**QUICK, "stream_drain_timeout": 20, "agent_drain_timeout": 20}
        )
        await one.wait_for("ready")
        hold.on()
        await run.write(500)
        await one.wait_for("^held$")
        if first == "SIGTERM":
            one.stop()
            await one.wait_for("draining")
        run.start(environment=PACE, settings=QUICK)
        await one.wait_inside("_drain")
        if first == "rebalance":
            one.stop()
            await one.wait_for("draining")
        hold.off()
        assert await one.wait() == 0, one.log
        assert "Traceback" not in one.log
        await stop(run, 500)


async def test_an_event_that_outlasts_the_drain_is_cancelled_and_processed_by_its_new_owner(
    numbers: Numbers, hold: Hold
) -> None:
    async with numbers() as run:
        one = run.start(environment=hold.environment, settings={**QUICK, "stream_drain_timeout": 0.5})
        await one.wait_for("ready")
        hold.on()
        await run.write(500)
        await one.wait_for("^held$")
        two = run.start(environment=PACE, settings=QUICK)
        await one.wait_for("cancelled the processing of .*: its partition was revoked")
        for worker in (one, two):
            await worker.wait_for(": 2 partitions assigned")
        await run.wait_seen(200, two)
        assert run.seen(one) == 0
        hold.off()
        await stop(run, 500)
