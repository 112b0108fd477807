"""Crash loops under each strategy, with retry and dead letters: nothing lost, order kept, the commit never past the event."""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, Message, ProducerRecord
from famulus.supervision import SupervisorStrategy

PREFIX = "famulus-dead-letter-"
QUICK = famulus.Backoff(min=0.01, max=0.1)
PARTITIONS = 2
STRATEGIES: dict[str, SupervisorStrategy] = {
    "one-for-one": famulus.OneForOneSupervisor(max_restarts=inf, backoff=QUICK),
    "one-for-all": famulus.OneForAllSupervisor(max_restarts=inf, backoff=QUICK),
    "rest-for-one": famulus.RestForOneSupervisor(max_restarts=inf, backoff=QUICK),
}


class Watch:
    """What an agent that fails as often as its plan says has seen, and whether the commit ever ran ahead of it."""

    def __init__(self, broker: MemoryBroker, plan: dict[int, int], *, takes: float = 0.0) -> None:
        self.broker = broker
        self.plan = plan  # how often each number fails
        self.takes = takes
        self.started: list[tuple[int, int]] = []  # number, attempt
        self.done: list[int] = []
        self.running: Counter[TP] = Counter()
        self.buried: set[int] = set()

    async def work(self, event: famulus.Event[int]) -> None:
        number, tp = event.value, event.message.tp
        self.started.append((number, event.attempt))
        committed = self.broker.groups["loops"].committed.get(tp, 0)
        assert committed <= event.message.offset, "committed past an event that is in hand"
        if self.takes:
            await trio.sleep(self.takes)
        if sum(begun == number for begun, _ in self.started) <= self.plan.get(number, 0):
            raise ValueError(f"number {number}")
        self.done.append(number)

    def attempts(self, number: int) -> list[int]:
        return [attempt for begun, attempt in self.started if begun == number]


def put(broker: MemoryBroker, count: int) -> None:
    """Numbers from 0 on, those that are even in partition 0."""
    broker.create_topic("numbers", PARTITIONS)
    for number in range(count):
        broker.append(TP("numbers", number % PARTITIONS), [ProducerRecord(None, b"%d" % number)])


def looping(broker: MemoryBroker, watch: Watch, strategy: SupervisorStrategy, **options: Any) -> famulus.App:
    app = famulus.App("loops", broker=f"memory://{broker.name}", broker_commit_interval=0.05)

    @app.agent(app.topic("numbers", value_type=int), name="looper", supervisor_strategy=strategy, **options)
    async def loop(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            await watch.work(event)

    return app


def letters(broker: MemoryBroker) -> list[Message]:
    return broker.messages("numbers.dead-letter") if "numbers.dead-letter" in broker.topics else []


async def committed(broker: MemoryBroker, count: int) -> None:
    """Wait until all is committed."""
    ends = {TP("numbers", number): len(range(number, count, PARTITIONS)) for number in range(PARTITIONS)}
    ends = {tp: end for tp, end in ends.items() if end}
    with trio.fail_after(1000):
        while broker.group("loops").committed != ends:
            await trio.sleep(0.05)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("policy", ["retry", "dead_letter"])
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_crash_loop_loses_nothing_and_buries_what_never_succeeds(
    broker: MemoryBroker, strategy: str, policy: str, concurrency: int
) -> None:
    count = 40
    plan = {3: 1, 4: 99, 5: 2, 20: 99, 21: 99, 22: 1, 39: 99}
    put(broker, count)
    watch = Watch(broker, plan, takes=0.01)
    app = looping(broker, watch, STRATEGIES[strategy], on_failure=policy, max_attempts=3, concurrency=concurrency)
    async with famulus.open_app(app) as running:
        await committed(broker, count)
        statistics = running.statistics()
    buried = {int(letter.value or b"") for letter in letters(broker)}
    expected = {4, 20, 21, 39} if policy == "retry" else set(plan)
    assert buried == expected
    assert len(letters(broker)) == len(expected) == statistics.dead_letters
    assert set(watch.done) == set(range(count)) - expected
    for number in range(count):
        tried = watch.attempts(number)
        # A sibling's restart delivers again what was in hand, without counting an attempt.
        assert sorted(set(tried)) == list(range(1, min(plan.get(number, 0), 2 if policy == "retry" else 0) + 2))
        if concurrency == 1:
            assert len(tried) == len(set(tried))
    for letter in letters(broker):
        facts = dict(letter.headers)
        number = int(letter.value or b"")
        assert facts[f"{PREFIX}attempts"] == (b"3" if policy == "retry" else b"1")
        assert (facts[f"{PREFIX}partition"], facts[f"{PREFIX}offset"]) == (b"%d" % (number % 2), b"%d" % (number // 2))
    if concurrency == 1:
        for parity in range(PARTITIONS):
            order = [number for number, _ in watch.started if number % PARTITIONS == parity]
            assert order == sorted(order), "order within the partition was not kept during retry and backoff"
            assert watch.done == list(dict.fromkeys(watch.done))


@pytest.mark.parametrize("policy", ["retry", "dead_letter"])
async def test_under_the_crashing_strategy_the_run_ends_and_the_next_one_goes_on(
    broker: MemoryBroker, policy: str
) -> None:
    count = 10
    put(broker, count)
    watch = Watch(broker, {4: 2})
    crashes = 0
    while crashes < 5:
        app = looping(broker, watch, famulus.CrashingSupervisor(), on_failure=policy, max_attempts=3)
        try:
            async with famulus.open_app(app):
                await committed(broker, count)
                break
        except ExceptionGroup:
            crashes += 1
            assert broker.group("loops").committed.get(TP("numbers", 0), 0) <= 2 or policy == "dead_letter"
    if policy == "dead_letter":
        assert (crashes, [letter.value for letter in letters(broker)]) == (1, [b"4"])
        assert sorted(watch.done) == [number for number in range(count) if number != 4]
    else:
        assert (crashes, letters(broker)) == (2, [])
        assert set(watch.done) == set(range(count))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=st.dictionaries(st.integers(0, 14), st.integers(1, 5)),
    strategy=st.sampled_from(sorted(STRATEGIES)),
    policy=st.sampled_from(["retry", "dead_letter"]),
    concurrency=st.sampled_from([1, 2, 4]),
    takes=st.sampled_from([0.0, 0.01, 0.07]),
    faults=st.booleans(),
)
def test_whatever_fails_each_number_is_done_or_buried(
    plan: dict[int, int], strategy: str, policy: str, concurrency: int, takes: float, faults: bool
) -> None:
    count, attempts = 15, 3
    broker = MemoryBroker("loops-property").register()
    put(broker, count)
    watch = Watch(broker, plan, takes=takes)
    if faults:
        broker.faults.fail_produce(2, topic="numbers.dead-letter")
        broker.faults.refuse_commits(1)
    app = looping(
        broker, watch, STRATEGIES[strategy], on_failure=policy, max_attempts=attempts, concurrency=concurrency
    )

    async def run() -> None:
        async with famulus.open_app(app):
            await committed(broker, count)

    try:
        trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        MemoryBroker.forget(broker.name)
    buried = Counter(int(letter.value or b"") for letter in letters(broker))
    expected = {n for n, times in plan.items() if times >= (attempts if policy == "retry" else 1)}
    assert set(watch.done) | set(buried) == set(range(count))
    if not faults:  # a commit that is refused means lost: all that was not committed comes again
        assert set(buried) == expected
        assert max(buried.values(), default=1) == 1
        assert not set(buried) & set(watch.done)
