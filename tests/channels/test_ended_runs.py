"""What tasks outside of a run's tree see when the run ends while they wait for one of its channels."""

from collections.abc import Awaitable, Callable

import pytest
import trio

import famulus
from famulus.channels.errors import AppNotRunning


async def waiting_outside(
    app: famulus.App, wait: Callable[[], Awaitable[object]], prepare: Callable[[], Awaitable[object]] | None = None
) -> Exception | None:
    """What comes of `wait`, which begins while the app runs, in a task that is not the run's, and must end with it."""
    outcome: list[Exception | None] = []

    async def outside(running: famulus.RunningApp) -> None:
        with running.current():
            try:
                await wait()
            except Exception as error:
                outcome.append(error)
            else:
                outcome.append(None)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery, famulus.open_app(app) as running:
            if prepare is not None:
                await prepare()
            nursery.start_soon(outside, running)
            await trio.sleep(1)
            assert not outcome
    return outcome[0]


@pytest.mark.parametrize("kind", ["topic", "channel"])
async def test_a_get_that_waits_is_told(kind: str) -> None:
    app = famulus.App("ends")
    channel: famulus.Channel[int] = app.topic("t", value_type=int) if kind == "topic" else app.channel(value_type=int)
    error = await waiting_outside(app, channel.get)
    assert isinstance(error, AppNotRunning)
    assert "nothing more comes from" in str(error)


@pytest.mark.parametrize("readers", [0, 1, 2])
async def test_a_put_that_waits_for_room_is_told(readers: int) -> None:
    app = famulus.App("ends")
    channel = app.channel("full", value_type=int, maxsize=1)
    streams: list[famulus.Stream[int]] = []

    async def fill() -> None:
        streams.extend(channel.stream() for _ in range(readers))
        await channel.put(1)

    error = await waiting_outside(app, lambda: channel.put(2), fill)
    assert isinstance(error, AppNotRunning)
    assert str(error) == "the app has stopped: nobody will read full any more"


@pytest.mark.parametrize("kind", ["topic", "channel"])
async def test_a_stream_ends(kind: str) -> None:
    app = famulus.App("ends")
    channel: famulus.Channel[int] = app.topic("t", value_type=int) if kind == "topic" else app.channel(value_type=int)
    seen: list[int] = []

    async def read() -> None:
        async for value in channel.stream():
            seen.append(value)

    async def write_soon() -> None:
        await channel.send(1)

    assert await waiting_outside(app, read, write_soon) is None
    assert seen == [1]


async def test_the_receipt_of_a_local_channel_has_the_time_of_the_message() -> None:
    app = famulus.App("times")
    channel = app.channel(value_type=int)
    async with famulus.open_app(app):
        assert (await (await channel.send(1, timestamp=5.0))).timestamp == 5.0
        assert (await channel.send_soon(2, timestamp=6)).timestamp == 6.0
        assert (await (await channel.publish_message(channel.as_future_message(3, timestamp=7)))).timestamp == 7.0
