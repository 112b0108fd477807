"""Dead letters that their topic does not take as they are, and what they say when they are read."""

import logging

import pytest
import trio

import famulus
from famulus.channels.letters import PREFIX, REPLAYS, replayed
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import CORRELATION_ID, REPLY_TO, TP, Message, ProducerRecord

LETTERS = "orders.dead-letter"


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def picky(broker: MemoryBroker, error: Exception, **options: object) -> famulus.App:
    """An app whose agent fails on each order but b"fine"."""
    app = famulus.App("shop", broker=f"memory://{broker.name}", broker_commit_interval=0.5, **options)  # type: ignore[arg-type]

    @app.agent(app.topic("orders", value_type=bytes), name="picky", on_failure="dead_letter")
    async def agent(stream: famulus.Stream[bytes]) -> None:
        async for order in stream:
            if order != b"fine":
                raise error

    return app


def put(broker: MemoryBroker, *records: ProducerRecord) -> None:
    broker.create_topic("orders", 1)
    broker.append(TP("orders", 0), records)


def the_letter(broker: MemoryBroker) -> famulus.DeadLetter:
    (message,) = broker.messages(LETTERS)
    letter = famulus.DeadLetter.of(message)
    assert letter is not None
    return letter


async def test_a_letter_is_read_as_what_it_says(broker: MemoryBroker) -> None:
    put(broker, ProducerRecord(b"ada", b"1250", (("trace", b"abc"),), timestamp=1000.5))
    async with famulus.open_app(picky(broker, ValueError("no money"))):
        await trio.sleep(1)
    letter = the_letter(broker)
    assert (letter.topic, letter.partition, letter.offset, letter.timestamp) == ("orders", 0, 0, 1000.5)
    assert (letter.error_type, letter.error_message) == ("builtins.ValueError", "no money")
    assert "ValueError: no money" in letter.traceback
    assert (letter.agent, letter.attempts, letter.part, letter.replays) == ("picky", 1, None, 0)
    assert (letter.message.key, letter.message.value, letter.headers) == (b"ada", b"1250", (("trace", b"abc"),))
    assert letter.left_out == frozenset()


@pytest.mark.parametrize(
    ("record", "most", "left_out"),
    [
        (ProducerRecord(b"k", b"v" * 200, (("h", b"x"),)), 2000, set()),
        (ProducerRecord(b"k", b"v" * 5000, (("h", b"x"),)), 2500, {"value"}),
        (ProducerRecord(b"k", b"v" * 5000, (("h", b"x" * 5000),)), 2500, {"value", "key", "headers"}),
    ],
    ids=["its texts are cut", "its value is left out", "all is left out"],
)
async def test_a_letter_too_large_for_its_topic_becomes_smaller_and_says_where_the_message_is(
    broker: MemoryBroker,
    caplog: pytest.LogCaptureFixture,
    record: ProducerRecord,
    most: int,
    left_out: set[str],
) -> None:
    broker.create_topic(LETTERS, 1, config={"max.message.bytes": str(most)})
    put(broker, ProducerRecord(None, b"fine"), record, ProducerRecord(None, b"fine"))
    with caplog.at_level(logging.WARNING):
        async with famulus.open_app(picky(broker, ValueError("much to say " * 1000))) as running:
            await trio.sleep(5)
            assert running.statistics().dead_letters == 1
    assert broker.group("shop").committed == {TP("orders", 0): 3}
    letter = the_letter(broker)
    assert letter.left_out == left_out
    assert (letter.source, letter.offset, letter.agent) == (TP("orders", 0), 1, "picky")
    assert letter.error_message.endswith("much to say ")
    assert letter.message.value == (None if "value" in left_out else record.value)
    assert letter.size == (len(record.value or b"") if "value" in left_out else 0)
    assert letter.message.key == (None if "key" in left_out else b"k")
    assert letter.headers == (() if "headers" in left_out else record.headers)
    assert "the dead letter for orders-0@1 is too large for topic orders.dead-letter: its texts are cut" in caplog.text
    if left_out:
        assert "as long as its log has it the message is at orders-0@1" in caplog.text


async def test_a_letter_that_even_so_is_too_large_is_held_and_the_others_are_delivered(broker: MemoryBroker) -> None:
    broker.create_topic(LETTERS, 1, config={"max.message.bytes": "100"})
    put(broker, *[ProducerRecord(None, b"bad")] * 3, ProducerRecord(None, b"fine"))
    async with famulus.open_app(picky(broker, ValueError("no"))) as running:
        await trio.sleep(100)
        assert running.statistics().dead_letters == 0
        broker.topics[LETTERS].config["max.message.bytes"] = "10000"
        await trio.sleep(100)
        assert running.statistics().dead_letters == 3
    assert broker.group("shop").committed == {TP("orders", 0): 4}


@pytest.mark.parametrize(("most", "left_out"), [(2000, {"value"}), (1200, {"value", "key", "headers"})])
async def test_what_no_log_has_is_left_out_with_an_error_rather_than_held_until_the_run_ends(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture, most: int, left_out: set[str]
) -> None:
    app = famulus.App("shop", broker=f"memory://{broker.name}")
    broker.create_topic("parcels.dead-letter", 1, config={"max.message.bytes": str(most)})

    @app.agent(app.channel("parcels"), name="picky", on_failure="dead_letter")
    async def picky(stream: famulus.Stream[str]) -> None:
        async for parcel in stream:
            raise ValueError(parcel[:10])

    async with famulus.open_app(app) as running:
        await picky.send("x" * 10_000, key="k" * 500, headers={"h": "y" * 500})
        await trio.sleep(10)
        assert running.statistics().dead_letters == 1
    (message,) = broker.messages("parcels.dead-letter")
    letter = famulus.DeadLetter.of(message)
    assert letter is not None
    assert letter.left_out == frozenset(left_out)
    assert (letter.offset, letter.error_message) == (-1, "x" * 10)
    assert message.value is None
    assert letter.size > 10_000
    assert (not letter.headers) == ("headers" in left_out)
    assert "lost, since no log has them" in caplog.text


async def test_a_letter_is_written_though_the_error_cannot_say_what_it_is(broker: MemoryBroker) -> None:
    put(broker, ProducerRecord(None, b"bad"), ProducerRecord(None, b"fine"))
    async with famulus.open_app(picky(broker, Unspeakable())):
        await trio.sleep(2)
    assert the_letter(broker).error_message == "<the error's text cannot be had: its __str__ raised RuntimeError>"
    assert broker.group("shop").committed == {TP("orders", 0): 2}


async def test_a_message_that_was_sent_back_says_how_often_when_it_fails_again(broker: MemoryBroker) -> None:
    put(broker, ProducerRecord(None, b"bad", ((REPLAYS, b"2"), ("trace", b"abc"))))
    async with famulus.open_app(picky(broker, ValueError("again"))):
        await trio.sleep(1)
    letter = the_letter(broker)
    assert letter.replays == 2
    assert letter.headers == (("trace", b"abc"),)


def test_what_is_sent_back_is_no_letter_and_no_question_any_more() -> None:
    headers = (
        ("trace", b"abc"),
        (REPLY_TO, b"somebody"),
        (CORRELATION_ID, b"1"),
        ("famulus-dead-letter", b"orders.dead-letter"),
        (f"{PREFIX}error-type", b"ValueError"),
        (REPLAYS, b"2"),
    )
    assert replayed(headers) == (("trace", b"abc"), (REPLAYS, b"3"))


def test_what_is_no_letter_is_none() -> None:
    message = Message("orders", 0, 0, 0.0, 0, (("famulus-dead-letter", b"other.dead-letter"),), None, b"")
    assert famulus.DeadLetter.of(message) is None


def test_a_letter_with_headers_that_make_no_sense_is_read_all_the_same() -> None:
    headers = (("famulus-dead-letter", b"d"), (f"{PREFIX}offset", b"x"), (f"{PREFIX}timestamp", b"\xff"))
    letter = famulus.DeadLetter.of(Message("d", 0, 0, 0.0, 0, headers, None, b""))
    assert letter is not None
    assert (letter.topic, letter.offset, letter.timestamp, letter.attempts) == ("", -1, None, 1)


@pytest.mark.parametrize("timestamp", [b"nan", b"inf", b"-1", b"1e300"])
def test_a_time_or_a_number_that_no_broker_takes_is_none(timestamp: bytes) -> None:
    numbers = ((f"{PREFIX}offset", b"9" * 40), (f"{PREFIX}size", b"9" * 5000))
    headers = (("famulus-dead-letter", b"d"), (f"{PREFIX}timestamp", timestamp), *numbers)
    letter = famulus.DeadLetter.of(Message("d", 0, 0, 0.0, 0, headers, None, b""))
    assert letter is not None
    assert (letter.timestamp, letter.offset, letter.size) == (None, -1, 0)
