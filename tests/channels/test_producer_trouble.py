"""What one message, one topic or one dead letter does to the others when the broker will not have it."""

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import pytest
import trio

import famulus
from famulus.channels.errors import BrokerUnavailable, ProduceError
from famulus.channels.future import FutureMessage
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.runs import current_run
from famulus.channels.transport import ProduceResult, TopicSpec


def make_app(broker: MemoryBroker, **settings: Any) -> famulus.App:
    return famulus.App("trouble", broker=f"memory://{broker.name}", **settings)


def refuse_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches with a poisonous record are refused whole, as a broker does with one that is too large."""
    produce = MemoryTransport.produce

    async def picky(
        self: MemoryTransport, batches: Mapping[TP, Sequence[ProducerRecord]]
    ) -> Mapping[TP, ProduceResult | Exception]:
        bad = [tp for tp, batch in batches.items() if any(record.value == b"poison" for record in batch)]
        good = {tp: batch for tp, batch in batches.items() if tp not in bad}
        return {**await produce(self, good), **dict.fromkeys(bad, ProduceError("too large"))}

    monkeypatch.setattr(MemoryTransport, "produce", picky)


async def test_one_refused_message_does_not_take_its_batch_along(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_poison(monkeypatch)
    app = make_app(broker)
    topic = app.topic("t", value_type=bytes, partitions=1)
    async with famulus.open_app(app):
        values = [b"1", b"2", b"poison", b"3"]
        futures = [await topic.send(value) for value in values]
        for value, future in zip(values, futures, strict=True):
            if value == b"poison":
                with pytest.raises(ProduceError, match="too large"):
                    await future
            else:
                await future
    assert [message.value for message in broker.messages("t")] == [b"1", b"2", b"3"]


async def test_a_dead_letter_that_is_refused_lets_others_pass_and_expire(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_poison(monkeypatch)
    app = make_app(broker, producer_delivery_timeout=5.0)
    topic = app.topic("t", value_type=bytes, partitions=1)
    async with famulus.open_app(app):
        letter = FutureMessage("t", None, b"poison")
        letter.persistent = True
        current_run(app).producer.enqueue(letter, partition=None, beyond_bounds=True)
        with trio.fail_after(60):
            await (await topic.send(b"1"))
            await trio.sleep(10)
            await (await topic.send(b"2"))
        assert not letter.done()
        broker.faults.fail_produce(topic="t", times=None, error=BrokerUnavailable("away"))
        late = await topic.send(b"3")
        with trio.fail_after(60), pytest.raises(ProduceError, match="within 5 s"):
            await late
    assert [message.value for message in broker.messages("t")] == [b"1", b"2"]


async def test_a_topic_that_cannot_be_created_holds_up_no_other(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = MemoryTransport.create_topic

    async def fails(self: MemoryTransport, spec: TopicSpec) -> None:
        if spec.name == "new":
            raise BrokerUnavailable("the change is not visible within 15 s")
        await create(self, spec)

    app = make_app(broker, producer_delivery_timeout=5.0)
    good = app.topic("good", partitions=1)
    async with famulus.open_app(app) as running:
        monkeypatch.setattr(MemoryTransport, "create_topic", fails)
        lost = await running.topic("new", partitions=1).send(1)
        with trio.fail_after(1):
            await (await good.send(2))
        with trio.fail_after(60), pytest.raises(ProduceError, match="within 5 s"):
            await lost


async def test_what_was_being_written_at_the_end_may_have_been(broker: MemoryBroker) -> None:
    app = make_app(broker, producer_flush_timeout=1.0)
    topic = app.topic("t", partitions=1)
    async with famulus.open_app(app):
        await (await topic.send(0))
        hold = broker.faults.hold_produce(topic="t")
        future = await topic.send(1)
        await hold.reached()
    with pytest.raises(ProduceError) as failed:
        future.result()
    assert failed.value.in_doubt


async def test_a_missing_topic_is_waited_for_by_group_by_too(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryTransport, "owns_topics", False)
    broker.auto_create = False
    app = make_app(broker)
    seen: list[int] = []

    @app.agent(app.topic("missing", value_type=int))
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream.group_by(lambda number: number, name="itself"):
            seen.append(number)

    async def create() -> None:
        await trio.sleep(1800)
        broker.create_topic("missing", 1)
        broker.append(TP("missing", 0), [ProducerRecord(None, b"1")])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        async with famulus.open_app(app) as running:  # which waits for it
            await trio.sleep(60)
            assert all(node.restarts == 0 for node in running.tree().walk())
    assert seen == [1]
    assert caplog.text.count("looking at topic missing waits for the broker: UnknownTopic") == 1


@pytest.mark.parametrize("timestamp", [nan, 1e300, -1.0])
async def test_a_timestamp_that_is_no_time_is_refused_at_once(broker: MemoryBroker, timestamp: float) -> None:
    app = make_app(broker)
    topic = app.topic("t", partitions=1)
    async with famulus.open_app(app):
        with pytest.raises(ValueError, match="expected seconds since the epoch"):
            await topic.send(1, timestamp=timestamp)


async def test_a_dead_letter_whose_topic_is_refused_waits_until_it_is_allowed(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = MemoryTransport.create_topic
    allowed: list[bool] = []

    async def refuse(self: MemoryTransport, spec: TopicSpec) -> None:
        if spec.name.endswith(".dead-letter") and not allowed:
            raise ProduceError("not authorized")
        await create(self, spec)

    monkeypatch.setattr(MemoryTransport, "create_topic", refuse)
    app = make_app(broker, broker_commit_interval=0.5)
    topic = app.topic("t", value_type=int, partitions=1)

    @app.agent(topic, on_failure="dead_letter")
    async def fails(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 1:
                raise ValueError(number)

    async with famulus.open_app(app) as running:
        await topic.send(1)
        await topic.send(2)
        await trio.sleep(30)
        assert broker.group("trouble").committed.get(TP("t", 0), 0) == 0  # the offset waits for the letter
        assert running.statistics().dead_letters == 0
        assert "1 messages to t.dead-letter cannot be delivered, 1 are tried again: not authorized" in caplog.text
        allowed.append(True)
        await trio.sleep(30)
        assert running.statistics().dead_letters == 1
        assert broker.group("trouble").committed == {TP("t", 0): 2}
