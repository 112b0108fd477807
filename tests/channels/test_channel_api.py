"""What every channel can do: put, send in all its forms, get, copies; on a local channel and on a topic alike."""

from collections.abc import Callable
from typing import Any, assert_type

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.partitioner import partition_for

Make = Callable[[famulus.App], famulus.Channel[int]]


def local(app: famulus.App) -> famulus.Channel[int]:
    return app.channel("pipe", value_type=int)


def topic(app: famulus.App) -> famulus.Channel[int]:
    return app.topic("pipe", value_type=int, partitions=1)


both = pytest.mark.parametrize("make", [local, topic])


# -- reading -----------------------------------------------------------------------------------------------


@both
async def test_get_takes_the_next_event(make: Make) -> None:
    app = famulus.App("gets")
    channel = make(app)
    async with famulus.open_app(app):
        for number in range(3):
            await channel.send(number, headers={"h": b"1"})
        for number in range(3):
            event = await channel.get()
            assert (event.value, event.headers) == (number, (("h", b"1"),))
            assert event.ack()


@both
async def test_all_who_call_get_are_one_reader_and_first_come_is_first_served(make: Make) -> None:
    app = famulus.App("shares")
    channel = make(app)
    taken: list[tuple[str, int]] = []

    async def take(who: str, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        event = await channel.get()
        taken.append((who, event.value))

    async with famulus.open_app(app), trio.open_nursery() as nursery:
        for who in ("first", "second", "third"):
            await nursery.start(take, who)
            await trio.testing.wait_all_tasks_blocked()
        for number in range(3):
            await channel.put(number)
    assert taken == [("first", 0), ("second", 1), ("third", 2)]


@both
async def test_a_get_that_is_cancelled_has_taken_nothing(make: Make) -> None:
    app = famulus.App("patience")
    channel = make(app)
    async with famulus.open_app(app):
        for number in range(20):
            with trio.move_on_after(number / 10) as scope:
                await channel.get()
            assert scope.cancelled_caught
        await channel.put(7)
        with trio.fail_after(5):
            assert (await channel.get()).value == 7


@both
async def test_empty_says_whether_get_would_wait(make: Make) -> None:
    app = famulus.App("empty")
    channel = make(app)
    async with famulus.open_app(app):
        with trio.move_on_after(1):
            await channel.get()
        assert channel.empty()
        await channel.put(1)
        await channel.put(2)
        await trio.testing.wait_all_tasks_blocked()
        assert not channel.empty()
        assert not channel.empty()
        assert [(await channel.get()).value, (await channel.get()).value] == [1, 2]
        assert channel.empty()


async def test_what_was_put_before_the_first_get_is_not_lost() -> None:
    app = famulus.App("early")
    channel = local(app)
    async with famulus.open_app(app):
        assert channel.empty()
        await channel.put(1)
        assert not channel.empty()
        assert (await channel.get()).value == 1


async def test_the_offset_of_a_topic_waits_for_the_event_that_get_gave(broker: MemoryBroker) -> None:
    app = famulus.App("acks", broker=f"memory://{broker.name}")
    numbers = topic(app)
    async with famulus.open_app(app) as running:
        for number in range(3):
            await numbers.put(number)
        first, second, third = [await numbers.get() for _ in range(3)]
        second.ack()
        await running.commit()
        assert broker.group("acks").committed.get(TP("pipe", 0), 0) == 0
        async with first:
            assert first.value == 0
        await running.commit()
        assert broker.group("acks").committed == {TP("pipe", 0): 2}
        third.ack()
    assert broker.group("acks").committed == {TP("pipe", 0): 3}


async def test_pain_10_get_goes_on_behind_what_cannot_be_decoded(broker: MemoryBroker) -> None:
    app = famulus.App("gets", broker=f"memory://{broker.name}")
    numbers = topic(app)
    async with famulus.open_app(app) as running:
        broker.append(TP("pipe", 0), [ProducerRecord(None, b"garbage")])
        await numbers.send(1)
        with trio.fail_after(5):
            assert (await numbers.get()).value == 1
        assert numbers.empty()
        assert running.statistics().decode_errors == 1


async def test_an_event_that_was_looked_at_before_a_rebalance_comes_once(broker: MemoryBroker) -> None:
    app = famulus.App("moves", broker=f"memory://{broker.name}")
    numbers = topic(app)
    async with famulus.open_app(app):
        await numbers.put(1)
        (await numbers.get()).ack()
        await numbers.put(2)
        await trio.testing.wait_all_tasks_blocked()
        assert not numbers.empty()
        broker.faults.rebalance("moves")
        await trio.sleep(5)
        event = await numbers.get()
        assert event.value == 2
        assert event.ack()
        assert numbers.empty()
    assert broker.group("moves").committed == {TP("pipe", 0): 2}


async def test_what_is_thrown_into_a_channel_comes_from_get(broker: MemoryBroker) -> None:
    app = famulus.App("throws", broker=f"memory://{broker.name}")
    channel = local(app)
    async with famulus.open_app(app):
        await channel.put(1)
        assert (await channel.get()).value == 1
        channel.throw(KeyError("mine"))
        await channel.put(2)
        assert not channel.empty()
        with pytest.raises(KeyError, match="mine"):
            await channel.get()
        assert (await channel.get()).value == 2


async def test_an_agent_that_gets_keeps_its_own_event_in_hand() -> None:
    app = famulus.App("inside")
    orders = app.channel("orders", value_type=int)
    answers = app.channel("answers", value_type=int)
    hands: list[Any] = []

    @app.agent(orders)
    async def pairs(stream: famulus.Stream[int]) -> None:
        async for order in stream:
            before = famulus.current_event()
            answer = await answers.get()
            hands.append((order, answer.value, famulus.current_event() is before is not None))

    async with famulus.open_app(app):
        await orders.put(1)
        await answers.put(10)
        await trio.testing.wait_all_tasks_blocked()
    assert hands == [(1, 10, True)]


async def test_streams_get_all_actors_share_and_getters_share() -> None:
    app = famulus.App("readers")
    channel = local(app)
    agents: list[int] = []
    streamed: list[int] = []
    got: list[int] = []

    @app.agent(channel, concurrency=3)
    async def three(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            agents.append(number)
            await trio.sleep(1)

    @app.task
    async def by_stream() -> None:
        async for event in channel:
            streamed.append(event.value)

    async def by_get() -> None:
        while True:
            got.append((await channel.get()).value)

    async with famulus.open_app(app), trio.open_nursery() as nursery:
        nursery.start_soon(by_get)
        nursery.start_soon(by_get)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(30):
            await channel.put(number)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert sorted(agents) == streamed == sorted(got) == list(range(30))


async def test_events_are_the_channel_iterated() -> None:
    app = famulus.App("events")
    channel = local(app)
    async with famulus.open_app(app):
        await channel.send(1, key="k")
        async for event in channel.events():
            assert_type(event, famulus.Event[int])
            assert (event.key, event.value) == ("k", 1)
            break


# -- sending -----------------------------------------------------------------------------------------------


@both
async def test_a_message_can_be_made_first_and_published_later(make: Make) -> None:
    app = famulus.App("later")
    channel = make(app)
    told: list[famulus.FutureMessage] = []
    async with famulus.open_app(app):
        message = channel.as_future_message(7, timestamp=5.0, headers={"h": b"1"}, callback=told.append)
        await trio.sleep(10)
        assert not message.sent
        assert not message.done()
        assert repr(message) == "<FutureMessage pipe unsent>" if make is topic else "unsent" in repr(message)
        assert await channel.publish_message(message) is message
        assert message.sent
        assert message.result().topic == "pipe"
        event = await channel.get()
        assert (event.value, event.message.timestamp, event.headers) == (7, 5.0, (("h", b"1"),))
        await trio.testing.wait_all_tasks_blocked()
    assert told == [message]


@both
async def test_a_message_is_published_once_and_by_its_own_channel(make: Make) -> None:
    app = famulus.App("once")
    channel, other = make(app), app.channel("other")
    async with famulus.open_app(app):
        message = channel.as_future_message(1)
        with pytest.raises(ValueError, match="is no unsent message of channel other"):
            await other.publish_message(message)
        await channel.publish_message(message, wait=False)
        await message
        with pytest.raises(ValueError, match=r"is no unsent message of .*pipe"):
            await channel.publish_message(message)
        with pytest.raises(ValueError, match="is no unsent message"):
            await channel.publish_message(await channel.send(2))


@both
async def test_a_publishing_that_is_cancelled_while_it_waits_for_room_may_be_repeated(
    make: Make, broker: MemoryBroker
) -> None:
    app = famulus.App("room", broker=f"memory://{broker.name}", stream_buffer_maxsize=1, producer_buffer_maxsize=1)
    channel = make(app)
    async with famulus.open_app(app):
        with broker.faults.hold_produce():
            await channel.send(1)
            message = channel.as_future_message(2)
            with trio.move_on_after(1) as scope:
                await channel.publish_message(message)
            assert scope.cancelled_caught
            assert not message.sent
        assert (await channel.get()).value == 1
        await channel.publish_message(message)
        assert (await channel.get()).value == 2
        assert channel.empty()


async def test_two_who_publish_one_message_send_it_once(broker: MemoryBroker) -> None:
    app = famulus.App("twice", broker=f"memory://{broker.name}")
    numbers = topic(app)
    refused: list[ValueError] = []

    async def publish(message: famulus.FutureMessage) -> None:
        try:
            await numbers.publish_message(message)
        except ValueError as error:
            refused.append(error)

    async with famulus.open_app(app):
        message = numbers.as_future_message(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, message)
            nursery.start_soon(publish, message)
    assert (len(refused), len(broker.messages("pipe"))) == (1, 1)


async def test_publishing_waits_for_the_delivery_only_when_asked_to(broker: MemoryBroker) -> None:
    app = famulus.App("waits", broker=f"memory://{broker.name}", producer_linger=5.0)
    numbers = topic(app)
    async with famulus.open_app(app):
        began = trio.current_time()
        early = await numbers.publish_message(numbers.as_future_message(1), wait=False)
        assert trio.current_time() == began
        assert not early.done()
        await numbers.publish_message(numbers.as_future_message(2))
        assert early.done()
        assert trio.current_time() > began


@both
@pytest.mark.parametrize("soon", [False, True])
async def test_callbacks_may_be_plain_or_async(make: Make, soon: bool) -> None:
    app = famulus.App("callbacks")
    channel = make(app)
    told: list[str] = []

    def plain(settled: famulus.FutureMessage) -> None:
        told.append(f"plain {settled.result().partition}")

    async def waiting(settled: famulus.FutureMessage) -> None:
        await trio.sleep(1)
        told.append(f"async {settled.result().partition}")

    async with famulus.open_app(app):
        for callback in (plain, waiting):
            if soon:
                channel.send_soon(1, callback=callback)
            else:
                await channel.send(1, callback=callback)
            await trio.sleep(5)
    assert told == ["plain 0", "async 0"]


@both
async def test_an_option_that_there_is_not_is_refused(make: Make) -> None:
    app = famulus.App("options")
    channel = make(app)
    async with famulus.open_app(app):
        with pytest.raises(TypeError, match="partion"):
            await channel.send(1, partion=3)  # type: ignore[call-arg]  # that is the point
        with pytest.raises(TypeError, match="eager"):
            channel.send_soon(1, eager=True)  # type: ignore[call-arg]  # that is the point


async def test_a_topic_takes_every_documented_argument_of_send(broker: MemoryBroker) -> None:
    app = famulus.App("all", broker=f"memory://{broker.name}")
    things = app.topic("things", key_type=str, value_type=str, partitions=3)
    async with famulus.open_app(app):
        receipt = await (
            await things.send(
                "7",
                key="k",
                partition=2,
                timestamp=12.5,
                headers=[("a", b"1"), ("a", b"2")],
                key_serializer="json",
                value_serializer="raw",
                callback=None,
                force=True,
            )
        )
        assert (receipt.partition, receipt.timestamp) == (2, 12.5)
    (message,) = broker.messages("things")
    assert (message.key, message.value, message.partition, message.timestamp) == (b'"k"', b"7", 2, 12.5)
    assert message.headers == (("a", b"1"), ("a", b"2"))


# -- force -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
async def test_a_forced_send_is_no_output_of_the_event_in_hand(broker: MemoryBroker, force: bool) -> None:
    app = famulus.App("forced", broker=f"memory://{broker.name}", broker_commit_interval=0.5)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    alerts = app.topic("alerts", value_type=int, partitions=1)

    @app.agent(numbers)
    async def alert(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await alerts.send(number, force=force)

    async with famulus.open_app(app):
        with broker.faults.hold_produce(topic="alerts") as hold:
            await numbers.send(1)
            await hold.reached()
            await trio.sleep(5)
            assert broker.group("forced").committed.get(TP("numbers", 0), 0) == (1 if force else 0)


async def test_a_forced_send_does_not_linger(broker: MemoryBroker) -> None:
    app = famulus.App("hurries", broker=f"memory://{broker.name}", producer_linger=3600.0)
    numbers = topic(app)
    async with famulus.open_app(app):
        with trio.fail_after(60):
            await (await numbers.send(1, force=True))
            await numbers.send_soon(2, force=True)


# -- eager partitioning ------------------------------------------------------------------------------------


async def test_eager_partitioning_tells_the_partition_on_return(broker: MemoryBroker) -> None:
    app = famulus.App("eager", broker=f"memory://{broker.name}")
    ours = app.topic("ours", key_type=str, internal=True, partitions=7)
    async with famulus.open_app(app):
        for number in range(20):
            future = ours.send_soon(number, key=f"k{number}", eager_partitioning=True)
            assert future.partition == partition_for(f"k{number}".encode(), 7)
            assert (await future).partition == future.partition
        assert ours.send_soon(1, key="k", partition=4, eager_partitioning=True).partition == 4
        assert ours.send_soon(1, eager_partitioning=True).partition >= 0


async def test_eager_partitioning_of_an_unknown_topic_says_what_to_do(broker: MemoryBroker) -> None:
    broker.create_topic("theirs", 4)
    app = famulus.App("eager", broker=f"memory://{broker.name}")
    theirs = app.topic("theirs", key_type=str)
    async with famulus.open_app(app):
        with pytest.raises(trio.WouldBlock, match=r"not known yet.*`await send"):
            theirs.send_soon(1, key="k", eager_partitioning=True)
        await (await theirs.send(1, key="k"))
        assert theirs.send_soon(1, key="k", eager_partitioning=True).partition == partition_for(b"k", 4)


# -- copies ------------------------------------------------------------------------------------------------


async def test_a_clone_of_a_local_channel_is_the_same_channel_seen_otherwise() -> None:
    app = famulus.App("views")
    channel = app.channel("pipe", value_type=int, maxsize=5)
    view = channel.clone(maxsize=2)
    assert (view.name, view.value_type, view.maxsize, channel.maxsize) == ("pipe", int, 2, 5)
    assert channel.derive(value_type=str).value_type is str
    async with famulus.open_app(app):
        await channel.put(1)
        assert (await view.get()).value == 1
        await view.put(2)
        assert (await view.get()).value == 2


def test_a_clone_of_a_topic_is_another_description() -> None:
    app = famulus.App("copies")
    orders = app.topic("orders", value_type=int, partitions=3, retention=60.0)
    copy = orders.clone(partitions=4)
    assert_type(copy, famulus.Topic[int])
    assert (copy.name, copy.partitions, copy.retention, copy.value_type) == ("orders", 4, 60.0, int)
    assert orders.clone(name="others").topics == ("others",)
    assert orders.partitions == 3


async def test_a_local_channel_needs_no_declaring() -> None:
    app = famulus.App("nothing")
    channel = local(app)
    await channel.declare()
    await channel.maybe_declare()
