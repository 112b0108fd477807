"""What is done is freed at once, with its bytes, also what failed: a worker collects garbage rarely (docs/decisions/0015)."""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
import trio

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, Message, ProducerRecord


@contextmanager
def watched_garbage() -> Iterator[None]:
    """Within, garbage that only the collector finds is kept in `gc.garbage`."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
    finally:
        gc.set_debug(0)
        gc.enable()


@pytest.mark.parametrize("fails", ["decoding", "a key", "an agent", "a batch", "an output"])
@pytest.mark.parametrize("policy", ["ack", "retry", "dead_letter"])
async def test_a_message_that_failed_waits_for_no_garbage_collector(
    broker: MemoryBroker, fails: str, policy: Literal["ack", "retry", "dead_letter"]
) -> None:
    for topic in ("numbers", "out"):
        broker.create_topic(topic, 1)
    app = famulus.App("garbage", broker=f"memory://{broker.name}")
    out = app.topic("out", value_type=int)

    def no_key(number: int) -> str:
        raise ValueError(number)

    @app.agent(
        app.topic("numbers", value_type=int),
        on_failure=policy,
        supervisor_strategy=famulus.OneForOneSupervisor(max_restarts=math.inf),
    )
    async def reader(stream: famulus.Stream[int]) -> None:
        if fails == "a batch":
            async for numbers in stream.take(3, 0.1):
                raise ValueError(numbers)
        async for number in stream.group_by(no_key, name="key") if fails == "a key" else stream:
            if fails == "an agent":
                raise ValueError(number)
            await out.send(number)

    async def read(count: int) -> None:
        value = b"oops" if fails == "decoding" else b"1"
        for _ in range(count):
            broker.append(TP("numbers", 0), [ProducerRecord(None, value)])
        await trio.sleep(300)

    if fails == "an output":
        broker.faults.fail_produce(topic="out", times=None, error=famulus.ProduceError("refused"))
    async with famulus.open_app(app):
        await read(5)
        with watched_garbage():
            await read(5)
            await read(5)
        messages = [found for found in gc.garbage if isinstance(found, Message)]
        gc.garbage.clear()
    assert len(messages) <= 1  # the last one's error may be at hand


@pytest.mark.parametrize("policy", ["events", "noack"])
@pytest.mark.parametrize("operator", ["none", "take", "group_by", "through", "combine"])
async def test_a_message_that_is_done_waits_for_no_garbage_collector(
    broker: MemoryBroker, operator: str, policy: str
) -> None:
    for topic in ("numbers", "others", "out"):
        broker.create_topic(topic, 1)
    app = famulus.App("garbage", broker=f"memory://{broker.name}")
    out, others = app.topic("out", value_type=int), app.topic("others", value_type=int)
    operators = {
        "group_by": lambda stream: stream.group_by(str, name="text"),
        "through": lambda stream: stream.through("via"),
        "combine": lambda stream: stream & others.stream(),
    }
    seen = 0

    @app.agent(app.topic("numbers", value_type=int))
    async def reader(stream: famulus.Stream[int]) -> None:
        nonlocal seen
        stream = operators.get(operator, lambda stream: stream)(stream)
        if policy == "noack":
            stream = stream.noack()
        async for events in stream.take_events(3 if operator == "take" else 1, 0.1):
            for event in events:
                seen += 1
                await out.send(event.value)
                if policy == "noack":
                    event.ack()

    async def read() -> None:
        broker.append(TP("numbers", 0), [ProducerRecord(None, b"1") for _ in range(20)])
        await trio.sleep(10)

    async with famulus.open_app(app):
        await read()
        with watched_garbage():
            await read()
        messages = [found for found in gc.garbage if isinstance(found, Message)]
        gc.garbage.clear()
    assert seen == 40
    assert not messages
