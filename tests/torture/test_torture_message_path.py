"""The way of a message under torture: a random program per seed, laws 1 to 3 watched at every commit and at the end.

Several runs of one App come and go, also by cancellation, while the broker misbehaves and handlers crash. A failure
names its seed: ``FAMULUS_TORTURE_SEED=123 pytest -k one_seed`` sees that program again, scheduling included.
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import attrs
import pytest
import trio

import famulus
from famulus.actors.replies import Replies
from famulus.channels.errors import TransportError
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, Message, ProducerRecord
from famulus.channels.runs import current_run
from famulus.channels.transport import ProduceResult

APP = "torture"


class Boom(Exception):
    """What handlers raise."""


@attrs.frozen
class AgentPlan:
    """One agent: how it reads, and what goes wrong with it."""

    name: str
    mode: str  # "plain", "group" or "noack"
    concurrency: int
    policy: Any
    crash: float
    slow: float
    hold: int  # events that a noack agent keeps before it acknowledges one


@attrs.define
class Watch:
    """What has happened, and whether that is lawful."""

    broker: MemoryBroker
    agents: list[AgentPlan]
    finished: set[tuple[str, int]] = attrs.field(factory=set)
    failed: set[tuple[str, int]] = attrs.field(factory=set)
    delivered: set[tuple[str, int]] = attrs.field(factory=set)
    forwarded: dict[str, set[int]] = attrs.field(factory=dict)
    buried: set[tuple[str, int]] = attrs.field(factory=set)
    checked: dict[TP, int] = attrs.field(factory=dict)
    newest: dict[tuple[object, ...], int] = attrs.field(factory=dict)
    seen: dict[tuple[object, ...], set[int]] = attrs.field(factory=dict)
    retrying: dict[tuple[object, ...], int] = attrs.field(factory=dict)
    cancelled: set[tuple[object, ...]] = attrs.field(factory=set)
    wrong: list[str] = attrs.field(factory=list)
    commits: int = 0

    # -- the broker's side: what is in the logs, what is committed ---------------------------------------------

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        append, commit = self.broker.append, self.broker.commit

        def watched_append(tp: TP, records: Sequence[ProducerRecord]) -> ProduceResult:
            for record in records:
                self.appended(tp, record)
            return append(tp, records)

        def watched_commit(group: str, offsets: Mapping[TP, int]) -> None:
            if group == APP:
                self.committing(offsets)
            commit(group, offsets)

        monkeypatch.setattr(self.broker, "append", watched_append)
        monkeypatch.setattr(self.broker, "commit", watched_commit)

    def appended(self, tp: TP, record: ProducerRecord) -> None:
        if tp.topic == "out":
            name, number = decode(record.value)
            self.delivered.add((name, number))
        elif tp.topic.endswith(".dead-letter"):
            name = dict(record.headers)["famulus-dead-letter-agent"].decode()
            self.buried.add((name, decode(record.value)))
        elif tp.topic.endswith("-repartition"):
            self.forwarded.setdefault(tp.topic, set()).add(decode(record.value))

    def done(self, plan: AgentPlan, number: int) -> bool:
        key = plan.name, number
        if key in self.buried or (plan.policy == "ack" and plan.mode != "noack" and key in self.failed):
            return True
        return key in self.finished and key in self.delivered

    def committing(self, offsets: Mapping[TP, int]) -> None:
        self.commits += 1
        for tp, offset in offsets.items():
            log = self.broker.topics[tp.topic].logs[tp.partition]
            if offset > log.end:
                self.wrong.append(f"{tp} committed at {offset}, past its end {log.end}")
            for place, entry in log.entries():
                if self.checked.get(tp, 0) <= place < offset:
                    self.check_done(tp, place, decode(Message(tp.topic, tp.partition, place, *entry).value))
            self.checked[tp] = max(offset, self.checked.get(tp, 0))

    def check_done(self, tp: TP, place: int, number: int) -> None:
        for plan in self.agents:
            if tp.topic == "in":
                ok = self.done(plan, number)
                if plan.mode == "group":
                    ok = number in self.forwarded.get(regrouped(plan), ()) or (plan.name, number) in self.buried
            elif tp.topic == regrouped(plan):
                ok = self.done(plan, number)
            else:
                continue
            if not ok:
                self.wrong.append(f"{tp} committed past {place} (number {number}), which {plan.name} has not done")

    # -- the agents' side: order -------------------------------------------------------------------------------

    def begin(self, plan: AgentPlan, run: object, event: famulus.Event[int]) -> None:
        message = event.message
        if plan.concurrency > 1:
            return
        key = run, plan.name, message.tp, message.generation
        again = self.retrying.pop(key, None)
        if again is not None and message.offset > again:
            self.wrong.append(f"{plan.name}: {message.tp}@{message.offset} came before the retry of {again}")
        seen = self.seen.setdefault(key, set())
        if message.offset in seen:
            was_cancelled = (*key, message.offset) in self.cancelled
            if plan.policy == "ack" and plan.mode != "noack" and not was_cancelled:
                self.wrong.append(f"{plan.name}: {message.tp}@{message.offset} came twice in one generation")
        elif message.offset <= self.newest.get(key, -1):
            self.wrong.append(f"{plan.name}: {message.tp}@{message.offset} came after {self.newest[key]}")
        seen.add(message.offset)
        self.newest[key] = max(message.offset, self.newest.get(key, -1))

    def crashed(self, plan: AgentPlan, run: object, event: famulus.Event[int]) -> None:
        self.failed.add((plan.name, event.value))
        if plan.concurrency == 1 and plan.policy == "retry" and event.attempt < 5:
            message = event.message
            self.retrying[run, plan.name, message.tp, message.generation] = message.offset

    def interrupted(self, plan: AgentPlan, run: object, event: famulus.Event[int]) -> None:
        message = event.message
        self.cancelled.add((run, plan.name, message.tp, message.generation, message.offset))

    # -- the end -----------------------------------------------------------------------------------------------

    def left(self) -> list[str]:
        """What is not done yet."""
        left: list[str] = []
        committed = self.broker.group(APP).committed
        for message in self.broker.messages("in"):
            number = decode(message.value)
            left += [f"{plan.name}: {number}" for plan in self.agents if not self.done(plan, number)]
        for topic in ("in", *(regrouped(plan) for plan in self.agents if plan.mode == "group")):
            for log in self.broker.topics[topic].logs:
                if committed.get(log.tp, 0) < log.end:
                    left.append(f"{log.tp}: committed {committed.get(log.tp)} of {log.end}")
        return left


def decode(value: bytes | None) -> Any:
    import orjson

    return orjson.loads(value or b"null")


def regrouped(plan: AgentPlan) -> str:
    return f"{APP}-in-{plan.name}-repartition" if plan.mode == "group" else ""


class Program:
    """One random program."""

    def __init__(self, seed: int, broker: MemoryBroker) -> None:
        self.random = rng = random.Random(seed)
        self.broker = broker
        self.partitions = rng.randint(1, 6)
        broker.create_topic("in", self.partitions)
        self.agents = [self.plan(number) for number in range(rng.choice([1, 1, 2]))]
        self.settings: dict[str, Any] = {
            "stream_buffer_maxsize": rng.randint(1, 50),
            "stream_max_span": rng.randint(10, 200),
            "producer_buffer_maxsize": rng.randint(1, 50),
            "broker_commit_interval": rng.choice([0.3, 1.0, 3.0]),
            "broker_commit_every": rng.choice([1, 5, 10_000]),
            "stream_drain_timeout": rng.choice([0.5, 5.0]),
            "producer_linger": rng.choice([0.0, 0.0, 0.05]),
            "topic_partitions": rng.randint(1, 4),
        }
        self.app = famulus.App(APP, broker=f"memory://{broker.name}", **self.settings)
        self.input: famulus.Topic[int] = self.app.topic("in", value_type=int, partitions=self.partitions)
        self.out: famulus.Topic[Any] = self.app.topic("out", partitions=rng.randint(1, 3))
        self.watch = Watch(broker, self.agents)
        self.held: dict[tuple[object, str], list[famulus.Event[int]]] = {}
        self.runs: list[Any] = []
        for plan in self.agents:
            self.declare(plan)

        @self.app.agent(self.app.topic("echo", value_type=int, partitions=2), name="echo", concurrency=2)
        async def echo(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for number in stream:
                if number % 7 == 3:
                    raise Boom(number)
                await trio.sleep(0.05)
                yield -number

        self.echo = echo
        self.numbers = 0
        self.markers = 0
        self.chaos = True

    def plan(self, number: int) -> AgentPlan:
        rng = self.random
        mode = rng.choice(["plain", "plain", "group", "noack"])
        return AgentPlan(
            name=f"agent{number}",
            mode=mode,
            concurrency=rng.choice([1, 1, 2, 5]),
            policy=rng.choice(["ack", "retry", "dead_letter"]),
            crash=rng.choice([0.0, 0.05, 0.2]),
            slow=rng.choice([0.0, 0.02, 0.3]),
            hold=rng.randint(0, 5),
        )

    # -- agents ------------------------------------------------------------------------------------------------

    def declare(self, plan: AgentPlan) -> None:
        async def work(stream: famulus.Stream[int]) -> None:
            run = current_run(self.app)
            if plan.mode == "group":
                stream = stream.group_by(lambda number: b"%d" % (number % 5), name=plan.name)
            elif plan.mode == "noack":
                stream = stream.noack()
            async for event in stream.events():
                self.watch.begin(plan, run, event)
                try:
                    await self.handle(plan, event)
                except Exception:
                    self.watch.crashed(plan, run, event)
                    raise
                except BaseException:
                    self.watch.interrupted(plan, run, event)
                    raise
                if plan.mode == "noack":
                    held = self.held.setdefault((run, plan.name), [])
                    held.append(event)
                    while len(held) > plan.hold:
                        self.ack(plan.name, held.pop(self.random.randrange(len(held))))
                else:
                    self.watch.finished.add((plan.name, event.value))

        self.app.agent(
            self.input,
            name=plan.name,
            concurrency=plan.concurrency,
            on_failure=plan.policy,
            supervisor_strategy=famulus.OneForOneSupervisor(max_restarts=math.inf),
        )(work)

    async def handle(self, plan: AgentPlan, event: famulus.Event[int]) -> None:
        rng = self.random
        if rng.random() < 0.7:
            await trio.sleep(rng.random() * plan.slow)
        if self.chaos and rng.random() < 0.01:
            await trio.sleep(8)  # longer than a drain
        if self.chaos and rng.random() < plan.crash / 2:
            raise Boom(event.value)
        promise = await self.out.send([plan.name, event.value])
        if rng.random() < 0.2:
            await promise
        if rng.random() < 0.3:
            await trio.sleep(rng.random() * plan.slow)
        if self.chaos and rng.random() < plan.crash / 2:
            raise Boom(event.value)

    def ack(self, name: str, event: famulus.Event[int]) -> None:
        self.watch.finished.add((name, event.value))
        event.ack()

    # -- runs --------------------------------------------------------------------------------------------------

    async def slot(self, until: float) -> None:
        """A worker that comes and goes."""
        rng = self.random
        while trio.current_time() < until:
            await trio.sleep(rng.random() * 5)
            patience = rng.choice([math.inf, rng.random() * 20, rng.random()])
            try:
                with trio.move_on_after(patience):
                    async with famulus.open_app(self.app) as running:
                        await self.body(running, min(until, trio.current_time() + rng.random() * 30))
            except BaseExceptionGroup as group:
                _, rest = group.split(TransportError)  # did not start, the broker being away
                if rest is not None:
                    raise

    async def body(self, running: famulus.RunningApp, until: float) -> None:
        run = running._run
        self.runs.append(run)
        with running.current():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.look, run)
                nursery.start_soon(self.ack_the_rest, run)
                for _ in range(self.random.choice([0, 3])):
                    nursery.start_soon(self.ask, running)
                while trio.current_time() < until:
                    await trio.sleep(self.random.random() * 2)
                    for _ in range(self.random.randint(0, 5)):
                        self.numbers += 1
                        await self.input.send(self.numbers, key=b"%d" % self.random.randrange(10))
                nursery.cancel_scope.cancel()

    async def look(self, run: Any) -> None:
        """Every buffer keeps its bound."""
        wrong, options = self.watch.wrong, run.options
        while True:
            buffered = run.producer.buffered - len(self.watch.failed)  # dead letters may exceed it
            if buffered > options.producer_buffer_maxsize:
                wrong.append(f"{run.producer!r}")
            most = options.stream_buffer_maxsize + 5  # a partition whose news are not known yet may add one each
            for inboxes in run.conductor._readers.of.values():
                wrong += [f"overfull: {inbox!r}" for inbox in inboxes if not 0 <= inbox.buffered <= most]
            for tp, tracker in run.conductor.partitions.items():
                if tracker.ledger.span > options.stream_max_span + self.markers:  # they come on top
                    wrong.append(f"{tp}: span {tracker.ledger.span} of {options.stream_max_span}")
            await trio.sleep(0.1)

    async def ack_the_rest(self, run: Any) -> None:
        while True:
            await trio.sleep(2)
            for plan in self.agents:
                held = self.held.get((run, plan.name), [])
                self.random.shuffle(held)
                while held:
                    self.ack(plan.name, held.pop())

    async def ask(self, running: famulus.RunningApp) -> None:
        while True:
            number = self.random.randrange(1000)
            with trio.move_on_after(self.random.choice([0.01, 1, 20])):
                try:
                    answer = await running.agent(self.echo).ask(number)
                except famulus.AgentError:
                    if number % 7 != 3:
                        self.watch.wrong.append(f"ask({number}) failed")
                else:
                    if answer != -number:
                        self.watch.wrong.append(f"ask({number}) was answered {answer}")
            await trio.sleep(self.random.random())

    # -- faults ------------------------------------------------------------------------------------------------

    async def misbehave(self, until: float) -> None:
        rng, faults, group = self.random, self.broker.faults, self.broker.group(APP)
        drastic = 0
        while trio.current_time() < until:
            await trio.sleep(rng.random() * 4)
            kind = rng.randrange(10)
            if kind == 0:
                faults.rebalance(APP)
            elif kind == 1 and group.members:
                faults.lose_member(APP, rng.choice(sorted(group.members)))
            elif kind == 2 and drastic < 5:
                drastic += 1
                faults.refuse_commits(rng.randint(1, 2))
            elif kind == 3 and drastic < 5:
                drastic += 1
                faults.fail_fetches(1)
            elif kind == 4:
                faults.fail_fetches(2, famulus.BrokerUnavailable("a blip"))
            elif kind == 5:
                faults.delay_produce(rng.random() * 3, rng.randint(1, 4))
            elif kind == 6:
                passing = any(plan.policy == "ack" for plan in self.agents)  # else it would be skipped, lawfully
                error = famulus.BrokerUnavailable("a blip") if passing else famulus.ProduceError("no")
                faults.fail_produce(rng.randint(1, 3), error, topic="out")
                for plan in self.agents:
                    if plan.mode == "group" and not passing:
                        faults.fail_produce(1, famulus.ProduceError("no"), topic=regrouped(plan))
            elif kind == 7:
                with faults.hold_produce(after_write=rng.random() < 0.5):
                    await trio.sleep(rng.random() * 15)
            elif kind == 8:
                faults.stop()
                await trio.sleep(rng.random() * 12)
                faults.start()
            elif kind == 9:
                self.compact()

    def compact(self) -> None:
        """Holes where everything is done, and markers."""
        tp = TP("in", self.random.randrange(self.partitions))
        safe = self.broker.group(APP).committed.get(tp, 0)
        self.broker.faults.compact(tp, self.random.sample(range(safe), self.random.randint(0, safe)))
        count = self.random.randint(1, 3)
        self.markers += count
        self.broker.faults.skip_offsets(tp, count)

    async def feed(self, until: float) -> None:
        """Numbers that others write."""
        while trio.current_time() < until:
            await trio.sleep(self.random.random())
            for _ in range(self.random.randint(0, 4)):
                self.append(self.random.randrange(self.partitions))

    def append(self, partition: int) -> None:
        self.numbers += 1
        self.broker.append(TP("in", partition), [ProducerRecord(None, b"%d" % self.numbers)])

    # -- all of it ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        until = 10 + self.random.random() * 50
        with trio.fail_after(2000):
            async with trio.open_nursery() as nursery:
                for _ in range(self.random.randint(1, 3)):
                    nursery.start_soon(self.slot, until)
                nursery.start_soon(self.misbehave, until)
                nursery.start_soon(self.feed, until)
        self.broker.faults.clear()
        self.chaos = False
        assert not self.broker.group(APP).members, "a member is left"
        for partition in range(self.partitions):
            self.append(partition)
        finished = False
        with trio.move_on_after(2000):
            async with famulus.open_app(self.app) as running:
                self.runs.append(running._run)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.look, running._run)
                    nursery.start_soon(self.ack_the_rest, running._run)
                    while self.watch.left() and not self.watch.wrong:
                        await trio.sleep(1)
                    finished = True
                    nursery.cancel_scope.cancel()
        assert not self.watch.wrong, self.watch.wrong[:5]
        assert finished, f"it hangs; not done: {self.watch.left()[:5]}"
        assert not self.broker.group(APP).members, "a member is left"
        assert trio.lowlevel.current_statistics().tasks_living == before, "a task is left"
        for run in self.runs:
            assert run.producer.buffered == 0, f"{run.producer!r} after the end"
            assert Replies.of(run).waiting == 0, "a caller is left"
        assert self.watch.commits


async def play(seed: int, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """One program; its own random numbers, trio's and those of the backoff all come from the seed."""
    logging.getLogger("famulus").setLevel(logging.CRITICAL + 1)
    random.seed(seed)
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    trio._core._run._r.seed(seed)
    program = Program(seed, broker)
    program.watch.install(monkeypatch)
    try:
        await program.run()
    except BaseException as error:
        error.add_note(f"FAMULUS_TORTURE_SEED={seed} {program.agents} {program.settings}")
        raise
    finally:
        logging.getLogger("famulus").setLevel(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
async def test_a_random_program(number: int, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    await play(number, broker, monkeypatch)


async def test_one_seed(seed: int, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new program each time."""
    await play(int(os.environ.get("FAMULUS_TORTURE_SEED") or seed), broker, monkeypatch)


@pytest.mark.torture
@pytest.mark.parametrize("number", range(400))
async def test_many_random_programs(
    number: int, seed: int, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await play(seed + number, broker, monkeypatch)
