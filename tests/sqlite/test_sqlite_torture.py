"""Members come, go, are cancelled, lost and slow while the file is locked now and then: the laws hold all the same."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from famulus.channels.errors import TransportError
from famulus.channels.ledger import PartitionLedger
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.sqlite import SqliteTransport
from famulus.channels.sqlite.groups import ask_rebalance, throw_out
from famulus.channels.transport import Assignment, Consumer, ConsumerOptions, TopicSpec, TransportOptions

PARTITIONS = frozenset(TP("t", number) for number in range(5))


class World:
    """One file, what was seen by anybody, and who is connected. Faults come from a connection of its own."""

    def __init__(self, path: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.url = f"sqlite://{path}?busy_timeout=0.01&produce_timeout=5"
        self.path = path
        self.acked: dict[TP, set[int]] = {tp: set() for tp in PARTITIONS}
        self.members: set[Worker] = set()
        self.calm = False
        self._lock: sqlite3.Connection | None = None

    def look(self, query: str) -> list[tuple[int, ...]]:
        db = sqlite3.connect(self.path)
        found = db.execute(query).fetchall()
        db.close()
        return found

    def committed(self) -> dict[TP, int]:
        query = "SELECT p.number, c.next FROM committed c JOIN partitions p ON p.id = c.partition"
        return {TP("t", number): offset for number, offset in self.look(query)}

    def ends(self) -> dict[TP, int]:
        return {TP("t", number): end for number, end in self.look("SELECT number, next FROM partitions")}

    def check_commits(self) -> None:
        """Nothing is committed that nobody has worked off."""
        for tp, offset in self.committed().items():
            assert set(range(offset)) <= self.acked[tp], (tp, offset)

    def lock(self) -> None:
        if self._lock is None:
            self._lock = sqlite3.connect(self.path, isolation_level=None, timeout=10)
            self._lock.execute("BEGIN IMMEDIATE")

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def change(self, do: Callable[[sqlite3.Connection], object]) -> None:
        """Change a group behind everybody's back: nobody is woken."""
        if self._lock is None:
            db = sqlite3.connect(self.path, isolation_level=None, timeout=10)
            db.execute("BEGIN IMMEDIATE")
            do(db)
            db.execute("COMMIT")
            db.close()


class Worker:
    """A member as a conductor would be: ledgers, acks in any order, commits, a drain that may take too long."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.ledgers: dict[TP, PartitionLedger] = {}
        self.in_hand: list[tuple[TP, int, int]] = []
        self.consumer: Consumer | None = None
        self.generations: list[int] = []
        self.busy = False

    async def on_assigned(self, assignment: Assignment) -> None:
        assert not self.busy
        assert self.consumer is not None
        assert not self.ledgers
        self.generations.append(assignment.generation)
        for tp in assignment.partitions:
            self.ledgers[tp] = PartitionLedger(assignment.generation, self.consumer.position(tp))

    async def on_revoked(self, revoked: frozenset[TP], *, lost: bool) -> None:
        assert not self.busy
        self.busy = True
        try:
            assert revoked == frozenset(self.ledgers)
            if not lost:
                slow = not self.world.calm and self.world.random.random() < 0.1
                await trio.sleep(100 if slow else self.world.random.random())
                self.ack_some()
                await self.commit()
        finally:
            self.busy = False
            self.ledgers.clear()
            self.in_hand.clear()

    def ack_some(self) -> None:
        self.world.random.shuffle(self.in_hand)
        for _ in range(len(self.in_hand) * 2 // 3 + 1):
            if self.in_hand:
                tp, offset, generation = self.in_hand.pop()
                if self.ledgers[tp].ack(offset, generation):
                    self.world.acked[tp].add(offset)

    async def commit(self) -> None:
        offsets = {tp: ledger.committable for tp, ledger in self.ledgers.items()}
        if self.consumer is not None and offsets:
            with suppress(TransportError):
                await self.consumer.commit(offsets, generation=self.generations[-1])
        self.world.check_commits()

    async def run(self) -> None:
        transport = SqliteTransport(self.world.url, TransportOptions(client_id=self.name))
        options = ConsumerOptions(group="g", session_timeout=6.0, rebalance_timeout=10.0)
        with suppress(TransportError):  # also where the file is locked when it opens
            async with transport.open(), transport.open_consumer(options, self) as consumer:
                self.consumer = consumer
                await consumer.subscribe(["t"])
                self.world.members.add(self)
                try:
                    while True:
                        with trio.move_on_after(self.world.random.random()):
                            await self.work(consumer)
                        self.ack_some()
                        await self.commit()
                finally:
                    self.world.members.discard(self)

    async def work(self, consumer: Consumer) -> None:
        for batch in await consumer.fetch(dict.fromkeys(self.ledgers, self.world.random.randint(1, 9))):
            ledger = self.ledgers[batch.tp]
            assert batch.generation == ledger.generation
            offsets = [message.offset for message in batch.messages]
            ledger.deliver_offsets(offsets, batch.next_offset)
            self.in_hand += [(batch.tp, offset, batch.generation) for offset in offsets]


LONG = [pytest.param(seed, 120, marks=pytest.mark.torture) for seed in range(1, 30)]


@pytest.mark.parametrize(("seed", "steps"), [(0, 30), *LONG])
@pytest.mark.hard_timeout(300)
async def test_nothing_is_lost_and_nothing_committed_unseen(tmp_path: Path, seed: int, steps: int) -> None:
    world = World(tmp_path / "broker.db", seed)
    choice = world.random
    scopes: dict[str, trio.CancelScope] = {}
    producer = SqliteTransport(world.url)

    async def life(name: str) -> None:
        with trio.CancelScope() as scopes[name]:
            await Worker(world, name).run()

    def lose(name: str) -> None:
        found = world.look(f"SELECT id FROM members WHERE client = '{name}' AND gone IS NULL")
        if found:
            world.change(lambda db: throw_out(db, found[0][0], "its session has expired"))

    async def live() -> None:
        async with trio.open_nursery() as nursery:
            for step in range(steps):
                event = choice.random()
                if event < 0.15 and len(scopes) < 40:
                    nursery.start_soon(life, f"w{step}")
                elif event < 0.25 and scopes:
                    scopes[choice.choice(sorted(scopes))].cancel()
                elif event < 0.32 and world.members:
                    lose(choice.choice(sorted(member.name for member in world.members)))
                elif event < 0.38 and world.look("SELECT 1 FROM consumer_groups"):
                    world.change(lambda db: ask_rebalance(db, "g"))
                elif event < 0.46:
                    world.lock()
                elif event < 0.58:
                    world.unlock()
                else:
                    tp = choice.choice(sorted(PARTITIONS))
                    await producer.produce({tp: [ProducerRecord(None, b"")] * choice.randint(1, 20)})
                await trio.sleep(choice.random() * 3)
            world.calm = True
            world.unlock()
            for name in ("last-1", "last-2"):
                nursery.start_soon(life, name)
            for _ in range(60):
                await trio.sleep(5)
                if {tp: world.committed().get(tp, 0) for tp in PARTITIONS} == world.ends():
                    break
            await trio.sleep(120)  # the slowest of those who let go takes 100
            assert world.look("SELECT preparing FROM consumer_groups") == [(0,)]
            owned = [tp for member in world.members if member.consumer for tp in member.consumer.assignment.partitions]
            assert sorted(owned) == sorted(PARTITIONS)
            ends = world.ends()
            assert {tp: len(offsets) for tp, offsets in world.acked.items()} == ends
            assert {tp: world.committed().get(tp, 0) for tp in PARTITIONS} == ends
            for member in world.members:
                assert member.generations == sorted(set(member.generations))
            world.check_commits()
            nursery.cancel_scope.cancel()

    async with producer.open():
        await producer.create_topic(TopicSpec(name="t", partitions=len(PARTITIONS)))
        await live()
        await producer._housekeeping.round(at_once=True)
        assert world.look("SELECT count(*) FROM members") == [(0,)]
