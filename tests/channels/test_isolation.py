"""A slow agent stops nobody else; readers of one topic that are behind may catch up before it is given up."""

import pytest
import trio
import trio.lowlevel

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord


def fill(broker: MemoryBroker, topic: str, count: int, partitions: int = 1) -> None:
    broker.create_topic(topic, partitions)
    for number in range(count):
        broker.append(TP(topic, number % partitions), [ProducerRecord(None, b"%d" % number)])


async def test_pain_8_an_agent_that_sleeps_for_a_minute_stops_only_its_own_partitions(broker: MemoryBroker) -> None:
    fill(broker, "slow", 5_000, 4)
    fill(broker, "fast", 5_000, 4)
    app = famulus.App("sleeper", broker=f"memory://{broker.name}", stream_buffer_maxsize=100)
    slow: list[int] = []
    fast: list[int] = []
    held: list[int] = []

    @app.agent(app.topic("slow", value_type=int))
    async def sleeps(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if not slow:
                await trio.sleep(60)
            slow.append(number)

    @app.agent(app.topic("fast", value_type=int))
    async def runs(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            fast.append(number)

    async with famulus.open_app(app) as running:
        await trio.sleep(10)
        assert sorted(fast) == list(range(5_000))
        assert slow == []
        partitions = running.statistics().partitions
        held = [tracker.ledger.in_flight for tracker in running._run.conductor.partitions.values()]
        assert sum(held) <= 100  # as much as its buffer, however much the log has
        assert sum(partitions[TP("fast", number)].committed for number in range(4)) == 5_000
        await trio.sleep(60)
        assert sorted(slow) == list(range(5_000))
        assert running.statistics().rebalances == 1
    assert sum(broker.group("sleeper").committed.values()) == 10_000


async def test_a_blocked_reader_of_a_topic_holds_back_the_other_reader_by_the_buffer_and_not_its_other_topics(
    broker: MemoryBroker,
) -> None:
    fill(broker, "shared", 1_000)
    fill(broker, "own", 1_000)
    app = famulus.App("pair", broker=f"memory://{broker.name}", stream_buffer_maxsize=100)
    blocked: list[int] = []
    free: list[tuple[str, int]] = []

    @app.agent(app.topic("shared", value_type=int))
    async def blocks(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if not blocked:
                await trio.sleep(60)
            blocked.append(number)

    @app.agent(app.topic("shared", "own", value_type=int))
    async def reads_both(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            free.append((event.message.topic, event.value))

    async with famulus.open_app(app):
        await trio.sleep(10)
        assert len([value for topic, value in free if topic == "shared"]) <= 100
        assert [value for topic, value in free if topic == "own"] == list(range(1_000))
        await trio.sleep(60)
        assert blocked == list(range(1_000))
        assert [value for topic, value in free if topic == "shared"] == list(range(1_000))


def two_readers(app: famulus.App, pace: float) -> tuple[list[int], list[int]]:
    """Agents on one topic: the one takes no time, the other `pace` seconds a message."""
    fast: list[int] = []
    slow: list[int] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def runs(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            fast.append(number)

    @app.agent(app.topic("numbers", value_type=int))
    async def walks(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(pace)
            slow.append(number)

    return fast, slow


async def test_at_shutdown_the_slower_reader_goes_on_to_where_the_faster_one_is(broker: MemoryBroker) -> None:
    fill(broker, "numbers", 100)
    app = famulus.App("readers", broker=f"memory://{broker.name}")
    fast, slow = two_readers(app, 0.01)
    async with famulus.open_app(app):
        await trio.sleep(0.1)
        assert len(fast) == 100
        assert len(slow) < 20
    assert fast == slow == list(range(100))
    assert broker.group("readers").committed == {TP("numbers", 0): 100}


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_at_a_rebalance_the_slower_reader_goes_on_and_nothing_new_is_delivered(
    broker: MemoryBroker, concurrency: int
) -> None:
    fill(broker, "numbers", 200, 2)
    app = famulus.App("readers", broker=f"memory://{broker.name}", stream_buffer_maxsize=100)
    fast: list[int] = []
    slow: list[int] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def runs(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            fast.append(number)

    @app.agent(app.topic("numbers", value_type=int), concurrency=concurrency)
    async def walks(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(0.01)
            slow.append(number)

    async with famulus.open_app(app):
        await trio.sleep(0.1)
        assert len(slow) < len(fast)
        async with famulus.open_app(app):
            await trio.sleep(30)
    assert sorted(fast) == sorted(slow) == list(range(200))  # not even a duplicate
    assert sum(broker.group("readers").committed.values()) == 200


async def test_catching_up_is_bounded_and_the_rest_comes_again(broker: MemoryBroker) -> None:
    fill(broker, "numbers", 100)
    app = famulus.App("readers", broker=f"memory://{broker.name}", stream_drain_timeout=2.0)
    fast, slow = two_readers(app, 0.1)
    async with famulus.open_app(app):
        await trio.sleep(0.05)
        begun = trio.current_time()
    assert trio.current_time() - begun < 2
    done = len(slow)
    assert 5 < done < 25
    assert broker.group("readers").committed == {TP("numbers", 0): done}
    async with famulus.open_app(app):
        await trio.sleep(30)
    assert slow == list(range(100))
    assert fast == [*range(100), *range(done, 100)]


async def test_pain_1_the_watchdog_names_the_stuck_agent_its_message_and_its_frame(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    fill(broker, "numbers", 3)
    app = famulus.App("stuck", broker=f"memory://{broker.name}", stream_watchdog_timeout=30.0)
    seen: list[int] = []

    @app.agent(app.topic("numbers", value_type=int), name="ponders")
    async def ponders(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 1:
                await trio.sleep(100)  # here
            seen.append(number)

    async with famulus.open_app(app) as running:
        await trio.sleep(25)
        assert not caplog.records
        await trio.sleep(60)
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith("ponders[0] has had numbers-0@1 in hand for 3")
        assert "in ponders: await trio.sleep(100)  # here" in line.replace("<locals>.", "").replace(
            "test_pain_1_the_watchdog_names_the_stuck_agent_its_message_and_its_frame.", ""
        )
        await trio.sleep(60)
        assert all(node.restarts == 0 for node in running.tree().walk())
    assert seen == [0, 1, 2]


async def test_pain_1_a_stuck_agent_is_started_again_when_that_is_asked_for(broker: MemoryBroker) -> None:
    fill(broker, "numbers", 3)
    app = famulus.App(
        "restarts", broker=f"memory://{broker.name}", stream_watchdog_timeout=30.0, stream_watchdog_action="restart"
    )
    seen: list[int] = []

    @app.agent(app.topic("numbers", value_type=int), name="hangs")
    async def hangs(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 1:
                await trio.sleep_forever()
            seen.append(number)

    async with famulus.open_app(app) as running:
        await trio.sleep(60)
        assert {node.name: node.restarts for node in running.tree().walk()}["hangs[0]"] == 1
        assert running.statistics().events_failed == 1
    assert seen == [0, 2]  # the event has failed, and `on_failure` says what that means
    assert broker.group("restarts").committed == {TP("numbers", 0): 3}


async def test_the_watchdog_names_a_message_that_nobody_acknowledges(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    fill(broker, "numbers", 3)
    app = famulus.App("forgets", broker=f"memory://{broker.name}", stream_watchdog_timeout=30.0)

    @app.agent(app.topic("numbers", value_type=int))
    async def forgets(stream: famulus.Stream[int]) -> None:
        async for event in stream.noack().events():
            if event.value != 1:
                event.ack()
        await trio.lowlevel.checkpoint()

    async with famulus.open_app(app):
        await trio.sleep(100)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("numbers-0@1 has not been acknowledged for 3")
    assert "is event.ack() missing" in line
