"""Local channels under stress: many events, small buffers, cancellation at every wait, readers that come and go."""

import random
from collections import Counter

import pytest
import trio

import famulus
from famulus.testing.cancellation import each_wait
from famulus.testing.settle import settle


@pytest.mark.slow
async def test_a_hundred_thousand_events_pass_in_order_through_a_buffer_of_one() -> None:
    app = famulus.App("narrow")
    channel = app.channel(value_type=int, maxsize=1)
    seen: list[int] = []

    @app.agent(channel)
    async def reader(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app):
        for number in range(100_000):
            await channel.put(number)
        await settle()
        assert len(seen) == 100_000
    assert seen == list(range(100_000))


async def test_streams_each_get_all_in_order_and_the_actors_of_one_agent_share() -> None:
    app = famulus.App("all")
    channel = app.channel(value_type=int, maxsize=2)
    by_actor: list[list[int]] = []

    @app.agent(channel, concurrency=3)
    async def shared(stream: famulus.Stream[int]) -> None:
        mine: list[int] = []
        by_actor.append(mine)
        async for number in stream:
            await trio.sleep(0.01)
            mine.append(number)

    seen: dict[int, list[int]] = {index: [] for index in range(4)}

    async def read(index: int, stream: famulus.Stream[int]) -> None:
        while len(seen[index]) < 1000:
            seen[index].append(await anext(stream))
            await trio.sleep(0.001 * index)

    async with famulus.open_app(app), trio.open_nursery() as nursery:
        for index in seen:
            nursery.start_soon(read, index, channel.stream())
        for _ in range(4):
            nursery.start_soon(read_nothing, channel)
        await settle()
        for number in range(1000):
            await channel.put(number)
    assert all(numbers == list(range(1000)) for numbers in seen.values())
    assert sorted(number for mine in by_actor for number in mine) == list(range(1000))
    assert len(by_actor) == 3
    assert all(mine == sorted(mine) and len(mine) > 100 for mine in by_actor)


async def read_nothing(channel: famulus.Channel[int]) -> None:
    """A reader that leaves at once: nobody waits for it."""
    channel.stream().close()


@pytest.mark.parametrize("maxsize", [1, 2])
@pytest.mark.parametrize("readers", [1, 2])
async def test_a_put_cancelled_at_any_wait_has_reached_all_readers_or_none(maxsize: int, readers: int) -> None:
    app = famulus.App("put")
    channel = app.channel(value_type=int, maxsize=maxsize)
    done: list[int] = []
    numbers = iter(range(10**6))

    async def put(_: int) -> None:
        number = next(numbers)
        await channel.put(number)
        done.append(number)

    async with famulus.open_app(app):
        streams = [channel.stream() for _ in range(readers)]
        seen: list[list[int]] = [[] for _ in streams]

        async def read(stream: famulus.Stream[int], into: list[int]) -> None:
            async for number in stream:
                into.append(number)

        async with trio.open_nursery() as nursery:
            for stream, into in zip(streams, seen, strict=True):
                nursery.start_soon(read, stream, into)
            for _ in range(50):
                await each_wait(put)
            await settle()
            nursery.cancel_scope.cancel()
    assert seen[0] == done
    assert all(into == done for into in seen)
    assert len(done) >= 50


async def test_waiting_for_an_event_can_be_cancelled_at_any_wait_and_loses_nothing() -> None:
    app = famulus.App("get")
    channel = app.channel(value_type=int, maxsize=1)
    seen: list[int] = []
    async with famulus.open_app(app):
        stream = channel.stream()

        async def get(_: int) -> None:
            seen.append(await anext(stream))

        async with trio.open_nursery() as nursery:

            async def feed() -> None:
                for number in range(200):
                    await channel.put(number)

            nursery.start_soon(feed)
            while len(seen) < 200:
                with trio.move_on_after(1):
                    await each_wait(get)
    assert seen == list(range(200))


@pytest.mark.parametrize("maxsize", [1, 3])
async def test_senders_and_readers_cancelled_at_random_moments_lose_and_double_nothing(maxsize: int, seed: int) -> None:
    """Eight senders, each of its own numbers; one reader that is broken off again and again."""
    chance = random.Random(seed)
    app = famulus.App("random")
    channel = app.channel(value_type=tuple, maxsize=maxsize)
    sent: Counter[tuple[int, int]] = Counter()
    seen: list[tuple[int, int]] = []

    async def send(sender: int) -> None:
        for number in range(100):
            with trio.move_on_after(chance.choice([0, 0.001, 0.01, 1])):
                await channel.put((sender, number))
                sent[sender, number] += 1

    async with famulus.open_app(app):
        stream = channel.stream()
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                while True:
                    with trio.move_on_after(chance.choice([0, 0.001, 0.01])):
                        async for pair in stream:
                            seen.append(pair)
                            if chance.random() < 0.3:
                                await trio.sleep(chance.random() * 0.01)

            nursery.start_soon(read)
            async with trio.open_nursery() as senders:
                for sender in range(8):
                    senders.start_soon(send, sender)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
    assert Counter(seen) == sent
    assert 100 < len(seen) < 800
    for sender in range(8):
        numbers = [number for who, number in seen if who == sender]
        assert numbers == sorted(numbers)


async def test_readers_that_come_and_go_never_stop_a_sender_nor_the_others(seed: int) -> None:
    chance = random.Random(seed)
    app = famulus.App("come-and-go")
    channel = app.channel(value_type=int, maxsize=2)
    steady: list[int] = []

    @app.agent(channel)
    async def stays(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            steady.append(number)

    async def visit() -> None:
        while True:
            stream = channel.stream()
            mine: list[int] = []
            with trio.move_on_after(chance.random() * 0.1):
                async for number in stream:
                    mine.append(number)
                    await trio.sleep(chance.random() * 0.01)
            stream.close()
            assert mine == list(range(mine[0], mine[0] + len(mine))) if mine else True
            await trio.sleep(chance.random() * 0.1)

    async with famulus.open_app(app):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(visit)
            with trio.fail_after(3600):
                for number in range(2000):
                    await channel.put(number)
            nursery.cancel_scope.cancel()
        await settle()
    assert steady == list(range(2000))


async def test_an_agent_cancelled_at_every_wait_is_given_its_event_again() -> None:
    """An actor that is restarted in the middle of an event, at each of its waits, still processes each event."""
    app = famulus.App("restarted")
    channel = app.channel(value_type=int, maxsize=1)
    seen: list[int] = []

    @app.agent(channel, name="busy")
    async def busy(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            for _ in range(3):
                await trio.sleep(0.3)
            seen.append(number)

    async with famulus.open_app(app) as running:
        root = running._run.root
        assert root is not None
        actor = root.children["agents"].supervisor.children["busy"].supervisor.children["busy[0]"]
        async with trio.open_nursery() as nursery:

            async def feed() -> None:
                for number in range(20):
                    await channel.put(number)

            nursery.start_soon(feed)
            for pause in range(1, 40):
                await trio.sleep(pause * 0.07)
                await actor.restart()
        await trio.sleep(60)
    assert seen == list(range(20))
