"""`take`: what becomes of a list: acknowledgement, outputs, failures, answers, rebalances."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord


def app_on(broker: MemoryBroker, **settings: Any) -> famulus.App:
    return famulus.App("takes", broker=f"memory://{broker.name}", **settings)


def fill(broker: MemoryBroker, count: int, *, partitions: int = 1, start: int = 0) -> None:
    if "numbers" not in broker.topics:
        broker.create_topic("numbers", partitions)
    for number in range(start, start + count):
        broker.append(
            TP("numbers", number % partitions), [ProducerRecord(None, b"%d" % number, timestamp=100.0 + number)]
        )


def committed(broker: MemoryBroker) -> int:
    return sum(offset for tp, offset in broker.group("takes").committed.items() if tp.topic == "numbers")


# -- acknowledgement and outputs ---------------------------------------------------------------------------------


async def test_a_list_is_acknowledged_when_the_next_is_asked_for(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, 7)
    async with famulus.open_app(app) as running:
        taken = numbers.stream().take(3)
        for expected in (0, 3):
            await anext(taken)
            await running.commit()
            assert committed(broker) == expected
        with trio.move_on_after(1):
            await anext(taken)
        await running.commit()
        assert committed(broker) == 6


async def test_an_output_holds_all_offsets_of_its_list_until_it_is_delivered(broker: MemoryBroker) -> None:
    app = app_on(broker, broker_commit_interval=1.0)
    out = app.topic("out", partitions=1)
    fill(broker, 6, partitions=2)
    hold = broker.faults.hold_produce(topic="out")

    @app.agent(app.topic("numbers", value_type=int))
    async def total(stream: famulus.Stream[int]) -> None:
        async for values in stream.take(6):
            await out.send(sum(values))

    async with famulus.open_app(app):
        await trio.sleep(5)
        assert committed(broker) == 0
        hold.release()
        await trio.sleep(5)
        assert committed(broker) == 6


@pytest.mark.parametrize("policy", ["ack", "retry", "dead_letter"])
@pytest.mark.parametrize("when", ["in hand", "later"])
async def test_a_failed_output_is_a_failure_of_the_whole_list(broker: MemoryBroker, policy: Any, when: str) -> None:
    app = app_on(broker)
    out = app.topic("out", partitions=1)
    fill(broker, 3)
    broker.faults.fail_produce(1, topic="out")
    lists: list[list[tuple[int, int]]] = []

    @app.agent(app.topic("numbers", value_type=int), on_failure=policy)
    async def total(stream: famulus.Stream[int]) -> None:
        async for events in stream.take_events(3, within=1):
            lists.append([(event.value, event.attempt) for event in events])
            await out.send(sum(event.value for event in events))
            if when == "in hand":
                await trio.sleep(1)

    async with famulus.open_app(app) as running:
        await trio.sleep(60)
        statistics = running.statistics()
    assert committed(broker) == 3
    assert statistics.events_failed == 3
    assert lists[0] == [(0, 1), (1, 1), (2, 1)]
    if policy == "retry":
        assert lists[1:] == [[(0, 2)], [(1, 2)], [(2, 2)]]
        assert [message.value for message in broker.messages("out")] == [b"0", b"1", b"2"]
    else:
        assert len(lists) == 1
    assert statistics.dead_letters == (3 if policy == "dead_letter" else 0)


@pytest.mark.parametrize("done", ["before it fails", "after it failed"])
async def test_a_failed_output_is_a_failure_also_of_what_is_acknowledged_by_hand(
    broker: MemoryBroker, done: str
) -> None:
    app = app_on(broker)
    out = app.topic("out", partitions=1)
    fill(broker, 2)
    broker.faults.fail_produce(1, topic="out")
    attempts: list[list[int]] = []

    @app.agent(app.topic("numbers", value_type=int), on_failure="retry")
    async def total(stream: famulus.Stream[int]) -> None:
        async for events in stream.noack().take_events(2, within=1):
            attempts.append([event.attempt for event in events])
            await out.send(1)
            if done != "before it fails":
                await trio.sleep(5)
            for event in events:
                event.ack()

    async with famulus.open_app(app):
        await trio.sleep(60)
    assert attempts == [[1, 1], [2], [2]]
    assert committed(broker) == 2


async def test_what_is_taken_without_acknowledgement_is_acknowledged_one_by_one(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, 6)
    kept: list[famulus.Event[int]] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def keep(stream: famulus.Stream[int]) -> None:
        async for events in stream.noack().take_events(3):
            kept.extend(events)

    async with famulus.open_app(app) as running:
        await trio.sleep(1)
        for place, expected in ((1, 0), (0, 2), (2, 3), (5, 3), (4, 3), (3, 6)):
            assert bool(kept[place].ack()) is True
            assert bool(kept[place].ack()) is False
            await running.commit()
            assert committed(broker) == expected


async def test_what_a_crash_leaves_unacknowledged_comes_again(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, 6)
    lists: list[list[int]] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def keep(stream: famulus.Stream[int]) -> None:
        async for events in stream.noack().take_events(3):
            lists.append([event.value for event in events])
            if len(lists) <= 2:
                events[1].ack()
            if len(lists) == 2:
                raise ValueError("crash")
            for event in events if len(lists) > 2 else ():
                event.ack()

    async with famulus.open_app(app):
        await trio.sleep(60)
    assert lists[:2] == [[0, 1, 2], [3, 4, 5]]
    assert sorted(number for numbers in lists[2:] for number in numbers) == [0, 2, 3, 5]
    assert committed(broker) == 6


# -- failures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combined", [False, True], ids=["one topic", "combined"])
@pytest.mark.parametrize("policy", ["ack", "retry", "dead_letter"])
async def test_one_bad_event_of_a_list(broker: MemoryBroker, policy: Any, combined: bool) -> None:
    """Skipped with its list, or found: the events come again one by one, and only the bad one is buried."""
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=2)
    other = app.topic("other", value_type=int, partitions=1)
    lists: list[list[tuple[int, int]]] = []
    done: list[int] = []

    @app.agent(numbers, on_failure=policy, max_attempts=3)
    async def total(stream: famulus.Stream[int]) -> None:
        source = stream & other.stream() if combined else stream
        async for events in source.take_events(4, within=1):
            lists.append([(event.value, event.attempt) for event in events])
            if any(event.value == 2 for event in events):
                raise ValueError("two")
            done.extend(event.value for event in events)

    async with famulus.open_app(app) as running:
        for number in range(8):
            await numbers.send(number, partition=0)
        await trio.sleep(600)
        statistics = running.statistics()
    assert lists[0] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    if policy == "ack":
        assert lists[1:] == [[(4, 1), (5, 1), (6, 1), (7, 1)]]
        assert statistics.events_failed == 4
    elif policy == "retry":
        assert lists[1:5] == [[(0, 2)], [(1, 2)], [(2, 2)], [(2, 3)]]
        assert done == [0, 1, 3, 4, 5, 6, 7]
    else:
        assert lists[1:4] == [[(0, 2)], [(1, 2)], [(2, 2)]]
        assert done == [0, 1, 3, 4, 5, 6, 7]
    assert statistics.dead_letters == (0 if policy == "ack" else 1)
    if policy != "ack":
        assert [message.value for message in broker.messages("numbers.dead-letter")] == [b"2"]
    assert committed(broker) == 8


@pytest.mark.parametrize("policy", ["ack", "retry", "dead_letter"])
async def test_a_processor_that_raises_fails_its_own_event_and_not_what_was_gathered(
    broker: MemoryBroker, policy: Any
) -> None:
    app = app_on(broker)
    fill(broker, 5)
    done: list[list[int]] = []

    def picky(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    @app.agent(app.topic("numbers", value_type=int), on_failure=policy, max_attempts=2)
    async def total(stream: famulus.Stream[int]) -> None:
        async for values in stream.map(picky).take(5, within=1):
            done.append(values)

    async with famulus.open_app(app) as running:
        await trio.sleep(600)
        failed = running.statistics().events_failed
    assert [number for values in done for number in values] == [0, 1, 3, 4]
    assert failed == (2 if policy == "retry" else 1)
    assert committed(broker) == 5


async def test_pain_10_an_undecodable_message_inside_a_list_is_left_out(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_on(broker)
    fill(broker, 2)
    broker.append(TP("numbers", 0), [ProducerRecord(None, b"{broken")])
    fill(broker, 2, start=2)
    lists: list[list[int]] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def look(stream: famulus.Stream[int]) -> None:
        async for values in stream.take(4):
            lists.append(values)

    async with famulus.open_app(app) as running:
        await trio.sleep(10)
        assert running.statistics().decode_errors == 1
    assert lists == [[0, 1, 2, 3]]
    assert committed(broker) == 5
    assert "numbers-0@2: undecodable value" in caplog.text


# -- answers -----------------------------------------------------------------------------------------------------


async def test_the_kth_yield_answers_the_kth_question(broker: MemoryBroker) -> None:
    app = app_on(broker)
    sizes: list[int] = []

    @app.agent(app.topic("numbers", value_type=int, partitions=1))
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for values in stream.take(3, within=1):
            sizes.append(len(values))
            for value in values:
                yield 2 * value

    answers: dict[int, int] = {}

    async def ask(number: int) -> None:
        answers[number] = await double.ask(number)

    async with famulus.open_app(app), trio.open_nursery() as nursery:
        for number in range(7):
            nursery.start_soon(ask, number)
    assert answers == {number: 2 * number for number in range(7)}
    assert sizes == [3, 3, 1]


async def test_questions_that_a_list_leaves_unanswered_fail_and_casts_between_them_count(broker: MemoryBroker) -> None:
    app = app_on(broker)

    @app.agent(app.topic("numbers", value_type=int, partitions=1))
    async def half(stream: famulus.Stream[int]) -> AsyncIterator[str]:
        async for values in stream.take(4):
            for value in values[:3]:
                yield f"{value} of {values}"

    told: dict[int, str] = {}

    async def ask(number: int) -> None:
        try:
            told[number] = await half.ask(number)
        except famulus.AgentError as error:
            told[number] = str(error)

    async with famulus.open_app(app), trio.open_nursery() as nursery:
        for number in range(4):
            if number == 1:
                await half.cast(number)
            else:
                nursery.start_soon(ask, number)
                await trio.testing.wait_all_tasks_blocked()
    assert told[0] == "0 of [0, 1, 2, 3]"
    assert told[2] == "2 of [0, 1, 2, 3]"
    assert "yielded nothing" in told[3]


async def test_questions_of_a_failed_list_are_answered_when_their_failure_is_final(broker: MemoryBroker) -> None:
    app = app_on(broker)

    @app.agent(app.topic("numbers", value_type=int, partitions=1), on_failure="retry", max_attempts=2)
    async def picky(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for values in stream.take(3, within=1):
            if 1 in values:
                raise ValueError("one")
            for value in values:
                yield value

    told: dict[int, object] = {}

    async def ask(number: int) -> None:
        try:
            told[number] = await picky.ask(number)
        except famulus.AgentError as error:
            told[number] = error.remote_message

    async with famulus.open_app(app):
        with trio.fail_after(600):
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(ask, number)
    assert told == {0: 0, 1: "one", 2: 2}


# -- rebalances --------------------------------------------------------------------------------------------------


async def test_a_rebalance_while_gathering_takes_away_what_is_the_other_s_and_leaves_the_rest(
    broker: MemoryBroker,
) -> None:
    app = app_on(broker)
    fill(broker, 8, partitions=2)
    lists: list[tuple[object, list[int]]] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def look(stream: famulus.Stream[int]) -> None:
        async for events in stream.take_events(10, within=100):
            run = stream._subscription.run
            lists.append((run, [event.value for event in events]))

    async with famulus.open_app(app):
        await trio.sleep(50)
        async with famulus.open_app(app):
            await trio.sleep(200)
    numbers = sorted(number for _, values in lists for number in values)
    assert numbers == list(range(8))  # each once, though gathered twice
    assert len({run for run, _ in lists}) == 2
    assert committed(broker) == 8


async def test_a_list_that_a_rebalance_made_smaller_is_filled_up_again(broker: MemoryBroker) -> None:
    app = app_on(broker, stream_buffer_maxsize=100)
    fill(broker, 8, partitions=2)
    lists: list[list[int]] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def look(stream: famulus.Stream[int]) -> None:
        async for values in stream.take(9):
            lists.append(values)

    async with famulus.open_app(app):
        await trio.sleep(10)
        async with famulus.open_app(app):
            await trio.sleep(10)
            fill(broker, 10, partitions=2, start=8)
            await trio.sleep(10)
            assert [len(values) for values in lists] == [9, 9]
    assert sorted(number for values in lists for number in values) == list(range(18))


@pytest.mark.parametrize("patience", [1.0, 1000.0], ids=["it ends in time", "it is interrupted"])
async def test_a_rebalance_waits_for_the_list_in_hand_but_not_for_ever(broker: MemoryBroker, patience: float) -> None:
    app = app_on(broker, stream_drain_timeout=5.0)
    fill(broker, 4, partitions=2)
    begun: list[list[int]] = []
    finished: list[int] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def ponder(stream: famulus.Stream[int]) -> None:
        async for values in stream.take(4, within=1):
            begun.append(values)
            await trio.sleep(patience if len(begun) == 1 else 0.1)
            finished.extend(values)

    async with famulus.open_app(app):
        await trio.sleep(0.5)
        start = trio.current_time()
        async with famulus.open_app(app):
            assert trio.current_time() - start < 10
            await trio.sleep(30)
    assert sorted(finished) == [0, 1, 2, 3]
    assert (len(begun) == 1) == (patience == 1.0)
    assert committed(broker) == 4
