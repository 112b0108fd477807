"""The way of a message: batches, references, acknowledgement, commit (DESIGN section 5, law 2)."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord


def url_of(broker: MemoryBroker) -> str:
    return f"memory://{broker.name}"


def fill(broker: MemoryBroker, topic: str, count: int, *, partitions: int = 1) -> None:
    """Numbers 0, 1, 2 … as JSON, round robin over the partitions."""
    if topic not in broker.topics:
        broker.create_topic(topic, partitions)
    for number in range(count):
        broker.append(TP(topic, number % partitions), [ProducerRecord(None, str(number).encode())])


def committed(broker: MemoryBroker, app: famulus.App) -> dict[TP, int]:
    return dict(broker.group(app.id).committed)


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_everything_processed_is_committed_at_the_end(broker: MemoryBroker) -> None:
    app = famulus.App("ends", broker=url_of(broker))
    fill(broker, "numbers", 100, partitions=4)
    seen: list[int] = []

    @app.agent(app.topic("numbers"))
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app):
        await settle()
    assert sorted(seen) == list(range(100))
    assert committed(broker, app) == {TP("numbers", p): 25 for p in range(4)}


async def test_pain_2_the_event_in_hand_is_never_committed(broker: MemoryBroker) -> None:
    app = famulus.App("in-hand", broker=url_of(broker), broker_commit_interval=1.0)
    fill(broker, "numbers", 10)
    hold = trio.Event()

    @app.agent(app.topic("numbers"))
    async def stuck(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 4:
                await hold.wait()

    async with famulus.open_app(app):
        await trio.sleep(10)
        assert committed(broker, app) == {TP("numbers", 0): 4}
        hold.set()
        await settle()
    assert committed(broker, app) == {TP("numbers", 0): 10}


async def test_commits_happen_by_interval(broker: MemoryBroker) -> None:
    app = famulus.App("interval", broker=url_of(broker), broker_commit_interval=3.0)
    fill(broker, "numbers", 10)

    @app.agent(app.topic("numbers"))
    async def consume(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app):
        await trio.sleep(2.9)
        assert committed(broker, app) == {}
        await trio.sleep(0.2)
        assert committed(broker, app) == {TP("numbers", 0): 10}


async def test_commits_happen_by_count(broker: MemoryBroker) -> None:
    app = famulus.App("count", broker=url_of(broker), broker_commit_interval=1000.0, broker_commit_every=50)
    fill(broker, "numbers", 200)

    @app.agent(app.topic("numbers"))
    async def consume(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app):
        await trio.sleep(1)
        assert committed(broker, app)[TP("numbers", 0)] >= 150


async def test_a_restart_goes_on_where_the_group_committed(broker: MemoryBroker) -> None:
    app = famulus.App("again", broker=url_of(broker))
    fill(broker, "numbers", 10)
    seen: list[int] = []

    @app.agent(app.topic("numbers"))
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app):
        await settle()
    fill(broker, "numbers", 5)
    async with famulus.open_app(app):
        await settle()
    assert seen == [*range(10), *range(5)]


async def test_two_agents_on_one_topic_both_have_to_be_done(broker: MemoryBroker) -> None:
    app = famulus.App("two", broker=url_of(broker), broker_commit_interval=1.0)
    topic = app.topic("numbers")
    fill(broker, "numbers", 10)
    hold = trio.Event()
    quick: list[int] = []

    @app.agent(topic)
    async def fast(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            quick.append(number)

    @app.agent(topic)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 3:
                await hold.wait()

    async with famulus.open_app(app):
        await trio.sleep(10)
        assert quick == list(range(10))
        assert committed(broker, app) == {TP("numbers", 0): 3}
        hold.set()
        await settle()
    assert committed(broker, app) == {TP("numbers", 0): 10}


async def test_events_carry_key_headers_and_message(broker: MemoryBroker) -> None:
    app = famulus.App("events", broker=url_of(broker))
    topic = app.topic("things", key_type=str, value_type=dict, partitions=1)
    got: list[famulus.Event[dict[str, int]]] = []
    pairs: list[tuple[object, dict[str, int]]] = []

    @app.agent(topic)
    async def with_events(stream: famulus.Stream[dict[str, int]]) -> None:
        async for event in stream.events():
            got.append(event)

    @app.agent(topic)
    async def with_items(stream: famulus.Stream[dict[str, int]]) -> None:
        async for key, value in stream.items():
            pairs.append((key, value))

    async with famulus.open_app(app):
        promise = await topic.send({"a": 1}, key="k", headers={"h": b"1"}, timestamp=12.5)
        receipt = await promise
        await settle()
    (event,) = got
    assert (event.key, event.value, event.headers) == ("k", {"a": 1}, (("h", b"1"),))
    assert (event.message.topic, event.message.partition, event.message.offset) == ("things", 0, 0)
    assert (event.message.key, event.message.value, event.message.timestamp) == (b"k", b'{"a":1}', 12.5)
    assert pairs == [("k", {"a": 1})]
    assert receipt == famulus.RecordMetadata("things", 0, TP("things", 0), 0, 12.5, 0)


async def test_pain_5_manual_acks_come_in_any_order_and_hold_the_offset(broker: MemoryBroker) -> None:
    app = famulus.App("manual", broker=url_of(broker), broker_commit_interval=1.0)
    fill(broker, "numbers", 4)
    events: list[famulus.Event[int]] = []

    @app.agent(app.topic("numbers"))
    async def keep(stream: famulus.Stream[int]) -> None:
        async for event in stream.noack().events():
            events.append(event)

    async with famulus.open_app(app):
        await settle()
        assert [event.value for event in events] == [0, 1, 2, 3]
        events[2].ack()
        events[0].ack()
        await trio.sleep(2)
        assert committed(broker, app) == {TP("numbers", 0): 1}
        assert bool(events[1].ack()) is True
        assert bool(events[1].ack()) is False
        await trio.sleep(2)
        assert committed(broker, app) == {TP("numbers", 0): 3}
    assert committed(broker, app) == {TP("numbers", 0): 3}


async def test_a_topic_with_acks_false_leaves_it_to_the_user(broker: MemoryBroker) -> None:
    app = famulus.App("noacks", broker=url_of(broker))
    fill(broker, "numbers", 3)

    @app.agent(app.topic("numbers", acks=False))
    async def keep(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            if event.value == 0:
                async with event:
                    pass

    async with famulus.open_app(app):
        await settle()
    assert committed(broker, app) == {TP("numbers", 0): 1}


async def test_async_with_event_acks_when_the_block_ends_and_not_when_it_raises(broker: MemoryBroker) -> None:
    app = famulus.App("with-event", broker=url_of(broker))
    fill(broker, "numbers", 2)
    acked: list[bool] = []

    @app.agent(app.topic("numbers"))
    async def careful(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            try:
                async with event:
                    if event.value == 1:
                        raise ValueError(event.value)
            except ValueError:
                pass
            acked.append(event.acked)

    async with famulus.open_app(app):
        await settle()
    assert acked == [True, False]


async def test_an_offset_does_not_pass_an_output_that_is_not_delivered(broker: MemoryBroker) -> None:
    app = famulus.App("outputs", broker=url_of(broker), broker_commit_interval=1.0, producer_flush_timeout=1.0)
    out = app.topic("out", partitions=1)
    fill(broker, "numbers", 5)
    hold = broker.faults.hold_produce(topic="out")

    @app.agent(app.topic("numbers"))
    async def copy(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await out.send(number)

    async with famulus.open_app(app):
        await trio.sleep(5)
        assert committed(broker, app) == {}
        hold.release()
        await trio.sleep(2)
        assert committed(broker, app) == {TP("numbers", 0): 5}
    assert committed(broker, app) == {TP("numbers", 0): 5}


async def test_a_failed_output_is_a_failure_of_its_event(broker: MemoryBroker) -> None:
    app = famulus.App("failed-output", broker=url_of(broker))
    out = app.topic("out", partitions=1)
    fill(broker, "numbers", 2)
    broker.faults.fail_produce(1, topic="out")
    attempts: list[int] = []

    @app.agent(app.topic("numbers"), on_failure="retry")
    async def copy(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            attempts.append(event.attempt)
            await out.send(event.value)
            await trio.sleep(1)

    async with famulus.open_app(app) as running:
        await trio.sleep(60)
        statistics = running.statistics()
    assert [message.value for message in broker.messages("out")] == [b"0", b"1"]
    assert statistics.deliveries_failed == 1
    assert statistics.events_failed == 1
    assert attempts == [1, 2, 1]
    assert committed(broker, app) == {TP("numbers", 0): 2}


async def test_pain_8_a_slow_stream_pauses_its_partitions_and_nobody_elses(broker: MemoryBroker) -> None:
    app = famulus.App("slow", broker=url_of(broker), stream_buffer_maxsize=10)
    fill(broker, "slow", 1000)
    fill(broker, "quick", 1000)
    hold = trio.Event()
    seen = 0

    @app.agent(app.topic("slow"))
    async def sleeper(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await hold.wait()

    @app.agent(app.topic("quick"))
    async def runner(stream: famulus.Stream[int]) -> None:
        nonlocal seen
        async for _ in stream:
            seen += 1

    async with famulus.open_app(app) as running:
        await trio.sleep(60)
        assert seen == 1000
        assert running.statistics().messages_received <= 1010
        hold.set()
        await trio.sleep(1)
        assert running.statistics().messages_received == 2000
    assert committed(broker, app)[TP("slow", 0)] == 1000


async def test_the_span_of_unacknowledged_offsets_is_bounded(broker: MemoryBroker) -> None:
    app = famulus.App("span", broker=url_of(broker), stream_max_span=100)
    fill(broker, "numbers", 1000)
    events: list[famulus.Event[int]] = []

    @app.agent(app.topic("numbers"))
    async def hoard(stream: famulus.Stream[int]) -> None:
        async for event in stream.noack().events():
            events.append(event)

    async with famulus.open_app(app):
        await trio.sleep(10)
        assert len(events) == 100
        for event in list(events):
            event.ack()
        await trio.sleep(10)
        assert len(events) == 200


async def test_pain_2_gaps_in_the_log_are_no_holes(broker: MemoryBroker) -> None:
    app = famulus.App("gaps", broker=url_of(broker))
    fill(broker, "numbers", 10)
    broker.faults.compact(TP("numbers", 0), [0, 3, 4, 8])
    broker.faults.skip_offsets(TP("numbers", 0), 2)
    seen: list[int] = []

    @app.agent(app.topic("numbers"))
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app):
        await settle()
    assert seen == [1, 2, 5, 6, 7, 9]
    assert committed(broker, app)[TP("numbers", 0)] >= 10


@pytest.mark.parametrize("concurrency", [1, 3, 100])
async def test_concurrent_actors_share_the_stream_and_each_event_comes_once(
    broker: MemoryBroker, concurrency: int
) -> None:
    app = famulus.App("shared", broker=url_of(broker))
    fill(broker, "numbers", 500, partitions=4)
    seen: list[int] = []

    @app.agent(app.topic("numbers"), concurrency=concurrency)
    async def work(stream: famulus.Stream[int]) -> AsyncIterator[None]:
        async for number in stream:
            await trio.sleep(1)
            seen.append(number)
            yield None

    async with famulus.open_app(app):
        start = trio.current_time()
        while len(seen) < 500:
            await trio.sleep(1)
        assert trio.current_time() - start <= 500 / concurrency + 5
    assert sorted(seen) == list(range(500))
    assert sum(committed(broker, app).values()) == 500


async def test_commit_can_be_asked_for(broker: MemoryBroker) -> None:
    app = famulus.App("asked", broker=url_of(broker), broker_commit_interval=1000.0)
    fill(broker, "numbers", 10)

    @app.agent(app.topic("numbers"))
    async def consume(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app) as running:
        await settle()
        await running.commit()
        assert committed(broker, app) == {TP("numbers", 0): 10}


async def test_a_stream_made_in_a_task_ends_with_it_and_holds_up_nobody(broker: MemoryBroker) -> None:
    app = famulus.App("own-stream", broker=url_of(broker), stream_buffer_maxsize=10)
    numbers = app.topic("numbers", partitions=1)
    fill(broker, "numbers", 1000)
    seen: list[int] = []
    first: list[int] = []

    @app.agent(numbers)
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    @app.task
    async def peek() -> None:
        async for number in numbers.stream():
            first.append(number)
            if len(first) == 3:
                break

    async with famulus.open_app(app):
        await trio.sleep(60)
        assert len(first) == 3
        assert sorted(set(seen)) == list(range(1000))
    assert committed(broker, app) == {TP("numbers", 0): 1000}


async def test_a_stream_in_the_body_reads_until_it_is_closed(broker: MemoryBroker) -> None:
    app = famulus.App("body", broker=url_of(broker))
    numbers = app.topic("numbers", partitions=1)
    fill(broker, "numbers", 5)
    seen: list[int] = []
    async with famulus.open_app(app):
        stream: famulus.Stream[int] = numbers.stream()
        async for number in stream:
            seen.append(number)
            if number == 2:
                break
        stream.close()
        await trio.sleep(10)
    assert seen == [0, 1, 2]
    assert committed(broker, app) == {TP("numbers", 0): 2}


async def test_a_long_stall_is_paused_at_the_broker_and_resumed(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "famulus.conductor")
    app = famulus.App("stall", broker=url_of(broker), stream_buffer_maxsize=4, stream_pause_after=2.0)
    fill(broker, "numbers", 100)
    hold = trio.Event()
    seen: list[int] = []

    @app.agent(app.topic("numbers"))
    async def wait(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await hold.wait()
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(30)
        paused = [record.getMessage() for record in caplog.records if "paused numbers-0" in record.getMessage()]
        assert len(paused) == 1
        hold.set()
        await trio.sleep(10)
    assert seen == list(range(100))
