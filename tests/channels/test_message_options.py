"""What a send takes and refuses: a wrong value is refused where it is given, and nothing is sent."""

import inspect
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
import trio

import famulus
from famulus.channels.arguments import SendOptions, SendSoonOptions


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partition": 1.5}, "partition=1.5: expected a whole number of at least 0"),
        ({"partition": "1"}, "partition='1': expected a whole number"),
        ({"partition": True}, "partition=True: expected a whole number"),
        ({"partition": -1}, "partition=-1: expected a whole number"),
        ({"partition": 2**31}, "partition=2147483648: expected a whole number"),
        ({"timestamp": "now"}, "timestamp='now': expected seconds since the epoch"),
        ({"timestamp": datetime(2024, 1, 1)}, "expected seconds since the epoch"),
        ({"timestamp": float("nan")}, "timestamp=nan: expected seconds since the epoch"),
        ({"timestamp": 10**400}, "expected seconds since the epoch"),
        ({"headers": {"size": 5}}, "the value of 'size' is 5, neither bytes nor text"),
        ({"headers": {"size": None}}, "the value of 'size' is None, neither bytes nor text"),
        ({"headers": {1: b"x"}}, "the name 1 is no text"),
        ({"headers": {"\ud800": b"x"}}, "has characters that UTF-8 does not have"),
        ({"headers": {"a": "\ud800"}}, "has characters that UTF-8 does not have"),
        ({"headers": [("a",)]}, "expected a mapping of names to bytes or text, or pairs"),
        ({"headers": "ab"}, "expected a mapping of names to bytes or text, or pairs"),
        ({"schema": "avro"}, "schema='avro': expected a famulus.Schema"),
        ({"partitions": 1}, "unexpected"),
    ],
)
async def test_a_wrong_option_is_refused_and_the_producer_lives_on(options: Any, said: str) -> None:
    app = famulus.App("shop")
    topic = app.topic("orders", value_type=int, partitions=2)
    async with famulus.open_app(app):
        ways: list[Callable[..., Any]] = [topic.send, topic.send_soon, topic.as_future_message]
        for way in ways:
            with pytest.raises((TypeError, ValueError)) as refusal:
                result = way(1, **options)
                if inspect.isawaitable(result):
                    await result
            assert said in str(refusal.value)
        receipt = await (await topic.send(2, partition=1))
        assert (receipt.partition, receipt.offset) == (1, 0)


async def test_headers_may_be_text_and_numbers_of_other_kinds_count() -> None:
    app = famulus.App("shop")
    topic = app.topic("orders", value_type=int, partitions=1)
    local = app.channel(value_type=int)
    async with famulus.open_app(app):
        for channel in (topic, local):
            headers: Any = {"source": "wéb", "raw": b"\xff", "view": memoryview(b"v")}
            seconds: Any = Decimal(5)
            await channel.send(1, headers=headers, timestamp=seconds)
            event = await channel.get()
            assert event.headers == (("source", "wéb".encode()), ("raw", b"\xff"), ("view", b"v"))
            assert event.message.timestamp == 5.0


async def test_a_local_channel_refuses_the_same_headers_and_times() -> None:
    app = famulus.App("shop")
    local = app.channel(value_type=int)
    async with famulus.open_app(app):
        wrong: list[Any] = [{"headers": {"size": 5}}, {"timestamp": "now"}]
        for options in wrong:
            with pytest.raises((TypeError, ValueError), match="expected"):
                await local.send(1, **options)
        assert local.empty()


def test_the_sends_of_a_topic_name_every_option_that_there_is() -> None:
    """They are written out there for speed; `SendOptions` says what they mean."""
    for method, listed in ((famulus.Topic.send, SendOptions), (famulus.Topic.send_soon, SendSoonOptions)):
        named = set(inspect.signature(method).parameters) - {"self", "value", "key"}
        assert named == set(listed.__annotations__)


async def test_empty_of_a_topic_that_nobody_gets_from_is_an_answer() -> None:
    app = famulus.App("shop")
    topic = app.topic("orders", value_type=int, partitions=1)
    async with famulus.open_app(app):
        assert topic.empty()  # before the first use in the run
        await (await topic.send(1))
        await (await topic.send(2))
        assert topic.empty()  # nothing was fetched for `get`
        assert (await topic.get()).value == 1
        assert not topic.empty()


class PortTopic(famulus.Topic[Any]):
    """A subclass with a parameter of its own, and a hook."""

    def __init__(self, app: famulus.App, port: int, *topics: str, **options: Any) -> None:
        super().__init__(app, *topics, **options)
        self.port = port
        self.bad: list[str] = []

    async def on_value_decode_error(self, error: Exception, message: Any) -> None:
        self.bad.append(message.topic)


class PortChannel(famulus.Channel[Any]):
    def __init__(self, app: famulus.App, port: int, **options: Any) -> None:
        super().__init__(app, **options)
        self.port = port


async def test_a_copy_of_a_subclass_keeps_its_attributes_and_hooks() -> None:
    app = famulus.App("shop")
    topic = PortTopic(app, 5, "orders", value_type=str)
    copies = [topic.clone(value_type=int, partitions=1), topic.derive_topic("others", value_type=int, partitions=1)]
    assert [(type(copy), copy.name, copy.value_type, getattr(copy, "port", None)) for copy in copies] == [
        (PortTopic, "orders", int, 5),
        (PortTopic, "others", int, 5),
    ]
    assert copies[1].root is topic
    channel = PortChannel(app, 6, value_type=int, maxsize=3)
    assert (channel.clone(maxsize=4).port, channel.clone(maxsize=4).maxsize) == (6, 4)
    async with famulus.open_app(app):
        await (await copies[1].send(1, value_serializer=_Broken()))
        with trio.move_on_after(1):
            await copies[1].get()
    assert topic.bad == ["others"]


class _Broken:
    def dumps(self, obj: Any, /) -> bytes:
        return b"{"

    def loads(self, data: bytes, /) -> Any:
        raise NotImplementedError
