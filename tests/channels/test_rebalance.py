"""Rebalances: bounded drain, commit, let go; what is lost is discarded (laws 2 and 3)."""

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord


def fill(broker: MemoryBroker, count: int, partitions: int) -> None:
    broker.create_topic("numbers", partitions)
    for number in range(count):
        broker.append(TP("numbers", number % partitions), [ProducerRecord(None, str(number).encode())])


async def test_two_runs_share_the_partitions_and_see_each_message(broker: MemoryBroker) -> None:
    app = famulus.App("pair", broker=f"memory://{broker.name}")
    fill(broker, 1000, 4)
    seen: list[int] = []

    @app.agent(app.topic("numbers"))
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(0.01)
            seen.append(number)

    async with famulus.open_app(app) as first, famulus.open_app(app) as second:
        await trio.sleep(60)
        assert first.statistics().messages_acked > 0
        assert second.statistics().messages_acked > 0
    assert sorted(seen) == list(range(1000))  # drained at the rebalance: not even a duplicate
    assert sum(broker.group("pair").committed.values()) == 1000


async def test_a_run_that_leaves_hands_over_where_it_stopped(broker: MemoryBroker) -> None:
    app = famulus.App("leaver", broker=f"memory://{broker.name}")
    fill(broker, 400, 4)
    seen: list[int] = []

    @app.agent(app.topic("numbers"))
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)
            await trio.sleep(0.01)

    async with famulus.open_app(app):
        async with famulus.open_app(app):
            await trio.sleep(1)
        await trio.sleep(60)
    assert sorted(seen) == list(range(400))


async def test_pain_4_a_rebalance_does_not_wait_for_ever_for_a_busy_actor(broker: MemoryBroker) -> None:
    app = famulus.App("busy", broker=f"memory://{broker.name}", stream_drain_timeout=2.0)
    fill(broker, 2, 2)
    started: list[int] = []
    finished: list[int] = []
    patience = 1000.0

    @app.agent(app.topic("numbers"))
    async def ponder(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            started.append(number)
            await trio.sleep(patience)
            finished.append(number)

    async with famulus.open_app(app):
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        patience = 1.0
        async with famulus.open_app(app):
            assert trio.current_time() - begun < 10
            await trio.sleep(20)
    assert sorted(finished) == [0, 1]
    assert len(started) > len(finished)  # the cancelled one was delivered again
    assert sum(broker.group("busy").committed.values()) == 2


async def test_a_lost_member_discards_and_cannot_commit(broker: MemoryBroker) -> None:
    app = famulus.App("lost", broker=f"memory://{broker.name}", broker_commit_interval=1.0)
    fill(broker, 4, 1)
    hold = trio.Event()
    taken: list[int] = []

    @app.agent(app.topic("numbers"))
    async def stuck(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            taken.append(number)
            if number == 2 and not hold.is_set():
                await hold.wait()

    async with famulus.open_app(app) as running:
        await trio.sleep(0.5)
        assert taken == [0, 1, 2]
        broker.faults.lose_member("lost", running.settings.client_id or "lost")
        await trio.sleep(30)
        hold.set()
        await trio.sleep(30)
        assert broker.group("lost").committed == {TP("numbers", 0): 4}
    assert sorted(set(taken)) == [0, 1, 2, 3]


async def test_a_refused_commit_is_no_progress_and_no_end(broker: MemoryBroker) -> None:
    app = famulus.App("refused", broker=f"memory://{broker.name}", broker_commit_interval=1.0)
    fill(broker, 10, 2)
    broker.faults.refuse_commits(1)
    seen: list[int] = []

    @app.agent(app.topic("numbers"))
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app) as running:
        await trio.sleep(60)
        assert running.statistics().commits_failed == 1
        assert sum(broker.group("refused").committed.values()) == 10
    assert sorted(set(seen)) == list(range(10))


async def test_the_broker_goes_away_and_comes_back(broker: MemoryBroker) -> None:
    app = famulus.App("away", broker=f"memory://{broker.name}", broker_commit_interval=1.0)
    fill(broker, 10, 2)
    numbers = app.topic("numbers", partitions=2)
    seen: list[int] = []

    @app.agent(numbers)
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app) as running:
        await trio.sleep(2)
        broker.faults.stop()
        promises = [await numbers.send(number) for number in range(10, 20)]
        await trio.sleep(20)
        assert not any(promise.done() for promise in promises)
        broker.faults.start()
        for promise in promises:
            await promise
        await trio.sleep(10)
        assert running.statistics().deliveries_failed == 0
    assert sorted(seen) == list(range(20))
    assert sum(broker.group("away").committed.values()) == 20


async def test_a_crashed_fetch_task_is_restarted_and_nothing_is_lost(broker: MemoryBroker) -> None:
    app = famulus.App("fetch-crash", broker=f"memory://{broker.name}")
    fill(broker, 100, 4)
    broker.faults.fail_fetches(3)
    seen: list[int] = []

    @app.agent(app.topic("numbers"))
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app) as running:
        await trio.sleep(60)
        messaging = running.tree().children[0]
        assert {node.name: node.restarts for node in messaging.children}["conductor"] == 3
    assert sorted(seen) == list(range(100))


async def test_a_broker_that_is_away_at_the_start_is_waited_for(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app = famulus.App("patient", broker=f"memory://{broker.name}")
    topic = app.topic("numbers", partitions=1)
    broker.faults.stop()

    async def come_back() -> None:
        await trio.sleep(60)
        broker.faults.start()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        async with famulus.open_app(app):
            assert trio.current_time() >= 60
            assert (await (await topic.send(1))).offset == 0
    waits = [record for record in caplog.records if "connecting waits for the broker" in record.getMessage()]
    assert len(waits) == 1


async def test_a_topic_that_is_missing_is_named_and_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    broker = MemoryBroker("missing-topic", auto_create=False).register()
    app = famulus.App("waits", broker="memory://missing-topic")
    seen: list[int] = []

    class Theirs(famulus.Topic[int]):
        """A source topic, which a broker that is not ours has or has not."""

        async def prepare(self, run: object) -> None:
            pass

    @app.agent(Theirs(app, "theirs", value_type=int))
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async def somebody_creates_it() -> None:
        await trio.sleep(60)
        broker.create_topic("theirs", 1)
        broker.append(TP("theirs", 0), [ProducerRecord(None, b"1")])

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(somebody_creates_it)
            async with famulus.open_app(app):
                await trio.sleep(60)
    finally:
        MemoryBroker.forget("missing-topic")
    assert seen == [1]
    (line,) = [record.getMessage() for record in caplog.records if "fetching waits" in record.getMessage()]
    assert "theirs" in line


async def test_what_is_subscribed_already_goes_on_while_a_later_topic_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = MemoryBroker("later-topic", auto_create=False).register()
    broker.create_topic("numbers", 1)
    app = famulus.App("goes-on", broker="memory://later-topic")
    seen: list[int] = []

    class Theirs(famulus.Topic[int]):
        """A source topic, which a broker that is not ours has or has not."""

        async def prepare(self, run: object) -> None:
            pass

    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    app.agent(Theirs(app, "numbers", value_type=int), name="first")(collect)
    try:
        async with famulus.open_app(app) as running:
            running.agent(Theirs(app, "later", value_type=int), name="second")(collect)
            await trio.sleep(1)
            for number in range(60):
                broker.append(TP("numbers", 0), [ProducerRecord(None, b"%d" % number)])
                await trio.sleep(1)
                assert seen == list(range(number + 1))
            broker.create_topic("later", 1)
            broker.append(TP("later", 0), [ProducerRecord(None, b"60")])
            await trio.sleep(6)
            assert sorted(seen) == list(range(61))
    finally:
        MemoryBroker.forget("later-topic")
    (line,) = [record.getMessage() for record in caplog.records if "subscribing waits" in record.getMessage()]
    assert "later" in line
