"""Topics whose schemas are at a registry: who waits for it, for how long, and what is said meanwhile."""

import logging
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import famulus
from famulus import SchemaRegistry
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import Headers
from famulus.models import codecs
from famulus.testing import StubRegistry


class Order(famulus.Record):
    account: str
    cents: int


class NewOrder(famulus.Record):
    account: str
    cents: int
    note: str | None = None


@pytest.fixture
def stub() -> Iterator[StubRegistry]:
    with StubRegistry() as stub:
        yield stub


def url_of(broker: MemoryBroker) -> str:
    return f"memory://{broker.name}"


def reading(
    broker: MemoryBroker, stub: StubRegistry, *, type: object = Order, timeout: float = 5.0
) -> tuple[famulus.App, list[object]]:
    """An app with an agent that keeps what it reads from topic `orders`, by a registry client of its own."""
    app = famulus.App("reader", broker=url_of(broker))
    codec = SchemaRegistry(stub.url, timeout=timeout).avro()
    seen: list[object] = []

    @app.agent(app.topic("orders", value_type=type, value_serializer=codec, partitions=1))
    async def reader(stream: famulus.Stream[object]) -> None:
        async for order in stream:
            seen.append(order)

    return app, seen


async def write(broker: MemoryBroker, stub: StubRegistry, *values: object) -> None:
    app = famulus.App("writer", broker=url_of(broker))
    codec = SchemaRegistry(stub.url).avro()
    topic = app.topic("orders", value_type=type(values[0]), value_serializer=codec, partitions=1)
    async with famulus.open_app(app):
        for value in values:
            await (await topic.send(value))


async def until(seen: list[object], count: int) -> None:
    while len(seen) < count:
        await trio.sleep(0.01)


async def test_what_one_app_writes_another_reads_also_with_a_newer_type(
    broker: MemoryBroker, stub: StubRegistry
) -> None:
    await write(broker, stub, *(Order("ada", number) for number in range(100)))
    await write(broker, stub, *(NewOrder("bob", number, "quick") for number in range(100)))
    for kind in (Order, NewOrder):
        app, seen = reading(broker, stub, type=kind)
        async with famulus.open_app(app):
            await until(seen, 200)
        notes = {"note": "quick"} if kind is NewOrder else {}
        assert seen[:100] == [kind("ada", number) for number in range(100)]
        assert seen[100:] == [kind("bob", number, **notes) for number in range(100)]
        broker.group("reader").committed.clear()
    assert sorted(stub.requests) == sorted(
        ["POST /subjects/orders-value/versions"] * 2 + ["GET /schemas/ids/1", "GET /schemas/ids/2"] * 2
    )


async def test_a_registry_that_is_away_is_waited_for_in_order_and_said_once(
    broker: MemoryBroker, stub: StubRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    await write(broker, stub, *(Order("ada", number) for number in range(10)))
    stub.stop()
    caplog.set_level(logging.INFO, "famulus.registry")
    app, seen = reading(broker, stub)
    async with famulus.open_app(app) as running:
        await trio.sleep(30)
        assert seen == []
        assert running.statistics().decode_errors == 0
        stub.start()
        await until(seen, 10)
    assert seen == [Order("ada", number) for number in range(10)]
    first, second = [record.getMessage() for record in caplog.records if record.name == "famulus.registry"]
    assert first.startswith(f"getting schema 1 of {stub.url} waits for its server: ")
    assert "refused" in first
    assert second == f"getting schema 1 of {stub.url} goes on"


async def test_a_registry_in_trouble_is_asked_again_by_reader_and_sender(
    broker: MemoryBroker, stub: StubRegistry
) -> None:
    stub.fail(3, 503)
    await write(broker, stub, Order("ada", 1))
    stub.fail(3, 500)
    app, seen = reading(broker, stub)
    async with famulus.open_app(app):
        await until(seen, 1)
    assert seen == [Order("ada", 1)]


async def test_an_unknown_schema_is_bad_input_of_its_message_alone(
    broker: MemoryBroker, stub: StubRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    app = famulus.App("writer", broker=url_of(broker))
    async with famulus.open_app(app):
        await (await app.topic("orders", value_type=bytes, partitions=1).send(b"\0\0\0\0\x63..."))
    await write(broker, stub, Order("ada", 1))
    app, seen = reading(broker, stub)
    async with famulus.open_app(app) as running:
        await until(seen, 1)
        assert running.statistics().decode_errors == 1
    assert f"orders-0@0: undecodable value: $: expected Order, got {b'...'!r}"[:40] in caplog.text
    assert "schema 99 of http" in caplog.text
    assert "Schema 99 not found" in caplog.text


async def test_a_schema_that_the_registry_refuses_fails_the_send_with_its_subject(
    broker: MemoryBroker, stub: StubRegistry
) -> None:
    stub.refuse("orders-value", 409)
    with pytest.raises(famulus.EncodeError, match=r"subject 'orders-value' at http.*incompatible") as raised:
        await write(broker, stub, Order("ada", 1))
    assert "409" in str(raised.value)


@pytest.mark.real_time
async def test_many_senders_that_miss_one_schema_have_it_fetched_once(broker: MemoryBroker, stub: StubRegistry) -> None:
    app = famulus.App("writer", broker=url_of(broker))
    topic = app.topic("orders", value_type=Order, value_serializer=SchemaRegistry(stub.url).avro(), partitions=1)
    async with famulus.open_app(app):
        with stub.hanging():
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(topic.send, Order("ada", number))
                while not stub.requests:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()  # what was asked for goes on, and serves who comes next
        await (await topic.send(Order("bob", 1)))
    assert stub.requests == ["POST /subjects/orders-value/versions"]


async def test_a_send_that_waits_for_the_registry_ends_at_its_callers_deadline(
    broker: MemoryBroker, stub: StubRegistry
) -> None:
    app = famulus.App("writer", broker=url_of(broker))
    topic = app.topic("orders", value_type=Order, value_serializer=SchemaRegistry(stub.url).avro(), partitions=1)
    stub.stop()
    async with famulus.open_app(app):
        with trio.move_on_after(3) as scope:
            await topic.send(Order("ada", 1))
        assert scope.cancelled_caught
        stub.start()
        await (await topic.send(Order("ada", 2)))


async def test_send_soon_says_what_to_await_first(broker: MemoryBroker, stub: StubRegistry) -> None:
    app = famulus.App("writer", broker=url_of(broker))
    topic = app.topic("orders", value_type=Order, value_serializer=SchemaRegistry(stub.url).avro(), partitions=1)
    async with famulus.open_app(app):
        with pytest.raises(
            famulus.NotReady, match=r"subject 'orders-value' at http.*`await send\(\.\.\.\)` to the topic"
        ):
            topic.send_soon(Order("ada", 1))
        await topic.send(Order("ada", 2))
        receipt = await topic.send_soon(Order("ada", 3))
    assert receipt.offset == 1


async def test_a_worker_ends_at_once_while_its_agents_wait_for_the_registry(
    broker: MemoryBroker, stub: StubRegistry
) -> None:
    await write(broker, stub, Order("ada", 1))
    stub.stop()
    app, seen = reading(broker, stub)
    async with famulus.open_app(app):
        await trio.sleep(10)
        began = trio.current_time()
    assert trio.current_time() - began < 1
    stub.start()
    async with famulus.open_app(app):
        await until(seen, 1)
    assert seen == [Order("ada", 1)]


@pytest.mark.real_time
async def test_no_thread_stays_when_the_app_is_left_while_the_registry_hangs(
    broker: MemoryBroker, stub: StubRegistry
) -> None:
    from trio.testing import active_thread_count

    await write(broker, stub, Order("ada", 1))
    app, _ = reading(broker, stub, timeout=0.5)
    with stub.hanging():
        async with famulus.open_app(app):
            while "GET /schemas/ids/1" not in stub.requests:
                await trio.sleep(0.01)
            assert active_thread_count() == 1
        assert active_thread_count() == 0


async def test_group_by_through_and_take_work_with_it(broker: MemoryBroker, stub: StubRegistry) -> None:
    await write(broker, stub, *(Order(f"a{number % 3}", number) for number in range(30)))
    app = famulus.App("grouping", broker=url_of(broker))
    codec = SchemaRegistry(stub.url).avro()
    orders = app.topic("orders", value_type=Order, value_serializer=codec, partitions=1)
    copies = app.topic("copies", value_type=Order, value_serializer=codec, partitions=1)
    seen: list[Order] = []
    again: list[Order] = []

    @app.agent(orders)
    async def tally(stream: famulus.Stream[Order]) -> None:
        async for batch in stream.group_by(Order.account).take(5, within=1):
            for order in batch:
                seen.append(order)
                await copies.send(order)

    @app.agent(copies)
    async def copy(stream: famulus.Stream[Order]) -> AsyncIterator[None]:
        async for event in stream.events():
            again.append(event.value)
            yield

    async with famulus.open_app(app):
        while len(again) < 30:
            await trio.sleep(0.1)
    assert sorted(order.cents for order in seen) == sorted(order.cents for order in again) == list(range(30))
    assert list(stub.subjects) == ["orders-value", "copies-value"]


async def test_an_event_is_forwarded_in_its_bytes_and_a_changed_one_under_the_subject_of_its_new_topic(
    broker: MemoryBroker, stub: StubRegistry
) -> None:
    await write(broker, stub, Order("ada", 1))
    app = famulus.App("forwarding", broker=url_of(broker))
    codec = SchemaRegistry(stub.url).avro()
    orders = app.topic("orders", value_type=Order, value_serializer=codec, partitions=1)
    copies = app.topic("copies", value_type=Order, value_serializer=codec, partitions=1)
    seen: list[Order] = []

    @app.agent(orders)
    async def forward(stream: famulus.Stream[Order]) -> None:
        async for event in stream.events():
            await event.forward(copies)
            await event.forward(copies, value=Order("bob", 2))

    @app.agent(copies)
    async def copy(stream: famulus.Stream[Order]) -> None:
        async for order in stream:
            seen.append(order)

    async with famulus.open_app(app):
        while len(seen) < 2:
            await trio.sleep(0.1)
    assert seen == [Order("ada", 1), Order("bob", 2)]
    assert list(stub.subjects) == ["orders-value", "copies-value"]


async def test_get_waits_for_the_registry_too(broker: MemoryBroker, stub: StubRegistry) -> None:
    app = famulus.App("getting", broker=url_of(broker))
    topic = app.topic("orders", value_type=Order, value_serializer=SchemaRegistry(stub.url).avro(), partitions=1)
    await write(broker, stub, Order("ada", 1))
    stub.fail(2)
    async with famulus.open_app(app):
        event = await topic.get()
    assert event.value == Order("ada", 1)


async def test_agents_ask_each_other_in_avro(broker: MemoryBroker, stub: StubRegistry) -> None:
    app = famulus.App("asking", broker=url_of(broker))
    codec = SchemaRegistry(stub.url).avro()

    @app.agent(app.topic("orders", value_type=Order, value_serializer=codec, partitions=1))
    async def double(stream: famulus.Stream[Order]) -> AsyncIterator[int]:
        async for order in stream:
            yield 2 * order.cents

    async with famulus.open_app(app):
        assert await double.ask(Order("ada", 21)) == 42


def test_the_program_in_the_docs_runs(stub: StubRegistry, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "schema-registry.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "shop.py").write_text(program.replace("http://localhost:8081", stub.url), encoding="utf-8")
    done = subprocess.run([sys.executable, "-P", "shop.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (0, "ada 1250\n"), done.stderr
    assert list(stub.subjects) == ["orders-value"]


@pytest.fixture
def named(stub: StubRegistry) -> Iterator[str]:
    """A codec with a name, for this test alone."""
    codecs.register("avro-of-this-test", SchemaRegistry(stub.url).avro())
    yield "avro-of-this-test"
    del codecs._codecs["avro-of-this-test"]


async def test_an_avro_codec_can_be_the_first_of_a_chain(broker: MemoryBroker, stub: StubRegistry, named: str) -> None:
    app = famulus.App("chained", broker=url_of(broker))
    topic = app.topic("orders", value_type=Order, value_serializer=f"{named}|gzip", partitions=1)
    async with famulus.open_app(app):
        await topic.send(Order("ada", 1))
        assert (await topic.get()).value == Order("ada", 1)
    assert list(stub.subjects) == ["orders-value"]


async def test_a_codec_with_a_name_serves_topics_records_and_settings(stub: StubRegistry, named: str) -> None:
    class Payment(famulus.Record, serializer=named):
        cents: int

    app = famulus.App("naming", value_serializer=named)
    topics: list[famulus.Topic[Any]] = [
        app.topic("by-name", value_type=Order, value_serializer=named),
        app.topic("by-setting", value_type=Order),
        app.topic("by-record", value_type=Payment, key_type=Order, key_serializer=named),
    ]
    async with famulus.open_app(app):
        await topics[0].send(Order("ada", 1))
        await topics[1].send(Order("ada", 1))
        await topics[2].send(Payment(1), key=Order("ada", 1))
    assert list(stub.subjects) == ["by-name-value", "by-setting-value", "by-record-key", "by-record-value"]


async def test_a_rebalance_does_not_wait_for_the_registry_and_loses_nothing(
    broker: MemoryBroker, stub: StubRegistry
) -> None:
    writer = famulus.App("writer", broker=url_of(broker))
    topic = writer.topic("orders", value_type=Order, value_serializer=SchemaRegistry(stub.url).avro(), partitions=4)
    async with famulus.open_app(writer):
        for number in range(40):
            await topic.send(Order("ada", number), partition=number % 4)
    stub.stop()
    one, seen_by_one = reading(broker, stub)
    two, seen_by_two = reading(broker, stub)
    async with famulus.open_app(one):
        await trio.sleep(10)
        with trio.fail_after(5):
            async with famulus.open_app(two):  # it is up when it has its partitions
                assert seen_by_one == seen_by_two == []
                stub.start()
                await until_all(seen_by_one, seen_by_two, count=40)
    assert seen_by_one
    assert seen_by_two
    assert len(seen_by_one) + len(seen_by_two) == 40


async def until_all(*seen: list[object], count: int) -> None:
    while len({order.cents for part in seen for order in part if isinstance(order, Order)}) < count:
        await trio.sleep(0.01)


async def test_a_schema_of_the_users_may_choose_a_codec_with_a_registry(
    broker: MemoryBroker, stub: StubRegistry, named: str
) -> None:
    class ByHeader(famulus.Schema):
        def loads_value(self, data: bytes, headers: Headers) -> Any:
            return self.value_serde(dict(headers)["codec"].decode()).loads(data)

        def dumps_value(self, value: Any, headers: Headers) -> tuple[bytes | None, Headers]:
            codec = "json" if value.cents < 0 else named
            return self.value_serde(codec).dumps(value), (*headers, ("codec", codec.encode()))

    app = famulus.App("choosing", broker=url_of(broker))
    topic = app.topic("orders", schema=ByHeader(value_type=Order), partitions=1)
    seen: list[object] = []

    @app.agent(topic)
    async def reader(stream: famulus.Stream[Order]) -> None:
        async for order in stream:
            seen.append(order)

    async with famulus.open_app(app):
        stub.fail(2)
        for cents in (-1, 1, -2, 2):
            await topic.send(Order("ada", cents))
        await until(seen, 4)
    assert seen == [Order("ada", cents) for cents in (-1, 1, -2, 2)]
    assert list(stub.subjects) == ["orders-value"]


async def test_a_channel_over_something_else_waits_for_the_registry_too(stub: StubRegistry) -> None:
    class Wire(famulus.Channel[Order]):
        async def listen(self, intake: famulus.Intake, *, task_status: trio.TaskStatus[Any]) -> None:
            task_status.started()
            for data in (b"\0\0\0\0\1\x06ada\x02", b"\0\0\0\0\1\x06bob\x04"):
                await intake.deliver(data)
            await trio.sleep_forever()

    stub.register(
        "wire",
        '{"type": "record", "name": "Order", "fields": [{"name": "account", "type": "string"}, \
                  {"name": "cents", "type": "long"}]}',
    )
    stub.fail(2)
    app = famulus.App("wired")
    seen: list[object] = []

    @app.agent(Wire(app, value_type=Order, value_serializer=SchemaRegistry(stub.url).avro()))
    async def reader(stream: famulus.Stream[Order]) -> None:
        async for order in stream:
            seen.append(order)

    async with famulus.open_app(app):
        await until(seen, 2)
    assert seen == [Order("ada", 1), Order("bob", 2)]
