"""Local channels: memory within a run, `maxsize` of backpressure, each reader gets all."""

import pytest
import trio
import trio.testing

import famulus


async def test_put_waits_while_a_reader_s_buffer_is_full() -> None:
    app = famulus.App("full")
    channel = app.channel(value_type=int, maxsize=3)
    hold = trio.Event()
    seen: list[int] = []

    @app.agent(channel)
    async def reader(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await hold.wait()
            seen.append(number)

    async with famulus.open_app(app):
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(5) as scope:
            for number in range(10):
                await channel.put(number)
        assert scope.cancelled_caught
        with pytest.raises(famulus.BufferFull, match="maxsize"):
            channel.send_soon(99)
        hold.set()
        await trio.testing.wait_all_tasks_blocked()
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("maxsize", [1, 2, 100])
async def test_every_reader_gets_everything(maxsize: int) -> None:
    app = famulus.App("broadcast")
    channel = app.channel(value_type=int, maxsize=maxsize)
    first: list[int] = []
    second: list[int] = []

    @app.agent(channel)
    async def one(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            first.append(number)

    @app.agent(channel, concurrency=2)
    async def two(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(0.1)
            second.append(number)

    async with famulus.open_app(app):
        for number in range(50):
            await channel.send(number)
        await trio.sleep(10)
    assert first == list(range(50))
    assert sorted(second) == list(range(50))


async def test_what_is_put_before_anyone_reads_waits_for_the_first_reader() -> None:
    app = famulus.App("early")
    channel = app.channel(value_type=int, maxsize=2)
    async with famulus.open_app(app):
        await channel.put(1)
        channel.send_soon(2)
        with pytest.raises(famulus.BufferFull, match="first reader"):
            channel.send_soon(3)
        with trio.fail_after(1):
            stream = channel.stream()
            assert [await stream.__anext__(), await stream.__anext__()] == [1, 2]


async def test_iterating_a_channel_gives_events() -> None:
    app = famulus.App("events")
    channel = app.channel("pipe", value_type=int)
    async with famulus.open_app(app):
        await channel.send(7, key="k", headers={"h": b"1"})
        async for event in channel:
            assert (event.key, event.value, event.headers) == ("k", 7, (("h", b"1"),))
            assert (event.message.topic, event.message.offset) == ("pipe", -1)
            break


async def test_the_receipt_of_a_local_send_has_no_offset() -> None:
    app = famulus.App("receipts")
    channel = app.channel("pipe")
    told: list[int] = []
    async with famulus.open_app(app):
        promise = await channel.send(1, callback=lambda settled: told.append(settled.result().offset))
        assert (await promise).offset == -1
    assert told == [-1]


async def test_what_is_buffered_at_shutdown_is_still_processed() -> None:
    app = famulus.App("drains")
    channel = app.channel(value_type=int)
    seen: list[int] = []

    @app.agent(channel)
    async def reader(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(0.1)
            seen.append(number)

    async with famulus.open_app(app):
        for number in range(20):
            await channel.send(number)
    assert seen == list(range(20))


async def test_a_crash_loses_only_the_event_in_hand() -> None:
    app = famulus.App("crash")
    channel = app.channel(value_type=int)
    seen: list[int] = []

    @app.agent(channel)
    async def reader(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 3:
                raise ValueError(number)
            seen.append(number)

    async with famulus.open_app(app):
        for number in range(6):
            await channel.send(number)
        await trio.sleep(10)
    assert seen == [0, 1, 2, 4, 5]


async def test_a_channel_without_room_for_anything_is_refused() -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match=r"maxsize=0: expected a whole number of at least 1"):
        famulus.App("bad").channel(maxsize=0)
