"""Cancellation at every moment: a call is cancelled at its first, second … wait, until it ends before that (law 5).

Afterwards it was done or not done, nobody waits, no buffer has drifted, and the run works as before. Then the same with
crashes: calls to the broker raise what nobody expects, before or after they did their work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.actors.replies import Replies
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.memory_consumer import MemoryConsumer
from famulus.channels.message import TP, ProducerRecord
from famulus.testing.cancellation import MOST, CancelAt, each_wait


def numbers_in(broker: MemoryBroker, topic: str) -> Counter[int]:
    return Counter(int(message.value or b"") for message in broker.messages(topic))


def fill(broker: MemoryBroker, count: int, *, partitions: int = 1) -> None:
    broker.create_topic("numbers", partitions)
    for number in range(count):
        broker.append(TP("numbers", number % partitions), [ProducerRecord(None, str(number).encode())])


def app_on(broker: MemoryBroker, **settings: Any) -> famulus.App:
    return famulus.App("cancel", broker=f"memory://{broker.name}", **settings)


@pytest.mark.parametrize("wait", [False, True], ids=["send", "send and await"])
async def test_send_is_done_or_not_done(broker: MemoryBroker, wait: bool) -> None:
    app = app_on(broker, producer_buffer_maxsize=1)
    out = app.topic("out", value_type=int, partitions=1)
    broker.faults.delay_produce(0.1)
    async with famulus.open_app(app) as running:

        async def call(number: int) -> None:
            promise = await out.send(1000 + number)  # so the next has to wait
            assert promise.topic == "out"
            promise = await out.send(number)
            if wait:
                await promise

        ended = await each_wait(call)
        with trio.fail_after(100):
            await (await out.send(0))
        assert running._run.producer.buffered == 0
    found = numbers_in(broker, "out")
    assert set(found.values()) == {1}
    assert all(found[number] for number, done in enumerate(ended, 1) if done)
    assert len(ended) > 1


@pytest.mark.parametrize("readers", [1, 3])
async def test_send_to_a_channel_reaches_all_readers_or_none(readers: int) -> None:
    app = famulus.App("cancel")
    pipe = app.channel("pipe", value_type=int, maxsize=1)
    got: list[list[int]] = [[] for _ in range(readers)]
    for index in range(readers):

        @app.agent(pipe, name=f"reader{index}")
        async def read(stream: famulus.Stream[int], mine: list[int] = got[index]) -> None:
            async for number in stream:
                await trio.sleep(0.1 + len(mine) % 3 / 10)
                mine.append(number)

    async with famulus.open_app(app):

        async def call(number: int) -> None:
            for extra in range(3):
                await pipe.send(1000 * (extra + 1) + number)
            await pipe.send(number)

        ended = await each_wait(call)
        with trio.fail_after(100):
            await pipe.send(0)
        await trio.sleep(1000)
    assert all(mine == got[0] for mine in got)
    assert set(Counter(got[0]).values()) == {1}
    assert all(number in got[0] for number, done in enumerate(ended, 1) if done)


@pytest.mark.parametrize("local", [False, True], ids=["topic", "channel"])
async def test_ask_leaves_no_slot(broker: MemoryBroker, local: bool) -> None:
    app = app_on(broker)
    channel: famulus.Channel[int] = app.channel("asks") if local else app.topic("asks", value_type=int, partitions=1)

    @app.agent(channel)
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(0.1)
            yield 2 * number

    async with famulus.open_app(app) as running:

        async def call(number: int) -> None:
            assert await double.ask(number) == 2 * number

        ended = await each_wait(call)
        assert len(ended) > 1
        assert Replies.of(running._run).waiting == 0
        assert await double.ask(4) == 8
        await trio.sleep(10)
        statistics = running.statistics()
        assert statistics.replies_sent == statistics.replies_dropped + ended.count(True) + 1


async def test_awaiting_a_promise_and_commit(broker: MemoryBroker) -> None:
    app = app_on(broker, broker_commit_interval=1000.0)
    out = app.topic("out", value_type=int, partitions=1)
    fill(broker, 3)

    @app.agent(app.topic("numbers", value_type=int))
    async def consume(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app) as running:
        broker.faults.delay_produce(10)
        promise = await out.send(1)

        async def wait(number: int) -> None:
            await promise

        await each_wait(wait)
        assert (await promise).offset == 0

        async def commit(number: int) -> None:
            await running.commit()

        await each_wait(commit)
        await running.commit()
        assert broker.group("cancel").committed == {TP("numbers", 0): 3}


@pytest.mark.parametrize("how", ["plain", "group_by", "noack"])
async def test_anext_takes_an_event_or_not(broker: MemoryBroker, how: str) -> None:
    app = app_on(broker, stream_buffer_maxsize=3)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, 30)
    got: list[int] = []
    async with famulus.open_app(app):
        stream = numbers.stream()
        if how == "group_by":
            stream = stream.group_by(lambda number: b"k", name="k")
        elif how == "noack":
            stream = stream.noack()

        async def call(number: int) -> None:
            got.append(await stream.__anext__())
            got.append(await stream.__anext__())

        await each_wait(call)
        with trio.fail_after(100):
            while len(got) < 30:
                got.append(await stream.__anext__())
        assert got == list(range(30))


@pytest.mark.parametrize("moment", ["all of it", "leaving"])
async def test_open_app_leaves_nothing(broker: MemoryBroker, moment: str) -> None:
    app = app_on(broker, broker_commit_interval=0.5)
    out = app.topic("out", value_type=int, partitions=1)
    fill(broker, 10, partitions=2)
    broker.faults.delay_produce(0.2)
    seen: list[int] = []

    @app.agent(app.topic("numbers", value_type=int), concurrency=2, on_failure="retry")
    async def copy(stream: famulus.Stream[int]) -> None:
        async for number in stream.group_by(lambda number: b"%d" % (number % 3), name="k"):
            await trio.sleep(0.3)
            await out.send(number)
            seen.append(number)

    @app.task
    async def peek() -> None:
        async for _ in app.topic("numbers", value_type=int).stream():
            await trio.sleep(0.7)

    before = trio.lowlevel.current_statistics().tasks_living
    runs: list[Any] = []
    for number in range(1, MOST):
        scope = trio.CancelScope()
        watcher = CancelAt(trio.lowlevel.current_task(), number, scope)
        with scope:
            try:
                if moment == "all of it":
                    trio.lowlevel.add_instrument(watcher)
                async with famulus.open_app(app) as running:
                    runs.append(running._run)
                    await trio.sleep(0.5)
                    if moment == "leaving":
                        trio.lowlevel.add_instrument(watcher)
            finally:
                trio.lowlevel.remove_instrument(watcher)
        assert not broker.group("cancel").members, f"a member is left after {number} waits"
        assert trio.lowlevel.current_statistics().tasks_living == before, f"a task is left after {number} waits"
        fill_more(broker, number)
        if not watcher.fired:
            break
    broker.faults.clear()
    async with famulus.open_app(app):
        await trio.sleep(1000)
    assert set(seen) == set(numbers_in(broker, "numbers"))
    assert set(numbers_in(broker, "out")) == set(seen)
    for log in broker.topics["numbers"].logs:
        assert broker.group("cancel").committed[log.tp] == log.end
    assert all(run.producer.buffered == 0 for run in runs)


def fill_more(broker: MemoryBroker, number: int) -> None:
    broker.append(TP("numbers", number % 2), [ProducerRecord(None, str(10 + number).encode())])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (MemoryTransport, "produce"),
        (MemoryConsumer, "fetch"),
        (MemoryConsumer, "commit"),
        (MemoryConsumer, "subscribe"),
    ],
    ids=["produce", "fetch", "commit", "subscribe"],
)
async def test_a_crash_in_any_call_to_the_broker_loses_nothing(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, after: bool
) -> None:
    """A transport with a mistake: its calls raise what is no TransportError. Tasks are restarted, and go on."""
    for number in range(1, 8):
        await _crash_at(broker, monkeypatch, owner, method, after, number)
        monkeypatch.undo()


async def _crash_at(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, after: bool, number: int
) -> None:
    app = famulus.App(f"crash{number}", broker=f"memory://{broker.name}", broker_commit_interval=0.5)
    numbers = app.topic(f"crash{number}", value_type=int, partitions=2)
    out = app.topic(f"out{number}", value_type=int, partitions=1)
    original = getattr(owner, method)
    calls = 0

    async def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (number, number + 1) and not after:
            raise RuntimeError(f"call {calls} of {method}")
        result = await original(*args, **kwargs)
        if calls in (number, number + 1) and after:
            raise RuntimeError(f"call {calls} of {method}")
        return result

    @app.agent(numbers)
    async def copy(stream: famulus.Stream[int]) -> None:
        async for value in stream.group_by(lambda value: b"%d" % value, name="k"):
            await out.send(value)

    with trio.fail_after(600):
        async with famulus.open_app(app) as running:
            monkeypatch.setattr(owner, method, call)
            for value in range(20):
                await numbers.send(value)
                await trio.sleep(0.2)
                if value == 10:
                    await running.commit()
            await trio.sleep(60)
            assert set(numbers_in(broker, out.name)) == set(range(20)), f"crash {number} of {method}"
            assert running._run.producer.buffered == 0
            await running.commit()
    committed = broker.group(app.id).committed
    ends = {log.tp: log.end for log in broker.topics[numbers.name].logs}
    assert sum(ends.values()) >= 20  # what was written before the crash is written again
    assert {tp: offset for tp, offset in committed.items() if tp.topic == numbers.name} == ends
