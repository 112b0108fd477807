"""Schemas on topics: plain ones that topics share, and ones that choose by the headers; codecs and their limits per run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

import famulus
from famulus.channels.batch_cursor import BatchCursor, SchemaCursor
from famulus.channels.hand import Hand
from famulus.channels.memory import MemoryBroker
from famulus.channels.runs import current_run

Headers = tuple[tuple[str, bytes], ...]


class Order(famulus.Record):
    account: str
    cents: int = 0


class ByContentType(famulus.Schema):
    """What wrote a value says how: JSON or MessagePack. Keys are in capitals on the way."""

    def loads_value(self, data: bytes, headers: Headers) -> Any:
        return self.value_serde(dict(headers).get("content-type", b"json").decode()).loads(data)

    def dumps_value(self, value: Any, headers: Headers) -> tuple[bytes | None, Headers]:
        return self.value_serde("msgpack").dumps(value), (*headers, ("content-type", b"msgpack"))

    def loads_key(self, data: bytes, headers: Headers) -> Any:
        key = super().loads_key(data, headers)
        if key == "BAD":
            raise ValueError("a bad key")
        return key.lower()

    def dumps_key(self, key: Any, headers: Headers) -> tuple[bytes | None, Headers]:
        return super().dumps_key(key.upper(), headers)


ORDERS = ByContentType(key_type=str, value_type=Order)


def app_on(broker: MemoryBroker, **settings: Any) -> famulus.App:
    return famulus.App("schemas", broker=f"memory://{broker.name}", topic_partitions=1, **settings)


def written(broker: MemoryBroker, topic: str) -> list[tuple[bytes | None, bytes | None, Headers]]:
    return [(m.key, m.value, m.headers) for m in broker.messages(topic)]


async def test_topics_may_share_a_schema(broker: MemoryBroker) -> None:
    app = app_on(broker)
    schema = famulus.Schema(key_type=str, value_type=Order, value_serializer="json|gzip")
    topic, other = app.topic("orders", schema=schema), app.topic("more", schema=schema, key_type=int)
    assert (topic.key_type, topic.value_type, topic.value_serializer) == (str, Order, "json|gzip")
    assert (other.key_type, other.value_type) == (int, Order)  # what is given beside it counts more
    assert schema.key_type is str
    async with famulus.open_app(app):
        stream = topic.stream().events()
        with trio.fail_after(5):
            await topic.send(Order("ada", 1), key="k")
            async for event in stream:
                assert (event.key, event.value) == ("k", Order("ada", 1))
                break
            await other.send(Order("bob"), key=5)


async def test_a_schema_chooses_by_the_headers_and_may_add_some(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic, raw = app.topic("orders", schema=ORDERS), app.topic("orders", value_type=bytes)
    seen: list[Any] = []
    async with famulus.open_app(app):
        await topic.send(Order("ada", 1), key="a")
        await topic.send(Order("bob", 2), headers={"x": b"1"})
        topic.send_soon(None, key="gone")
        await raw.send(b'{"account": "cyd"}', key=b"C")
        stream = topic.stream().events()
        with trio.fail_after(5):
            async for event in stream:
                seen.append((event.key, event.value))
                if len(seen) == 4:
                    break
    assert seen == [("a", Order("ada", 1)), (None, Order("bob", 2)), ("gone", None), ("c", Order("cyd"))]
    kind = ("content-type", b"msgpack")
    assert written(broker, "orders") == [
        (b"A", b"\x82\xa7account\xa3ada\xa5cents\x01", (kind,)),
        (None, b"\x82\xa7account\xa3bob\xa5cents\x02", (("x", b"1"), kind)),
        (b"GONE", None, ()),
        (b"C", b'{"account": "cyd"}', ()),
    ]


async def test_what_a_schema_refuses_is_skipped_and_reported_as_undecodable(broker: MemoryBroker) -> None:
    app = app_on(broker)
    reported: list[tuple[str, int]] = []

    def report(error: Exception, message: famulus.Message) -> None:
        reported.append((str(error), message.offset))

    topic = app.topic("orders", schema=ORDERS, on_decode_error=report)
    raw = app.topic("orders", value_type=bytes)
    async with famulus.open_app(app):
        stream = topic.stream()
        await raw.send(b"{}", key=b"K")
        await raw.send(b"{}", headers={"content-type": b"xml"})
        await raw.send(b'{"account": "a"}', key=b"BAD")
        await topic.send(Order("good"))
        with trio.fail_after(5):
            async for order in stream:
                assert order == Order("good")
                break
    assert [offset for _, offset in reported] == [0, 1, 2]
    assert reported[0][0].startswith("$.account: expected str, got nothing")
    assert reported[1][0].startswith("unknown codec 'xml'")
    assert reported[2][0] == "a bad key"


async def test_a_send_may_name_another_schema_or_serializer(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("orders", value_type=Order)
    async with famulus.open_app(app):
        await topic.send(Order("ada"), key="k", schema=ORDERS)
        await topic.send(Order("ada"), schema=famulus.Schema(value_serializer="msgpack"))
        await topic.send(Order("ada"), value_serializer="msgpack|binary")
        future = topic.as_future_message(Order("ada"), key="k", schema=ORDERS)
        assert future.key == b"K"
        await topic.publish_message(future)
        with pytest.raises(famulus.EncodeError):
            await topic.send(5, schema=famulus.Schema(value_type=Order))
    packed = b"\x82\xa7account\xa3ada\xa5cents\x00"
    kind = ("content-type", b"msgpack")
    assert [(key, headers) for key, _, headers in written(broker, "orders")] == [
        (b"K", (kind,)),
        (None, ()),
        (None, ()),
        (b"K", (kind,)),
    ]
    assert [value for _, value, _ in written(broker, "orders")][:2] == [packed, packed]


async def test_group_by_and_through_keep_the_bytes_and_the_schema(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("orders", schema=ORDERS, partitions=1)
    seen: list[tuple[Any, Order]] = []
    done = trio.Event()

    @app.agent(topic)
    async def by_account(stream: famulus.Stream[Order]) -> None:
        async for event in stream.group_by(Order.account).through("later").events():
            seen.append((event.key, event.value))
            if len(seen) == 2:
                done.set()

    async with famulus.open_app(app):
        await topic.send(Order("ada", 1), key="x")
        raw = app.topic("orders", value_type=bytes)
        await raw.send(b'{"account":  "bob"}')  # not as we would write it
        with trio.fail_after(10):
            await done.wait()
    assert seen == [("ada", Order("ada", 1)), ("bob", Order("bob"))]
    assert b'{"account":  "bob"}' in [value for _, value, _ in written(broker, "later")]


async def test_agents_answer_through_a_schema(broker: MemoryBroker) -> None:
    app = app_on(broker)

    @app.agent(app.topic("asked", schema=famulus.Schema(value_type=Order, value_serializer="msgpack|gzip")))
    async def cents(stream: famulus.Stream[Order]) -> AsyncIterator[int]:
        async for order in stream:
            yield order.cents

    async with famulus.open_app(app):
        with trio.fail_after(5):
            assert await cents.ask(Order("ada", 7)) == 7


async def test_the_schema_of_an_agents_own_topic_counts_more_than_its_annotation(broker: MemoryBroker) -> None:
    app = app_on(broker)

    @app.agent(schema=famulus.Schema(value_type=Order))
    async def typed(stream: famulus.Stream[famulus.Record]) -> None: ...

    @app.agent(schema=famulus.Schema(value_serializer="msgpack"))
    async def annotated(stream: famulus.Stream[Order]) -> None: ...

    assert (typed.channel.value_type, annotated.channel.value_type) == (Order, Order)
    assert annotated.channel.value_serializer == "msgpack"


async def test_copies_of_a_topic_keep_the_schema_or_take_another(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("orders", schema=ORDERS)
    assert topic.clone(partitions=3).schema is ORDERS
    assert topic.derive_topic(suffix="-more").schema is ORDERS
    plain = app.topic("plain", key_type=str, value_type=int)
    assert plain.clone(schema=ORDERS).value_type is Order
    channel = app.channel("local", schema=ORDERS)
    assert (channel.value_type, channel.clone().schema) == (Order, ORDERS)
    with pytest.raises(famulus.ImproperlyConfigured, match=r"schema='json': expected a famulus\.Schema"):
        app.topic("odd", schema="json")  # type: ignore[call-overload]  # that is the test


async def test_only_a_schema_of_the_users_own_takes_the_slower_way(broker: MemoryBroker) -> None:
    app = app_on(broker)
    plain = app.topic("plain", schema=famulus.Schema(value_type=Order))
    custom = app.topic("custom", schema=ORDERS)
    async with famulus.open_app(app):
        for topic, cls in ((plain, BatchCursor), (custom, SchemaCursor)):
            subscription = topic.subscribe(current_run(app), "reader")
            assert type(subscription.open_cursor(Hand())) is cls


async def test_empty_messages_can_be_refused(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("orders", schema=famulus.Schema(value_type=Order, allow_empty=False))
    async with famulus.open_app(app) as running:
        stream = topic.stream()
        await topic.send(None)
        await topic.send(Order("ada"))
        with trio.fail_after(5):
            async for order in stream:
                assert order == Order("ada")
                break
        assert running.statistics().decode_errors == 1


# -- pickles and bombs ---------------------------------------------------------------------------------------


async def test_a_topic_of_pickles_is_not_read_unless_the_run_allows_it(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("pickles", value_type=Order, value_serializer="pickle")

    @app.task
    async def write() -> None:
        await topic.send(Order("ada", 1))  # writing is free to all

    async with famulus.open_app(app):
        with trio.fail_after(5):
            while "pickles" not in broker.topics or not broker.messages("pickles"):
                await trio.sleep(0.1)
        with pytest.raises(famulus.ImproperlyConfigured, match=r"topic 'pickles'|Topic pickles") as caught:
            async for _ in topic.stream():
                pass
    for part in ("cannot be read", "can run any program", "codec_allow_pickle=True"):
        assert part in str(caught.value)
    async with famulus.open_app(app, codec_allow_pickle=True):
        with trio.fail_after(5):
            async for order in topic.stream():
                assert order == Order("ada", 1)
                break


async def test_an_app_with_an_agent_on_pickles_does_not_start_without_the_setting(broker: MemoryBroker) -> None:
    app = app_on(broker)

    @app.agent(app.topic("pickles", value_serializer="json|gzip|pickle"))
    async def read(stream: famulus.Stream[Any]) -> None:
        async for _ in stream:
            pass

    refused = pytest.RaisesExc(famulus.ImproperlyConfigured, match="codec_allow_pickle=True")
    with pytest.RaisesGroup(refused):
        async with famulus.open_app(app):
            raise AssertionError("never here")
    async with famulus.open_app(app, codec_allow_pickle=True):
        pass


async def test_what_is_too_large_when_decompressed_is_undecodable(broker: MemoryBroker) -> None:
    app = app_on(broker, codec_max_decompressed=100)
    topic = app.topic("bombs", value_type=bytes, value_serializer="gzip")
    async with famulus.open_app(app) as running:
        stream = topic.stream()
        await topic.send(b"a" * 101)
        await topic.send(b"a" * 100)
        with trio.fail_after(5):
            async for value in stream:
                assert value == b"a" * 100
                break
        assert running.statistics().decode_errors == 1
