"""What streams do on the way: processors, filter, map, enumerate, items, events, forward, throw, acks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.hand import current_hand
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord


class Order(famulus.Record):
    account: str
    cents: int


def fill(broker: MemoryBroker, topic: str, count: int, *, partitions: int = 1) -> None:
    broker.create_topic(topic, partitions)
    for number in range(count):
        broker.append(TP(topic, number % partitions), [ProducerRecord(b"k%d" % number, b"%d" % number)])


def app_on(broker: MemoryBroker, **settings: Any) -> famulus.App:
    return famulus.App("ops", broker=f"memory://{broker.name}", **settings)


def committed(broker: MemoryBroker, topic: str = "numbers") -> int:
    return sum(offset for tp, offset in broker.group("ops").committed.items() if tp.topic == topic)


async def double(number: int) -> int:
    await trio.sleep(0.01)
    return 2 * number


def plus_one(number: int) -> int:
    return number + 1


Take = Callable[[famulus.Stream[Any]], Any]

OPERATIONS: dict[str, tuple[Take, list[Any]]] = {
    "processors, plain and async, in order": (lambda s: s.map(double).map(plus_one), [1, 3, 5, 7]),
    "in the other order": (lambda s: s.map(plus_one).map(double), [2, 4, 6, 8]),
    "filter": (lambda s: s.filter(lambda n: n % 2), [1, 3]),
    "async filter": (lambda s: s.filter(double), [1, 2, 3]),
    "filter after map": (lambda s: s.map(plus_one).filter(lambda n: n > 2), [3, 4]),
    "map after filter": (lambda s: s.filter(lambda n: n > 1).map(str), ["2", "3"]),
    "a map to None is a value": (lambda s: s.map(lambda n: None), [None] * 4),
    "enumerate": (lambda s: s.filter(lambda n: n > 1).enumerate(), [(0, 2), (1, 3)]),
    "enumerate from": (lambda s: s.enumerate(10), [(10, 0), (11, 1), (12, 2), (13, 3)]),
    "items": (lambda s: s.map(plus_one).items(), [("k0", 1), ("k1", 2), ("k2", 3), ("k3", 4)]),
    "take": (lambda s: s.take(2), [[0, 1], [2, 3]]),
    "take after map": (lambda s: s.map(double).take(2), [[0, 2], [4, 6]]),
    "take after filter": (lambda s: s.filter(lambda n: n != 1).take(3), [[0, 2, 3]]),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_what_comes_out_of_an_operation_and_that_all_is_acknowledged(broker: MemoryBroker, name: str) -> None:
    operate, expected = OPERATIONS[name]
    app = app_on(broker)
    fill(broker, "numbers", 4)
    seen: list[Any] = []

    @app.agent(app.topic("numbers", key_type=str, value_type=int))
    async def look(stream: famulus.Stream[int]) -> None:
        async for value in operate(stream):
            seen.append(value)

    async with famulus.open_app(app):
        await trio.sleep(10)
    assert seen == expected
    assert committed(broker) == 4


async def test_processors_of_a_stream_are_given_or_added_and_run_in_order(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.channel("numbers", value_type=int)
    async with famulus.open_app(app):
        added: famulus.Stream[int] = numbers.stream()
        added.add_processor(double)
        added.add_processor(plus_one)
        for stream in (
            numbers.stream(processors=[double, plus_one]),
            app.stream(numbers, processors=[double, plus_one]),
            added,
        ):
            for number in range(3):
                await numbers.send(number)
            assert [await anext(stream) for _ in range(3)] == [1, 3, 5]
            stream.close()


async def test_a_processor_added_to_a_stream_under_way_sees_what_comes_next(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, "numbers", 4)
    async with famulus.open_app(app):
        stream = numbers.stream()
        assert [await anext(stream), await anext(stream)] == [0, 1]
        stream.add_processor(lambda number: -number)
        assert [await anext(stream), await anext(stream)] == [-2, -3]


async def test_a_processor_that_raises_is_a_failure_of_the_agent_on_that_event(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, "numbers", 4)
    seen: list[int] = []

    def picky(number: int) -> int:
        if number == 1:
            raise ValueError("one")
        return number

    @app.agent(app.topic("numbers", value_type=int), on_failure="dead_letter")
    async def look(stream: famulus.Stream[int]) -> None:
        async for number in stream.map(picky):
            seen.append(number)

    async with famulus.open_app(app) as running:
        await trio.sleep(60)
        assert running.statistics().dead_letters == 1
    assert seen == [0, 2, 3]
    assert [message.value for message in broker.messages("numbers.dead-letter")] == [b"1"]
    assert committed(broker) == 4


async def test_what_a_processor_changed_in_place_is_decoded_anew_when_the_event_comes_again(
    broker: MemoryBroker,
) -> None:
    app = app_on(broker)
    orders = app.topic("orders", value_type=Order, partitions=1)
    seen: list[int] = []

    def add(order: Order) -> Order:
        order.cents += 1
        return order

    @app.agent(orders, on_failure="retry")
    async def look(stream: famulus.Stream[Order]) -> None:
        async for order in stream.map(add):
            order.cents *= 10
            seen.append(order.cents)
            if len(seen) < 3:
                raise ValueError("again")

    async with famulus.open_app(app):
        await orders.send(Order("a", 4))
        await trio.sleep(60)
    assert seen == [50, 50, 50]


async def test_filtered_events_are_acknowledged_also_without_acknowledgement(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, "numbers", 6)
    kept: list[famulus.Event[int]] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def keep(stream: famulus.Stream[int]) -> None:
        async for event in stream.noack().filter(lambda n: n >= 4).events():
            kept.append(event)

    async with famulus.open_app(app) as running:
        await trio.sleep(1)
        await running.commit()
        assert committed(broker) == 4
        for event in kept:
            assert bool(await event.ack()) is True
        await running.commit()
        assert committed(broker) == 6


async def test_a_filter_over_an_endless_run_of_unwanted_events_can_be_cancelled(broker: MemoryBroker) -> None:
    app = app_on(broker)
    async with famulus.open_app(app):

        def forever() -> Any:
            while True:
                yield 1

        with trio.CancelScope() as scope:

            def never(number: int) -> bool:
                scope.cancel()
                return False

            await anext(app.stream(forever()).filter(never))
        assert scope.cancelled_caught


async def test_ack_by_hand_by_the_stream_and_by_the_event_come_to_the_same(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, "numbers", 3)
    told: list[bool] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def look(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            told.append(bool(await event.ack()))
            told.append(bool(await event.ack()))
            told.append(bool(await stream.ack(event)))

    async with famulus.open_app(app):
        await trio.sleep(1)
    assert told == [True, False, False] * 3
    assert committed(broker) == 3


async def test_the_current_event_is_known_inside_and_outside_of_the_loop(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, "numbers", 2)
    offsets: list[tuple[str, int]] = []

    def note(where: str) -> None:
        event = famulus.current_event()
        assert event is not None
        offsets.append((where, event.message.offset))

    def processor(number: int) -> int:
        note("processor")
        return number

    async with famulus.open_app(app):
        assert famulus.current_event() is None
        stream = numbers.stream(processors=[processor])
        assert stream.current_event is None
        for _ in range(2):
            await anext(stream)
            note("loop")
            assert stream.current_event is famulus.current_event()
    assert offsets == [("processor", 0), ("loop", 0), ("processor", 1), ("loop", 1)]


@pytest.mark.parametrize("how", ["name", "topic"])
async def test_forward_sends_the_bytes_headers_and_timestamp_as_they_came(broker: MemoryBroker, how: str) -> None:
    app = app_on(broker)
    copies = app.topic("copies", value_type=int, partitions=1)
    broker.create_topic("numbers", 1)
    broker.append(TP("numbers", 0), [ProducerRecord(b"k", b" 1 ", (("h", b"x"),), timestamp=77.5)])

    @app.agent(app.topic("numbers", value_type=int))
    async def look(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            await event.forward("copies" if how == "name" else copies)
            await event.forward(copies, key="other", value=2, headers={}, timestamp=1.0)
            await event.send(copies)
            await event.send("copies", key=b"raw", headers={"a": b"b"})

    async with famulus.open_app(app):
        await trio.sleep(1)
    first, changed, sent, named = broker.messages("copies")
    assert (first.key, first.value, first.headers, first.timestamp) == (b"k", b" 1 ", (("h", b"x"),), 77.5)
    assert (changed.key, changed.value, changed.headers, changed.timestamp) == (b"other", b"2", (), 1.0)
    assert (sent.key, sent.value, sent.headers) == (b"k", b"1", ())
    assert (named.key, named.value, named.headers) == (b"raw", b"1", (("a", b"b"),))


async def test_a_tombstone_and_a_message_without_a_key_are_forwarded_as_they_are(broker: MemoryBroker) -> None:
    app = app_on(broker)
    broker.create_topic("numbers", 1)
    broker.append(TP("numbers", 0), [ProducerRecord(b"k", None), ProducerRecord(None, b"1")])

    @app.agent(app.topic("numbers", value_type=int))
    async def look(stream: famulus.Stream[int]) -> None:
        async for event in stream.echo("echoed").through("through").events():
            await event.forward("forwarded")
            await event.send("sent")

    async with famulus.open_app(app):
        await trio.sleep(1)
    for topic in ("echoed", "through", "forwarded", "sent"):
        found = {(message.key, message.value) for message in broker.messages(topic)}
        assert found == {(b"k", None), (None, b"1")}, topic


async def test_throw_raises_in_the_loop_before_anything_else_comes_and_loses_nothing(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, "numbers", 5)
    async with famulus.open_app(app) as running:
        stream = numbers.stream()
        assert await anext(stream) == 0
        stream.throw(KeyError("look up"))
        with pytest.raises(KeyError, match="look up"):
            await anext(stream)
        assert [await anext(stream) for _ in range(4)] == [1, 2, 3, 4]

        async def wake() -> None:
            await trio.testing.wait_all_tasks_blocked()
            stream.throw(ValueError("wake"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wake)
            with pytest.raises(ValueError, match="wake"):
                await anext(stream)
        await running.commit()
        assert committed(broker) == 5


THROWN_INTO: dict[str, Take] = {
    "plain": lambda s: s,
    "filter": lambda s: s.filter(lambda n: True),
    "take": lambda s: s.take(2, within=1),
    "through": lambda s: s.through("via"),
    "group_by": lambda s: s.group_by(str, name="text"),
    "through and group_by": lambda s: s.through("via").group_by(str, name="text"),
}


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("how", [*THROWN_INTO, "combined"])
async def test_what_is_thrown_into_a_channel_reaches_one_actor_and_costs_no_message(
    broker: MemoryBroker, how: str, concurrency: int
) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=2)
    more = app.topic("more", value_type=int, partitions=1)
    raised: list[str] = []
    seen: list[Any] = []

    def note(agent: famulus.Agent[Any, Any], error: BaseException) -> None:
        raised.append(str(error))

    @app.agent(numbers, on_error=note, concurrency=concurrency)
    async def read(stream: famulus.Stream[int]) -> None:
        operate = THROWN_INTO.get(how)
        async for value in (stream & more.stream()) if operate is None else operate(stream):
            seen.append(value)

    async with famulus.open_app(app):
        await trio.sleep(1)
        numbers.throw(RuntimeError("thrown"))
        await trio.sleep(60)
        for number in range(4):
            await numbers.send(number)
        await trio.sleep(60)
    assert raised == ["thrown"]
    flat = [number for value in seen for number in (value if isinstance(value, list) else [value])]
    assert sorted(flat) == [0, 1, 2, 3]


async def test_what_is_thrown_before_anyone_iterates_waits(broker: MemoryBroker) -> None:
    app = app_on(broker)
    pipe = app.channel("pipe", value_type=int)
    async with famulus.open_app(app):
        stream = pipe.stream()
        other = pipe.stream()
        pipe.throw(RuntimeError("early"))
        for one in (stream, other):
            with pytest.raises(RuntimeError, match="early"):
                await anext(one)


async def test_streams_made_in_a_loop_leave_nothing_behind() -> None:
    app = famulus.App("rounds")
    pipe = app.channel("pipe", value_type=int)
    async with famulus.open_app(app) as running:
        sizes: list[tuple[int, ...]] = []
        for _ in range(5):
            stream = (pipe.stream() & app.stream([1, 2])).through("via").group_by(str, name="text")
            assert await anext(stream) in (1, 2)
            stream.close()
            await trio.testing.wait_all_tasks_blocked()
            hand = current_hand.get()
            assert hand is not None
            run = running._run
            assert run.services is not None
            sizes.append((len(hand._cursors), len(run.services.children), len(run.conductor._draining.cursors)))
    assert sizes[-1] == sizes[1], sizes


async def test_an_answer_and_a_failure_belong_to_the_agent_s_event_whatever_else_it_reads() -> None:
    """A stream inside the loop has events of its own."""
    app = famulus.App("nested")
    begun: list[int] = []

    @app.agent()
    async def total(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for upto in stream:
            begun.append(upto)
            found = 0
            async for number in app.stream(range(upto)):
                found += number
            assert famulus.current_event() is not None
            assert famulus.current_event().value == upto  # type: ignore[union-attr]  # looked at above
            if upto == 4:
                raise ValueError("four")
            yield found

    async with famulus.open_app(app):
        with trio.fail_after(60):
            assert await total.ask(5) == 10
            with pytest.raises(famulus.AgentError, match="four"):
                await total.ask(4)
            assert await total.ask(3) == 3
    assert begun == [5, 4, 3]
