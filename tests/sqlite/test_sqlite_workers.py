"""Workers as real processes on one file, killed at random points: law 2 holds all the time, and the log is whole.

`numbered` compares the group's committed offsets with what the workers have written down, ten times a second.
"""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

import pytest
import trio

from famulus.channels.message import TP, Message, ProducerRecord
from famulus.channels.sqlite import SqliteTransport
from famulus.channels.transport import ConsumerOptions, TopicSpec, TransportOptions
from famulus.testing.numbered import numbered
from famulus.testing.worker_process import WorkerProcess

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(240), pytest.mark.slow]

SCRIPT = Path(__file__).parent.parent / "kafka" / "numbers_app.py"
SENDER = Path(__file__).with_name("sending.py")
TRANSACTING = Path(__file__).with_name("transacting.py")
SETTINGS = {"broker_session_timeout": 10, "broker_commit_interval": 0.05}
PARTITIONS = 4


class Silent:
    async def on_assigned(self, assignment: object) -> None:
        await trio.lowlevel.checkpoint()

    async def on_revoked(self, revoked: object, *, lost: bool) -> None:
        await trio.lowlevel.checkpoint()


async def read_all(transport: SqliteTransport, topic: str) -> dict[TP, list[Message]]:
    """The whole log of a topic."""
    found: dict[TP, list[Message]] = {}
    async with transport.open_consumer(ConsumerOptions(group=f"reader-of-{topic}"), Silent()) as reader:
        await reader.subscribe([topic])
        ends = {tp: reader.highwater(tp) for tp in reader.assignment.partitions}
        while room := {tp: 10_000 for tp in ends if reader.position(tp) < ends[tp]}:
            for batch in await reader.fetch(room):
                found.setdefault(batch.tp, []).extend(batch.messages)
    return found


async def kill_and_replace(url: str, directory: Path, seed: int, kills: int) -> None:
    """Four workers on a numbered input; one after the other is killed at a random point and replaced by another."""
    chance = random.Random(seed)
    written = 0
    async with numbered(url, name="numbers", script=SCRIPT, directory=directory, partitions=PARTITIONS) as run:
        pace = {"NUMBERS_PACE": "0.001"}
        running = [run.start(environment=pace, settings=SETTINGS) for _ in range(4)]
        for worker in running:
            await worker.wait_for(r"generation \d+: 1 partitions assigned")
        for _ in range(kills):
            written += 400
            await run.write(400)
            await run.wait_seen(min(written, run.seen() + chance.randrange(100)))
            victim = chance.choice(running)
            victim.kill()
            running.remove(victim)
            running.append(run.start(environment=pace, settings=SETTINGS))
            if chance.random() < 0.5:
                await running[-1].wait_for(r"generation \d+: \d+ partitions assigned")
        await run.wait_committed()
        assert run.unseen() == 0
        for worker in running:
            await worker.wait_for(r"generation \d+: \d+ partitions assigned")
        for worker in running:
            worker.stop()
        for worker in running:
            assert await worker.wait() == 0, worker.log
        assert sorted(set(await run.outputs())) == [2 * number for number in range(written)]
    check_dense(directory / "broker.db")


def check_dense(path: Path) -> None:
    """Every partition's rows follow each other without a gap, and all offsets are taken."""
    db = sqlite3.connect(path)
    for partition, first, end in db.execute("SELECT id, first, next FROM partitions").fetchall():
        at = first
        for base, behind, count in db.execute(
            "SELECT base, next, count FROM batches WHERE partition = ? ORDER BY next", (partition,)
        ):
            assert base == at
            assert behind == base + count
            at = behind
        assert at == end
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


async def test_workers_that_are_killed_lose_nothing_and_nothing_is_committed_unseen(tmp_path: Path, seed: int) -> None:
    await kill_and_replace(f"sqlite://{tmp_path}/broker.db", tmp_path, seed, kills=5)


@pytest.mark.torture
@pytest.mark.hard_timeout(3000)
async def test_a_hundred_workers_that_are_killed_lose_nothing(tmp_path: Path, seed: int) -> None:
    await kill_and_replace(f"sqlite://{tmp_path}/broker.db", tmp_path, seed, kills=100)


async def kill_senders(url: str, directory: Path, seed: int, kills: int) -> None:
    """Senders append numbers and write down which were acknowledged; each is killed at a random point."""
    chance = random.Random(seed)
    acknowledged: set[tuple[int, int]] = set()
    transport = SqliteTransport(url, TransportOptions())
    async with transport.open():
        await transport.create_topic(TopicSpec(name="sent", partitions=PARTITIONS))
        for sender in range(kills):
            journal = directory / f"acknowledged-{sender}"
            journal.touch()
            process = WorkerProcess([str(SENDER), url, str(sender), str(journal)], log=directory / "senders.log")
            try:
                wanted = chance.randrange(1, 2000)
                while journal.stat().st_size < wanted:
                    assert process.code is None, process.log
                    await trio.sleep(0.002)
                await trio.sleep(chance.random() * 0.01)
            finally:
                process.kill()
            lines = journal.read_text().split("\n")[:-1]
            acknowledged |= {(sender, number) for line in lines for number in json.loads(line)}
        logs = await read_all(transport, "sent")
    found = [tuple(json.loads(message.value or b"")) for messages in logs.values() for message in messages]
    assert acknowledged
    assert len(found) == len(set(found)), "a message is in the log twice"
    assert acknowledged <= set(found), "an acknowledged message is lost"
    for messages in logs.values():
        assert [message.offset for message in messages] == list(range(len(messages)))
        by_sender: dict[int, list[int]] = {}
        for message in messages:
            sender, number = json.loads(message.value or b"")
            by_sender.setdefault(sender, []).append(number)
        for numbers in by_sender.values():
            step = PARTITIONS
            assert numbers == list(range(numbers[0], numbers[0] + step * len(numbers), step)), "a batch is torn"
    check_dense(directory / "broker.db")


async def test_senders_that_are_killed_leave_whole_batches_and_all_that_was_acknowledged(
    tmp_path: Path, seed: int
) -> None:
    await kill_senders(f"sqlite://{tmp_path}/broker.db", tmp_path, seed, kills=5)


@pytest.mark.torture
@pytest.mark.hard_timeout(3000)
async def test_a_hundred_senders_that_are_killed_leave_whole_batches(tmp_path: Path, seed: int) -> None:
    await kill_senders(f"sqlite://{tmp_path}/broker.db", tmp_path, seed, kills=100)


async def kill_transactions(url: str, directory: Path, seed: int, kills: int) -> None:
    """Two processes that write outputs and offsets in transactions; one after the other is killed and replaced."""
    chance = random.Random(seed)
    transport = SqliteTransport(url, TransportOptions())
    sources = [TP("source", number) for number in range(PARTITIONS)]
    written = 0
    running: list[WorkerProcess] = []

    def start() -> None:
        running.append(WorkerProcess([str(TRANSACTING), url], log=directory / "transacting.log"))

    async def outputs() -> int:
        return sum([(offset or 0) for offset in (await observer.committed(sources)).values()])

    try:
        async with transport.open():
            for topic in ("source", "sink"):
                await transport.create_topic(TopicSpec(name=topic, partitions=PARTITIONS))
            async with transport.open_consumer(ConsumerOptions(group="doubling"), Silent()) as observer:
                for _ in range(2):
                    start()
                for _ in range(kills):
                    numbers = range(written, written + 400)
                    await transport.produce(
                        {tp: [ProducerRecord(None, b"%d" % n) for n in numbers[tp.partition :: 4]] for tp in sources}
                    )
                    written += 400
                    wanted = await outputs() + chance.randrange(1, 300)
                    while await outputs() < min(wanted, written):
                        assert any(process.code is None for process in running), running[0].log
                        await trio.sleep(0.002)
                    running.pop(chance.randrange(2)).kill()
                    start()
                while await outputs() < written:
                    await trio.sleep(0.01)
            logs = await read_all(transport, "sink")
    finally:
        for process in running:
            process.kill()
    for tp, messages in logs.items():
        assert [int(message.value or b"") for message in messages] == [2 * n for n in range(tp.partition, written, 4)]
    check_dense(directory / "broker.db")


async def test_outputs_and_offsets_of_a_killed_process_are_there_together_or_not_at_all(
    tmp_path: Path, seed: int
) -> None:
    await kill_transactions(f"sqlite://{tmp_path}/broker.db", tmp_path, seed, kills=5)


@pytest.mark.torture
@pytest.mark.hard_timeout(3000)
async def test_a_hundred_killed_processes_leave_each_output_once(tmp_path: Path, seed: int) -> None:
    await kill_transactions(f"sqlite://{tmp_path}/broker.db", tmp_path, seed, kills=100)
