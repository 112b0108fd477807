"""One reader of several topics: by their names, by a pattern, or both; and topics that are missing."""

import logging
import re

import pytest
import trio

import famulus
from famulus.channels.errors import ImproperlyConfigured
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.readers import one_pattern


@pytest.fixture
def theirs(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    """A broker that is not ours: what is missing there is not created."""
    monkeypatch.setattr(MemoryTransport, "owns_topics", False)
    broker.auto_create = False
    return broker


def read_all(app: famulus.App, name: str, seen: list[str], *topics: str, pattern: str | None = None) -> None:
    """An agent on several topics, or on a pattern."""

    @app.agent(app.topic(*topics, pattern=pattern, value_type=str), name=name)
    async def read(stream: famulus.Stream[str]) -> None:
        async for event in stream.events():
            seen.append(f"{event.message.topic}:{event.value}")


def write(broker: MemoryBroker, topic: str, *values: str, partition: int = 0) -> None:
    broker.append(TP(topic, partition), [ProducerRecord(None, b'"%s"' % value.encode()) for value in values])


async def test_one_agent_reads_several_topics_by_name(theirs: MemoryBroker) -> None:
    for name in ("a", "b", "c"):
        theirs.create_topic(name, 2)
        write(theirs, name, "1", "2")
    app = famulus.App("several", broker=f"memory://{theirs.name}")
    seen: list[str] = []
    read_all(app, "a-and-c", seen, "a", "c")
    async with famulus.open_app(app):
        await trio.sleep(1)
    assert sorted(seen) == ["a:1", "a:2", "c:1", "c:2"]
    assert theirs.group("several").committed == {TP("a", 0): 2, TP("c", 0): 2}


async def test_topics_that_match_a_pattern_are_picked_up_while_running(theirs: MemoryBroker) -> None:
    theirs.create_topic("orders-eu", 1)
    theirs.create_topic("not-orders-eu", 1)
    write(theirs, "orders-eu", "1")
    write(theirs, "not-orders-eu", "1")
    app = famulus.App("pattern", broker=f"memory://{theirs.name}")
    seen: list[str] = []
    read_all(app, "orders", seen, pattern="orders-..")
    async with famulus.open_app(app):
        await trio.sleep(1)
        assert seen == ["orders-eu:1"]
        theirs.create_topic("orders-us", 3)
        write(theirs, "orders-us", "2", partition=2)
        await trio.sleep(1)
        assert seen == ["orders-eu:1", "orders-us:2"]
    assert theirs.group("pattern").committed == {TP("orders-eu", 0): 1, TP("orders-us", 2): 1}


async def test_a_pattern_without_a_topic_yet_does_not_hold_up_the_start(theirs: MemoryBroker) -> None:
    app = famulus.App("none-yet", broker=f"memory://{theirs.name}")
    seen: list[str] = []
    read_all(app, "orders", seen, pattern="orders-.*")
    async with famulus.open_app(app):
        theirs.create_topic("orders-1", 1)
        write(theirs, "orders-1", "1")
        await trio.sleep(1)
    assert seen == ["orders-1:1"]


async def test_a_message_goes_to_every_reader_whose_names_or_pattern_match(theirs: MemoryBroker) -> None:
    for name in ("orders-eu", "orders-us", "else"):
        theirs.create_topic(name, 1)
        write(theirs, name, "1")
    app = famulus.App("each", broker=f"memory://{theirs.name}")
    by_name: list[str] = []
    by_pattern: list[str] = []
    by_another: list[str] = []
    read_all(app, "names", by_name, "orders-eu", "else")
    read_all(app, "pattern", by_pattern, pattern="orders-.*")
    read_all(app, "another", by_another, pattern="(?i)ORDERS-US")
    async with famulus.open_app(app) as running:
        await trio.sleep(1)
        assert running.statistics().messages_received == 3
    assert sorted(by_name) == ["else:1", "orders-eu:1"]
    assert sorted(by_pattern) == ["orders-eu:1", "orders-us:1"]
    assert by_another == ["orders-us:1"]
    assert sum(theirs.group("each").committed.values()) == 3


async def test_a_reader_that_leaves_releases_what_others_read_and_no_more(theirs: MemoryBroker) -> None:
    for name in ("both", "mine"):
        theirs.create_topic(name, 1)
        write(theirs, name, "1", "2", "3")
    app = famulus.App("leaves", broker=f"memory://{theirs.name}")
    seen: list[str] = []
    read_all(app, "stays", seen, pattern="both")
    topic = app.topic("both", "mine", value_type=str)
    async with famulus.open_app(app) as running:
        stream = topic.stream()
        async for _ in stream:
            break
        stream.close()
        await trio.sleep(1)
        write(theirs, "both", "4")
        await running.commit()
        await trio.sleep(1)
        assert seen == ["both:1", "both:2", "both:3", "both:4"]
    committed = theirs.group("leaves").committed
    assert committed[TP("both", 0)] == 4
    assert committed.get(TP("mine", 0), 0) == 0  # given up unread


def test_patterns_of_several_readers_that_refer_to_their_groups_are_refused() -> None:
    twice = re.compile(r"(\w+)-\1")
    alone = one_pattern([twice])
    assert alone is not None
    assert alone.fullmatch("a-a")
    assert not alone.fullmatch("a-b")
    with pytest.raises(ImproperlyConfigured, match="refers to groups of its own"):
        one_pattern([twice, re.compile("b.*")])


async def test_group_by_over_several_topics_takes_the_largest_number_of_partitions(theirs: MemoryBroker) -> None:
    theirs.create_topic("few", 2)
    theirs.create_topic("many", 5)
    for name in ("few", "many"):
        write(theirs, name, "x")
    app = famulus.App("regroups", broker=f"memory://{theirs.name}")
    seen: list[str] = []

    @app.agent(app.topic("few", "many", value_type=str))
    async def read(stream: famulus.Stream[str]) -> None:
        async for value in stream.group_by(lambda value: value, name="itself"):
            seen.append(value)

    async with famulus.open_app(app):
        await trio.sleep(2)
    assert seen == ["x", "x"]
    (repartition,) = [name for name in theirs.topics if name.endswith("-itself-repartition")]
    assert len(theirs.topics[repartition].logs) == 5


async def test_missing_topics_are_all_named_once_and_hold_up_nobody_else(
    theirs: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    theirs.create_topic("there", 1)
    write(theirs, "there", "0")
    app = famulus.App("missing", broker=f"memory://{theirs.name}")
    seen: list[str] = []
    read_all(app, "reads", seen, "there", "missing-1")
    read_all(app, "waits", seen, "missing-2")
    ready_at: list[float] = []

    async def create() -> None:
        for number in range(1, 60):  # meanwhile what is there is read
            await trio.sleep(1)
            write(theirs, "there", str(number))
            await trio.sleep(0.1)
            assert seen == [f"there:{n}" for n in range(number + 1)]
        theirs.create_topic("missing-2", 1)
        write(theirs, "missing-2", "late")
        await trio.sleep(6)
        assert seen[-1] == "missing-2:late"
        assert not ready_at
        theirs.create_topic("missing-1", 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        async with famulus.open_app(app):
            ready_at.append(trio.current_time())
    (line,) = [record.getMessage() for record in caplog.records if "waits for the broker" in record.getMessage()]
    for name in ("missing-1", "missing-2"):
        assert f"create_topic(TopicSpec(name='{name}', partitions=...))" in line
    assert theirs.group("missing").committed == {TP("there", 0): 60, TP("missing-2", 0): 1}


@pytest.mark.parametrize("policy", ["earliest", "latest"])
async def test_a_topic_deleted_while_it_is_read_is_named_waited_for_and_read_from_its_start(
    theirs: MemoryBroker, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    caplog.set_level(logging.WARNING)
    for name in ("stays", "goes"):
        theirs.create_topic(name, 2)
    app = famulus.App("deleted", broker=f"memory://{theirs.name}", consumer_auto_offset_reset=policy)
    seen: list[str] = []
    read_all(app, "reads", seen, "stays")
    read_all(app, "waits", seen, "goes")
    async with famulus.open_app(app) as running:
        write(theirs, "goes", "1", "2", "3")
        await trio.sleep(1)
        theirs.delete_topic("goes")
        for number in range(60):
            write(theirs, "stays", str(number))
            await trio.sleep(1)
        assert seen == ["goes:1", "goes:2", "goes:3", *(f"stays:{number}" for number in range(60))]
        theirs.create_topic("goes", 2)
        write(theirs, "goes", "anew")
        await trio.sleep(10)
        assert seen[-1] == "goes:anew"
        assert all(node.restarts == 0 for node in running.tree().walk())
    (line,) = [record.getMessage() for record in caplog.records if "waits for the broker" in record.getMessage()]
    assert "no topic 'goes'" in line
    committed = {tp: offset for tp, offset in theirs.group("deleted").committed.items() if offset}
    assert committed == {TP("stays", 0): 60, TP("goes", 0): 1}


async def test_a_topic_deleted_and_made_anew_at_once_is_read_from_its_start(theirs: MemoryBroker) -> None:
    theirs.create_topic("anew", 1)
    app = famulus.App("at-once", broker=f"memory://{theirs.name}")
    seen: list[str] = []
    read_all(app, "reads", seen, "anew")
    async with famulus.open_app(app) as running:
        write(theirs, "anew", "1", "2", "3")
        await trio.sleep(1)
        theirs.delete_topic("anew")
        theirs.create_topic("anew", 1)
        write(theirs, "anew", "4", "5")
        await trio.sleep(10)
        assert seen == ["anew:1", "anew:2", "anew:3", "anew:4", "anew:5"]
        assert all(node.restarts == 0 for node in running.tree().walk())
    assert theirs.group("at-once").committed == {TP("anew", 0): 2}


async def test_messages_deleted_before_they_were_read_are_counted_and_reading_goes_on(
    theirs: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    theirs.create_topic("trimmed", 1)
    write(theirs, "trimmed", *map(str, range(100)))
    theirs.commit("late", {TP("trimmed", 0): 10})
    theirs.delete_records(TP("trimmed", 0), 60)
    app = famulus.App("late", broker=f"memory://{theirs.name}")
    seen: list[str] = []
    read_all(app, "reads", seen, "trimmed")
    async with famulus.open_app(app) as running:
        await trio.sleep(1)
        assert seen == [f"trimmed:{number}" for number in range(60, 100)]
        assert running.statistics().messages_gone == 50
    assert "trimmed-0: 50 messages from 10 on are gone" in caplog.text
    assert theirs.group("late").committed == {TP("trimmed", 0): 100}


async def test_when_all_that_is_left_is_gone_the_new_place_is_committed(theirs: MemoryBroker) -> None:
    theirs.create_topic("empty", 1)
    write(theirs, "empty", *map(str, range(100)))
    theirs.commit("late", {TP("empty", 0): 10})
    theirs.delete_records(TP("empty", 0), 100)
    app = famulus.App("late", broker=f"memory://{theirs.name}")
    read_all(app, "reads", [], "empty")
    async with famulus.open_app(app) as running:
        await trio.sleep(5)
        assert running.statistics().messages_gone == 90
        assert running.statistics().lag == 0
    assert theirs.group("late").committed == {TP("empty", 0): 100}


@pytest.mark.parametrize(
    ("policy", "read"), [("earliest", ["short:0", "short:1", "short:new"]), ("latest", ["short:new"])]
)
async def test_an_offset_beyond_the_end_is_reported_and_reading_goes_on_by_the_policy(
    theirs: MemoryBroker, caplog: pytest.LogCaptureFixture, policy: str, read: list[str]
) -> None:
    theirs.create_topic("short", 1)
    write(theirs, "short", "0", "1")
    theirs.commit("beyond", {TP("short", 0): 500})
    app = famulus.App("beyond", broker=f"memory://{theirs.name}", consumer_auto_offset_reset=policy)
    seen: list[str] = []
    read_all(app, "reads", seen, "short")
    async with famulus.open_app(app):
        await trio.sleep(1)
        write(theirs, "short", "new")
        await trio.sleep(1)
        assert seen == read
    (line,) = [record.getMessage() for record in caplog.records if "ends before 500" in record.getMessage()]
    assert f"consumer_auto_offset_reset={policy}" in line
    assert theirs.group("beyond").committed == {TP("short", 0): 3}


async def test_with_latest_nothing_is_passed_over_at_a_rebalance_before_the_first_acknowledgement(
    theirs: MemoryBroker,
) -> None:
    theirs.create_topic("quiet", 1)
    write(theirs, "quiet", "before")
    app = famulus.App("latest", broker=f"memory://{theirs.name}", consumer_auto_offset_reset="latest")
    seen: list[str] = []
    read_all(app, "reads", seen, "quiet")
    async with famulus.open_app(app):
        await trio.sleep(1)
    write(theirs, "quiet", "between")
    async with famulus.open_app(app):
        await trio.sleep(1)
    assert seen == ["quiet:between"]
