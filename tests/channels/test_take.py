"""`take`: several events at a time: how many, when, also under cancellation and at the end."""

from __future__ import annotations

from collections.abc import Callable
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


async def slowly(number: int) -> int:
    await trio.sleep(1)
    return number


def unless_one(number: int) -> bool:
    return number != 1


# -- sizes and times ---------------------------------------------------------------------------------------------


async def test_lists_are_full_while_there_is_enough_and_never_fuller(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, 100, partitions=3)
    lists: list[list[int]] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def look(stream: famulus.Stream[int]) -> None:
        async for values in stream.take(7, within=5):
            lists.append(values)

    async with famulus.open_app(app):
        await trio.sleep(60)
    assert [len(values) for values in lists] == [7] * 14 + [2]
    assert sorted(number for values in lists for number in values) == list(range(100))


async def test_within_counts_from_the_first_event_and_not_from_the_call(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    times: list[tuple[float, list[int]]] = []

    @app.agent(numbers)
    async def look(stream: famulus.Stream[int]) -> None:
        async for values in stream.take(10, within=3):
            times.append((round(trio.current_time() - start, 3), values))

    async with famulus.open_app(app):
        start = trio.current_time()
        await trio.sleep(100)
        for number in range(6):
            await numbers.send(number)
            await trio.sleep(1.25)
        await trio.sleep(100)
    assert times == [(103, [0, 1, 2]), (106.75, [3, 4, 5])]


async def test_without_within_a_list_waits_until_it_is_full(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, 2)
    async with famulus.open_app(app):
        taken = numbers.stream().take(3)
        with trio.move_on_after(10_000) as scope:
            await anext(taken)
        assert scope.cancelled_caught
        fill(broker, 1, start=2)
        assert await anext(taken) == [0, 1, 2]


async def test_slow_processors_hold_a_list_up_by_no_more_than_one_event(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, 100)
    async with famulus.open_app(app):
        taken = numbers.stream().map(slowly).take(100, within=2.5)
        begun = trio.current_time()
        assert await anext(taken) == [0, 1, 2, 3]
        assert trio.current_time() - begun == pytest.approx(4)  # the first came after 1 s, the last began before 3.5 s


@pytest.mark.parametrize("size", [0, -1, 1.5, "3"])
async def test_a_size_that_is_none_is_refused(size: Any) -> None:
    app = famulus.App("refused")
    async with famulus.open_app(app):
        with pytest.raises(ValueError, match=r"take\(.*\): expected a whole number of at least 1"):
            app.stream([1]).take(size)
        with pytest.raises(ValueError, match=r"within=0\): expected seconds"):
            app.stream([1]).take(1, within=0)


async def test_a_list_spans_partitions_and_the_timestamps_come_into_the_values(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, 4, partitions=2)
    events: list[tuple[int, int]] = []
    stamped: list[dict[str, float]] = []

    def as_dict(number: int) -> dict[str, float]:
        return {"n": number}

    @app.agent(app.topic("numbers", value_type=int), name="events")
    async def look(stream: famulus.Stream[int]) -> None:
        async for batch in stream.take_events(4):
            events.extend((event.message.partition, event.value) for event in batch)

    @app.agent(app.topic("numbers", value_type=int), name="timestamps")
    async def stamp(stream: famulus.Stream[int]) -> None:
        async for batch in stream.map(as_dict).take_with_timestamp(4, 1, "when"):
            stamped.extend(batch)

    async with famulus.open_app(app):
        await trio.sleep(10)
    assert sorted(events) == [(0, 0), (0, 2), (1, 1), (1, 3)]
    assert sorted(stamped, key=lambda value: value["n"]) == [{"n": n, "when": 100.0 + n} for n in range(4)]


class Stamped(famulus.Record):
    n: int
    when: float | None = None


class Plain(famulus.Record):
    n: int


async def test_a_timestamp_goes_into_the_field_of_a_record_and_a_record_without_it_says_so(
    broker: MemoryBroker,
) -> None:
    app = app_on(broker)
    values = app.topic("values", value_type=Stamped, partitions=1)
    plain = app.topic("plain", value_type=Plain, partitions=1)
    async with famulus.open_app(app):
        await values.send(Stamped(1), timestamp=5.0)
        await plain.send(Plain(1))
        assert await anext(values.stream().take_with_timestamp(1, None, "when")) == [Stamped(1, 5.0)]
        with pytest.raises(TypeError, match="Plain has no field 'when' that can be set: declare it"):
            await anext(plain.stream().take_with_timestamp(1, None, "when"))


# -- cancellation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [False, True], ids=["one take", "a fresh take each time"])
@pytest.mark.parametrize("processors", ["none", "filter", "slow"])
async def test_constant_cancelling_starves_nobody(broker: MemoryBroker, fresh: bool, processors: str) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    got: list[list[int]] = []

    async def feed() -> None:
        for number in range(40):
            await numbers.send(number)
            await trio.sleep(0.7)

    async with famulus.open_app(app):
        stream = numbers.stream()
        operate: dict[str, Callable[[], famulus.Stream[int]]] = {
            "none": lambda: stream,
            "filter": lambda: stream.filter(unless_one),
            "slow": lambda: stream.map(slowly).filter(unless_one),
        }
        taken = operate[processors]().take(8, within=4)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            while sum(map(len, got)) < (40 if processors == "none" else 39):
                with trio.move_on_after(0.1 if processors != "slow" else 1.1):
                    got.append(await anext(operate[processors]().take(8, within=4) if fresh else taken))
                assert trio.current_time() < begun + 200, got
    flat = [number for values in got for number in values]
    assert flat == [number for number in range(40) if number != 1 or processors == "none"]
    assert max(map(len, got)) <= 8
    assert len(got) < 20


async def test_a_smaller_take_after_a_cancelled_larger_one_keeps_its_size_and_the_order(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, 8)
    async with famulus.open_app(app):
        stream = numbers.stream()
        with trio.move_on_after(1):
            await anext(stream.take(100))
        assert await anext(stream.take(3)) == [0, 1, 2]
        assert await anext(stream) == 3
        assert await anext(stream.take(2)) == [4, 5]
        with trio.move_on_after(1):
            await anext(stream.take(100))
        assert await anext(stream.map(lambda n: -n).take(1)) == [-6]
        assert await anext(stream.take(1)) == [7]


async def test_a_take_with_other_processors_does_not_get_what_was_gathered_with_the_old_ones(
    broker: MemoryBroker,
) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, 4)
    async with famulus.open_app(app):
        stream = numbers.stream()
        with trio.move_on_after(3):
            await anext(stream.take(10, within=5))
        begun = trio.current_time()
        assert await anext(stream.filter(unless_one).take(10, within=5)) == [0, 2, 3]
        assert trio.current_time() - begun == pytest.approx(2)  # the clock of the first one goes on


# -- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("local", [False, True], ids=["topic", "channel"])
async def test_what_is_gathered_is_given_out_at_shutdown(broker: MemoryBroker, local: bool) -> None:
    app = app_on(broker)
    numbers: famulus.Channel[int] = (
        app.channel("numbers", value_type=int) if local else app.topic("numbers", value_type=int, partitions=1)
    )
    lists: list[list[int]] = []

    @app.agent(numbers)
    async def look(stream: famulus.Stream[int]) -> None:
        async for values in stream.take(100):
            await trio.sleep(1)
            lists.append(values)

    async with famulus.open_app(app):
        for number in range(3):
            await numbers.send(number)
        await trio.sleep(10)
        assert lists == []
    assert lists == [[0, 1, 2]]
    assert local or committed(broker) == 3


async def test_what_is_gathered_is_given_out_when_the_agent_alone_is_restarted(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, 3)
    lists: list[list[int]] = []

    @app.agent(app.topic("numbers", value_type=int), name="look")
    async def look(stream: famulus.Stream[int]) -> None:
        async for values in stream.take(4):
            lists.append(values)

    async with famulus.open_app(app) as running:
        await trio.sleep(10)
        assert running._run.root is not None
        agents = running._run.root.children["agents"].supervisor
        await agents.children["look"].restart()
        assert lists == [[0, 1, 2]]
        fill(broker, 4, start=3)
        await trio.sleep(10)
    assert lists == [[0, 1, 2], [3, 4, 5, 6]]
    assert committed(broker) == 7


async def test_an_agent_that_returns_with_something_gathered_gets_it_again(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, 3)
    lists: list[list[int]] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def look(stream: famulus.Stream[int]) -> None:
        with trio.move_on_after(1):
            async for values in stream.take(4):
                lists.append(values)

    async with famulus.open_app(app):
        await trio.sleep(5)
        fill(broker, 1, start=3)
        await trio.sleep(60)
    assert lists == [[0, 1, 2, 3]]
    assert committed(broker) == 4


async def test_a_stream_that_ends_gives_out_what_is_left_and_ends(broker: MemoryBroker) -> None:
    app = famulus.App("ending")
    async with famulus.open_app(app):
        assert [values async for values in app.stream(range(5)).take(2)] == [[0, 1], [2, 3], [4]]
        assert [values async for values in app.stream(range(4)).take(2)] == [[0, 1], [2, 3]]
        empty: list[int] = []
        assert [values async for values in app.stream(empty).take(2)] == []


# -- actors ------------------------------------------------------------------------------------------------------


async def test_actors_take_lists_of_their_own(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, 100, partitions=4)
    lists: list[list[int]] = []

    @app.agent(app.topic("numbers", value_type=int), concurrency=3, on_failure="retry")
    async def look(stream: famulus.Stream[int]) -> None:
        async for events in stream.take_events(7, within=2):
            await trio.sleep(1)
            if any(event.value % 10 == 3 and event.attempt == 1 for event in events):
                raise ValueError("first attempt")
            lists.append([event.value for event in events])

    async with famulus.open_app(app):
        await trio.sleep(600)
    assert sorted(number for values in lists for number in values) == list(range(100))
    assert max(map(len, lists)) == 7
    assert committed(broker) == 100
