"""What becomes of input that cannot be decoded: `on_decode_error`, dead letters, handlers (law 6, PAIN row 10)."""

from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, Message, ProducerRecord

LETTERS = "numbers.dead-letter"


def put(broker: MemoryBroker, *records: ProducerRecord) -> None:
    """Append to the one partition of the topic numbers."""
    if "numbers" not in broker.partition_counts():
        broker.create_topic("numbers", 1)
    broker.append(TP("numbers", 0), records)


def reading(broker: MemoryBroker, seen: list[int], **options: Any) -> famulus.App:
    """An app with one agent, `reader`, over the topic numbers."""
    app = famulus.App("decodes", broker=f"memory://{broker.name}", broker_commit_interval=0.5)

    @app.agent(app.topic("numbers", key_type=int, value_type=int, **options), name="reader")
    async def reader(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    return app


def facts(letter: Message) -> dict[str, str]:
    prefix = "famulus-dead-letter-"
    return {name.removeprefix(prefix): text.decode() for name, text in letter.headers if name.startswith(prefix)}


async def test_pain_10_by_default_it_is_logged_counted_and_skipped(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    put(broker, ProducerRecord(None, b"oops"), ProducerRecord(b"key?", b"1"), ProducerRecord(b"2", b"2"))
    seen: list[int] = []
    async with famulus.open_app(reading(broker, seen)) as running:
        await trio.sleep(1)
        assert seen == [2]
        assert running.statistics().decode_errors == 2
        assert broker.group("decodes").committed == {TP("numbers", 0): 3}
        assert LETTERS not in broker.partition_counts()
    assert "numbers-0@0: undecodable value" in caplog.text
    assert "numbers-0@1: undecodable key" in caplog.text


async def test_pain_10_a_dead_letter_is_the_message_with_what_was_wrong(broker: MemoryBroker) -> None:
    put(
        broker,
        ProducerRecord(b"7", b"oops", (("trace", b"abc"),)),
        ProducerRecord(b"key?", b"1"),
        ProducerRecord(None, b"2"),
    )
    seen: list[int] = []
    async with famulus.open_app(reading(broker, seen, on_decode_error="dead_letter")) as running:
        await trio.sleep(1)
        assert seen == [2]
        assert running.statistics().dead_letters == running.statistics().decode_errors == 2
    by_offset = {facts(letter)["offset"]: letter for letter in broker.messages(LETTERS)}
    value, key = by_offset["0"], by_offset["1"]
    assert (value.key, value.value, value.headers[0]) == (b"7", b"oops", ("trace", b"abc"))
    assert (key.key, key.value) == (b"key?", b"1")
    found = facts(value)
    assert "not JSON" in found.pop("error-message")
    assert "DecodeError" in found.pop("traceback")
    assert float(found.pop("timestamp")) > 0
    assert found == {
        "topic": "numbers",
        "partition": "0",
        "offset": "0",
        "part": "value",
        "reader": "reader",
        "attempts": "1",
        "error-type": "famulus.models.errors.DecodeError",
    }
    assert facts(key)["part"] == "key"


async def test_the_offset_waits_until_the_dead_letter_is_delivered(broker: MemoryBroker) -> None:
    put(broker, ProducerRecord(None, b"oops"), ProducerRecord(None, b"1"))
    seen: list[int] = []
    app = reading(broker, seen, on_decode_error="dead_letter")
    async with famulus.open_app(app) as running:
        with broker.faults.hold_produce(topic=LETTERS) as hold:
            await hold.reached()
            await trio.sleep(5)
            assert seen == [1]
            assert broker.group("decodes").committed.get(TP("numbers", 0), 0) == 0
            assert running.statistics().dead_letters == 0
        await trio.sleep(5)
        assert broker.group("decodes").committed == {TP("numbers", 0): 2}
        assert running.statistics().dead_letters == 1


async def test_the_dead_letter_topic_may_have_another_name_for_agents_failures_too(broker: MemoryBroker) -> None:
    put(broker, ProducerRecord(None, b"oops"), ProducerRecord(None, b"1"))
    app = famulus.App("named", broker=f"memory://{broker.name}")
    numbers = app.topic("numbers", value_type=int, on_decode_error="dead_letter", dead_letter="graveyard")

    @app.agent(numbers, on_failure="dead_letter", name="fails")
    async def fails(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            raise ValueError(number)

    async with famulus.open_app(app):
        await trio.sleep(1)
    assert LETTERS not in broker.partition_counts()
    letters = [facts(letter) for letter in broker.messages("graveyard")]
    assert {(letter["offset"], letter["error-type"].rpartition(".")[2]) for letter in letters} == {
        ("0", "DecodeError"),
        ("1", "ValueError"),
    }


async def test_a_letter_that_cannot_be_decoded_makes_no_further_letter(broker: MemoryBroker) -> None:
    put(broker, ProducerRecord(None, b"oops"))
    app = reading(broker, [], on_decode_error="dead_letter")

    @app.agent(app.topic(LETTERS, value_type=int, on_decode_error="dead_letter"), name="undertaker")
    async def undertaker(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            raise AssertionError("nothing there can be decoded")

    async with famulus.open_app(app) as running:
        await trio.sleep(100)
        assert running.statistics().decode_errors == 2
    assert sorted(broker.partition_counts()) == ["numbers", LETTERS]


@pytest.mark.parametrize("waits", [False, True])
async def test_a_function_gets_the_error_and_the_message(broker: MemoryBroker, waits: bool) -> None:
    put(broker, ProducerRecord(None, b"oops"), ProducerRecord(None, b"1"))
    told: list[tuple[str, bytes | None]] = []

    def plain(error: Exception, message: Message) -> None:
        told.append((type(error).__name__, message.value))

    async def waiting(error: Exception, message: Message) -> None:
        await trio.sleep(1)
        plain(error, message)

    seen: list[int] = []
    async with famulus.open_app(reading(broker, seen, on_decode_error=waiting if waits else plain)):
        await trio.sleep(5)
    assert (told, seen) == ([("DecodeError", b"oops")], [1])


async def test_a_handler_that_raises_is_logged_and_stops_nothing(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    put(broker, ProducerRecord(None, b"oops"), ProducerRecord(None, b"1"))

    def handler(error: Exception, message: Message) -> None:
        raise KeyError("mine")

    seen: list[int] = []
    async with famulus.open_app(reading(broker, seen, on_decode_error=handler)) as running:
        await trio.sleep(1)
        assert seen == [1]
        assert "crashed" not in caplog.text
        assert broker.group("decodes").committed == {TP("numbers", 0): 2}
        assert running.statistics().decode_errors == 1
    assert "numbers-0@0: the handler of its undecodable value raised; it is skipped" in caplog.text
    assert "KeyError: 'mine'" in caplog.text


async def test_methods_of_a_subclass_are_called_as_well(broker: MemoryBroker) -> None:
    put(broker, ProducerRecord(b"key?", b"1"), ProducerRecord(None, b"oops"))
    told: list[tuple[str, int]] = []

    class Careful(famulus.Topic[int]):
        async def on_key_decode_error(self, error: Exception, message: Message) -> None:
            told.append(("key", message.offset))

        async def on_value_decode_error(self, error: Exception, message: Message) -> None:
            told.append(("value", message.offset))

    app = famulus.App("methods", broker=f"memory://{broker.name}")

    @app.agent(Careful(app, "numbers", key_type=int, value_type=int, on_decode_error="dead_letter"))
    async def reader(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            raise AssertionError("there is nothing to be seen")

    async with famulus.open_app(app):
        await trio.sleep(1)
    assert told == [("key", 0), ("value", 1)]
    assert len(broker.messages(LETTERS)) == 2


async def test_pain_20_a_flood_of_dead_letters_waits_for_the_broker(broker: MemoryBroker) -> None:
    put(broker, *[ProducerRecord(None, b"oops")] * 1000)
    app = famulus.App("flood", broker=f"memory://{broker.name}", producer_buffer_maxsize=10)

    @app.agent(app.topic("numbers", value_type=int, on_decode_error="dead_letter"), name="reader")
    async def reader(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            raise AssertionError("there is nothing to be seen")

    async with famulus.open_app(app) as running:
        with broker.faults.hold_produce(topic=LETTERS) as hold:
            await hold.reached()
            await trio.sleep(60)
            assert running.statistics().decode_errors <= 12
        await trio.sleep(60)
        assert running.statistics().dead_letters == 1000


@pytest.mark.parametrize("on_failure", ["dead_letter", "retry"])
async def test_a_letter_that_its_agent_fails_on_makes_no_further_letter(
    broker: MemoryBroker, on_failure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    put(broker, ProducerRecord(None, b"1"))
    app = famulus.App("buries", broker=f"memory://{broker.name}", broker_commit_interval=0.5)

    @app.agent(app.topic("numbers", LETTERS, value_type=int), name="fails", on_failure=on_failure)
    async def fails(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            raise ValueError(number)

    async with famulus.open_app(app):
        await trio.sleep(100)
        letter = broker.messages(LETTERS)[0]
        assert broker.group("buries").committed[letter.tp] == 1  # it is done with
    assert sorted(broker.partition_counts()) == ["numbers", LETTERS]
    assert "skipped, since it is a dead letter, which stays where it is" in caplog.text


async def test_a_letter_that_was_sent_back_and_fails_again_makes_a_letter_again(broker: MemoryBroker) -> None:
    put(broker, ProducerRecord(None, b"oops", (("trace", b"abc"),)))
    app = reading(broker, [], on_decode_error="dead_letter")
    returned: list[int] = []

    @app.agent(app.topic(LETTERS, value_type=bytes), name="returns")
    async def returns(stream: famulus.Stream[bytes]) -> None:
        async for event in stream.events():
            if not returned:
                returned.append(event.message.offset)
                await event.forward("numbers")

    async with famulus.open_app(app):
        await trio.sleep(100)
    first, second = sorted(broker.messages(LETTERS), key=lambda letter: int(facts(letter)["offset"]))
    assert [facts(letter)["offset"] for letter in (first, second)] == ["0", "1"]
    assert [name for name, _ in second.headers] == [name for name, _ in first.headers]  # those of the last letter alone


async def test_a_pattern_passes_over_dead_letters_unless_it_speaks_of_them(broker: MemoryBroker) -> None:
    put(broker, ProducerRecord(None, b"oops"), ProducerRecord(None, b"1"))
    app = famulus.App("patterns", broker=f"memory://{broker.name}", topic_metadata_age=1.0)
    seen: list[str] = []
    for name, dead_letter in (("default", None), ("renamed", "numbers-that-failed")):

        @app.agent(
            app.topic(pattern="(?i)NUMBERS.*", value_type=int, on_decode_error="dead_letter", dead_letter=dead_letter),
            name=name,
            on_failure="dead_letter",
        )
        async def fails(stream: famulus.Stream[int], name: str = name) -> None:
            async for event in stream.events():
                seen.append(f"{name} {event.message.topic}")
                raise ValueError(event.value)

    @app.agent(app.topic(pattern=r"numbers(\.dead-letter|-that-failed)", value_type=bytes), name="undertaker")
    async def undertaker(stream: famulus.Stream[bytes]) -> None:
        async for event in stream.events():
            seen.append(f"undertaker {event.message.topic}")

    async with famulus.open_app(app):
        await trio.sleep(100)
    assert sorted(broker.partition_counts()) == ["numbers", "numbers-that-failed", LETTERS]
    letters = [line for line in seen if line.startswith("undertaker")]
    assert sorted(letters) == ["undertaker numbers-that-failed"] * 2 + [f"undertaker {LETTERS}"] * 2
    assert [line for line in seen if line.startswith("default")].count("default numbers") == 1
    assert f"default {LETTERS}" not in seen
    assert "renamed numbers-that-failed" not in seen


async def test_a_long_reason_is_cut_so_that_the_letter_can_be_written(broker: MemoryBroker) -> None:
    put(broker, ProducerRecord(None, b"1"))
    app = famulus.App("long", broker=f"memory://{broker.name}")

    @app.agent(app.topic("numbers", value_type=int), name="fails", on_failure="dead_letter")
    async def fails(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            raise ValueError("x" * 1_000_000 + " the end")

    async with famulus.open_app(app):
        await trio.sleep(1)
    letter = facts(broker.messages(LETTERS)[0])
    assert letter["error-message"].endswith("x the end")
    assert max(map(len, letter.values())) <= 8192
