"""Random pipelines of operators under torture: per seed a chain of them, actors that crash, runs that come and go, a bad broker.

Each number of the input has to come out at the end of the chain at least once, no commit may pass one whose way on is not
safe, and nothing may be left over. ``FAMULUS_TORTURE_SEED=123 pytest -k one_pipeline`` sees that one again.
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import pytest
import trio

import famulus
from famulus.channels.errors import TransportError
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import ProduceResult

APP = "pipes"

Operator = Callable[["Pipeline", famulus.Stream[Any]], famulus.Stream[Any]]


class Boom(Exception):
    """What agents and processors raise."""


def negated(number: int) -> int:
    return -number


async def negated_slowly(number: int) -> int:
    await trio.sleep(0.01)
    return -number


def even_chance(number: int) -> bool:
    return True


async def kept_slowly(number: int) -> bool:
    await trio.sleep(0.01)
    return True


OPERATORS: dict[str, Operator] = {
    "map": lambda p, s: s.map(negated).map(negated),
    "async map": lambda p, s: s.map(negated_slowly).map(negated_slowly),
    "filter": lambda p, s: s.filter(even_chance),
    "async filter": lambda p, s: s.filter(kept_slowly),
    "echo": lambda p, s: s.echo("copies"),
    "through": lambda p, s: s.through(p.name("via")),
    "through local": lambda p, s: s.through(p.local()),
    "group_by": lambda p, s: s.group_by(p.key, name=p.name("key")),
    "combine": lambda p, s: s & p.side(),
    "crashing processor": lambda p, s: s.map(p.crashing),
}


@attrs.define
class Pipeline:
    """One random program."""

    seed: int
    broker: MemoryBroker
    random: random.Random = attrs.field(init=False)
    app: famulus.App = attrs.field(init=False)
    chain: list[str] = attrs.field(init=False)
    end: str = attrs.field(init=False)
    concurrency: int = attrs.field(init=False)
    size: int = attrs.field(init=False)
    within: float = attrs.field(init=False)
    settings: dict[str, Any] = attrs.field(init=False)
    source: famulus.Topic[int] = attrs.field(init=False)
    output: famulus.Topic[int] = attrs.field(init=False)
    out: set[int] = attrs.field(factory=set)
    onward: set[int] = attrs.field(factory=set)
    sent: dict[TP, list[int]] = attrs.field(factory=dict)
    wrong: list[str] = attrs.field(factory=list)
    numbers: int = 0
    chaos: bool = True
    crash: float = 0.0
    _names: int = 0
    _made: dict[str, famulus.Channel[int]] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        rng = self.random = random.Random(self.seed)
        self.chain = [rng.choice(list(OPERATORS)) for _ in range(rng.randint(1, 5))]
        self.crash = rng.choice([0.0, 0.02, 0.1])
        self.end = rng.choice(["events", "take", "take", "noack"])
        self.concurrency = rng.choice([1, 1, 3])
        self.size, self.within = rng.randint(1, 8), rng.choice([0.2, 2.0])
        self.settings: dict[str, Any] = {
            "stream_buffer_maxsize": rng.randint(1, 50),
            "producer_buffer_maxsize": rng.randint(1, 50),
            "broker_commit_interval": rng.choice([0.3, 1.0]),
            "stream_drain_timeout": rng.choice([0.5, 5.0]),
            "topic_partitions": rng.randint(1, 4),
        }
        self.app = famulus.App(APP, broker=f"memory://{self.broker.name}", **self.settings)
        self.broker.auto_create = rng.random() < 0.5
        self.broker.create_topic("in", rng.randint(1, 4))
        self.broker.create_topic("side", rng.randint(1, 3))
        self.broker.create_topic("out", 1)
        self.source = self.app.topic("in", value_type=int)
        self.output = self.app.topic("out", value_type=int)
        self.app.agent(
            self.source,
            name="work",
            concurrency=self.concurrency,
            on_failure="retry",
            max_attempts=1000,  # none is buried: all have to come out
            supervisor_strategy=famulus.OneForOneSupervisor(max_restarts=math.inf),
        )(self.work)

    # -- what operators need ---------------------------------------------------------------------------------------

    def name(self, kind: str) -> str:
        """A name for the next place in the chain; the same in every incarnation."""
        self._names += 1
        return f"{kind}{self._names}"

    def local(self) -> famulus.Channel[int]:
        return self._made.setdefault(self.name("local"), self.app.channel(value_type=int, maxsize=self.size))

    def side(self) -> famulus.Stream[int]:
        return self.app.topic("side", value_type=int).stream()

    def key(self, number: int) -> str:
        self.crashing(number)
        return str(number % 5)

    def crashing(self, number: int) -> int:
        if self.chaos and self.random.random() < self.crash / 4:
            raise Boom(number)
        return number

    # -- the agent -------------------------------------------------------------------------------------------------

    async def work(self, stream: famulus.Stream[int]) -> None:
        self._names = 0
        made: famulus.Stream[Any] = stream
        combined = False
        for operator in self.chain:
            if operator == "combine":
                if combined:
                    continue
                combined = True
            made = OPERATORS[operator](self, made)
        if self.end == "events":
            async for event in made.events():
                await self.handle([event])
        elif self.end == "take":
            async for events in made.take_events(self.size, self.within):
                await self.handle(events)
        else:
            async for events in made.noack().take_events(self.size, self.within):
                await self.handle(events)
                for event in events:
                    event.ack()

    async def handle(self, events: list[famulus.Event[int]]) -> None:
        rng = self.random
        if len(events) > (1 if self.end == "events" else self.size):
            self.wrong.append(f"a list of {len(events)}")
        await trio.sleep(rng.random() * 0.1)
        if self.chaos and rng.random() < 0.005:
            await trio.sleep(8)  # longer than a drain
        if self.chaos and rng.random() < self.crash:
            raise Boom([event.value for event in events])
        for event in events:
            await self.output.send(event.value)
        if self.chaos and rng.random() < self.crash:
            raise Boom([event.value for event in events])

    # -- the broker ------------------------------------------------------------------------------------------------

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        commit, append = self.broker.commit, self.broker.append

        def watched_append(tp: TP, records: Sequence[ProducerRecord]) -> ProduceResult:
            if tp.topic == "out":
                self.out.update(int(record.value or b"0") for record in records)
            elif tp.topic.startswith("via") or tp.topic.endswith("-repartition"):
                self.onward.update(int(record.value or b"0") for record in records)
            return append(tp, records)

        def watched(group: str, offsets: Mapping[TP, int]) -> None:
            if group == APP:
                self.committing(offsets)
            commit(group, offsets)

        monkeypatch.setattr(self.broker, "commit", watched)
        monkeypatch.setattr(self.broker, "append", watched_append)

    def committing(self, offsets: Mapping[TP, int]) -> None:
        """Law 2: below what is committed all has come out, or is in a topic further on."""
        for tp, offset in offsets.items():
            if tp.topic in ("in", "side"):
                missing = [number for number in self.sent.get(tp, [])[:offset] if number not in self.out | self.onward]
                if missing:
                    self.wrong.append(f"{tp} committed at {offset}, past {missing[:3]}")

    def append(self, topic: str) -> None:
        self.numbers += 1
        log = self.random.choice(self.broker.topics[topic].logs)
        self.sent.setdefault(log.tp, []).append(self.numbers)
        self.broker.append(log.tp, [ProducerRecord(b"%d" % (self.numbers % 7), b"%d" % self.numbers)])

    def expected(self) -> set[int]:
        combined = "combine" in self.chain
        return {number for tp, numbers in self.sent.items() if combined or tp.topic == "in" for number in numbers}

    async def feed(self, until: float) -> None:
        while trio.current_time() < until:
            await trio.sleep(self.random.random())
            for _ in range(self.random.randint(0, 5)):
                self.append(self.random.choice(["in", "in", "side"]))

    async def misbehave(self, until: float) -> None:
        rng, faults, group = self.random, self.broker.faults, self.broker.group(APP)
        while trio.current_time() < until:
            await trio.sleep(rng.random() * 4)
            kind = rng.randrange(6)
            if kind == 0:
                faults.rebalance(APP)
            elif kind == 1 and group.members:
                faults.lose_member(APP, rng.choice(sorted(group.members)))
            elif kind == 2:
                faults.fail_fetches(2, famulus.BrokerUnavailable("a blip"))
            elif kind == 3:
                faults.fail_produce(rng.randint(1, 3), famulus.BrokerUnavailable("a blip"))
            elif kind == 4:
                faults.delay_produce(rng.random() * 2, rng.randint(1, 4))
            elif kind == 5:
                faults.stop()
                await trio.sleep(rng.random() * 8)
                faults.start()

    async def slot(self, until: float) -> None:
        """A worker that comes and goes."""
        rng = self.random
        while trio.current_time() < until:
            await trio.sleep(rng.random() * 3)
            try:
                with trio.move_on_after(rng.choice([math.inf, rng.random() * 20, rng.random()])):
                    async with famulus.open_app(self.app):
                        await trio.sleep(rng.random() * 20)
            except BaseExceptionGroup as group:
                _, rest = group.split(TransportError)  # did not start, the broker being away
                if rest is not None:
                    raise

    async def run(self) -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        until = 10 + self.random.random() * 30
        with trio.fail_after(2000):
            async with trio.open_nursery() as nursery:
                for _ in range(self.random.randint(1, 2)):
                    nursery.start_soon(self.slot, until)
                nursery.start_soon(self.misbehave, until)
                nursery.start_soon(self.feed, until)
        self.broker.faults.clear()
        finished = False
        with trio.move_on_after(2000):
            async with famulus.open_app(self.app) as running:
                await self.feed(trio.current_time() + 10)
                self.chaos = False
                self.append("in")
                while not self.wrong and not finished:
                    await trio.sleep(1)
                    finished = not self.left()
            assert running._run.producer.buffered == 0
        assert not self.wrong, self.wrong[:5]
        assert finished, f"it hangs; not done: {self.left()[:5]}"
        assert not self.broker.group(APP).members, "a member is left"
        assert trio.lowlevel.current_statistics().tasks_living == before, "a task is left"

    def left(self) -> list[str]:
        left = [str(number) for number in self.expected() - self.out]
        committed = self.broker.group(APP).committed
        for name, topic in self.broker.topics.items():
            if name == "in" or (name == "side" and "combine" in self.chain):
                left += [
                    f"{log.tp}: {committed.get(log.tp)} of {log.end}"
                    for log in topic.logs
                    if committed.get(log.tp, 0) < log.end
                ]
        return left


async def play(seed: int, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("famulus").setLevel(logging.CRITICAL + 1)
    random.seed(seed)
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    trio._core._run._r.seed(seed)
    pipeline = Pipeline(seed, broker)
    pipeline.watch(monkeypatch)
    try:
        await pipeline.run()
    except BaseException as error:
        error.add_note(
            f"FAMULUS_TORTURE_SEED={seed} {pipeline.chain} {pipeline.end} concurrency={pipeline.concurrency} "
            f"take({pipeline.size}, {pipeline.within}) {pipeline.settings}"
        )
        raise
    finally:
        logging.getLogger("famulus").setLevel(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(12))
async def test_a_random_pipeline(number: int, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    await play(number, broker, monkeypatch)


async def test_one_pipeline(seed: int, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one each time."""
    await play(int(os.environ.get("FAMULUS_TORTURE_SEED") or seed), broker, monkeypatch)


@pytest.mark.torture
@pytest.mark.parametrize("number", range(300))
async def test_many_random_pipelines(
    number: int, seed: int, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await play(seed + number, broker, monkeypatch)
