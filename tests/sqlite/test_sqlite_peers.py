"""How processes notice each other: news wake them, the dead are known at once, the slow are left alone, the stuck are not."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from pathlib import Path

import pytest
import trio

from famulus.channels.errors import CommitRefused, MemberReplaced
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.sqlite import SqliteTransport, engine
from famulus.channels.sqlite.peers import CHANGE, NEWS, Peers
from famulus.channels.sqlite.silence import Silence
from famulus.channels.transport import ConsumerOptions, ProduceResult, TopicSpec
from famulus.testing.contract_kit import Changes, GroupMember, Recorder
from famulus.testing.worker_process import WorkerProcess

pytestmark = [pytest.mark.real_time]

TOPIC = TP("t", 0)
NEVER = 3600.0

SEND = """
import sys, trio
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.sqlite import SqliteTransport

async def main():
    transport = SqliteTransport(sys.argv[1])
    async with transport.open():
        print(await transport.produce({TP("t", 0): [ProducerRecord(None, b"hello")]}))

trio.run(main)
"""

JOIN = """
import sys, trio
from famulus.channels.sqlite import SqliteTransport
from famulus.channels.transport import ConsumerOptions

class Listener:
    async def on_assigned(self, assignment):
        print("owns", len(assignment.partitions), flush=True)

    async def on_revoked(self, revoked, *, lost):
        print("revoked", "lost" if lost else "kept", flush=True)

async def main():
    transport = SqliteTransport(sys.argv[1])
    options = ConsumerOptions(group="g", session_timeout=float(sys.argv[2]), rebalance_timeout=600)
    async with transport.open(), transport.open_consumer(options, Listener()) as consumer:
        await consumer.subscribe(["t"])
        await trio.sleep_forever()

trio.run(main)
"""


def url_of(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/broker.db"


def started(tmp_path: Path, program: str, *arguments: str) -> WorkerProcess:
    script = tmp_path / f"program-{len(list(tmp_path.glob('program-*')))}.py"
    script.write_text(program)
    return WorkerProcess([str(script), *arguments], log=script.with_suffix(".log"))


# Waking.


async def test_a_message_of_another_process_wakes_a_fetch_though_nobody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_PULSE", NEVER)  # the look now and then, which a poke must not need
    transport = SqliteTransport(url_of(tmp_path))
    recorder = Recorder(Changes())
    async with transport.open():
        await transport.create_topic(TopicSpec(name="t", partitions=1))
        async with transport.open_consumer(ConsumerOptions(group="g"), recorder) as consumer:
            await consumer.subscribe(["t"])
            member = GroupMember(transport, consumer, recorder)
            await member.reads_nothing(0.2)
            process = started(tmp_path, SEND, url_of(tmp_path))
            try:
                (message,) = await member.read(1)
                assert message.value == b"hello"
                await process.wait()
            finally:
                process.kill()


async def test_what_a_lost_poke_would_have_told_is_found_by_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peers, "poke", lambda self, kind: None)  # as if each sender were killed before it could
    one, two = SqliteTransport(url_of(tmp_path)), SqliteTransport(url_of(tmp_path))
    async with one.open(), two.open():
        await one.create_topic(TopicSpec(name="t", partitions=1))
        recorder = Recorder(Changes())
        async with one.open_consumer(ConsumerOptions(group="g"), recorder) as consumer:
            await consumer.subscribe(["t"])
            await two.produce({TOPIC: [ProducerRecord(None, b"hello")]})
            assert len(await GroupMember(one, consumer, recorder).read(1)) == 1


async def test_without_named_pipes_all_works_by_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "mkfifo")
    one, two = SqliteTransport(url_of(tmp_path)), SqliteTransport(url_of(tmp_path))
    async with one.open(), two.open():
        assert not one._engine.peers.pipes
        await one.create_topic(TopicSpec(name="t", partitions=2))
        recorders = Recorder(Changes()), Recorder(Changes())
        options = ConsumerOptions(group="g", session_timeout=3)
        async with one.open_consumer(options, recorders[0]) as first:
            await first.subscribe(["t"])
            async with two.open_consumer(options, recorders[1]) as second:
                await second.subscribe(["t"])
                await recorders[0].changes.until(lambda: len(first.assignment.partitions) == 1)
                await two.produce({TP("t", number): [ProducerRecord(None, b"hello")] for number in range(2)})
                assert len(await GroupMember(one, first, recorders[0]).read(1)) == 1
                assert len(await GroupMember(two, second, recorders[1]).read(1)) == 1
    assert os.listdir(tmp_path) == ["broker.db"]


def test_a_poke_reaches_all_others_and_each_kind_comes_once(tmp_path: Path) -> None:
    peers = [Peers(tmp_path / "broker.db") for _ in range(3)]
    for one in peers:
        one.open()
    for _ in range(100_000):  # more than a pipe holds
        peers[0].poke(NEWS)
    peers[0].poke(CHANGE)
    assert peers[0].read() == b""
    assert peers[1].read() == NEWS + CHANGE
    assert peers[1].read() == b""
    peers[1].close()
    peers[0].poke(CHANGE)
    assert peers[2].read() == NEWS + CHANGE
    peers[0].poke(CHANGE)
    assert peers[2].read() == CHANGE
    assert peers[0].sign_of(peers[1].name) is None
    assert peers[0].sign_of(peers[2].name) is not None
    for one in (peers[0], peers[2]):
        one.close()
    assert list(tmp_path.iterdir()) == []


def test_what_the_dead_left_is_cleared(tmp_path: Path) -> None:
    one, two = Peers(tmp_path / "broker.db"), Peers(tmp_path / "broker.db")
    for peers in (one, two):
        peers.open()
    two._close_ends()  # as the kernel does when its process is killed
    assert one.sign_of(two.name) is None
    one.clear_dead()
    assert [path.name for path in (tmp_path / "broker.db-peers").iterdir()] == [one.name]
    one.close()


# Leases.


def test_silence_is_counted_while_one_looks_and_no_longer() -> None:
    silence = Silence(pace=1.0)
    assert silence.heard({1: 10, 2: 20}, now=0.0) == {1: 0.0, 2: 0.0}
    assert silence.heard({1: 10, 2: 21}, now=1.0) == {1: 1.0, 2: 0.0}
    assert silence.heard({1: 10, 2: 21}, now=1001.0) == {1: 3.0, 2: 2.0}, "asleep for long: two paces count"
    assert silence.heard({2: 21, 3: 5}, now=1002.0) == {2: 3.0, 3: 0.0}
    assert silence.heard({1: 10}, now=1003.0) == {1: 0.0}, "forgotten, and back"


@pytest.mark.slow
async def test_the_partitions_of_a_killed_process_move_long_before_its_session_is_over(tmp_path: Path) -> None:
    transport = SqliteTransport(url_of(tmp_path))
    recorder = Recorder(Changes())
    async with transport.open():
        await transport.create_topic(TopicSpec(name="t", partitions=2))
        other = started(tmp_path, JOIN, url_of(tmp_path), str(NEVER))
        try:
            await other.wait_for("owns 2")
            options = ConsumerOptions(group="g", session_timeout=NEVER, rebalance_timeout=NEVER)
            async with transport.open_consumer(options, recorder) as consumer:
                await consumer.subscribe(["t"])
                assert len(consumer.assignment.partitions) == 1
                other.kill()
                with trio.fail_after(30):
                    await recorder.changes.until(lambda: len(consumer.assignment.partitions) == 2)
        finally:
            other.kill()


@pytest.mark.slow
async def test_the_partitions_of_a_suspended_process_move_after_its_session_and_it_learns_so(tmp_path: Path) -> None:
    transport = SqliteTransport(url_of(tmp_path))
    recorder = Recorder(Changes())
    async with transport.open():
        await transport.create_topic(TopicSpec(name="t", partitions=2))
        other = started(tmp_path, JOIN, url_of(tmp_path), "2")
        try:
            await other.wait_for("owns 2")
            options = ConsumerOptions(group="g", session_timeout=2, rebalance_timeout=600)
            async with transport.open_consumer(options, recorder) as consumer:
                await consumer.subscribe(["t"])
                await other.wait_for("owns 1")
                other.suspend()
                with trio.fail_after(40):
                    await recorder.changes.until(lambda: len(consumer.assignment.partitions) == 2)
                other.resume()
                await other.wait_for("revoked lost")
                await other.wait_for("owns 1", times=2)
        finally:
            other.kill()


@pytest.mark.slow
async def test_a_lock_held_for_longer_than_a_session_costs_nobody_its_partitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database stands still, as on a slow disk; signs of life need no transaction."""
    session = 0.6
    monkeypatch.setattr(engine, "_PULSE", session / 6)
    transports = [SqliteTransport(f"{url_of(tmp_path)}?busy_timeout=20") for _ in range(2)]
    recorders = [Recorder(Changes()) for _ in range(2)]
    options = ConsumerOptions(group="g", session_timeout=session, rebalance_timeout=60)
    async with transports[0].open(), transports[1].open():
        await transports[0].create_topic(TopicSpec(name="t", partitions=2))
        async with (
            transports[0].open_consumer(options, recorders[0]) as one,
            transports[1].open_consumer(options, recorders[1]) as two,
        ):
            for consumer in (one, two):
                await consumer.subscribe(["t"])
            await recorders[0].changes.until(lambda: one.assignment.generation == two.assignment.generation)
            before = one.assignment, two.assignment
            lock = sqlite3.connect(tmp_path / "broker.db", isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")
            results: list[object] = []

            async def write() -> None:
                results.append((await transports[0].produce({TOPIC: [ProducerRecord(None, b"late")]}))[TOPIC])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                ticks = 0
                with trio.move_on_after(3 * session):
                    while True:  # the loop goes on meanwhile
                        await trio.sleep(0.01)
                        ticks += 1
                assert not results
                assert ticks > 20
                lock.close()
            assert isinstance(results[0], ProduceResult)
            await trio.sleep(2 * session)
            assert (one.assignment, two.assignment) == before
            for consumer, assignment in zip((one, two), before, strict=True):
                offsets = dict.fromkeys(assignment.partitions, 0)
                await consumer.commit(offsets, generation=assignment.generation)


@pytest.mark.slow
async def test_a_slow_disk_stops_no_timer_and_costs_nobody_its_partitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = 0.6
    monkeypatch.setattr(engine, "_PULSE", session / 6)
    slow, other = (SqliteTransport(url_of(tmp_path)) for _ in range(2))
    recorders = [Recorder(Changes()) for _ in range(2)]
    options = ConsumerOptions(group="g", session_timeout=session, rebalance_timeout=60)
    async with slow.open(), other.open():
        await slow.create_topic(TopicSpec(name="t", partitions=2))
        async with slow.open_consumer(options, recorders[0]) as one, other.open_consumer(options, recorders[1]) as two:
            for consumer in (one, two):
                await consumer.subscribe(["t"])
            await recorders[0].changes.until(lambda: one.assignment.generation == two.assignment.generation)
            before = one.assignment, two.assignment
            done: list[str] = []
            gate = threading.Event()  # the disk answers when this is set

            async def write() -> None:
                await slow._engine.write(lambda tx: gate.wait())
                done.append("written")

            async def read() -> None:
                await slow._engine.read(lambda db: gate.wait())
                done.append("read")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                nursery.start_soon(read)
                ticks = 0
                try:
                    with trio.move_on_after(3 * session):
                        while True:
                            await trio.sleep(0.01)
                            ticks += 1
                finally:
                    gate.set()
                assert not done
                assert ticks > 20
            await trio.sleep(2 * session)
            assert (one.assignment, two.assignment) == before
            for consumer, assignment in zip((one, two), before, strict=True):
                offsets = dict.fromkeys(assignment.partitions, 0)
                await consumer.commit(offsets, generation=assignment.generation)


async def test_of_two_members_with_one_instance_id_the_older_ends_with_the_reason(tmp_path: Path) -> None:
    transports = [SqliteTransport(url_of(tmp_path)) for _ in range(2)]
    options = ConsumerOptions(group="g", instance_id="a")
    async with transports[0].open(), transports[1].open():
        await transports[0].create_topic(TopicSpec(name="t", partitions=2))
        older = Recorder(Changes())
        with pytest.raises(MemberReplaced, match=r"static member 'a' was given to another process.*only one process"):
            async with transports[0].open_consumer(options, older) as first:
                await first.subscribe(["t"])
                async with transports[1].open_consumer(options, Recorder(Changes())) as second:
                    await second.subscribe(["t"])
                    assert len(second.assignment.partitions) == 2
                    await trio.sleep_forever()
        assert older.revoked == [(frozenset({TP("t", 0), TP("t", 1)}), True)]


async def test_an_old_generation_cannot_commit_in_a_transaction_either(tmp_path: Path) -> None:
    transport = SqliteTransport(url_of(tmp_path))
    recorder = Recorder(Changes())
    async with transport.open():
        await transport.create_topic(TopicSpec(name="t", partitions=1))
        async with transport.open_consumer(ConsumerOptions(group="g"), recorder) as consumer:
            await consumer.subscribe(["t"])
            generation = consumer.assignment.generation
            db = sqlite3.connect(tmp_path / "broker.db")
            with db:  # a rebalance that this process has not noticed yet
                db.execute("UPDATE consumer_groups SET generation = generation + 1")
            db.close()
            with pytest.raises(CommitRefused, match=f"generation {generation} is over"):
                await transport.transact(
                    {TOPIC: [ProducerRecord(None, b"x")]}, {TOPIC: 1}, group="g", generation=generation
                )
            assert await transport._engine.read(lambda db: db.execute("SELECT count(*) FROM batches").fetchone()) == (
                0,
            )


# Law 1.


async def test_leaving_leaves_no_thread_no_file_and_no_descriptor(tmp_path: Path) -> None:
    async def once() -> None:
        transport = SqliteTransport(url_of(tmp_path))
        recorder = Recorder(Changes())
        async with transport.open():
            with trio.move_on_after(NEVER):
                if "t" not in await transport.list_topics():
                    await transport.create_topic(TopicSpec(name="t", partitions=1))
                await transport.produce({TOPIC: [ProducerRecord(None, b"x")]})
                async with transport.open_consumer(ConsumerOptions(group="g"), recorder) as consumer:
                    await consumer.subscribe(["t"])
                    await GroupMember(transport, consumer, recorder).read(1)

    await once()
    descriptors = len(os.listdir("/dev/fd")) if sys.platform != "win32" else 0
    tasks = trio.lowlevel.current_statistics().tasks_living
    for _ in range(5):
        await once()
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert len(os.listdir("/dev/fd")) == descriptors
    assert all(thread.name.startswith(("MainThread", "Trio")) for thread in threading.enumerate()), (
        threading.enumerate()
    )
    assert os.listdir(tmp_path) == ["broker.db"]
