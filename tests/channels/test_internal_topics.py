"""Internal topics: made at the start as they are declared, looked at where they are there already, trimmed."""

import pytest
import trio

import famulus
from famulus.channels.errors import BrokerUnavailable, TransportError
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.options import MessagingOptions
from famulus.channels.runs import current_run
from famulus.channels.trimming import Trimmer

REPARTITION = "shop-orders-text-repartition"


def shop(broker: MemoryBroker, *, partitions: int | None = None, seen: list[int] | None = None) -> famulus.App:
    """An app whose one agent groups the topic orders by the text of its numbers."""
    app = famulus.App("shop", broker=f"memory://{broker.name}")
    app.topic("orders", value_type=int, partitions=4)

    @app.agent(app.topics["orders"], name="tally")
    async def tally(stream: famulus.Stream[int]) -> None:
        async for number in stream.group_by(str, name="text", partitions=partitions):
            if seen is not None:
                seen.append(number)

    return app


async def refusal(app: famulus.App) -> str:
    """Why it does not start."""
    with pytest.raises(ExceptionGroup) as caught:
        async with famulus.open_app(app):
            raise AssertionError("it has started")
    found = caught.value.subgroup(famulus.TopicMismatch)
    assert found is not None
    (error,) = found.exceptions
    while isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    return str(error)


async def test_a_repartition_topic_keeps_everything_and_has_the_partitions_of_its_source(broker: MemoryBroker) -> None:
    async with famulus.open_app(shop(broker)):
        assert broker.partition_counts()[REPARTITION] == 4
        config = broker.topic(REPARTITION).config
        assert (config["retention.ms"], config["cleanup.policy"]) == ("-1", "delete")


async def test_pain_17_a_source_that_got_more_partitions_refuses_to_start_at_once(broker: MemoryBroker) -> None:
    async with famulus.open_app(shop(broker)):
        pass
    broker.add_partitions("orders", 8)
    began = trio.current_time()
    assert await refusal(shop(broker)) == (
        f"'orders' has 8 partitions now, and {REPARTITION!r}, through which it is grouped, was made with 4: go on with "
        "those, group_by(..., partitions=4); or, when all that is in it is processed and all workers have stopped, delete "
        f"it, `await transport.delete_topic({REPARTITION!r})`, and start again: it is made anew"
    )
    assert trio.current_time() - began < 1.0


@pytest.mark.parametrize("mended_by", ["the declaration", "deleting the topic"])
async def test_pain_17_what_the_refusal_says_mends_it(broker: MemoryBroker, mended_by: str) -> None:
    async with famulus.open_app(shop(broker)):
        pass
    broker.add_partitions("orders", 8)
    if mended_by == "deleting the topic":
        broker.delete_topic(REPARTITION)
    seen: list[int] = []
    app = shop(broker, partitions=4 if mended_by == "the declaration" else None, seen=seen)
    async with famulus.open_app(app):
        for number in range(20):
            await app.topics["orders"].send(number)
        await trio.sleep(1)
    assert sorted(seen) == list(range(20))
    assert broker.partition_counts()[REPARTITION] == (4 if mended_by == "the declaration" else 8)


async def test_pain_17_other_partitions_than_group_by_asks_for_refuse_to_start(broker: MemoryBroker) -> None:
    async with famulus.open_app(shop(broker, partitions=2)):
        pass
    text = await refusal(shop(broker, partitions=3))
    assert (
        f"{REPARTITION!r} has 2 partitions at the broker and is declared with 3: declare it with partitions=2" in text
    )
    assert f"`await transport.add_partitions({REPARTITION!r}, 3)` (keys move then)" in text


async def test_an_internal_topic_with_other_partitions_refuses_to_start(broker: MemoryBroker) -> None:
    broker.create_topic("mine", 4)
    app = famulus.App("declares", broker=f"memory://{broker.name}")
    app.topic("mine", internal=True, partitions=2)
    text = await refusal(app)
    assert "'mine' has 4 partitions at the broker and is declared with 2: declare it with partitions=4" in text
    assert "add_partitions" not in text  # they cannot be taken away


async def test_an_internal_topic_without_a_declared_number_takes_what_is_there(broker: MemoryBroker) -> None:
    broker.create_topic("mine", 3)
    app = famulus.App("declares", broker=f"memory://{broker.name}")
    app.topic("mine", internal=True)
    async with famulus.open_app(app):
        assert broker.partition_counts()["mine"] == 3


async def test_an_internal_topic_with_another_configuration_refuses_to_start(broker: MemoryBroker) -> None:
    broker.create_topic("mine", 1, config={"cleanup.policy": "delete,compact", "retention.ms": "1000", "x": "y"})
    app = famulus.App("declares", broker=f"memory://{broker.name}")
    app.topic("mine", internal=True, compacting=True, deleting=True, retention=2.0)
    assert "'mine' has retention.ms=1000 at the broker and is declared with retention.ms=2000" in await refusal(app)


async def test_topics_of_others_are_taken_as_they_are(broker: MemoryBroker) -> None:
    broker.create_topic("theirs", 4, config={"cleanup.policy": "compact"})
    app = famulus.App("reads", broker=f"memory://{broker.name}")
    app.topic("theirs", partitions=2, deleting=True)
    async with famulus.open_app(app):
        assert broker.partition_counts()["theirs"] == 4


async def test_fewer_replicas_than_declared_are_told(broker: MemoryBroker, caplog: pytest.LogCaptureFixture) -> None:
    broker.create_topic("mine", 1)
    app = famulus.App("declares", broker=f"memory://{broker.name}")
    app.topic("mine", internal=True, replicas=3)
    async with famulus.open_app(app):
        pass
    assert "topic mine has 1 replicas at the broker, fewer than the 3 declared" in caplog.text


async def test_a_configuration_that_may_not_be_read_is_no_reason_to_stop(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def denied(self: MemoryTransport, name: str) -> object:
        raise TransportError("not allowed")

    broker.create_topic("mine", 1)
    monkeypatch.setattr(MemoryTransport, "describe_topic", denied)
    app = famulus.App("declares", broker=f"memory://{broker.name}")
    app.topic("mine", internal=True, retention=2.0)
    async with famulus.open_app(app):
        pass
    assert "the configuration of topic mine cannot be checked: not allowed" in caplog.text


async def test_a_mismatch_found_by_a_late_declaration_fails_its_messages_and_nothing_else(broker: MemoryBroker) -> None:
    broker.create_topic("mine", 4)
    async with famulus.open_app(famulus.App("late", broker=f"memory://{broker.name}")) as running:
        mine = running.topic("mine", internal=True, partitions=2)
        with pytest.raises(famulus.TopicMismatch, match="'mine' has 4 partitions"):
            await (await mine.send(1))
        other = running.topic("other", value_type=int)
        await (await other.send(1))


# -- trimming ----------------------------------------------------------------------------------------------


def records_left(broker: MemoryBroker) -> int:
    return len(broker.messages(REPARTITION))


async def test_what_is_committed_of_a_repartition_topic_is_deleted(broker: MemoryBroker) -> None:
    app = shop(broker, seen=[])
    async with famulus.open_app(app):
        for number in range(100):
            await app.topics["orders"].send(number)
        await trio.sleep(29)
        assert records_left(broker) == 100
        await trio.sleep(2)  # topic_trim_interval is 30 s
        assert records_left(broker) == 0
    assert len(broker.messages("orders")) == 100  # somebody else's business
    trimmed = {tp: log for tp, log in broker.group("shop").committed.items() if tp.topic == REPARTITION}
    assert sum(trimmed.values()) == 100


async def test_what_is_not_committed_is_never_deleted(broker: MemoryBroker) -> None:
    app = famulus.App("shop", broker=f"memory://{broker.name}", consumer_auto_offset_reset="latest")
    orders = app.topic("orders", value_type=int, partitions=1)

    @app.agent(orders)
    async def stuck(stream: famulus.Stream[int]) -> None:
        async for number in stream.group_by(str, name="text"):
            if number == 5:
                await trio.sleep_forever()

    broker.create_topic(REPARTITION, 1)
    broker.append(TP(REPARTITION, 0), [ProducerRecord(None, b"1")])
    with trio.move_on_after(200):
        async with famulus.open_app(app):
            await trio.sleep(100)
            assert records_left(broker) == 1  # where reading began is no commit
            for number in range(10):
                await orders.send(number)
            await trio.sleep(90)
            assert [message.offset for message in broker.messages(REPARTITION)] == [6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    "error", [BrokerUnavailable("away"), TransportError("not allowed"), trio.ClosedResourceError()]
)
async def test_a_failure_to_trim_is_told_once_and_hurts_nobody(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(self: MemoryTransport, before: object) -> None:
        raise error

    seen: list[int] = []
    app = shop(broker, seen=seen)
    async with famulus.open_app(app) as running:
        with monkeypatch.context() as patched:
            patched.setattr(MemoryTransport, "delete_records", fail)
            await app.topics["orders"].send(1)
            await trio.sleep(200)
        assert caplog.text.count("it is tried again") == 1
        assert "crashed" not in caplog.text
        assert running.tree().children
        await trio.sleep(31)
        assert records_left(broker) == 0
    assert seen == [1]


async def test_the_trimmer_of_a_stream_that_was_closed_has_nothing_to_do(broker: MemoryBroker) -> None:
    app = famulus.App("shop", broker=f"memory://{broker.name}", topic_trim_interval=1.0)
    orders = app.topic("orders", value_type=int, partitions=1)
    async with famulus.open_app(app):
        for _ in range(3):
            stream = orders.stream().group_by(str, name="text")
            await orders.send(7)
            assert await anext(stream) == 7
            stream.close()
        services = current_run(app).services
        assert services is not None
        assert sum(name == "trimming" for name in services.children) == 1
        assert Trimmer.of(current_run(app)).topics == set()
        await trio.sleep(10)
        assert records_left(broker) > 0


@pytest.mark.parametrize("value", [0, -1.0, "soon"])
def test_the_interval_is_checked(value: object) -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match="topic_trim_interval"):
        MessagingOptions(topic_trim_interval=value)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("why", ["on_failure", "on_decode_error"])
async def test_a_reader_of_dead_letters_has_their_topic_created(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(MemoryTransport, "owns_topics", False)
    broker.create_topic("orders", 1)
    app = famulus.App("shop", broker=f"memory://{broker.name}")
    orders = app.topic("orders", value_type=int, on_decode_error="dead_letter")
    letters: list[bytes] = []

    @app.agent(orders, name="fails", on_failure="dead_letter")
    async def fails(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            raise ValueError(number)

    @app.agent(app.topic("orders.dead-letter", value_type=bytes, partitions=2), name="undertaker")
    async def bury(stream: famulus.Stream[bytes]) -> None:
        async for letter in stream:
            letters.append(letter)

    value = b"1" if why == "on_failure" else b"one"
    async with famulus.open_app(app):  # it starts, and does not wait for the first letter
        assert broker.partition_counts()["orders.dead-letter"] == 2
        broker.append(TP("orders", 0), [ProducerRecord(None, value)])
        await trio.sleep(10)
    assert letters == [value]


def test_a_topic_of_dead_letters_is_internal_unless_it_says_otherwise() -> None:
    app = famulus.App("shop")
    assert app.topic("orders.dead-letter").internal
    assert app.topic("orders.dead-letter", "calls.dead-letter").internal
    assert not app.topic("orders.dead-letter", internal=False).internal
    assert not app.topic("orders", "orders.dead-letter").internal
    assert not app.topic(pattern=r".*\.dead-letter").internal
