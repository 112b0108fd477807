"""`group_by` in company: every kind of key, its options, types after processors, chains with other operators, crashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio

import famulus
from famulus.channels.memory import MemoryBroker


class Order(famulus.Record):
    account: str
    cents: int


class Invoice(famulus.Record):
    customer: str
    total: float


def app_on(broker: MemoryBroker, **settings: Any) -> famulus.App:
    return famulus.App("groups", broker=f"memory://{broker.name}", **settings)


def committed(broker: MemoryBroker, topic: str) -> int:
    return sum(offset for tp, offset in broker.group("groups").committed.items() if tp.topic == topic)


def account_of(order: Order) -> str:
    return order.account


async def account_after_a_while(order: Order) -> str:
    await trio.sleep(0.01)
    return order.account


class Keys:
    """A callable object with a name."""

    __name__ = "custom"

    def __call__(self, order: Order) -> str:
        return order.account


@pytest.mark.parametrize(
    ("key", "options", "topic"),
    [
        (Order.account, {}, "groups-orders-account-repartition"),
        ("account", {}, "groups-orders-account-repartition"),
        (account_of, {}, "groups-orders-account_of-repartition"),
        (account_after_a_while, {}, "groups-orders-account_after_a_while-repartition"),
        (Keys(), {}, "groups-orders-custom-repartition"),
        (lambda order: order.account, {"name": "who"}, "groups-orders-who-repartition"),
        (Order.account, {"name": "owner"}, "groups-orders-owner-repartition"),
        (Order.account, {"topic": "mine"}, "mine"),
    ],
)
async def test_every_kind_of_key_and_the_topic_that_it_makes(
    broker: MemoryBroker, key: Any, options: dict[str, Any], topic: str
) -> None:
    app = app_on(broker)
    orders = app.topic("orders", value_type=Order, partitions=3)
    seen: list[tuple[str, object, float, Any]] = []

    @app.agent(orders)
    async def look(stream: famulus.Stream[Order]) -> None:
        async for event in stream.group_by(key, **options).events():
            seen.append((event.value.account, event.key, event.message.timestamp, event.headers))

    async with famulus.open_app(app):
        for number in range(30):
            await orders.send(Order(f"a{number % 4}", number), timestamp=7.0 + number, headers={"n": b"%d" % number})
        await trio.sleep(60)
    assert len(seen) == 30
    assert {(account, _text(found)) for account, found, _, _ in seen} == {(f"a{n}", f"a{n}") for n in range(4)}
    assert sorted(timestamp for _, _, timestamp, _ in seen) == [7.0 + number for number in range(30)]
    assert all(headers == (("n", b"%d" % (timestamp - 7)),) for _, _, timestamp, headers in seen)
    assert broker.partition_counts()[topic] == 3
    assert committed(broker, topic) == committed(broker, "orders") == 30


def _text(key: object) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)


async def test_values_without_a_type_are_grouped_by_a_name_too(broker: MemoryBroker) -> None:
    app = app_on(broker)
    things = app.topic("things", partitions=2)
    seen: list[Any] = []

    @app.agent(things)
    async def look(stream: famulus.Stream[Any]) -> None:
        async for thing in stream.group_by("who"):
            seen.append(thing)

    async with famulus.open_app(app):
        await things.send({"who": "ada", "n": 1})
        await trio.sleep(5)
    assert seen == [{"who": "ada", "n": 1}]
    assert broker.messages("groups-things-who-repartition")[0].key == b"ada"


async def test_partitions_of_the_own_topic_can_be_chosen(broker: MemoryBroker) -> None:
    app = app_on(broker)
    orders = app.topic("orders", value_type=Order, partitions=2)
    partitions: set[int] = set()

    @app.agent(orders)
    async def look(stream: famulus.Stream[Order]) -> None:
        async for event in stream.group_by(Order.account, partitions=6).events():
            partitions.add(event.message.partition)

    async with famulus.open_app(app):
        for number in range(50):
            await orders.send(Order(f"a{number}", number))
        await trio.sleep(60)
    assert broker.partition_counts()["groups-orders-account-repartition"] == 6
    assert partitions == set(range(6))


# -- types after processors --------------------------------------------------------------------------------------


def to_invoice(order: Order) -> Invoice:
    return Invoice(order.account, order.cents / 100)


async def to_invoice_slowly(order: Order) -> Invoice:
    await trio.sleep(0.01)
    return Invoice(order.account, order.cents / 100)


def to_invoice_silently(order):  # type: ignore[no-untyped-def]  # which is the point
    return Invoice(order.account, order.cents / 100)


def doubled(order):  # type: ignore[no-untyped-def]  # which is the point
    order.cents *= 2
    return order


@pytest.mark.parametrize("convert", [to_invoice, to_invoice_slowly])
@pytest.mark.parametrize("by", [Invoice.customer, "customer"], ids=["field", "name"])
async def test_an_annotated_processor_gives_the_type_that_arrives(broker: MemoryBroker, convert: Any, by: Any) -> None:
    app = app_on(broker)
    orders = app.topic("orders", value_type=Order, partitions=2)
    seen: list[Any] = []

    @app.agent(orders)
    async def look(stream: famulus.Stream[Order]) -> None:
        kept = stream.filter(lambda order: order.cents > 100)
        async for key, invoice in kept.map(convert).filter(lambda invoice: invoice.total < 9).group_by(by).items():
            seen.append((key, invoice))

    async with famulus.open_app(app):
        for cents in (50, 150, 250, 1250):
            await orders.send(Order("ada", cents))
        await trio.sleep(60)
    assert seen == [("ada", Invoice("ada", 1.5)), ("ada", Invoice("ada", 2.5))]
    assert committed(broker, "orders") == 4


async def test_an_unannotated_processor_that_keeps_the_type_needs_nothing(broker: MemoryBroker) -> None:
    app = app_on(broker)
    orders = app.topic("orders", value_type=Order, partitions=1)
    seen: list[Order] = []

    @app.agent(orders)
    async def look(stream: famulus.Stream[Order]) -> None:
        async for order in stream.map(doubled).group_by(Order.account):
            seen.append(order)

    async with famulus.open_app(app):
        await orders.send(Order("ada", 4))
        await trio.sleep(5)
    assert seen == [Order("ada", 8)]


@pytest.mark.parametrize("verb", ["group_by", "through"])
async def test_an_unannotated_processor_that_changes_the_type_fails_and_says_what_to_do(
    broker: MemoryBroker, verb: str
) -> None:
    app = app_on(broker)
    orders = app.topic("orders", value_type=Order, partitions=1)

    @app.agent(orders, on_failure="dead_letter")
    async def look(stream: famulus.Stream[Order]) -> None:
        mapped = stream.map(to_invoice_silently)
        async for _ in mapped.group_by("customer") if verb == "group_by" else mapped.through("via"):
            pass

    async with famulus.open_app(app) as running:
        await orders.send(Order("ada", 4))
        await trio.sleep(60)
        assert running.statistics().dead_letters == 1
    (letter,) = broker.messages("orders.dead-letter")
    told = dict(letter.headers)["famulus-dead-letter-error-message"].decode()
    assert told.startswith(f"{verb} after a processor that makes Invoice of Order: annotate what the processor returns")
    assert committed(broker, "orders") == 1


@pytest.mark.parametrize("policy", ["ack", "retry", "dead_letter"])
async def test_a_key_that_cannot_be_had_is_the_failure_of_its_event_alone(broker: MemoryBroker, policy: Any) -> None:
    app = app_on(broker)
    orders = app.topic("orders", value_type=Order, partitions=1)
    tried: Counter[int] = Counter()
    seen: list[int] = []

    def key(order: Order) -> str:
        tried[order.cents] += 1
        if order.cents == 2:
            raise famulus.AgentError("somebody", "an error that is one of ours, raised by what the user called")
        return order.account

    @app.agent(orders, on_failure=policy, max_attempts=3)
    async def look(stream: famulus.Stream[Order]) -> None:
        async for order in stream.group_by(key, name="key"):
            seen.append(order.cents)

    async with famulus.open_app(app) as running:
        for number in range(5):
            await orders.send(Order("ada", number))
        await trio.sleep(60)
        statistics = running.statistics()
        assert {node.name: node.restarts for node in running.tree().children}["services"] == 0
    assert seen == [0, 1, 3, 4]
    assert tried[2] == (3 if policy == "retry" else 1)
    assert statistics.dead_letters == (0 if policy == "ack" else 1)
    assert committed(broker, "orders") == 5


async def test_without_acknowledgement_it_is_the_regrouped_events_that_wait_for_it(broker: MemoryBroker) -> None:
    app = app_on(broker)
    orders = app.topic("orders", value_type=Order, partitions=1)
    kept: list[famulus.Event[Order]] = []
    topic = "groups-orders-account-repartition"

    @app.agent(orders)
    async def look(stream: famulus.Stream[Order]) -> None:
        async for event in stream.noack().group_by(Order.account).events():
            kept.append(event)

    async with famulus.open_app(app) as running:
        for number in range(3):
            await orders.send(Order("ada", number))
        await trio.sleep(5)
        await running.commit()
        assert (committed(broker, "orders"), committed(broker, topic)) == (3, 0)
        for event in kept:
            event.ack()
        await running.commit()
        assert committed(broker, topic) == 3


# -- chains ------------------------------------------------------------------------------------------------------

Chain = Callable[[famulus.Stream[Any], famulus.Stream[Any]], Any]


def key_of(number: int) -> str:
    return str(number % 5)


CHAINS: dict[str, Chain] = {
    "through group_by": lambda s, other: s.through("via").group_by(key_of),
    "group_by through": lambda s, other: s.group_by(key_of).through("via"),
    "echo through": lambda s, other: s.echo("copies").through("via"),
    "group_by group_by": lambda s, other: s.group_by(key_of).group_by(lambda n: f"k{n % 5}", name="again"),
    "filter group_by": lambda s, other: s.filter(lambda n: n >= 0).group_by(key_of),
    "through group_by echo filter": lambda s, other: s.through("via").group_by(key_of).echo("copies").filter(_all),
    "combined group_by": lambda s, other: (s & other).group_by(key_of),
    "combined echo through": lambda s, other: (s & other).echo("copies").through("via"),
    "group_by of both, combined": lambda s, other: s.group_by(key_of) & other.group_by(key_of, topic="theirs"),
}


def _all(number: int) -> bool:
    return True


@pytest.mark.parametrize("taken", [False, True], ids=["one by one", "take"])
@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("name", CHAINS)
async def test_a_chain_with_crashes_and_a_restart_loses_nothing_and_keeps_the_order_of_each_key(
    broker: MemoryBroker, name: str, concurrency: int, taken: bool
) -> None:
    """Agents crash on some events, a run is cancelled in the middle, another goes on; on a broker that creates nothing itself."""
    broker.auto_create = False
    app = app_on(broker, broker_commit_interval=0.5)
    numbers = app.topic("numbers", value_type=int, partitions=3)
    others = app.topic("others", value_type=int, partitions=2)
    for topic in (numbers, others):
        broker.create_topic(topic.name, topic.partitions or 1)
    both = "combined" in name
    finished: list[int] = []
    seen: Counter[int] = Counter()

    @app.agent(numbers, concurrency=concurrency, on_failure="retry")
    async def work(stream: famulus.Stream[int]) -> None:
        made = CHAINS[name](stream, others.stream() if both else stream)
        async for events in made.take_events(4, within=0.5) if taken else made.events():
            batch = events if taken else [events]
            await trio.sleep(0.05)
            for event in batch:
                seen[event.value] += 1
                if event.value % 10 == 3 and event.attempt == 1 and seen[event.value] == 1:
                    raise ValueError(event.value)
            finished.extend(event.value for event in batch)

    count = 60
    with trio.move_on_after(4):
        async with famulus.open_app(app):
            for number in range(count):
                topic = others if both and number % 2 else numbers
                await topic.send(number, key=str(number % 5).encode())
            await trio.sleep_forever()
    first = len(finished)
    async with famulus.open_app(app):
        await trio.sleep(600)
    assert first > 0
    assert set(finished) == set(range(count))
    for topic_name, end in _ends(broker).items():
        if topic_name != "copies":
            assert committed(broker, topic_name) == end, topic_name
    if "copies" in broker.topics:
        assert {int(message.value or b"") for message in broker.messages("copies")} == set(range(count))
    if concurrency == 1 and not both:
        # A number may come again, from where the committed offset was, but never one before what must come first.
        for key in range(5):
            newest = -1
            for number in [number for number in finished if number % 5 == key]:
                assert number <= newest or not any(n % 5 == key for n in range(newest + 1, number)), (
                    key,
                    number,
                    finished,
                )
                newest = max(newest, number)


def _ends(broker: MemoryBroker) -> dict[str, int]:
    return {name: sum(log.end for log in topic.logs) for name, topic in broker.topics.items()}
