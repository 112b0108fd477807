"""Agents that ask each other, under torture: a random program per seed, in one run, or in runs that share only a broker.

Callers ask, give up, and ask again under the same id; agents crash; workers come, go and are cancelled; the broker misbehaves.
Every call ends; an answer is the right one; in the end nobody waits, nothing is buffered, and everything is committed. A failure
names its seed: ``FAMULUS_TORTURE_SEED=123 pytest -k one_seed_of_asks`` sees that program again, scheduling included.
"""

from __future__ import annotations

import logging
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from math import inf
from typing import Any

import attrs
import pytest
import trio
import trio.testing

import famulus
from famulus.actors import requests
from famulus.actors.replies import Replies
from famulus.app import connecting
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.transport import TransportOptions
from famulus.testing.clock import VirtualClock

APP = "asking"
KINDS = ("ask", "again", "nowait", "stream", "left stream", "map", "left map", "join", "kvjoin")


class Boom(Exception):
    """What agents raise."""


class Wire(MemoryTransport):
    """A memory broker that seems to be far away."""

    crosses_processes = True


@attrs.frozen
class AgentPlan:
    """One agent: how it is run, whom it asks itself, and what goes wrong with it."""

    index: int
    local: bool
    partitions: int
    concurrency: int
    policy: Any
    crash: float
    slow: float
    parts: int
    asks: int | None
    take: bool

    @property
    def name(self) -> str:
        return f"agent{self.index}"


@attrs.frozen
class Plan:
    """A program."""

    agents: list[AgentPlan]
    wire: bool
    broker_faults: bool

    @staticmethod
    def random(rng: random.Random, *, wire: bool) -> Plan:
        count = rng.randint(1, 4)
        agents = [
            AgentPlan(
                index=index,
                local=not wire and rng.random() < 0.4,
                partitions=rng.randint(1, 3),
                concurrency=rng.choice([1, 1, 2, 5]),
                policy=rng.choice(["ack", "retry", "retry", "dead_letter"]),
                crash=rng.choice([0, 0, 0.02, 0.15]),
                slow=rng.choice([0, 0.01, 0.3]),
                parts=rng.randint(1, 4),
                asks=rng.randint(index + 1, count - 1) if index + 1 < count and rng.random() < 0.7 else None,
                take=rng.random() < 0.2,
            )
            for index in range(count)
        ]
        return Plan(agents, wire, rng.random() < 0.6)

    def expected(self, index: int, number: int) -> int:
        asked = self.agents[index].asks
        return 10 * (number if asked is None else self.expected(asked, number))

    def may_fail(self, index: int) -> bool:
        asked = self.agents[index].asks
        return self.agents[index].crash > 0 or (asked is not None and self.may_fail(asked))


class Program:
    """The App and its agents, as one process has them."""

    def __init__(self, plan: Plan, rng: random.Random, broker: MemoryBroker) -> None:
        self.app = famulus.App(
            APP,
            broker=f"memory://{broker.name}",
            broker_commit_interval=0.5,
            stream_drain_timeout=1.0,
            agent_drain_timeout=1.0,
            stream_buffer_maxsize=20,
            producer_buffer_maxsize=10,
            reply_buffer_maxsize=100,
        )
        self.agents: list[famulus.Agent[int, int]] = []
        for each in plan.agents:
            self._declare(each, rng)

    def _declare(self, plan: AgentPlan, rng: random.Random) -> None:
        app, agents = self.app, self.agents
        channel: famulus.Channel[int] = (
            app.channel(plan.name, value_type=int, maxsize=5)
            if plan.local
            else app.topic(plan.name, value_type=int, partitions=plan.partitions)
        )

        async def answer(number: int) -> range:
            if rng.random() < plan.crash:
                raise Boom(number)
            await trio.sleep(rng.random() * plan.slow)
            base = number if plan.asks is None else await agents[plan.asks].ask(number)
            if rng.random() < plan.crash:
                raise Boom(number)
            return range(10 * base, 10 * base + (1 if plan.take else plan.parts))

        @app.agent(
            channel,
            name=plan.name,
            concurrency=plan.concurrency,
            on_failure=plan.policy,
            supervisor_strategy=famulus.OneForOneSupervisor(
                max_restarts=inf, backoff=famulus.Backoff(min=0.05, max=0.5)
            ),
        )
        async def agent(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            if plan.take:
                async for numbers in stream.take(3, within=0.1):
                    for number in numbers:
                        for part in await answer(number):
                            yield part
            else:
                async for number in stream:
                    for part in await answer(number):
                        yield part

        agents.append(agent)


class Callers:
    """Calls of all kinds, and how they ended."""

    def __init__(self, plan: Plan, rng: random.Random, program: Program) -> None:
        self.plan = plan
        self.rng = rng
        self.program = program
        self.ended: Counter[str] = Counter()
        self._numbers = iter(range(10**9))

    async def call(self) -> None:
        rng, plan = self.rng, self.plan
        index = rng.randrange(len(plan.agents))
        number, kind = next(self._numbers), rng.choice(KINDS)
        with trio.move_on_after(rng.choice([0.01, 0.1, 0.5, 3, 600])) as patience:
            try:
                await getattr(self, kind.replace(" ", "_"))(index, number)
            except famulus.AgentError:
                if not (plan.may_fail(index) or plan.broker_faults):
                    raise
                self.ended["refused"] += 1
            else:
                self.ended["answered"] += 1
        if patience.cancelled_caught:
            self.ended["given up"] += 1

    def check(self, index: int, number: int, answer: int) -> None:
        assert answer == self.plan.expected(index, number), (index, number, answer)

    async def ask(self, index: int, number: int) -> None:
        self.check(index, number, await self.program.agents[index].ask(number, key=str(number)))

    async def again(self, index: int, number: int) -> None:
        for times in range(10):
            with trio.move_on_after(0.1 * 2**times):
                answer = await self.program.agents[index].ask(number, correlation_id=f"again-{id(self)}-{number}")
                self.check(index, number, answer)
                return

    async def nowait(self, index: int, number: int) -> None:
        promise = await self.program.agents[index].ask_nowait(number)
        if self.rng.random() < 0.8:
            self.check(index, number, await promise)

    async def stream(self, index: int, number: int) -> None:
        first = self.plan.expected(index, number)
        plan = self.plan.agents[index]
        async with self.program.agents[index].ask_stream(number) as parts:
            found = [part async for part in parts]
        if not plan.take:  # the k-th answer of a batch is its k-th event's
            assert found == [*range(first, first + plan.parts)]

    async def left_stream(self, index: int, number: int) -> None:
        async with self.program.agents[index].ask_stream(number) as parts:
            async for part in parts:
                self.check(index, number, part)
                break

    async def map(self, index: int, number: int) -> None:
        numbers = [next(self._numbers) for _ in range(self.rng.randint(0, 8))]
        found: set[int] = set()
        async with self.program.agents[index].map(numbers, window=3) as results:
            while len(found) < len(numbers):
                try:
                    answer = await anext(results)
                except famulus.AgentError:
                    if not (self.plan.may_fail(index) or self.plan.broker_faults):
                        raise
                else:
                    self.check(index, numbers[results.index], answer)
                assert results.index not in found
                found.add(results.index)

    async def left_map(self, index: int, number: int) -> None:
        async with self.program.agents[index].map(iter(lambda: next(self._numbers), None), window=4) as results:
            async for _ in results:
                if self.rng.random() < 0.3 or results.index > 5:
                    break

    async def join(self, index: int, number: int) -> None:
        numbers = [next(self._numbers) for _ in range(self.rng.randint(0, 8))]
        found = await self.program.agents[index].join(numbers, window=self.rng.randint(1, 5))
        assert found == [self.plan.expected(index, each) for each in numbers]

    async def kvjoin(self, index: int, number: int) -> None:
        numbers = [next(self._numbers) for _ in range(self.rng.randint(0, 4))]
        found = await self.program.agents[index].kvjoin([(str(each), each) for each in numbers])
        assert found == [self.plan.expected(index, each) for each in numbers]


async def misbehave(rng: random.Random, broker: MemoryBroker) -> None:
    while True:
        await trio.sleep(rng.uniform(0.1, 3))
        fault = rng.choice(["rebalance", "refuse", "slow", "away", "lose"])
        if fault == "rebalance":
            broker.faults.rebalance(APP)
        elif fault == "refuse":
            broker.faults.refuse_commits(1)
        elif fault == "slow":
            broker.faults.delay_produce(rng.uniform(0.01, 0.5))
        elif fault == "away":
            broker.faults.stop()
            await trio.sleep(rng.uniform(0.1, 3))
            broker.faults.start()


async def guests(plan: Plan, rng: random.Random, broker: MemoryBroker) -> None:
    """Further workers, which ask too; half of them are cancelled."""
    while True:
        await trio.sleep(rng.uniform(0, 6))
        program = Program(plan, rng, broker)
        callers = Callers(plan, rng, program)
        with trio.CancelScope() as life:
            async with famulus.open_app(program.app) as running, trio.open_nursery() as nursery:
                with running.current():
                    for _ in range(3):
                        nursery.start_soon(callers.call)
                    if rng.random() < 0.5:
                        life.deadline = trio.current_time() + rng.uniform(0, 3)
                    await trio.sleep(rng.uniform(0, 4))
                nursery.cancel_scope.cancel()


async def quiet(worker: famulus.RunningApp, plan: Plan, broker: MemoryBroker) -> None:
    """Wait until all requests are done, also those of callers that have left, and in partitions of guests that were cancelled."""
    topics = [broker.topics[each.name] for each in plan.agents if not each.local]
    partitions = {log.tp for topic in topics for log in topic.logs}
    with trio.move_on_after(100_000):
        while (
            worker._run.conductor.partitions.keys() != partitions
            or worker.statistics().lag
            or Replies.of(worker._run).waiting
        ):
            await trio.sleep(5)
    await trio.sleep(60)


def check_idle(running: Any) -> None:
    run = running._run
    replies = Replies.of(run)
    actors = [actor for agent_run in getattr(running, "_agents", {}).values() for actor in agent_run.actors]
    waiting = [(slot.agent.name, slot.correlation_id) for slot in replies._slots.values()]
    assert not waiting, (waiting, actors, run.conductor.partitions)
    assert run.producer.buffered == 0
    for agent_run in getattr(running, "_agents", {}).values():
        assert agent_run.subscription._inbox.buffered == 0, agent_run


async def play(seed: int, broker: MemoryBroker, wire: bool) -> Counter[str]:
    """One program."""
    rng = random.Random(seed)
    plan = Plan.random(rng, wire=wire)
    before = trio.lowlevel.current_statistics().tasks_living
    there = Program(plan, rng, broker)
    here = Program(plan, rng, broker) if wire else there
    callers = Callers(plan, rng, here)

    async def some_calls() -> None:
        for _ in range(8):
            await trio.sleep(rng.uniform(0, 0.5))
            await callers.call()

    async def all_calls(running: Any) -> None:
        with running.current():
            async with trio.open_nursery() as faults:
                if plan.broker_faults:
                    faults.start_soon(misbehave, rng, broker)
                if wire:
                    faults.start_soon(guests, plan, rng, broker)
                async with trio.open_nursery() as calls:
                    for _ in range(10):
                        calls.start_soon(some_calls)
                faults.cancel_scope.cancel()
        broker.faults.clear()
        broker.faults.start()

    with trio.fail_after(200_000):
        async with famulus.open_app(there.app) as worker:
            if wire:
                async with famulus.open_client(here.app) as client:
                    await all_calls(client)
                    await quiet(worker, plan, broker)
                    check_idle(client)
            else:
                await all_calls(worker)
                await quiet(worker, plan, broker)
            await worker.commit()
            check_idle(worker)
            for each in plan.agents:
                if not each.local:
                    for log in broker.topics[each.name].logs:
                        assert broker.group(APP).committed.get(log.tp, 0) == log.end, log
            if not wire:
                statistics = worker.statistics()
                assert statistics.replies_sent >= callers.ended["answered"] // 2
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert callers.ended.total() == 80
    return callers.ended


def run_program(seed: int, monkeypatch: pytest.MonkeyPatch, *, wire: bool) -> Counter[str]:
    # Trio's own order of tasks comes from a generator of its own: seeded, a program is the same again.
    monkeypatch.setattr(trio._core._run, "_r", random.Random(seed))
    if wire:
        monkeypatch.setattr(connecting, "load_transport", _far)
        monkeypatch.setattr(requests, "replies_at", lambda address: None)
    name = f"asks-{seed}-{wire}"
    try:
        return trio.run(play, seed, MemoryBroker.named(name), wire, clock=VirtualClock())
    finally:
        MemoryBroker.forget(name)
        monkeypatch.undo()


def _far(url: str, options: TransportOptions) -> Wire:
    return Wire(url, options)


def one_seed(seed: int, monkeypatch: pytest.MonkeyPatch, wire: bool) -> Counter[str]:
    try:
        return run_program(seed, monkeypatch, wire=wire)
    except BaseException as error:
        error.add_note(f"FAMULUS_TORTURE_SEED={seed}, {'over the wire' if wire else 'in one run'}")
        raise


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.mark.parametrize("wire", [False, True], ids=["one run", "over the wire"])
def test_a_few_programs_of_asks(monkeypatch: pytest.MonkeyPatch, seed: int, wire: bool) -> None:
    ended: Counter[str] = Counter()
    for number in range(3 if wire else 5):
        ended += one_seed(seed + number, monkeypatch, wire)
    assert ended["answered"] > 0


@pytest.mark.skipif(
    "FAMULUS_TORTURE_SEED" not in os.environ, reason="without FAMULUS_TORTURE_SEED there is no one seed"
)
@pytest.mark.parametrize("wire", [False, True], ids=["one run", "over the wire"])
def test_one_seed_of_asks(monkeypatch: pytest.MonkeyPatch, wire: bool) -> None:
    print(one_seed(int(os.environ["FAMULUS_TORTURE_SEED"]), monkeypatch, wire))


@pytest.mark.torture
@pytest.mark.hard_timeout(1800)
@pytest.mark.parametrize("wire", [False, True], ids=["one run", "over the wire"])
def test_many_programs_of_asks(monkeypatch: pytest.MonkeyPatch, seed: int, wire: bool) -> None:
    ended: Counter[str] = Counter()
    for number in range(400):
        ended += one_seed(seed + number, monkeypatch, wire)
    print(dict(ended))
