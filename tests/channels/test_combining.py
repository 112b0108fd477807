"""Several streams as one: `s1 & s2`, `combine`, `app.stream` of several."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord


class Order(famulus.Record):
    account: str
    cents: int


class Refund(famulus.Record):
    account: str
    reason: str


def fill(broker: MemoryBroker, topic: str, numbers: range, *, partitions: int = 1) -> None:
    if topic not in broker.topics:
        broker.create_topic(topic, partitions)
    for number in numbers:
        broker.append(TP(topic, number % partitions), [ProducerRecord(None, b"%d" % number)])


def app_on(broker: MemoryBroker, **settings: Any) -> famulus.App:
    return famulus.App("mix", broker=f"memory://{broker.name}", **settings)


def committed(broker: MemoryBroker, topic: str) -> int:
    return sum(offset for tp, offset in broker.group("mix").committed.items() if tp.topic == topic)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_an_agent_reads_two_topics_and_acknowledges_both(broker: MemoryBroker, concurrency: int) -> None:
    app = app_on(broker)
    fill(broker, "a", range(50), partitions=2)
    fill(broker, "b", range(100, 150), partitions=3)
    more = app.topic("b", value_type=int)
    seen: list[int] = []

    @app.agent(app.topic("a", value_type=int), concurrency=concurrency)
    async def both(stream: famulus.Stream[int]) -> None:
        async for number in stream & more.stream():
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(10)
    assert sorted(seen) == [*range(50), *range(100, 150)]  # also of the second topic the actors are one reader
    assert (committed(broker, "a"), committed(broker, "b")) == (50, 50)


async def test_a_busy_stream_starves_no_quiet_one() -> None:
    app = famulus.App("fair")
    pipe = app.channel("pipe", value_type=int)
    async with famulus.open_app(app):
        stream = app.stream(itertools.count(1)) & pipe.stream()
        first = await anext(stream)
        await pipe.send(-1)
        following = [await anext(stream) for _ in range(3)]
    assert first == 1
    assert -1 in following[:2]


async def test_each_keeps_its_processors_and_those_of_the_combined_one_come_after() -> None:
    app = famulus.App("steps")
    async with famulus.open_app(app):
        ones = app.stream([1, 2]).map(lambda n: n * 10)
        twos = app.stream([3, 4]).filter(lambda n: n > 3)
        threes = app.stream([5, 6])
        nested = ((ones & twos).map(lambda n: n + 1) & threes).map(str)
        assert sorted([value async for value in nested]) == ["11", "21", "5", "5", "6"]


@pytest.mark.parametrize("how", ["&", "combine", "app.stream"])
async def test_three_ways_to_say_it(how: str) -> None:
    app = famulus.App("ways")
    async with famulus.open_app(app):
        parts: list[famulus.Stream[int]] = [app.stream([1]), app.stream([2]), app.stream([3])]
        combined: famulus.Stream[int] = (
            parts[0] & parts[1] & parts[2]
            if how == "&"
            else parts[0].combine(*parts[1:])
            if how == "combine"
            else app.stream(*parts)
        )
        assert sorted([number async for number in combined]) == [1, 2, 3]


async def test_channels_streams_and_iterables_are_combined_as_they_are() -> None:
    app = famulus.App("kinds")
    pipe = app.channel("pipe", value_type=int)

    async def later() -> AsyncIterator[int]:
        await trio.sleep(1)
        yield 20

    async with famulus.open_app(app):
        stream = app.stream(pipe, [1, 2], later(), pipe.stream(), processors=[lambda n: -n])
        await pipe.send(7)
        assert sorted([await anext(stream) for _ in range(5)]) == [-20, -7, -7, -2, -1]
        with trio.move_on_after(5) as scope:  # the channel goes on
            await anext(stream)
        assert scope.cancelled_caught


async def test_what_cannot_be_combined_says_so() -> None:
    app = famulus.App("refusals")
    async with famulus.open_app(app):
        stream = app.stream([1])
        with pytest.raises(ValueError, match="cannot be combined with itself"):
            _ = stream & stream.map(str)
        with pytest.raises(ValueError, match="all with or all without acknowledgement"):
            _ = stream & app.stream([2]).noack()
        with pytest.raises(TypeError, match="expected at least one"):
            app.stream()
        with pytest.raises(TypeError, match="expected a channel, a stream, an iterable"):
            app.stream(7)  # type: ignore[call-overload]  # which is the point


async def test_an_actor_that_leaves_a_shared_stream_hands_over_what_it_has(broker: MemoryBroker) -> None:
    app = app_on(broker)
    pipe = app.channel("pipe", value_type=int)
    fill(broker, "b", range(60), partitions=3)
    seen: list[int] = []

    @app.agent(pipe, concurrency=3)
    async def work(stream: famulus.Stream[int]) -> None:
        async for turn in stream:
            more: famulus.Stream[int] = app.topic("b", value_type=int).stream()
            async for number in more:
                await trio.sleep(1)
                if len(seen) > 10 * (turn + 1) and turn < 2:
                    more.close()  # with this one in hand
                    break
                seen.append(number)

    async with famulus.open_app(app) as running:
        for turn in range(3):
            await pipe.send(turn)
        await trio.sleep(600)
        await running.commit()
        assert sorted(seen) == list(range(60))
        assert committed(broker, "b") == 60


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("policy", ["ack", "retry", "dead_letter"])
async def test_a_crash_costs_no_message_and_no_rebalance(broker: MemoryBroker, policy: Any, concurrency: int) -> None:
    app = app_on(broker)
    fill(broker, "a", range(20))
    fill(broker, "b", range(100, 120))
    more = app.topic("b", value_type=int)
    seen: list[int] = []
    rebalances: list[int] = []

    @app.agent(app.topic("a", value_type=int), on_failure=policy, concurrency=concurrency)
    async def both(stream: famulus.Stream[int]) -> None:
        async for event in (stream & more.stream()).events():
            if event.value % 10 == 3 and event.attempt == 1:
                raise ValueError(event.value)
            seen.append(event.value)

    async with famulus.open_app(app) as running:
        await trio.sleep(1)
        rebalances.append(running.statistics().rebalances)
        await trio.sleep(600)
        rebalances.append(running.statistics().rebalances)
    expected = {*range(20), *range(100, 120)}
    if policy != "retry":
        expected -= {3, 13, 103, 113}
    assert set(seen) == expected
    assert len(seen) == len(expected)
    if concurrency == 1:
        assert [number for number in seen if number < 100] == sorted(number for number in seen if number < 100)
    assert (committed(broker, "a"), committed(broker, "b")) == (20, 20)
    assert rebalances[0] == rebalances[1]


async def test_orders_and_refunds_are_grouped_by_one_field_and_keep_their_types(broker: MemoryBroker) -> None:
    app = app_on(broker)
    orders = app.topic("orders", value_type=Order, partitions=2)
    refunds = app.topic("refunds", value_type=Refund, partitions=4)
    seen: list[tuple[int, Order | Refund]] = []

    @app.agent(orders)
    async def both(stream: famulus.Stream[Order]) -> None:
        async for event in (stream & refunds.stream()).group_by("account").events():
            seen.append((event.message.partition, event.value))

    async with famulus.open_app(app):
        for number in range(10):
            await orders.send(Order(f"a{number % 3}", number))
            await refunds.send(Refund(f"a{number % 3}", str(number)))
        await trio.sleep(60)
    values = [value for _, value in seen]
    assert sorted(value.cents for value in values if isinstance(value, Order)) == list(range(10))
    assert sorted(int(value.reason) for value in values if isinstance(value, Refund)) == list(range(10))
    places = {value.account: {p for p, other in seen if other.account == value.account} for value in values}
    assert all(len(partitions) == 1 for partitions in places.values())
    assert broker.partition_counts()["mix-orders-refunds-account-repartition"] == 4  # as many as the larger one
    assert (committed(broker, "orders"), committed(broker, "refunds")) == (10, 10)


def cents_of(order: Order) -> int:
    return order.cents


def length_of(refund: Refund) -> int:
    return len(refund.reason)


async def test_processors_that_bring_two_streams_to_one_type_are_believed_in_group_by(broker: MemoryBroker) -> None:
    app = app_on(broker)
    orders = app.topic("orders", value_type=Order, partitions=1)
    refunds = app.topic("refunds", value_type=Refund, partitions=1)
    seen: list[int] = []

    @app.agent(orders)
    async def both(stream: famulus.Stream[Order]) -> None:
        combined = stream.map(cents_of) & refunds.stream().map(length_of)
        async for number in combined.group_by(str, name="text"):
            seen.append(number)

    async with famulus.open_app(app):
        await orders.send(Order("a", 7))
        await refunds.send(Refund("a", "four"))
        await trio.sleep(60)
    assert sorted(seen) == [4, 7]


@pytest.mark.parametrize("verb", ["echo", "through", "group_by"])
async def test_streams_with_keys_and_values_of_several_types_or_none_go_on_as_they_are(
    broker: MemoryBroker, verb: str
) -> None:
    app = app_on(broker)
    typed = app.topic("typed", key_type=str, value_type=Order, partitions=1)
    plain = app.topic("plain", partitions=1)
    seen: list[tuple[Any, Any]] = []

    @app.agent(typed)
    async def both(stream: famulus.Stream[Any]) -> None:
        combined = stream & plain.stream()
        onward = {
            "echo": lambda: combined.echo("copies"),
            "through": lambda: combined.through("copies"),
            "group_by": lambda: combined.group_by(lambda value: "k", name="one"),
        }[verb]()
        async for event in onward.events():
            seen.append((event.key, event.value))

    async with famulus.open_app(app):
        await typed.send(Order("a", 1), key="k")
        await plain.send({"free": "form"}, key=b"k")
        await trio.sleep(60)
    values = [value for _, value in seen]
    assert {"free": "form"} in values
    assert ({"account": "a", "cents": 1} if verb != "echo" else Order("a", 1)) in values
    if verb != "group_by":
        assert {message.key for message in broker.messages("copies")} == {b"k"}


async def test_without_acknowledgement_both_are_acknowledged_by_hand(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, "a", range(3))
    fill(broker, "b", range(3))
    more = app.topic("b", value_type=int)
    kept: list[famulus.Event[int]] = []

    @app.agent(app.topic("a", value_type=int))
    async def keep(stream: famulus.Stream[int]) -> None:
        async for event in (stream.noack() & more.stream().noack()).events():
            kept.append(event)

    async with famulus.open_app(app) as running:
        await trio.sleep(1)
        assert len(kept) == 6
        for event in kept:
            if event.message.topic == "a":
                event.ack()
        await running.commit()
        assert (committed(broker, "a"), committed(broker, "b")) == (3, 0)


async def test_a_rebalance_waits_for_what_a_combined_stream_has_in_hand(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, "a", range(20), partitions=2)
    fill(broker, "b", range(100, 120), partitions=2)
    more = app.topic("b", value_type=int)
    seen: list[int] = []

    @app.agent(app.topic("a", value_type=int))
    async def both(stream: famulus.Stream[int]) -> None:
        async for number in stream & more.stream():
            await trio.sleep(0.5)
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(3.2)
        async with famulus.open_app(app):
            await trio.sleep(60)
    assert sorted(seen) == sorted([*range(20), *range(100, 120)])  # not even a duplicate


async def test_an_undecodable_message_of_one_part_is_reported_to_its_own_channel(broker: MemoryBroker) -> None:
    app = app_on(broker)
    told: list[str] = []

    class Watched(famulus.Topic[int]):
        async def on_value_decode_error(self, error: Exception, message: famulus.Message) -> None:
            told.append(f"{self.name}: {message.offset}")

    fill(broker, "a", range(2))
    broker.create_topic("b", 1)
    broker.append(TP("b", 0), [ProducerRecord(None, b"{broken"), ProducerRecord(None, b"5")])
    seen: list[int] = []

    @app.agent(app.topic("a", value_type=int))
    async def both(stream: famulus.Stream[int]) -> None:
        async for number in stream & Watched(app, "b", value_type=int).stream():
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(1)
    assert sorted(seen) == [0, 1, 5]
    assert told == ["b: 0"]
    assert committed(broker, "b") == 2


async def test_a_part_that_fails_raises_and_the_others_keep_what_they_have() -> None:
    app = famulus.App("part-fails")
    pipe = app.channel("pipe", value_type=int)

    async def broken(name: str) -> AsyncIterator[int]:
        await trio.sleep(1)
        if name:
            raise OSError(name)
        yield 1

    async with famulus.open_app(app):
        stream = app.stream(broken("first"), broken("second"), pipe)
        raised: list[str] = []
        for _ in range(2):
            with pytest.raises(OSError, match=r"first|second") as info:
                await anext(stream)
            raised.append(str(info.value))
        await pipe.send(5)
        assert await anext(stream) == 5
    assert sorted(raised) == ["first", "second"]


async def test_what_is_buffered_locally_is_still_processed_at_shutdown() -> None:
    app = famulus.App("drains")
    pipe = app.channel("pipe", value_type=int)
    other = app.channel("other", value_type=int)
    seen: list[int] = []

    @app.agent(pipe)
    async def both(stream: famulus.Stream[int]) -> None:
        async for number in stream & other.stream():
            await trio.sleep(0.1)
            seen.append(number)

    async with famulus.open_app(app):
        for number in range(10):
            await pipe.send(number)
            await other.send(-number)
    assert sorted(seen) == sorted([*range(10), *(-number for number in range(10))])
