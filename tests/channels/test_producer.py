"""The producer: a bounded buffer, partitions by key, receipts, failures that reach whoever awaits (laws 3, 4, 5)."""

from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.future import FutureMessage
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP
from famulus.channels.partitioner import partition_for
from famulus.channels.runs import current_run


def app_on(broker: MemoryBroker, **settings: Any) -> famulus.App:
    return famulus.App("producer", broker=f"memory://{broker.name}", **settings)


async def test_keys_choose_the_partition_as_kafka_clients_do(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("t", key_type=str, partitions=7)
    async with famulus.open_app(app):
        for number in range(50):
            receipt = await (await topic.send(number, key=f"key-{number}"))
            assert receipt.partition == partition_for(f"key-{number}".encode(), 7)
            assert receipt.partition == topic.get_partition_key(f"key-{number}")


async def test_an_explicit_partition_wins(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("t", partitions=4)
    async with famulus.open_app(app):
        receipt = await (await topic.send(1, key=b"k", partition=3))
    assert receipt.partition == 3


async def test_order_is_kept_within_a_key(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("t", key_type=str, partitions=4)
    async with famulus.open_app(app):
        for number in range(1000):
            await topic.send(number, key=f"k{number % 10}")
    by_key: dict[bytes | None, list[int]] = {}
    for message in broker.messages("t"):
        by_key.setdefault(message.key, []).append(int(message.value or b""))
    assert all(values == sorted(values) for values in by_key.values())
    assert sum(len(values) for values in by_key.values()) == 1000


async def test_a_full_buffer_makes_send_wait_and_send_soon_refuse(broker: MemoryBroker) -> None:
    app = app_on(broker, producer_buffer_maxsize=10)
    topic = app.topic("t", partitions=1)
    async with famulus.open_app(app):
        hold = broker.faults.hold_produce(topic="t")
        for number in range(10):
            await topic.send(number)
        with trio.move_on_after(5) as scope:
            await topic.send(10)
        assert scope.cancelled_caught
        with pytest.raises(famulus.BufferFull, match=r"producer_buffer_maxsize"):
            topic.send_soon(11)
        hold.release()
        await (await topic.send(12))
    assert [message.value for message in broker.messages("t")] == [*[str(n).encode() for n in range(10)], b"12"]


async def test_the_buffer_is_bounded_in_bytes_too(broker: MemoryBroker) -> None:
    app = app_on(broker, producer_buffer_bytes=1000)
    topic = app.topic("t", value_type=bytes, partitions=1)
    async with famulus.open_app(app):
        hold = broker.faults.hold_produce(topic="t")
        await topic.send(b"x" * 2000)
        with pytest.raises(famulus.BufferFull):
            topic.send_soon(b"y")
        hold.release()


async def test_a_failed_delivery_is_raised_to_whoever_awaits_and_counted(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("t", partitions=1)
    async with famulus.open_app(app) as running:
        broker.faults.fail_produce(1, topic="t")
        promise = await topic.send(1)
        for _ in range(2):
            with pytest.raises(famulus.ProduceError, match="ordered fault"):
                await promise
        assert promise.done()
        assert running.statistics().deliveries_failed == 1
        assert (await (await topic.send(2))).offset == 0


async def test_callbacks_get_the_settled_promise(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("t", partitions=1)
    offsets: list[int] = []

    async def later(promise: famulus.FutureMessage) -> None:
        await trio.sleep(1)
        offsets.append(promise.result().offset)

    async with famulus.open_app(app):
        await topic.send(1, callback=lambda promise: offsets.append(promise.result().offset))
        await topic.send(2, callback=later)
        await trio.sleep(5)
    assert offsets == [0, 1]


async def test_a_message_that_waits_too_long_fails_and_is_logged(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_on(broker, producer_delivery_timeout=30.0)
    topic = app.topic("t", partitions=1)
    async with famulus.open_app(app):
        await (await topic.send(0))
        broker.faults.stop()
        promise = await topic.send(1)
        with pytest.raises(famulus.ProduceError, match="not delivered within 30 s"):
            await promise
        assert "1 messages were not delivered in time" in caplog.text
        broker.faults.start()
        assert (await (await topic.send(2))).offset == 1


async def test_everything_buffered_is_delivered_at_exit(broker: MemoryBroker) -> None:
    app = app_on(broker, producer_linger=3.0)
    topic = app.topic("t", partitions=4)
    async with famulus.open_app(app):
        for number in range(100):
            await topic.send(number)
        assert broker.partition_counts().get("t") is None or len(broker.messages("t")) < 100
    assert sorted(int(message.value or b"") for message in broker.messages("t")) == list(range(100))


async def test_exit_is_bounded_when_the_broker_is_away_and_promises_say_so(broker: MemoryBroker) -> None:
    app = app_on(broker, producer_flush_timeout=5.0)
    topic = app.topic("t", partitions=1)
    async with famulus.open_app(app):
        await (await topic.send(0))
        broker.faults.stop()
        promise = await topic.send(1)
        left = trio.current_time()
    assert trio.current_time() - left < 30
    with pytest.raises(famulus.ProduceError, match="stopped before the delivery was confirmed"):
        await promise


async def test_a_cancelled_sender_leaves_the_message_sent_once_or_not_at_all(broker: MemoryBroker) -> None:
    app = app_on(broker, producer_buffer_maxsize=1)
    topic = app.topic("t", partitions=1)
    sent: list[int] = []

    async def sender(number: int) -> None:
        with trio.move_on_after(number * 0.01):
            await topic.send(number)
            sent.append(number)

    async with famulus.open_app(app):
        broker.faults.delay_produce(0.025, topic="t")
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(sender, number)
    assert sorted(int(message.value or b"") for message in broker.messages("t")) == sorted(sent)
    assert 1 < len(sent) < 50


async def test_a_value_that_cannot_be_encoded_is_the_caller_s_error(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("t")
    async with famulus.open_app(app):
        with pytest.raises(famulus.EncodeError, match="object"):
            await topic.send(object())


async def test_none_is_a_tombstone(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("t", partitions=1)
    async with famulus.open_app(app):
        await topic.send(None, key=b"gone")
    (message,) = broker.messages("t")
    assert (message.key, message.value, message.tp) == (b"gone", None, TP("t", 0))


async def test_topics_are_created_as_declared(broker: MemoryBroker) -> None:
    app = app_on(broker, topic_partitions=3)
    app.topic("declared", partitions=5, compacting=True, retention=60)
    plain = app.topic("plain")
    async with famulus.open_app(app) as running:
        await plain.maybe_declare()
        late = running.topic("late", partitions=2)
        late.send_soon(1)
    assert {name: broker.partition_counts()[name] for name in ("declared", "plain", "late")} == {
        "declared": 5,
        "plain": 3,
        "late": 2,
    }
    assert broker.topics["declared"].config == {"cleanup.policy": "compact", "retention.ms": "60000"}


async def test_a_partition_that_is_not_there_fails_the_delivery_alone(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic = app.topic("t", partitions=2)
    async with famulus.open_app(app):
        wrong = await topic.send(1, partition=7)
        with pytest.raises(famulus.TransportError):
            await wrong
        assert (await (await topic.send(2, partition=1))).offset == 0
        with pytest.raises(ValueError, match="partition=-1"):
            await topic.send(3, partition=-1)


async def test_a_log_that_nobody_reads_is_bounded_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with famulus.open_app() as running:
        topic = running.topic("unread", value_type=bytes, partitions=1)
        for _ in range(100_100):
            await topic.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "famulus.memory"]
    assert "nobody reads unread, its records beyond 100000 a partition are dropped" in line


class Awaited(FutureMessage):
    """Like a request."""

    __slots__ = ()

    @property
    def awaited(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [FutureMessage, Awaited])
async def test_behind_a_large_write_the_others_may_send_more_unless_somebody_waits_for_an_answer(
    broker: MemoryBroker, kind: type[FutureMessage]
) -> None:
    app = app_on(broker)
    app.topic("t", partitions=1)
    broker.create_topic("t", partitions=1)
    async with famulus.open_app(app):
        producer = current_run(app).producer
        many = [kind("t", None, b"%d" % number) for number in range(150)]
        for message in many:
            producer.enqueue(message, partition=0)
        await many[-1].wait_settled()
        one = kind("t", None, b"one")
        producer.enqueue(one, partition=0)
        turns = 0
        while not one.done():
            turns += 1
            await trio.lowlevel.checkpoint()
    assert (turns < 15) == (kind is Awaited)


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("senders", [0, 3])
async def test_whoever_waits_for_room_gets_it_though_others_who_waited_did_not_use_it(
    broker: MemoryBroker, senders: int, failing: bool
) -> None:
    """Agents that have answered beyond the bounds wait so as not to run ahead, and may be more than there is room for."""
    app = app_on(broker, producer_buffer_maxsize=10)
    topic = app.topic("t", partitions=1)
    async with famulus.open_app(app):
        await (await topic.send(0))
        producer = current_run(app).producer
        hold = broker.faults.hold_produce(topic="t")
        for number in range(12):
            producer.enqueue(FutureMessage("t", None, b"%d" % number), partition=0, beyond_bounds=True)
        done = 0

        async def wait() -> None:
            nonlocal done
            await producer.wait_caught_up()
            done += 1

        async def send() -> None:
            nonlocal done
            await topic.send(1)
            done += 1

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(wait)
                if number < senders:
                    nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert done == 0
            if failing:
                broker.faults.fail_produce(1, topic="t")
            hold.release()
            with trio.move_on_after(1000):
                while done < 30 + senders:
                    await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert done == 30 + senders
