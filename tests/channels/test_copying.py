"""`group_by` and `through` copy what has been fetched in one go, and nobody can tell from what comes out."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord

N = 600  # several batches of copies


def put(broker: MemoryBroker, values: list[bytes]) -> None:
    """All in one partition of the topic numbers, before anybody reads."""
    broker.create_topic("numbers", 1)
    broker.append(TP("numbers", 0), [ProducerRecord(b"k%d" % place, value) for place, value in enumerate(values)])


def regrouping(broker: MemoryBroker, key: Callable[[int], Any], seen: list[Any], **settings: Any) -> famulus.App:
    """An app whose agent reads the topic numbers regrouped by this key."""
    app = famulus.App("copies", broker=f"memory://{broker.name}", broker_commit_interval=0.5, **settings)

    @app.agent(app.topic("numbers", key_type=str, value_type=int))
    async def reader(stream: famulus.Stream[int]) -> None:
        async for event in stream.group_by(key, name="key").events():
            seen.append((event.key, event.value))

    return app


def committed(broker: MemoryBroker) -> int:
    return broker.group("copies").committed[TP("numbers", 0)]


async def test_copies_have_the_bytes_the_headers_and_the_time_of_their_messages(broker: MemoryBroker) -> None:
    broker.create_topic("numbers", 1)
    records = [ProducerRecord(None, b" %d" % number, (("n", b"%d" % number),), 1000.0 + number) for number in range(N)]
    broker.append(TP("numbers", 0), records)
    seen: list[Any] = []
    async with famulus.open_app(regrouping(broker, str, seen)):
        await trio.sleep(5)
    assert seen == [(b"%d" % number, number) for number in range(N)]
    copies = broker.messages("copies-numbers-key-repartition")
    assert [(copy.value, copy.headers, copy.timestamp) for copy in copies] == [
        (record.value, record.headers, record.timestamp) for record in records
    ]
    assert committed(broker) == N


async def test_what_has_no_key_is_skipped_and_all_around_it_goes_on_in_order(broker: MemoryBroker) -> None:
    put(broker, [b"%d" % number for number in range(N)])

    def no_hundreds(number: int) -> str:
        if number % 100 == 0:
            raise ValueError("a hundred")
        return "one"

    seen: list[Any] = []
    async with famulus.open_app(regrouping(broker, no_hundreds, seen)) as running:
        await trio.sleep(5)
        assert running.statistics().events_failed == N // 100
    assert [value for _, value in seen] == [number for number in range(N) if number % 100]
    assert committed(broker) == N


async def test_what_cannot_be_decoded_is_reported_and_all_around_it_goes_on_in_order(broker: MemoryBroker) -> None:
    put(broker, [b"oops" if number % 100 == 50 else b"%d" % number for number in range(N)])
    seen: list[Any] = []
    async with famulus.open_app(regrouping(broker, lambda number: "one", seen)) as running:
        await trio.sleep(5)
        assert running.statistics().decode_errors == N // 100
    assert [value for _, value in seen] == [number for number in range(N) if number % 100 != 50]
    assert committed(broker) == N


async def test_a_plain_function_may_give_some_keys_to_be_awaited(broker: MemoryBroker) -> None:
    put(broker, [b"%d" % number for number in range(N)])

    async def later(number: int) -> str:
        await trio.lowlevel.checkpoint()
        return f"later {number}"

    calls: list[int] = []

    def sometimes(number: int) -> Any:
        calls.append(number)
        return later(number) if number % 7 == 6 else f"now {number}"

    seen: list[Any] = []
    async with famulus.open_app(regrouping(broker, sometimes, seen)):
        await trio.sleep(5)
    assert calls == list(range(N))
    assert sorted(value for _, value in seen) == list(range(N))
    assert all(key == (f"later {value}" if value % 7 == 6 else f"now {value}").encode() for key, value in seen)
    assert committed(broker) == N


async def test_a_key_function_sees_its_event(broker: MemoryBroker) -> None:
    put(broker, [b"%d" % number for number in range(N)])

    def own_key(number: int) -> Any:
        event = famulus.current_event()
        assert event is not None
        assert event.value == number
        return event.key

    seen: list[Any] = []
    async with famulus.open_app(regrouping(broker, own_key, seen)):
        await trio.sleep(5)
    assert seen == [(b"k%d" % number, number) for number in range(N)]


async def test_what_a_key_function_sends_belongs_to_its_event(broker: MemoryBroker) -> None:
    put(broker, [b"%d" % number for number in range(N)])
    broker.create_topic("told", 1)
    seen: list[Any] = []

    def telling(number: int) -> str:
        if number == 300:
            told.send_soon(number)
        return str(number)

    app = regrouping(broker, telling, seen)
    told = app.topic("told", value_type=int)
    broker.faults.fail_produce(topic="told", times=None, error=famulus.BrokerUnavailable("away"))
    async with famulus.open_app(app):
        await trio.sleep(5)
        assert len(seen) == N
        assert committed(broker) == 300
        broker.faults.clear()
        await trio.sleep(10)
        assert committed(broker) == N


@pytest.mark.parametrize("bound", [{"producer_buffer_maxsize": 10}, {"producer_buffer_bytes": 1000}])
async def test_the_producers_buffer_keeps_its_bounds(broker: MemoryBroker, bound: dict[str, int]) -> None:
    put(broker, [b"%d" % number for number in range(N)])
    buffered: list[int] = []
    seen: list[Any] = []
    async with famulus.open_app(regrouping(broker, str, seen, **bound)) as running:
        while len(seen) < N:
            buffered.append(running._run.producer.buffered)
            await trio.lowlevel.checkpoint()
    assert [value for _, value in seen] == list(range(N))
    assert max(buffered) <= 16  # of 66 bytes or more, and the last may exceed the bytes that are left


@pytest.mark.parametrize("seed", range(5))
async def test_rebalances_and_failing_writes_lose_no_copy(broker: MemoryBroker, seed: int) -> None:
    rng = random.Random(seed)
    broker.create_topic("numbers", 4)
    for number in range(2000):
        broker.append(TP("numbers", number % 4), [ProducerRecord(None, b"%d" % number)])
    seen: list[Any] = []
    bounds = {"stream_buffer_maxsize": 50, "producer_buffer_maxsize": 100}
    apps = [regrouping(broker, lambda number: str(number % 50), seen, **bounds) for _ in range(2)]
    between = "copies-numbers-key-repartition"
    broker.faults.delay_produce(0.05, topic=between)
    async with famulus.open_app(apps[0]), famulus.open_app(apps[1]):
        for _ in range(6):
            await trio.sleep(rng.random() / 5)
            assert len(seen) < 2000
            broker.faults.rebalance("copies")
            broker.faults.fail_produce(topic=between, times=rng.randint(1, 3), error=famulus.BrokerUnavailable("away"))
        await trio.sleep(60)
        assert {value for _, value in seen} == set(range(2000))
        committed = broker.group("copies").committed
        assert sum(offset for tp, offset in committed.items() if tp.topic == "numbers") == 2000
    places: dict[bytes, set[int]] = {}
    for copy in broker.messages(between):
        assert copy.key is not None
        places.setdefault(copy.key, set()).add(copy.partition)
    assert all(len(partitions) == 1 for partitions in places.values())
