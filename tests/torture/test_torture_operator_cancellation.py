"""Operators cancelled at their first, second … wait: nothing is lost, nothing comes twice that was given out, nothing is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord
from famulus.testing.cancellation import MOST, CancelAt, each_wait


def fill(broker: MemoryBroker, topic: str, numbers: range, *, partitions: int = 1) -> None:
    if topic not in broker.topics:
        broker.create_topic(topic, partitions)
    for number in numbers:
        broker.append(TP(topic, number % partitions), [ProducerRecord(b"%d" % (number % 3), b"%d" % number)])


async def slowly(number: int) -> int:
    await trio.sleep(0.01)
    return number


async def kept(number: int) -> bool:
    await trio.sleep(0.01)
    return number % 4 != 1


Make = Callable[[famulus.Stream[int], famulus.Stream[int]], Any]

OPERATIONS: dict[str, Make] = {
    "take": lambda s, other: s.take(3, within=5),
    "take, slow processors": lambda s, other: s.map(slowly).take(3, within=5),
    "take, async filter": lambda s, other: s.filter(kept).take(3, within=5),
    "async filter": lambda s, other: s.filter(kept),
    "async map": lambda s, other: s.map(slowly).map(slowly),
    "echo": lambda s, other: s.echo("copies"),
    "echo and take": lambda s, other: s.echo("copies").take(3, within=5),
    "combined": lambda s, other: s & other,
    "combined, take": lambda s, other: (s & other).take(3, within=5),
    "combined, async filter": lambda s, other: s.filter(kept) & other.filter(kept),
    "through": lambda s, other: s.through("via"),
    "group_by": lambda s, other: s.map(slowly).group_by(str, name="text"),
    "through group_by take": lambda s, other: s.through("via").group_by(str, name="text").take(3, within=5),
    "combined group_by": lambda s, other: (s & other).group_by(str, name="text"),
    "noack": lambda s, other: s.noack().filter(kept).take_events(3, within=5),
    "enumerate": lambda s, other: s.enumerate(),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_cancelled_anext_has_taken_something_or_not(broker: MemoryBroker, name: str) -> None:
    app = famulus.App("cancel", broker=f"memory://{broker.name}", stream_buffer_maxsize=5)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    others = app.topic("others", value_type=int, partitions=1)
    fill(broker, "numbers", range(60))
    fill(broker, "others", range(100, 130))
    got: list[int] = []
    indexes: list[int] = []

    def note(value: Any) -> None:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, tuple):
                indexes.append(one[0])
                one = one[1]
            if isinstance(one, famulus.Event):
                one.ack()
                one = one.value
            got.append(one)

    expected = {*range(60)}
    if "combined" in name:
        expected |= {*range(100, 130)}
    if "filter" in name or name == "noack":
        expected = {number for number in expected if number % 4 != 1}
    before = trio.lowlevel.current_statistics().tasks_living
    async with famulus.open_app(app) as running:
        taken = OPERATIONS[name](numbers.stream(), others.stream())

        async def call(number: int) -> None:
            note(await anext(taken))
            note(await anext(taken))

        await each_wait(call)
        with trio.fail_after(1000):
            while len(got) < len(expected):
                note(await anext(taken))
        with trio.move_on_after(10):
            note(await anext(taken))  # the last is done when the next is asked for
        await trio.sleep(1)
        await running.commit()
        assert running._run.producer.buffered == 0
        committed = broker.group("cancel").committed
        for topic in ("numbers", "others") if "combined" in name else ("numbers",):
            assert committed[TP(topic, 0)] == broker.topics[topic].logs[0].end
    assert Counter(got) == Counter(expected)
    assert indexes == list(range(len(indexes)))
    if "group_by" not in name and "through" not in name:
        assert [number for number in got if number < 100] == sorted(number for number in expected if number < 100)
    if "echo" in name:
        copies = [int(message.value or b"") for message in broker.messages("copies")]
        assert set(copies) == expected  # more than once, where the wait for the copy was cancelled
    assert trio.lowlevel.current_statistics().tasks_living == before


@pytest.mark.parametrize(
    "name", ["take, slow processors", "echo and take", "through group_by take", "combined group_by", "combined, take"]
)
async def test_a_run_of_operators_that_is_cancelled_leaves_nothing_and_loses_nothing(
    broker: MemoryBroker, name: str
) -> None:
    app = famulus.App("cancel", broker=f"memory://{broker.name}", broker_commit_interval=0.5)
    numbers = app.topic("numbers", value_type=int, partitions=2)
    others = app.topic("others", value_type=int, partitions=1)
    fill(broker, "numbers", range(10), partitions=2)
    fill(broker, "others", range(1000, 1010))
    seen: set[int] = set()

    @app.agent(numbers, on_failure="retry")
    async def work(stream: famulus.Stream[int]) -> None:
        async for value in OPERATIONS[name](stream, others.stream()):
            await trio.sleep(0.2)
            seen.update(value if isinstance(value, list) else [value])

    before = trio.lowlevel.current_statistics().tasks_living
    count = 10
    for number in range(1, MOST):
        scope = trio.CancelScope()
        watcher = CancelAt(trio.lowlevel.current_task(), number, scope)
        with scope:
            trio.lowlevel.add_instrument(watcher)
            try:
                async with famulus.open_app(app):
                    await trio.sleep(0.7)
            finally:
                trio.lowlevel.remove_instrument(watcher)
        assert not broker.group("cancel").members, f"a member is left after {number} waits"
        assert trio.lowlevel.current_statistics().tasks_living == before, f"a task is left after {number} waits"
        fill(broker, "numbers", range(count, count + 1), partitions=2)
        count += 1
        if not watcher.fired:
            break
    async with famulus.open_app(app):
        await trio.sleep(1000)
    expected = {*range(count)} | ({*range(1000, 1010)} if "combined" in name else set())
    assert seen == expected
    for log in broker.topics["numbers"].logs:
        assert broker.group("cancel").committed[log.tp] == log.end
