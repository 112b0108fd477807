"""What a call leaves is freed at once, also what failed: a worker collects garbage rarely (docs/decisions/0012)."""

import gc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

import famulus
from famulus.actors import requests
from famulus.actors.many import Results
from famulus.actors.parts import ReplyStream
from famulus.actors.requests import AgentRequest
from famulus.actors.slots import ReplySlot
from famulus.app import connecting
from famulus.channels.memory import MemoryBroker, MemoryTransport

OURS = (AgentRequest, ReplySlot, ReplyStream, Results, famulus.ReplyPromise, famulus.Event, famulus.Message)


class Wire(MemoryTransport):
    crosses_processes = True


@contextmanager
def garbage() -> Iterator[Counter[str]]:
    """What of ours only the collector finds, by type, once the block is over."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found.update(type(each).__name__ for each in gc.garbage if isinstance(each, OURS))
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()


async def every_call(half: famulus.Agent[int, int]) -> None:
    for _ in range(3):
        assert await half.ask(4) == 2
        assert await (await half.ask_nowait(4)) == 2
        assert [part async for part in half.ask_stream(4)] == [2]
        assert await half.join([2, 4, 6]) == [1, 2, 3]
        async for _answer in half.map([2, 4, 6]):
            break
        async for _part in half.ask_stream(8):
            break
        with trio.move_on_after(0.1):
            await half.ask(100)
        await half.ask_nowait(2)
        promise = await half.ask_nowait(5)
        for failing in (half.ask(5), half.join([2, 5]), promise, promise):
            with pytest.raises(famulus.AgentError):
                await failing
        with pytest.raises(famulus.AgentError):
            [part async for part in half.ask_stream(5)]
        await trio.sleep(60)


@pytest.mark.parametrize("way", ["channel", "topic", "wire"])
async def test_calls_leave_nothing_to_the_garbage_collector(
    way: str, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "wire":
        monkeypatch.setattr(connecting, "load_transport", Wire)
        monkeypatch.setattr(requests, "replies_at", lambda address: None)
    app = famulus.App("garbage", broker=f"memory://{broker.name}")
    channel: Any = app.channel(value_type=int) if way == "channel" else app.topic("t", value_type=int, partitions=1)

    @app.agent(channel)
    async def half(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await trio.sleep(1 if number == 100 else 0)
            if number % 2:
                raise ValueError(number)
            yield number // 2

    async with famulus.open_app(app):
        await every_call(half)
        with garbage() as found:
            await every_call(half)
    assert not found
