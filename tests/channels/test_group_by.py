"""`group_by`: a stream goes on through an intermediate topic."""

from collections import Counter
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker


class Order(famulus.Record):
    account: str
    cents: int


def cents_as_text(order: Order) -> str:
    return str(order.cents)


async def account_of(order: Order) -> str:
    await trio.sleep(0.1)
    return order.account


@pytest.mark.parametrize(
    ("key", "name", "topic"),
    [
        (Order.account, None, "groups-orders-account-repartition"),
        (account_of, None, "groups-orders-account_of-repartition"),
        (lambda order: order.account, "who", "groups-orders-who-repartition"),
    ],
    ids=["field", "async function", "named lambda"],
)
async def test_all_values_of_a_key_go_through_one_partition(
    broker: MemoryBroker, key: object, name: str | None, topic: str
) -> None:
    app = famulus.App("groups", broker=f"memory://{broker.name}")
    orders = app.topic("orders", value_type=Order, partitions=4)
    totals: Counter[str] = Counter()
    partitions: dict[str, set[int]] = {}

    @app.agent(orders)
    async def tally(stream: famulus.Stream[Order]) -> None:
        async for event in stream.group_by(key, name=name).events():
            totals[event.value.account] += event.value.cents
            partitions.setdefault(event.value.account, set()).add(event.message.partition)

    async with famulus.open_app(app):
        for number in range(100):
            await orders.send(Order(f"a{number % 7}", number))
        await trio.sleep(60)
    expected: Counter[str] = Counter()
    for number in range(100):
        expected[f"a{number % 7}"] += number
    assert totals == expected
    assert all(len(numbers) == 1 for numbers in partitions.values())
    assert broker.partition_counts()[topic] == 4
    committed = broker.group("groups").committed
    assert sum(offset for tp, offset in committed.items() if tp.topic == topic) == 100


async def test_a_key_without_a_name_needs_one() -> None:
    app = famulus.App("nameless")
    problem: list[str] = []

    @app.agent(app.topic("orders", value_type=Order))
    async def tally(stream: famulus.Stream[Order]) -> None:
        try:
            stream.group_by(lambda order: order.account)
        except ValueError as error:
            problem.append(str(error))
        async for _ in stream:
            pass

    async with famulus.open_app(app):
        pass
    assert "name='account'" in problem[0]


async def test_keys_of_a_field_arrive_as_their_type(broker: MemoryBroker) -> None:
    app = famulus.App("typed-keys", broker=f"memory://{broker.name}")
    orders = app.topic("orders", value_type=Order, partitions=2)
    keys: list[object] = []

    @app.agent(orders)
    async def tally(stream: famulus.Stream[Order]) -> None:
        async for key, _ in stream.group_by(Order.cents).items():
            keys.append(key)

    async with famulus.open_app(app):
        await orders.send(Order("a", 12))
        await trio.testing.wait_all_tasks_blocked()
    assert keys == [12]


async def test_a_crash_after_group_by_loses_nothing(broker: MemoryBroker) -> None:
    app = famulus.App("crashy-groups", broker=f"memory://{broker.name}")
    orders = app.topic("orders", value_type=Order, partitions=2)
    seen: list[int] = []

    @app.agent(orders, on_failure="retry")
    async def tally(stream: famulus.Stream[Order]) -> None:
        async for event in stream.group_by(Order.account).events():
            if event.value.cents % 10 == 3 and event.attempt == 1:
                raise RuntimeError("first attempt")
            seen.append(event.value.cents)

    async with famulus.open_app(app):
        for number in range(50):
            await orders.send(Order(f"a{number % 5}", number))
        await trio.sleep(600)
    assert sorted(seen) == list(range(50))


async def test_the_answer_comes_from_the_last_stage() -> None:
    app = famulus.App("answers")

    @app.agent()
    async def total(stream: famulus.Stream[Order]) -> AsyncIterator[int]:
        sums: Counter[str] = Counter()
        async for order in stream.group_by(Order.account):
            sums[order.account] += order.cents
            yield sums[order.account]

    async with famulus.open_app(app):
        with trio.fail_after(1):
            assert await total.ask(Order("ada", 5)) == 5
            assert await total.ask(Order("bob", 1)) == 1
            assert await total.ask(Order("ada", 2)) == 7


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_actors_share_a_regrouped_stream(concurrency: int) -> None:
    app = famulus.App("shared-groups")
    numbers = app.topic("numbers", value_type=int, partitions=2)
    seen: list[int] = []

    @app.agent(numbers, concurrency=concurrency)
    async def work(stream: famulus.Stream[int]) -> None:
        async for number in stream.group_by(lambda n: str(n), name="text"):
            seen.append(number)

    async with famulus.open_app(app):
        for number in range(100):
            await numbers.send(number)
        await trio.testing.wait_all_tasks_blocked()
    assert sorted(seen) == list(range(100))


async def test_a_local_channel_can_be_regrouped() -> None:
    app = famulus.App("local-groups")
    orders = app.channel("orders", value_type=Order)
    seen: list[Order] = []

    @app.agent(orders)
    async def tally(stream: famulus.Stream[Order]) -> None:
        async for order in stream.group_by(Order.account):
            seen.append(order)

    async with famulus.open_app(app):
        await orders.send(Order("ada", 1))
        await trio.testing.wait_all_tasks_blocked()
    assert seen == [Order("ada", 1)]


async def test_two_readers_cannot_regroup_through_one_topic(caplog: pytest.LogCaptureFixture) -> None:
    app = famulus.App("double-groups")
    orders = app.topic("orders", value_type=Order, partitions=1)

    async def tally(stream: famulus.Stream[Order]) -> None:
        async for _ in stream.group_by(Order.account):
            pass

    for name in ("first", "second"):
        app.agent(orders, name=name, supervisor_strategy=famulus.CrashingSupervisor)(tally)
    with pytest.raises(ExceptionGroup):
        async with famulus.open_app(app):
            await trio.sleep(100)
    assert "another reader regroups through topic double-groups-orders-account-repartition" in caplog.text
