"""The commands under `dead-letters`: over each broker, with letters as agents write them."""

import json
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from math import inf

import pytest
import trio
from click.testing import CliRunner, Result

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, Message, ProducerRecord
from famulus.channels.transport import ProduceResult, TopicSpec, Transport, TransportOptions, load_transport
from famulus.cli import make_program
from famulus.cli.letter_reading import GROUP
from famulus.testing.kafka import RunningKafka

QUICK = famulus.OneForOneSupervisor(max_restarts=inf, backoff=famulus.Backoff(min=0.001, max=0.01))


class Order(famulus.Record):
    account: str
    cents: int


class Shop:
    """An app on a broker whose agent fails on orders below zero, and what its broker has."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.orders = f"orders-{uuid.uuid4().hex[:8]}"
        self.letters = f"{self.orders}.dead-letter"
        self.app = famulus.App(f"shop-{self.orders}", broker=url)
        self.mended = False
        self.seen: list[tuple[str, int, bool]] = []
        orders = self.app.topic(self.orders, value_type=Order, partitions=2)

        @self.app.agent(orders, name="shop.tally", on_failure="dead_letter", supervisor_strategy=QUICK)
        async def tally(stream: famulus.Stream[Order]) -> None:
            async for event in stream.events():
                order = event.value
                if order.cents < 0 and not self.mended:
                    raise ValueError(f"{order.account} takes money back")
                again = "famulus-dead-letter-replays" in dict(event.headers)
                self.seen.append((order.account, order.cents, again))

    def call(self, *arguments: str, input: str | None = None, app: bool = True) -> Result:
        clean = {"FAMULUS_BROKER": None, "FAMULUS_APP": None, "COLUMNS": "250"}
        given = ["dead-letters", *arguments] if app else ["--broker", self.url, "dead-letters", *arguments]
        return CliRunner().invoke(
            make_program(self.app if app else None), given, prog_name="famulus", env=clean, input=input
        )

    def listed(self, *arguments: str) -> list[dict[str, object]]:
        result = self.call("list", self.orders, "--json", *arguments)
        assert result.exit_code == 0, result.output
        found: list[dict[str, object]] = json.loads(result.stdout)
        return found

    def transport(self) -> Transport:
        return load_transport(self.url, TransportOptions())

    def put(self, *records: tuple[int, ProducerRecord], topic: str | None = None) -> None:
        async def write() -> None:
            transport = self.transport()
            async with transport.open():
                if (topic or self.orders) not in await transport.list_topics():
                    await transport.create_topic(TopicSpec(name=topic or self.orders, partitions=2))
                for partition, record in records:
                    tp = TP(topic or self.orders, partition)
                    outcome = await transport.produce({tp: [record]})
                    assert isinstance(outcome[tp], ProduceResult)

        trio.run(write)

    def work(self, letters: int, seen: int) -> None:
        """Run the app until it has buried and seen so many."""

        async def run() -> None:
            async with famulus.open_app(self.app) as running:
                with trio.fail_after(40):
                    while running.statistics().dead_letters < letters or len(self.seen) < seen:
                        await trio.sleep(0.02)

        trio.run(run)

    def messages(self, topic: str) -> list[Message]:
        async def read() -> list[Message]:
            transport, found = self.transport(), list[Message]()
            async with transport.open():
                tps = [TP(topic, number) for number in range(await transport.partition_count(topic))]
                async with transport.open_reader(dict.fromkeys(tps, "earliest")) as reader:
                    ends = {tp: reader.highwater(tp) for tp in tps}
                    with trio.fail_after(30):
                        while any(reader.position(tp) < ends[tp] for tp in tps):
                            for batch in await reader.fetch(100):
                                found += batch.messages
            return found

        return trio.run(read)


def order(account: str, cents: int, headers: Sequence[tuple[str, bytes]] = ()) -> ProducerRecord:
    value = json.dumps({"account": account, "cents": cents}).encode()
    return ProducerRecord(account.encode(), value, tuple(headers), 1_700_000_000.25)


@pytest.fixture
def memory() -> Iterator[Shop]:
    name = f"letters-{uuid.uuid4().hex}"
    MemoryBroker.named(name)
    yield Shop(f"memory://{name}")
    MemoryBroker.forget(name)


@pytest.fixture(params=["memory", "kafka"])
def shop(request: pytest.FixtureRequest) -> Shop:
    if request.param == "kafka":
        kafka: RunningKafka = request.getfixturevalue("kafka_broker")
        return Shop(kafka.url)
    found: Shop = request.getfixturevalue("memory")
    return found


def words(result: Result) -> str:
    return " ".join(re.sub(r"[│╭╮╰╯─┬┴┼├┤]", " ", result.output).split())


@pytest.mark.hard_timeout(120)
def test_letters_are_listed_and_sent_back_once_as_the_messages_that_they_were(shop: Shop) -> None:
    shop.put(
        (0, order("ada", -5, [("trace", b"abc")])), (1, order("bob", 7)), (1, order("eve", -1)), (0, order("ada", 1))
    )
    shop.work(letters=2, seen=2)

    ada, _ = sorted(shop.listed(), key=lambda letter: str(letter["key"]))
    assert ada["source"] == {"topic": shop.orders, "partition": 0, "offset": 0}
    assert (ada["topic"], ada["agent"], ada["attempts"], ada["replays"]) == (shop.letters, "shop.tally", 1, 0)
    assert (ada["key"], ada["value"], ada["headers"]) == ("ada", {"account": "ada", "cents": -5}, [["trace", "abc"]])
    assert (ada["timestamp"], ada["replayed"], ada["left_out"]) == (1_700_000_000.25, False, [])
    error = ada["error"]
    assert isinstance(error, dict)
    assert (error["type"], error["message"]) == ("builtins.ValueError", "ada takes money back")
    assert "raise ValueError" in error["traceback"]
    table = words(shop.call("list"))
    assert f"{shop.orders}-1@1" in table
    assert "@shop.tally 1 ValueError: eve takes money back" in table
    assert "raise ValueError" in words(shop.call("list", shop.letters, "--traceback"))
    assert len(shop.listed("--agent", "tally", "--since", "1h")) == 2
    assert shop.listed("--agent", "somebody") == []

    dry = shop.call("replay", "--dry-run")
    assert (dry.exit_code, dry.stdout) == (0, f"would send back 2 letters to {shop.orders}\n")
    sent = shop.call("replay", shop.orders)
    assert (sent.exit_code, sent.stdout) == (0, f"sent back 2 letters to {shop.orders}\n")
    again = shop.call("replay", shop.orders)
    assert again.exit_code == 0
    assert "nothing to replay" in again.output
    assert "--from-beginning sends them again" in again.output
    assert shop.listed() == []
    assert [letter["replayed"] for letter in shop.listed("--all")] == [True, True]

    (first, second) = [
        message for message in shop.messages(shop.orders) if "famulus-dead-letter-replays" in dict(message.headers)
    ]
    back = first if first.partition == 0 else second
    original = order("ada", -5)
    assert (back.partition, back.key, back.value) == (0, original.key, original.value)
    assert (back.headers, back.timestamp) == (
        (("trace", b"abc"), ("famulus-dead-letter-replays", b"1")),
        1_700_000_000.25,
    )

    shop.work(letters=2, seen=2)  # nothing was mended: they fail again
    assert [letter["replays"] for letter in shop.listed()] == [1, 1]
    assert "1 times before" in words(shop.call("list"))
    shop.mended = True
    assert shop.call("replay", "--yes").exit_code == 0
    shop.work(letters=0, seen=4)
    assert sorted(shop.seen) == [("ada", -5, True), ("ada", 1, False), ("bob", 7, False), ("eve", -1, True)]


def test_many_letters_are_sent_back_only_when_somebody_agrees(memory: Shop) -> None:
    memory.put(*[(0, order("ada", -number)) for number in range(1, 13)])
    memory.work(letters=12, seen=0)
    refused = memory.call("replay", input="n\n")
    assert refused.exit_code == 1
    assert f"Send back 12 letters to {memory.orders}, at {memory.url}?" in refused.output
    assert len(memory.messages(memory.orders)) == 12
    assert memory.call("replay", input="y\n").exit_code == 0
    assert len(memory.messages(memory.orders)) == 24


def test_what_stands_behind_letters_that_are_left_out_is_sent_and_not_remembered(memory: Shop) -> None:
    memory.put(*[(0, order("ada", -number)) for number in (1, 2, 3)])
    memory.work(letters=3, seen=0)
    (partition,) = {letter["partition"] for letter in memory.listed()}
    offset = memory.call("replay", memory.orders, "--partition", str(partition), "--offset", "1")
    assert offset.exit_code == 0
    assert "1 letter of them stand behind others that were left out" in offset.output
    assert len(memory.listed()) == 3
    assert memory.call("replay", "--limit", "2").stdout == f"sent back 2 letters to {memory.orders}\n"
    assert [letter["offset"] for letter in memory.listed()] == [2]
    assert memory.call("replay", "--from-beginning").stdout == f"sent back 3 letters to {memory.orders}\n"


def test_what_a_letter_left_out_is_fetched_from_where_the_message_is(memory: Shop) -> None:
    broker = MemoryBroker.named(memory.url.removeprefix("memory://"))
    broker.create_topic(memory.letters, 1, config={"max.message.bytes": "2500"})
    large = order("ada" * 1000, -5, [("trace", b"abc")])
    memory.put((1, large), (1, order("eve" * 1000, -1)))
    memory.work(letters=2, seen=0)
    assert [letter["left_out"] for letter in memory.listed()] == [["headers", "key", "value"]] * 2
    assert "left out, 3028 bytes" in words(memory.call("list"))
    broker.delete_records(TP(memory.orders, 1), 1)
    broker.append(TP(memory.orders, 1), [])
    result = memory.call("replay")
    assert result.exit_code == 1
    assert f"is gone, since {memory.orders}-1@0 is not in its log any more" in result.output
    assert "sent back 1 letter\n" in result.output
    back = memory.messages(memory.orders)[-1]
    assert (back.key, back.value) == (order("eve" * 1000, -1).key, order("eve" * 1000, -1).value)
    assert back.headers == (("famulus-dead-letter-replays", b"1"),)


def test_a_topic_that_has_grown_gets_its_messages_by_their_keys_where_that_is_asked_for(memory: Shop) -> None:
    from famulus.channels.partitioner import partition_for

    memory.put((0, order("ada", -1)))
    memory.work(letters=1, seen=0)
    broker = MemoryBroker.named(memory.url.removeprefix("memory://"))
    broker.add_partitions(memory.orders, 7)
    assert memory.call("replay", "--by-key").exit_code == 0
    assert memory.messages(memory.orders)[-1].partition == partition_for(b"ada", 7)


def test_nothing_is_sent_back_while_a_topic_is_missing(memory: Shop) -> None:
    memory.put((0, order("ada", -1)))
    memory.work(letters=1, seen=0)
    MemoryBroker.named(memory.url.removeprefix("memory://")).delete_topic(memory.orders)
    result = memory.call("replay")
    assert result.exit_code == 1
    assert f"nothing was sent: 1 letter came from topic '{memory.orders}', which is not there any more" in result.output


def test_a_broker_that_does_not_take_a_letter_keeps_the_mark_where_it_is(memory: Shop) -> None:
    memory.put((0, order("ada", -1)))
    memory.work(letters=1, seen=0)
    broker = MemoryBroker.named(memory.url.removeprefix("memory://"))
    broker.faults.fail_produce(1, topic=memory.orders)
    failed = memory.call("replay")
    assert failed.exit_code == 1
    assert "does not take the next ones: failed by an ordered fault" in failed.output
    assert broker.group(GROUP).committed == {}
    assert memory.call("replay").exit_code == 0


def test_without_an_app_the_letters_of_the_broker_are_listed_as_bytes(memory: Shop) -> None:
    memory.put((0, ProducerRecord(b"\xff\x00", b'{"account": "ada", "cents": -1}')))
    memory.work(letters=1, seen=0)
    listed = memory.call("list", "--json", app=False)
    (letter,) = json.loads(listed.stdout)
    assert (letter["key"], letter["value"]) == ({"base64": "/wA="}, '{"account": "ada", "cents": -1}')
    assert "0xff00" in words(memory.call("list", app=False))


def test_letters_of_other_apps_are_shown_only_when_they_are_named(memory: Shop) -> None:
    memory.put((0, ProducerRecord(None, b"x")), topic="theirs.dead-letter")
    assert "no topic of dead letters: it is created with the first letter" in memory.call("list").output
    assert memory.call("list", "theirs").stdout == "no dead letters in theirs.dead-letter\n"  # it is no letter


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["list", "nothing"], "the broker has neither a topic 'nothing' nor 'nothing.dead-letter'"),
        (["list", "--since", "soon"], "'soon': expected how long ago, as 90s, 30m, 2h or 7d, or a time, as 20"),
        (["replay", "--offset", "9-3"], "'9-3': expected an offset, as 17, or some, as 17-40"),
    ],
)
def test_what_cannot_be_meant_is_told_with_what_can(memory: Shop, arguments: list[str], problem: str) -> None:
    result = memory.call(*arguments)
    assert result.exit_code != 0
    assert problem in result.output


def test_a_topic_without_letters_says_where_they_would_come_from(memory: Shop) -> None:
    memory.put((0, order("ada", 1)))
    result = memory.call("list", memory.orders)
    assert result.exit_code == 1
    assert f"topic {memory.orders} has no dead letters" in result.output
    assert 'on_failure="dead_letter"' in result.output


def test_the_help_teaches_with_examples(memory: Shop) -> None:
    text = memory.call().output + memory.call("list", "--help").output + memory.call("replay", "--help").output
    for example in ("dead-letters list orders --traceback", "dead-letters replay orders --dry-run", "--since 2h"):
        assert example in text


def test_times_are_taken_as_they_are_given() -> None:
    from famulus.cli.letter_reading import parse_offsets, parse_since

    assert parse_since("2026-01-02T03:04:05+00:00") == 1767323045.0
    assert time.time() - 7300 < (parse_since("2h") or 0) < time.time() - 7100
    assert (parse_offsets("17"), parse_offsets("17-40"), parse_offsets(None)) == ((17, 17), (17, 40), None)
