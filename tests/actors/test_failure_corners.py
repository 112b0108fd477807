"""Failures where they hurt: while the app stops, at a rebalance, in a batch, in combined streams, with nowhere to bury."""

from __future__ import annotations

from collections.abc import AsyncIterator
from math import inf

import pytest
import trio

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord

QUICK = famulus.OneForOneSupervisor(max_restarts=inf, backoff=famulus.Backoff(min=0.01, max=0.1))


def put(broker: MemoryBroker, topic: str, *values: int) -> None:
    if topic not in broker.topics:
        broker.create_topic(topic, 1)
    broker.append(TP(topic, 0), [ProducerRecord(b"%d" % value, b"%d" % value) for value in values])


def app_on(broker: MemoryBroker) -> famulus.App:
    return famulus.App("corners", broker=f"memory://{broker.name}", broker_commit_interval=0.05)


def committed(broker: MemoryBroker, topic: str = "numbers") -> int:
    return broker.group("corners").committed.get(TP(topic, 0), 0)


async def until(condition: object) -> None:
    with trio.fail_after(1000):
        while not condition():  # type: ignore[operator]
            await trio.sleep(0.01)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_on_error_that_raises_changes_nothing_about_the_event(
    broker: MemoryBroker, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app, seen = app_on(broker), list[tuple[int, int]]()
    put(broker, "numbers", 1, 2, 3)

    def bad(agent: famulus.Agent[int, None], error: BaseException) -> None:
        raise RuntimeError("on_error is wrong itself")

    async def bad_too(agent: famulus.Agent[int, None], error: BaseException) -> None:
        raise RuntimeError("on_error is wrong itself")

    @app.agent(
        app.topic("numbers", value_type=int),
        on_failure="retry",
        max_attempts=2,
        supervisor_strategy=QUICK,
        on_error=bad_too if asynchronous else bad,
    )
    async def work(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            seen.append((event.value, event.attempt))
            if event.value == 2:
                raise ValueError("two")

    async with famulus.open_app(app):
        await until(lambda: committed(broker) == 3)
    assert seen == [(1, 1), (2, 1), (2, 2), (3, 1)]
    assert [letter.value for letter in broker.messages("numbers.dead-letter")] == [b"2"]
    assert "on_error is wrong itself" in caplog.text


@pytest.mark.parametrize("policy", ["retry", "dead_letter"])
async def test_what_fails_while_the_app_stops_is_buried_or_comes_again(broker: MemoryBroker, policy: str) -> None:
    put(broker, "numbers", 1, 2)
    started = list[int]()

    def make(fails: bool) -> famulus.App:
        app = app_on(broker)

        @app.agent(app.topic("numbers", value_type=int), on_failure=policy, supervisor_strategy=QUICK)  # type: ignore[arg-type]
        async def work(stream: famulus.Stream[int]) -> None:
            async for number in stream:
                started.append(number)
                if fails:
                    await trio.sleep(1)
                    raise ValueError(number)

        return app

    async with famulus.open_app(make(fails=True)):
        await until(lambda: started == [1])
    assert started == [1]
    if policy == "dead_letter":
        assert committed(broker) == 1
        assert [letter.value for letter in broker.messages("numbers.dead-letter")] == [b"1"]
    else:
        assert committed(broker) == 0
        assert "numbers.dead-letter" not in broker.topics
    async with famulus.open_app(make(fails=False)):
        await until(lambda: committed(broker) == 2)
    assert started == ([1, 2] if policy == "dead_letter" else [1, 1, 2])


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("policy", ["retry", "dead_letter"])
async def test_what_fails_during_a_rebalance_is_neither_lost_nor_committed_unseen(
    broker: MemoryBroker, policy: str, concurrency: int
) -> None:
    app = app_on(broker)
    put(broker, "numbers", *range(12))
    done, failed = list[int](), set[int]()

    @app.agent(
        app.topic("numbers", value_type=int),
        on_failure=policy,  # type: ignore[arg-type]
        supervisor_strategy=QUICK,
        concurrency=concurrency,
    )
    async def work(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            number = event.value
            assert committed(broker) <= event.message.offset
            if number % 3 == 1 and number not in failed:
                broker.faults.rebalance("corners")
                await trio.sleep(0.5)  # it is given up meanwhile, and this is waited for
                failed.add(number)
                raise ValueError(number)
            done.append(number)

    async with famulus.open_app(app):
        await until(lambda: committed(broker) == 12)
    buried = (
        {int(letter.value or b"") for letter in broker.messages("numbers.dead-letter")} if policy != "retry" else set()
    )
    assert set(done) | buried == set(range(12))
    assert failed == {1, 4, 7, 10}


@pytest.mark.parametrize("policy", ["retry", "dead_letter"])
async def test_a_failure_in_combined_streams_concerns_the_event_in_hand(broker: MemoryBroker, policy: str) -> None:
    app = app_on(broker)
    put(broker, "left", *range(0, 10))
    put(broker, "right", *range(100, 110))
    done, tried = list[int](), list[int]()

    @app.agent(
        app.topic("left", value_type=int),
        on_failure=policy,  # type: ignore[arg-type]
        max_attempts=3,
        supervisor_strategy=QUICK,
    )
    async def work(stream: famulus.Stream[int]) -> None:
        async for number in stream & app.topic("right", value_type=int).stream():
            tried.append(number)
            if number in (3, 105):
                raise ValueError(number)
            done.append(number)

    async with famulus.open_app(app):
        await until(lambda: committed(broker, "left") == committed(broker, "right") == 10)
    assert [number for number in done if number < 100] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert [number for number in done if number >= 100] == [100, 101, 102, 103, 104, 106, 107, 108, 109]
    times = 3 if policy == "retry" else 1
    assert (tried.count(3), tried.count(105)) == (times, times)
    assert [letter.value for letter in broker.messages("left.dead-letter")] == [b"3"]
    assert [letter.value for letter in broker.messages("right.dead-letter")] == [b"105"]


async def test_a_batch_with_a_poison_message_buries_that_one_alone_in_order(broker: MemoryBroker) -> None:
    app = app_on(broker)
    put(broker, "numbers", *range(10))
    done = list[int]()

    @app.agent(app.topic("numbers", value_type=int), on_failure="retry", max_attempts=3, supervisor_strategy=QUICK)
    async def work(stream: famulus.Stream[int]) -> None:
        async for numbers in stream.take(4, within=0.1):
            assert committed(broker) <= numbers[0]
            if 5 in numbers:
                raise ValueError("five")
            done.extend(numbers)

    async with famulus.open_app(app):
        await until(lambda: committed(broker) == 10)
    assert done == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    (letter,) = broker.messages("numbers.dead-letter")
    assert letter.value == b"5"


async def test_a_retry_behind_group_by_keeps_the_order_and_the_source_waits(broker: MemoryBroker) -> None:
    app = app_on(broker)
    put(broker, "numbers", *range(10))
    tried = list[tuple[int, int]]()

    @app.agent(
        app.topic("numbers", value_type=int, partitions=1),
        on_failure="retry",
        max_attempts=3,
        supervisor_strategy=QUICK,
    )
    async def work(stream: famulus.Stream[int]) -> None:
        async for event in stream.group_by(lambda number: number % 2, name="parity", partitions=1).events():
            tried.append((event.value, event.attempt))
            if event.value == 4 and event.attempt < 3:
                raise ValueError("four")

    async with famulus.open_app(app) as running:
        await until(lambda: len(tried) == 12)
        await running.commit()
        (regrouped,) = [name for name in broker.topics if name.endswith("repartition")]
        assert committed(broker, regrouped) == 10
    assert tried == [(n, 1) for n in range(5)] + [(4, 2), (4, 3)] + [(n, 1) for n in range(5, 10)]


async def test_a_topic_of_letters_that_is_deleted_meanwhile_is_made_again(broker: MemoryBroker) -> None:
    app = app_on(broker)
    put(broker, "numbers", 1)

    @app.agent(app.topic("numbers", value_type=int), on_failure="dead_letter", supervisor_strategy=QUICK)
    async def work(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            raise ValueError(number)

    async with famulus.open_app(app):
        await until(lambda: committed(broker) == 1)
        broker.delete_topic("numbers.dead-letter")
        put(broker, "numbers", 2, 3)
        await until(lambda: committed(broker) == 3)
    assert sorted(letter.value or b"" for letter in broker.messages("numbers.dead-letter")) == [b"2", b"3"]


async def test_a_generator_that_fails_between_answers_is_retried_with_its_event(broker: MemoryBroker) -> None:
    app = app_on(broker)
    put(broker, "numbers", 1, 2)
    attempts = list[int]()

    @app.agent(
        app.topic("numbers", value_type=int),
        on_failure="retry",
        supervisor_strategy=QUICK,
        sink=[app.topic("out", partitions=1)],
    )
    async def work(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for event in stream.events():
            yield event.value
            attempts.append(event.attempt)
            if event.attempt < 3:
                raise ValueError("between")
            yield -event.value

    async with famulus.open_app(app):
        await until(lambda: committed(broker) == 2)
    assert attempts == [1, 2, 3, 1, 2, 3]
    assert [message.value for message in broker.messages("out")] == [b"1", b"1", b"1", b"-1", b"2", b"2", b"2", b"-2"]
