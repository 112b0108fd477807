"""Events whose outputs are not delivered come again, as those of an actor that crashed: not at once, and in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
import trio

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord

TEN = famulus.Backoff(min=10, max=40, jitter=0)
PATIENT = famulus.OneForOneSupervisor(backoff=TEN, max_restarts=3)

Seen = list[tuple[int, int, int]]
"""When, which number, which attempt."""


def put(broker: MemoryBroker, *values: int) -> None:
    if "numbers" not in broker.topics:
        broker.create_topic("numbers", 1)
        broker.create_topic("out", 1)
    broker.append(TP("numbers", 0), [ProducerRecord(None, str(value).encode()) for value in values])


def sent(broker: MemoryBroker) -> list[int]:
    return [int(message.value or b"") for message in broker.messages("out")]


def app_on(broker: MemoryBroker) -> famulus.App:
    return famulus.App("waits", broker=f"memory://{broker.name}", broker_commit_interval=1.0)


@pytest.mark.parametrize("isolated", [False, True])
async def test_the_event_rests_as_long_as_a_crashed_actor_would_and_what_is_newer_waits_for_it(
    broker: MemoryBroker, isolated: bool
) -> None:
    app, seen = app_on(broker), Seen()
    put(broker, 0)
    broker.faults.fail_produce(2, topic="out")

    @app.agent(
        app.topic("numbers", value_type=int),
        isolated_partitions=isolated,
        sink=["out"],
        on_failure="retry",
        supervisor_strategy=PATIENT,
    )
    async def work(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            seen.append((round(trio.current_time() - start), event.value, event.attempt))
            yield event.value
            await trio.sleep(1)

    start = trio.current_time()
    async with famulus.open_app(app):
        await trio.sleep(5)
        put(broker, 1, 2)
        await trio.sleep(20)
        assert broker.group("waits").committed.get(TP("numbers", 0), 0) == 0
        await trio.sleep(20)
        assert broker.group("waits").committed == {TP("numbers", 0): 3}
    assert seen == [(0, 0, 1), (11, 0, 2), (32, 0, 3), (33, 1, 1), (34, 2, 1)]
    assert sent(broker) == [0, 1, 2]


async def test_a_topic_that_never_takes_anything_ends_in_dead_letters_in_order(broker: MemoryBroker) -> None:
    app, seen = app_on(broker), Seen()
    put(broker, 0, 1, 2)
    broker.faults.fail_produce(None, topic="out")

    @app.agent(
        app.topic("numbers", value_type=int),
        sink=["out"],
        on_failure="retry",
        max_attempts=3,
        supervisor_strategy=PATIENT,
    )
    async def work(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            seen.append((round(trio.current_time() - start), event.value, event.attempt))
            yield event.value

    start = trio.current_time()
    async with famulus.open_app(app):
        await trio.sleep(100)
        assert broker.group("waits").committed == {TP("numbers", 0): 3}
        assert work.info().retried == 6
    assert [value for _, value, attempt in seen if attempt == 3] == [0, 1, 2]
    assert max(when for when, _, _ in seen) <= 40
    assert sorted(Counter(value for _, value, _ in seen).items()) == [(0, 3), (1, 3), (2, 3)]
    assert [letter.value for letter in broker.messages("numbers.dead-letter")] == [b"0", b"1", b"2"]


async def test_what_the_user_acknowledges_is_tried_for_ever_and_never_in_a_spin(broker: MemoryBroker) -> None:
    app, seen = app_on(broker), Seen()
    put(broker, 0)
    broker.faults.fail_produce(None, topic="out")
    out = app.topic("out", value_type=int)

    @app.agent(app.topic("numbers", value_type=int), supervisor_strategy=PATIENT)
    async def work(stream: famulus.Stream[int]) -> None:
        async for event in stream.noack().events():
            seen.append((round(trio.current_time() - start), event.value, event.attempt))
            await out.send(event.value)
            event.ack()

    start = trio.current_time()
    async with famulus.open_app(app):
        await trio.sleep(200)
    assert [when for when, _, _ in seen] == [0, 10, 30, 70, 110, 150, 190]


async def test_with_several_actors_only_that_event_waits_and_the_commit_with_it(broker: MemoryBroker) -> None:
    app, seen = app_on(broker), Seen()
    put(broker, *range(30))
    broker.create_topic("odd", 1)
    broker.faults.fail_produce(2, topic="odd")
    odd = app.topic("odd", value_type=int)

    @app.agent(app.topic("numbers", value_type=int), concurrency=3, on_failure="retry", supervisor_strategy=PATIENT)
    async def work(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            seen.append((round(trio.current_time() - start), event.value, event.attempt))
            if event.value == 4:
                await odd.send(4)
            await trio.sleep(0.1)

    start = trio.current_time()
    async with famulus.open_app(app):
        await trio.sleep(9)
        assert {value for _, value, _ in seen} == set(range(30))
        put(broker, 30)
        await trio.sleep(10)
        assert broker.group("waits").committed == {TP("numbers", 0): 4}
        await trio.sleep(15)
        assert broker.group("waits").committed == {TP("numbers", 0): 31}
    assert [(when, attempt) for when, value, attempt in seen if value == 4] == [(0, 1), (10, 2), (30, 3)]
    assert (9, 30, 1) in seen
    assert Counter(value for _, value, _ in seen) == Counter([*range(31), 4, 4])


async def test_with_several_actors_a_stream_of_failures_starves_none_of_them(broker: MemoryBroker) -> None:
    app, seen = app_on(broker), Seen()
    put(broker, *range(100))
    broker.faults.fail_produce(None, topic="out")
    out = app.topic("out", value_type=int)

    @app.agent(
        app.topic("numbers", value_type=int),
        concurrency=2,
        on_failure="retry",
        max_attempts=2,
        supervisor_strategy=PATIENT,
    )
    async def work(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            seen.append((round(trio.current_time() - start), event.value, event.attempt))
            await out.send(event.value)
            await trio.sleep(1)

    start = trio.current_time()
    async with famulus.open_app(app):
        await trio.sleep(150)
        assert broker.group("waits").committed == {TP("numbers", 0): 100}
    first = {value: when for when, value, attempt in seen if attempt == 1}
    assert all(10 <= when - first[value] <= 14 for when, value, attempt in seen if attempt == 2)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_stop_does_not_wait_for_what_rests_and_the_next_run_begins_with_it(
    broker: MemoryBroker, concurrency: int
) -> None:
    put(broker, 0)
    broker.faults.fail_produce(1, topic="out")
    app, seen = app_on(broker), Seen()

    @app.agent(
        app.topic("numbers", value_type=int),
        sink=["out"],
        concurrency=concurrency,
        on_failure="retry",
        supervisor_strategy=PATIENT,
    )
    async def work(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            seen.append((round(trio.current_time() - start), event.value, event.attempt))
            yield event.value

    start = trio.current_time()
    async with famulus.open_app(app):
        await trio.sleep(5)
    assert trio.current_time() - start < 6
    async with famulus.open_app(app):
        await trio.sleep(1)
    assert [(value, attempt) for _, value, attempt in seen] == [(0, 1), (0, 1)]
    assert broker.group("waits").committed == {TP("numbers", 0): 1}


async def test_what_no_log_has_does_not_rest_when_the_run_stops(broker: MemoryBroker) -> None:
    put(broker)
    broker.faults.fail_produce(1, topic="out")
    app = app_on(broker)

    @app.agent(app.channel(value_type=int), name="local", sink=["out"], on_failure="retry", supervisor_strategy=PATIENT)
    async def work(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield number

    start = trio.current_time()
    async with famulus.open_app(app):
        await work.send(7)
        await trio.sleep(5)
        assert sent(broker) == []
    assert trio.current_time() - start < 6
    assert sent(broker) == [7]


async def test_a_rebalance_gives_what_rests_to_the_next_owner_at_once(broker: MemoryBroker) -> None:
    put(broker, 0)
    broker.faults.fail_produce(1, topic="out")
    app, seen = app_on(broker), Seen()

    @app.agent(app.topic("numbers", value_type=int), sink=["out"], on_failure="retry", supervisor_strategy=PATIENT)
    async def work(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            seen.append((round(trio.current_time() - start), event.value, event.attempt))
            yield event.value

    start = trio.current_time()
    async with famulus.open_app(app):
        await trio.sleep(2)
        broker.faults.rebalance("waits")
        await trio.sleep(4)
        assert broker.group("waits").committed == {TP("numbers", 0): 1}
    assert [(value, attempt) for _, value, attempt in seen] == [(0, 1), (0, 1)]


async def test_a_restart_ends_the_rest(broker: MemoryBroker) -> None:
    put(broker, 0)
    broker.faults.fail_produce(1, topic="out")
    app, seen = app_on(broker), Seen()

    @app.agent(app.topic("numbers", value_type=int), sink=["out"], on_failure="retry", supervisor_strategy=PATIENT)
    async def work(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            seen.append((round(trio.current_time() - start), event.value, event.attempt))
            yield event.value

    start = trio.current_time()
    async with famulus.open_app(app):
        await trio.sleep(2)
        await work.restart()
        await trio.sleep(1)
    assert seen == [(0, 0, 1), (2, 0, 2)]
