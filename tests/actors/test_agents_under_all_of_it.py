"""Crashes, restarts, rebalances and other workers in any order: no event is left out, and none comes before an older one."""

from __future__ import annotations

import random
from collections import defaultdict
from math import inf

import pytest
import trio

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord

STRATEGIES = [famulus.OneForOneSupervisor, famulus.OneForAllSupervisor, famulus.RestForOneSupervisor]
PARTITIONS = [*(TP("few", number) for number in range(3)), *(TP("many", number) for number in range(5))]
COUNT = 60


class Chaos:
    """A program of random events over a broker; `done` is what was finished, in its order."""

    def __init__(self, broker: MemoryBroker, seed: int) -> None:
        self.broker = broker
        self.random = random.Random(seed)
        self.isolated = seed % 2 == 0
        self.concurrency = 4 if seed % 4 == 3 else 1
        self.strategy = STRATEGIES[seed // 2 % 3]
        self.done: dict[TP, list[int]] = defaultdict(list)

    def app(self) -> tuple[famulus.App, famulus.Agent[int, None]]:
        url = f"memory://{self.broker.name}"
        app = famulus.App("chaos", broker=url, broker_commit_interval=0.5, stream_drain_timeout=1.0)
        backoff = famulus.Backoff(min=0.1, max=1.0)

        @app.agent(
            app.topic("few", "many", value_type=int),
            name="tally",
            isolated_partitions=self.isolated,
            concurrency=self.concurrency,
            on_failure="retry",
            max_attempts=1_000_000,
            supervisor_strategy=self.strategy(max_restarts=inf, backoff=backoff),
        )
        async def tally(stream: famulus.Stream[int]) -> None:
            chance = self.random.random
            if chance() < 0.2:
                await trio.sleep(chance())
            if chance() < 0.05:
                raise ValueError("at its start")
            if chance() < 0.3:
                async for batch in stream.take_events(3, within=0.3):
                    await self.work()
                    self.finished(*batch)
            async for event in stream.events():
                await self.work()
                self.finished(event)
                if chance() < 0.02:
                    return
                if chance() < 0.02:
                    await trio.sleep(1.5)
                if chance() < 0.005:
                    await tally.restart()

        return app, tally

    async def work(self) -> None:
        chance = self.random.random
        with trio.CancelScope(shield=chance() < 0.01):
            await trio.sleep(3 if chance() < 0.02 else 0.1 * chance())
        if chance() < 0.05:
            raise ValueError("on an event")

    def finished(self, *events: famulus.Event[int]) -> None:
        for event in events:
            self.done[event.message.tp].append(event.message.offset)

    async def another_worker(self) -> None:
        app, tally = self.app()
        async with famulus.open_app(app):
            await trio.sleep(6 * self.random.random())
            if self.random.random() < 0.3:
                await tally.cancel()
                await trio.sleep(1)

    async def happen(self, nursery: trio.Nursery, tally: famulus.Agent[int, None]) -> None:
        which = self.random.random()
        if which < 0.3:
            self.broker.faults.rebalance("chaos")
        elif which < 0.5:
            nursery.start_soon(tally.restart)
        elif which < 0.75:
            nursery.start_soon(self.another_worker)
        else:
            with trio.move_on_after(0.2):
                await tally.restart()

    def put(self) -> None:
        for tp in PARTITIONS:
            self.broker.append(tp, [ProducerRecord(None, b"%d" % number) for number in range(COUNT // 2)])

    async def run(self) -> None:
        app, tally = self.app()
        async with famulus.open_app(app) as running:
            async with trio.open_nursery() as nursery:
                for step in range(18):
                    if step == 12:
                        self.put()
                    await trio.sleep(3 * self.random.random())
                    await self.happen(nursery, tally)
                    assert tally.info().name == "tally"
                    assert running.tree().state == "running"
                    tally.actor_tracebacks()
            with trio.fail_after(1000):
                while self.broker.group("chaos").committed != dict.fromkeys(PARTITIONS, COUNT):
                    await trio.sleep(5)


@pytest.mark.parametrize("seed", range(12))
async def test_every_event_is_finished_and_none_before_an_older_one_of_its_partition(
    broker: MemoryBroker, seed: int
) -> None:
    broker.create_topic("few", 3)
    broker.create_topic("many", 5)
    chaos = Chaos(broker, seed)
    chaos.put()
    with trio.fail_after(3000):
        await chaos.run()
    for tp in PARTITIONS:
        assert set(chaos.done[tp]) == set(range(COUNT))
        if chaos.concurrency == 1:
            newest = -1
            for offset in chaos.done[tp]:  # after a rebalance some may come again, but none is left out on the way
                assert offset <= newest + 1, (tp, chaos.done[tp])
                newest = max(newest, offset)
