"""Members come, go, are cancelled, lost and slow while the broker has its faults: the laws hold all the same."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import trio

from famulus.channels.errors import TransportError
from famulus.channels.ledger import PartitionLedger
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import (
    Assignment,
    Consumer,
    ConsumerOptions,
    ProduceResult,
    TransportOptions,
)

PARTITIONS = frozenset(TP("t", number) for number in range(5))


class World:
    """One broker, what was written to it, what was seen by anybody, and who is connected."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.broker = MemoryBroker()
        self.broker.create_topic("t", len(PARTITIONS))
        self.written = dict.fromkeys(PARTITIONS, 0)
        self.acked: dict[TP, set[int]] = {tp: set() for tp in PARTITIONS}
        self.members: set[Worker] = set()
        self.calm = False

    def check_commits(self) -> None:
        """Nothing is committed that nobody has worked off."""
        for tp, offset in self.broker.group("g").committed.items():
            assert set(range(offset)) <= self.acked[tp], (tp, offset)


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
        transport = MemoryTransport(broker=self.world.broker, options=TransportOptions(client_id=self.name))
        options = ConsumerOptions(group="g", session_timeout=6.0, rebalance_timeout=10.0)
        with suppress(TransportError):
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


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_lost_and_nothing_committed_unseen(seed: int) -> None:
    world = World(seed)
    choice = world.random
    scopes: dict[str, trio.CancelScope] = {}
    producer = MemoryTransport(broker=world.broker)

    async def life(name: str) -> None:
        with trio.CancelScope() as scopes[name]:
            await Worker(world, name).run()

    async with producer.open(), trio.open_nursery() as nursery:
        for step in range(120):
            event = choice.random()
            if event < 0.15 and len(scopes) < 40:
                nursery.start_soon(life, f"w{step}")
            elif event < 0.25 and scopes:
                scopes[choice.choice(sorted(scopes))].cancel()
            elif event < 0.32 and world.members:
                with suppress(KeyError):
                    name = choice.choice(sorted(member.name for member in world.members))
                    world.broker.faults.lose_member("g", name)
            elif event < 0.38:
                world.broker.faults.rebalance("g")
            elif event < 0.42:
                world.broker.faults.refuse_commits(2)
            elif event < 0.48:
                world.broker.faults.stop()
            elif event < 0.58:
                world.broker.faults.start()
            else:
                tp = choice.choice(sorted(PARTITIONS))
                outcome = (await producer.produce({tp: [ProducerRecord(None, b"")] * choice.randint(1, 20)}))[tp]
                if isinstance(outcome, ProduceResult):
                    world.written[tp] = world.broker.log(tp).end
            await trio.sleep(choice.random() * 3)
        world.calm = True
        world.broker.faults.clear()
        for name in ("last-1", "last-2"):
            nursery.start_soon(life, name)
        await trio.sleep(300)
        group = world.broker.group("g")
        assert not group.preparing
        owned = [tp for member in world.members if member.consumer for tp in member.consumer.assignment.partitions]
        assert sorted(owned) == sorted(PARTITIONS)
        assert {tp: len(offsets) for tp, offsets in world.acked.items()} == world.written
        assert {tp: group.committed.get(tp, 0) for tp in PARTITIONS} == world.written
        for member in world.members:
            assert member.generations == sorted(set(member.generations))
        world.check_commits()
        nursery.cancel_scope.cancel()
    assert world.broker.statistics().members == 0
