"""Codecs, tags and a schema on a real broker: bytes and headers come back as they went, through group_by too."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import trio

import famulus
from famulus.testing.kafka import RunningKafka

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(120), pytest.mark.slow]

Headers = tuple[tuple[str, bytes], ...]


class Asset(famulus.Record, include_metadata=True):
    owner: str
    price: Decimal


class Image(Asset, namespace="kafka.Image"):
    data: bytes = b""


class ByContentType(famulus.Schema):
    def loads_value(self, data: bytes, headers: Headers) -> Any:
        return self.value_serde(dict(headers)["content-type"].decode()).loads(data)

    def dumps_value(self, value: Any, headers: Headers) -> tuple[bytes | None, Headers]:
        codec = "msgpack" if isinstance(value, Image) else "json|gzip"
        return self.value_serde(codec).dumps(value), (*headers, ("content-type", codec.encode()))


VALUES = [Asset("ada", Decimal("1.50")), Image("bob", Decimal(2), b"\x00\xff"), Asset("ada", Decimal(3))]


async def test_values_keep_their_types_on_a_real_broker(kafka_broker: RunningKafka) -> None:
    name = f"codecs-{uuid4().hex[:8]}"
    app = famulus.App(name, broker=kafka_broker.url, topic_partitions=2, codec_allow_pickle=True)
    topics = [
        app.topic(f"{name}-schema", internal=True, schema=ByContentType(key_type=str, value_type=Asset)),
        *(
            app.topic(f"{name}-{codec.replace('|', '-')}", internal=True, value_type=Asset, value_serializer=codec)
            for codec in ("msgpack|zlib", "yaml", "pickle")
        ),
    ]
    seen: dict[str, list[tuple[Any, Any]]] = {topic.name: [] for topic in topics}
    done = trio.Event()

    def reader(topic: famulus.Topic[Asset]) -> None:
        @app.agent(topic, name=topic.name)
        async def read(stream: famulus.Stream[Asset]) -> None:
            async for event in stream.group_by(Asset.owner).events():
                seen[topic.name].append((event.key, event.value))
                if sum(map(len, seen.values())) == len(topics) * len(VALUES):
                    done.set()

    for topic in topics:
        reader(topic)
    with trio.fail_after(100):
        async with famulus.open_app(app):
            for topic in topics:
                for value in VALUES:
                    await topic.send(value)
            await done.wait()
    wanted = Counter(repr((value.owner, value)) for value in VALUES)
    assert {name: Counter(map(repr, values)) for name, values in seen.items()} == dict.fromkeys(seen, wanted)
