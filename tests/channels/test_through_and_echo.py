"""`through` and `echo`: values go on to other channels."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord


class Order(famulus.Record):
    account: str
    cents: int


def app_on(broker: MemoryBroker, **settings: Any) -> famulus.App:
    return famulus.App("flow", broker=f"memory://{broker.name}", **settings)


def committed(broker: MemoryBroker, topic: str) -> int:
    return sum(offset for tp, offset in broker.group("flow").committed.items() if tp.topic == topic)


def cents_of(order: Order) -> int:
    return order.cents


def vat_in_place(order: Order) -> Order:
    order.cents += 1
    return order


@pytest.fixture
def strict_broker(broker: MemoryBroker) -> MemoryBroker:
    """One that creates nothing by itself, as production brokers are set up."""
    broker.auto_create = False
    return broker


# -- through -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["name", "topic", "channel"])
async def test_through_a_name_a_topic_or_a_local_channel(strict_broker: MemoryBroker, how: str) -> None:
    broker = strict_broker
    app = app_on(broker)
    orders = app.topic("orders", key_type=str, value_type=Order, partitions=3)
    via = app.topic("via", key_type=str, value_type=Order)
    local = app.channel("local", value_type=Order)
    seen: list[tuple[Any, ...]] = []

    @app.agent(orders)
    async def look(stream: famulus.Stream[Order]) -> None:
        target: Any = {"name": "by-name", "topic": via, "channel": local}[how]
        async for event in stream.through(target).events():
            message = event.message
            seen.append((message.topic, event.key, event.value, event.headers, message.timestamp))

    async with famulus.open_app(app):
        for number in range(9):
            await orders.send(Order("a", number), key=str(number), headers={"h": b"1"}, timestamp=50.0 + number)
        await trio.sleep(30)
    topic = {"name": "by-name", "topic": "via", "channel": "local"}[how]
    expected = [(topic, str(n), Order("a", n), (("h", b"1"),), 50.0 + n) for n in range(9)]
    assert sorted(seen, key=lambda found: found[2].cents) == expected
    assert committed(broker, "orders") == 9
    if how != "channel":
        assert committed(broker, topic) == 9
    if how == "name":
        assert broker.partition_counts()["by-name"] == 3  # as many as the source has


async def test_a_topic_that_is_missing_gets_its_declared_partitions_else_those_of_the_source_of_each_run() -> None:
    broker = MemoryBroker("first-of-two", auto_create=False).register()
    other = MemoryBroker("second-of-two", auto_create=False).register()
    app = famulus.App("flow")
    source = app.topic("source", value_type=int)
    via = famulus.Topic[int](
        app, "via", value_type=int
    )  # not among the app's own topics, which are created at the start
    fixed = famulus.Topic[int](app, "fixed", value_type=int, partitions=5)

    @app.agent(source, name="plain")
    async def plain(stream: famulus.Stream[int]) -> None:
        async for _ in stream.through(via):
            pass

    @app.agent(source, name="declared")
    async def declared(stream: famulus.Stream[int]) -> None:
        async for _ in stream.through(fixed):
            pass

    try:
        for one, partitions in ((broker, 2), (other, 7)):
            one.create_topic("source", partitions)
            async with famulus.open_app(app, broker=f"memory://{one.name}"):
                await trio.sleep(5)
            assert one.partition_counts()["via"] == partitions
            assert one.partition_counts()["fixed"] == 5
    finally:
        MemoryBroker.forget(broker.name)
        MemoryBroker.forget(other.name)


async def test_the_bytes_go_on_as_they_came_unless_a_processor_has_seen_them(broker: MemoryBroker) -> None:
    app = app_on(broker)
    orders = app.topic("orders", value_type=Order)
    broker.create_topic("orders", 1)
    broker.append(TP("orders", 0), [ProducerRecord(b"k", b'{ "account": "a", "cents": 1, "more": 2 }')])
    seen: list[Order] = []

    @app.agent(orders, name="plain")
    async def plain(stream: famulus.Stream[Order]) -> None:
        async for _ in stream.filter(lambda order: True).echo("echo-plain").through("plain"):
            pass

    @app.agent(orders, name="changed")
    async def changed(stream: famulus.Stream[Order]) -> None:
        async for order in stream.map(vat_in_place).echo("echo-changed").through("changed"):
            seen.append(order)

    async with famulus.open_app(app):
        await trio.sleep(5)
    for topic in ("plain", "echo-plain"):
        assert [message.value for message in broker.messages(topic)] == [b'{ "account": "a", "cents": 1, "more": 2 }']
    for topic in ("changed", "echo-changed"):
        assert [message.value for message in broker.messages(topic)] == [b'{"account":"a","cents":2}']
    assert seen == [Order("a", 2)]


async def test_a_map_with_an_annotation_changes_the_type_of_a_named_topic(broker: MemoryBroker) -> None:
    app = app_on(broker)
    orders = app.topic("orders", value_type=Order, partitions=1)
    seen: list[int] = []

    @app.agent(orders)
    async def look(stream: famulus.Stream[Order]) -> None:
        async for cents in stream.map(cents_of).echo("cents-echo").through("cents"):
            seen.append(cents)

    async with famulus.open_app(app):
        await orders.send(Order("a", 7))
        await trio.sleep(5)
    assert seen == [7]
    assert [message.value for message in broker.messages("cents-echo")] == [b"7"]


async def test_a_channel_that_the_stream_reads_or_that_is_none_is_refused(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    async with famulus.open_app(app):
        stream = numbers.stream()
        for target in (numbers, "numbers", app.topic("numbers")):
            with pytest.raises(famulus.ImproperlyConfigured, match="reads numbers: what it sends there"):
                stream.through(target)
        with pytest.raises(famulus.ImproperlyConfigured, match="what it sends there"):
            (stream & app.stream([1])).through(numbers)
        with pytest.raises(famulus.ImproperlyConfigured, match="what it sends there"):
            stream.group_by(str, name="text", topic=numbers)
        for several in (app.topic("a", "b"), app.topic(pattern="x.*")):
            with pytest.raises(famulus.ImproperlyConfigured, match="cannot be written to"):
                stream.through(several)
            with pytest.raises(famulus.ImproperlyConfigured, match="cannot be written to"):
                stream.echo(several)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_two_agents_and_two_tasks_go_through_one_topic_without_ending_each_other(
    broker: MemoryBroker, concurrency: int
) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=2)
    seen: dict[str, list[int]] = {"first": [], "second": [], "task": [], "other task": []}

    def read(name: str) -> Any:
        async def reader(stream: famulus.Stream[int]) -> None:
            async for number in stream.through("via"):
                seen[name].append(number)

        return reader

    for name in ("first", "second"):
        app.agent(numbers, name=name, concurrency=concurrency)(read(name))

    async with famulus.open_app(app), trio.open_nursery() as nursery:
        for name in ("task", "other task"):
            nursery.start_soon(read(name), numbers.stream())
        await trio.sleep(5)
        for number in range(10):
            await numbers.send(number)
        await trio.sleep(30)
        nursery.cancel_scope.cancel()
    # Each of the four sends a copy of each, and each of the four readers of the topic gets all of these.
    assert {name: sorted(numbers) for name, numbers in seen.items()} == dict.fromkeys(seen, sorted(list(range(10)) * 4))


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("policy", ["ack", "retry", "dead_letter"])
async def test_a_crash_behind_through_costs_no_message(broker: MemoryBroker, policy: Any, concurrency: int) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=2)
    seen: list[int] = []

    @app.agent(numbers, on_failure=policy, concurrency=concurrency)
    async def look(stream: famulus.Stream[int]) -> None:
        async for event in stream.through("via").events():
            if event.value % 10 == 3 and event.attempt == 1:
                raise ValueError(event.value)
            seen.append(event.value)

    async with famulus.open_app(app) as running:
        for number in range(40):
            await numbers.send(number)
        await trio.sleep(600)
        restarts = {node.name: node.restarts for node in _nodes(running.tree())}
    assert sorted(seen) == [n for n in range(40) if n % 10 != 3 or policy == "retry"]
    assert committed(broker, "numbers") == 40
    assert committed(broker, "via") == 40
    assert not any(count for name, count in restarts.items() if name.endswith(" through via"))


def _nodes(node: Any) -> list[Any]:
    return [node, *(found for child in node.children for found in _nodes(child))]


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_what_is_sent_through_a_local_channel_is_not_done_before_it_is_processed(
    broker: MemoryBroker, concurrency: int
) -> None:
    app = app_on(broker, broker_commit_interval=1.0)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    local = app.channel("local", value_type=int)
    seen: list[int] = []
    pause = 100.0

    @app.agent(numbers, concurrency=concurrency)
    async def look(stream: famulus.Stream[int]) -> None:
        async for number in stream.through(local):
            await trio.sleep(pause)
            seen.append(number)

    async with famulus.open_app(app):
        for number in range(10):
            await numbers.send(number)
        await trio.sleep(50)
        assert committed(broker, "numbers") == 0
    done = len(seen)
    assert committed(broker, "numbers") <= done < 10
    pause = 0.01
    async with famulus.open_app(app):
        await trio.sleep(50)
    assert set(seen) == set(range(10))
    assert committed(broker, "numbers") == 10


# -- echo --------------------------------------------------------------------------------------------------------


async def test_echo_to_several_carries_key_headers_and_timestamp(broker: MemoryBroker) -> None:
    app = app_on(broker)
    orders = app.topic("orders", key_type=str, value_type=Order, partitions=1)
    typed = app.topic("typed", key_type=str, value_type=Order, partitions=1)
    local = app.channel("local", value_type=Order)
    seen: list[Order] = []
    heard: list[tuple[Any, ...]] = []

    @app.agent(orders)
    async def look(stream: famulus.Stream[Order]) -> None:
        async for order in stream.echo("named", typed, local):
            seen.append(order)

    @app.agent(local)
    async def hear(stream: famulus.Stream[Order]) -> None:
        async for event in stream.events():
            heard.append((event.key, event.value, event.headers, event.message.timestamp))

    async with famulus.open_app(app):
        await orders.send(Order("a", 1), key="k", headers={"h": b"1"}, timestamp=9.0)
        await trio.sleep(5)
    assert seen == [Order("a", 1)]
    assert heard == [("k", Order("a", 1), (("h", b"1"),), 9.0)]
    for topic in ("named", "typed"):
        (message,) = broker.messages(topic)
        assert (message.key, message.headers, message.timestamp) == (b"k", (("h", b"1"),), 9.0)
        assert message.value == b'{"account":"a","cents":1}'


async def test_a_question_that_is_echoed_is_answered_once_by_the_agent_that_was_asked(broker: MemoryBroker) -> None:
    app = app_on(broker)
    copies = app.topic("copies", value_type=int, partitions=1)

    @app.agent(app.topic("numbers", value_type=int, partitions=1))
    async def asked(stream: famulus.Stream[int]) -> AsyncIterator[str]:
        async for number in stream.echo(copies):
            await trio.sleep(1)
            yield f"asked {number}"

    @app.agent(copies)
    async def hears(stream: famulus.Stream[int]) -> AsyncIterator[str]:
        async for number in stream:
            yield f"heard {number}"

    async with famulus.open_app(app) as running:
        with trio.fail_after(100):
            assert await asked.ask(1) == "asked 1"
            assert await hears.ask(2) == "heard 2"
        await trio.sleep(10)
        statistics = running.statistics()
    assert (statistics.replies_sent, statistics.replies_dropped) == (2, 0)


@pytest.mark.parametrize("policy", ["ack", "retry", "dead_letter"])
async def test_a_copy_that_is_not_delivered_is_a_failure_of_its_event(broker: MemoryBroker, policy: Any) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    broker.create_topic("copies", 1)
    broker.faults.fail_produce(1, topic="copies")
    seen: list[tuple[int, int]] = []

    @app.agent(numbers, on_failure=policy)
    async def look(stream: famulus.Stream[int]) -> None:
        async for event in stream.echo("copies").events():
            seen.append((event.value, event.attempt))
            await trio.sleep(1)

    async with famulus.open_app(app) as running:
        await numbers.send(0)
        await trio.sleep(5)
        await numbers.send(1)
        await trio.sleep(60)
        statistics = running.statistics()
    assert seen == ([(0, 1), (0, 2), (1, 1)] if policy == "retry" else [(0, 1), (1, 1)])
    assert [message.value for message in broker.messages("copies")] == ([b"0", b"1"] if policy == "retry" else [b"1"])
    assert statistics.events_failed == 1
    assert statistics.dead_letters == (1 if policy == "dead_letter" else 0)
    assert committed(broker, "numbers") == 2


async def test_an_event_is_not_done_before_its_copies_are_delivered(broker: MemoryBroker) -> None:
    app = app_on(broker, broker_commit_interval=1.0)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    broker.create_topic("copies", 1)
    hold = broker.faults.hold_produce(topic="copies")

    @app.agent(numbers)
    async def look(stream: famulus.Stream[int]) -> None:
        async for _ in stream.echo("copies"):
            pass

    async with famulus.open_app(app):
        for number in range(3):
            await numbers.send(number)
        await trio.sleep(10)
        assert committed(broker, "numbers") == 0
        hold.release()
        await trio.sleep(10)
        assert committed(broker, "numbers") == 3


# -- questions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["through", "group_by", "through local"])
async def test_a_question_is_answered_behind_the_forwarder_and_not_left_waiting_when_it_is_sorted_out_before(
    broker: MemoryBroker, how: str
) -> None:
    app = app_on(broker)
    local = app.channel("local", value_type=int)

    def key(number: int) -> str:
        if number == 13:
            raise ValueError("thirteen")
        return str(number)

    def passes(number: int) -> bool:
        if number == 13:
            raise ValueError("thirteen")
        return number > 0

    @app.agent(app.topic("numbers", value_type=int, partitions=1))
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        kept = stream.filter(passes)
        onward = {
            "through": lambda: kept.through("via"),
            "group_by": lambda: kept.group_by(key, name="text"),
            "through local": lambda: kept.through(local),
        }[how]()
        async for number in onward:
            yield 2 * number

    async with famulus.open_app(app):
        with trio.fail_after(100):
            assert await double.ask(4) == 8
            with pytest.raises(famulus.AgentError, match="yielded nothing"):
                await double.ask(-1)
            with pytest.raises(famulus.AgentError, match="thirteen"):
                await double.ask(13)
            assert await double.ask(5) == 10
            broken = await double.channel.send(1, headers={})
            assert (await broken).offset == 4


@pytest.mark.parametrize("how", ["direct", "through"])
async def test_a_question_that_cannot_be_decoded_is_answered_with_that(broker: MemoryBroker, how: str) -> None:
    app = app_on(broker)
    texts = app.topic("numbers", value_type=str, partitions=1)

    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream.through("via") if how == "through" else stream:
            yield 2 * number

    wanted = app.agent(app.topic("numbers", value_type=int, partitions=1), name="double")(double)
    liar: famulus.Agent[str, int] = famulus.Agent(app, double, name="double", channel=texts, options=wanted.options)  # type: ignore[arg-type]  # a caller that takes it for another
    async with famulus.open_app(app):
        with trio.fail_after(100), pytest.raises(famulus.AgentError, match=r"int"):
            await liar.ask("no number")


async def test_what_no_agent_answers_for_is_sent_on_again_after_a_pause(broker: MemoryBroker) -> None:
    """A topic that refuses it does not keep the program busy."""
    app = famulus.App("patient", broker=f"memory://{broker.name}")
    numbers = app.topic("numbers", value_type=int)
    seen: list[int] = []
    async with famulus.open_app(app) as running, trio.open_nursery() as nursery:

        async def read() -> None:
            async for number in numbers.stream().through("onward"):
                seen.append(number)

        nursery.start_soon(read)
        await trio.sleep(1)
        broker.faults.fail_produce(topic="onward", times=None, error=famulus.ProduceError("refused"))
        await numbers.send(1)
        await trio.sleep(60)
        assert 5 < running.statistics().deliveries_failed < 30
        broker.faults.clear()
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert seen == [1]
