"""What a topic may be declared with, how it is derived, created and looked at, and what wrong options are told."""

import re
from datetime import timedelta
from typing import Any, assert_type, get_type_hints

import pytest

import famulus
from famulus.channels.arguments import Changes, ChannelOptions, TopicOptions
from famulus.channels.memory import MemoryBroker


class Order(famulus.Record):
    account: str


def app_on(broker: MemoryBroker, id: str = "options", **settings: Any) -> famulus.App:
    return famulus.App(id, broker=f"memory://{broker.name}", **settings)


# -- names and patterns ------------------------------------------------------------------------------------


def test_a_description_has_a_name_or_several_or_a_pattern() -> None:
    app = famulus.App("names")
    one, several = app.topic("a"), app.topic("a", "b", value_type=int)
    pattern, compiled = app.topic(pattern="a.*"), app.topic(pattern=re.compile("b+", re.IGNORECASE))
    assert_type(several, famulus.Topic[int])
    assert (one.name, one.topics, one.pattern) == ("a", ("a",), None)
    assert (several.name, several.topics, several.pattern) == ("a,b", ("a", "b"), None)
    assert (pattern.name, pattern.topics, pattern.pattern) == ("a.*", (), re.compile("a.*"))
    assert compiled.pattern == re.compile("b+", re.IGNORECASE)


async def test_what_is_no_one_topic_cannot_be_written_to() -> None:
    app = famulus.App("reads-only")
    for topic, what in ((app.topic("a", "b"), "several topics"), (app.topic(pattern="a.*"), "a pattern")):
        message = rf"topic '(a,b|a\.\*)' is {what}, which cannot be written to: describe the one that is meant"
        async with famulus.open_app(app):
            with pytest.raises(famulus.ImproperlyConfigured, match=message):
                await topic.send(1)
            with pytest.raises(famulus.ImproperlyConfigured, match=message):
                await topic.send(1, key=b"k", force=True)
            with pytest.raises(famulus.ImproperlyConfigured, match=message):
                topic.send_soon(1)
            with pytest.raises(famulus.ImproperlyConfigured, match=message):
                topic.as_future_message(1)


async def test_several_topics_of_ours_are_all_created_and_a_pattern_creates_none(broker: MemoryBroker) -> None:
    app = app_on(broker)
    app.topic("a", "b", internal=True, partitions=2)
    pattern = app.topic(pattern="c.*")
    async with famulus.open_app(app):
        assert broker.partition_counts() == {"a": 2, "b": 2}
        with pytest.raises(famulus.ImproperlyConfigured, match="a pattern, which cannot be created"):
            await pattern.maybe_declare()


def test_an_agent_may_be_declared_over_a_pattern() -> None:
    app = famulus.App("agents")

    @app.agent(pattern="orders-.*")
    async def reader(stream: famulus.Stream[Order]) -> None:
        async for _ in stream:
            pass

    assert isinstance(reader.channel, famulus.Topic)
    assert (reader.channel.pattern, reader.channel.value_type) == (re.compile("orders-.*"), Order)


# -- wrong options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partitions": 0}, "topic 't' partitions=0: expected a whole number of at least 1"),
        ({"partitions": 2.5}, "topic 't' partitions=2.5: expected a whole number of at least 1"),
        ({"partitions": True}, "topic 't' partitions=True: expected a whole number"),
        ({"replicas": 0}, "topic 't' replicas=0: expected a whole number of at least 1"),
        ({"maxsize": 0}, "topic 't' maxsize=0: expected a whole number of at least 1"),
        ({"retention": 0}, "topic 't' retention=0: expected seconds or a timedelta, more than 0"),
        ({"retention": timedelta(seconds=-1)}, "topic 't' retention=.*: expected seconds or a timedelta, more than 0"),
        ({"retention": "1 day"}, "topic 't' retention='1 day': expected seconds"),
        ({"acks": "all"}, "topic 't' acks='all': expected True or False"),
        ({"internal": None}, "topic 't' internal=None: expected True or False"),
        ({"compacting": "yes"}, "topic 't' compacting='yes': expected True, False or None"),
        ({"config": {"retention.ms": None}}, "topic 't' config=.*: expected a mapping of the broker's setting names"),
        ({"config": ["x"]}, "topic 't' config=.*: expected a mapping"),
        ({"key_serializer": 7}, "topic 't' key_serializer=7: expected a codec or its name"),
        (
            {"on_decode_error": "ignore"},
            "topic 't' on_decode_error='ignore': expected 'skip', 'dead_letter' or a function",
        ),
        ({"dead_letter": ""}, "topic 't' dead_letter='': expected the name of a topic"),
        ({"pattern": "x"}, "topic t pattern='x': expected names or a pattern, not both"),
        (
            {"compacting": True, "config": {"cleanup.policy": "delete"}},
            "topic 't' config={'cleanup.policy': 'delete'} and compacting/deleting, which means 'compact': give one of them",
        ),
        (
            {"retention": 1, "config": {"retention.ms": 2000}},
            "topic 't' config={'retention.ms': '2000'} and retention, which means '1000': give one of them",
        ),
    ],
)
def test_a_wrong_option_names_the_topic_the_option_and_what_was_expected(options: Any, message: str) -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match=message):
        famulus.App("wrong").topic("t", **options)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ((), {}, "a topic needs a name, or pattern="),
        ((), {"topic": "a"}, r"names stand before the options, as in topic\('orders', value_type=Order\)"),
        (("a", "a"), {}, "topic a, a: expected each name once"),
        (("",), {}, "topic '': a topic needs a name"),
        ((), {"pattern": "("}, r"topic pattern='\(': expected a regular expression"),
        ((), {"pattern": 7}, "topic pattern=7: expected a regular expression"),
        ((), {"pattern": "x", "internal": True}, "topic 'x' internal=True: a pattern names no topic"),
    ],
)
def test_wrong_names_and_patterns_are_told(names: tuple[str, ...], options: Any, message: str) -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match=message):
        famulus.App("wrong").topic(*names, **options)


def test_an_option_that_there_is_not_is_a_type_error_with_a_guess() -> None:
    app = famulus.App("unknown")
    with pytest.raises(TypeError, match=r"topic 't' got an unexpected option 'partition'; did you mean partitions\?"):
        app.topic("t", partition=3)  # type: ignore[call-overload]  # that is the point
    with pytest.raises(TypeError, match="channel got an unexpected option 'partitions'"):
        app.channel(partitions=3)  # type: ignore[call-overload]  # that is the point


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_most_once", "twice"])
def test_pain_7_a_guarantee_that_cannot_be_kept_is_refused(guarantee: str) -> None:
    app = famulus.App("promises")
    assert app.topic("t", delivery_guarantee="at_least_once").delivery_guarantee == "at_least_once"
    with pytest.raises(famulus.ImproperlyConfigured, match=f"topic 't' delivery_guarantee='{guarantee}': expected"):
        app.topic("t", delivery_guarantee=guarantee)


def test_every_option_is_an_attribute_and_goes_into_copies() -> None:
    class Own(famulus.Topic[int]):
        pass

    app = famulus.App("attributes")
    root = app.topic("root")
    options: TopicOptions = {
        "key_type": str,
        "key_serializer": "json",
        "value_serializer": "raw",
        "schema": famulus.Schema(key_type=str, value_type=int, key_serializer="json", value_serializer="raw"),
        "maxsize": 5,
        "acks": False,
        "partitions": 3,
        "retention": 60.0,
        "compacting": True,
        "deleting": True,
        "replicas": 2,
        "internal": True,
        "delivery_guarantee": "at_least_once",
        "on_decode_error": "dead_letter",
        "dead_letter": "graveyard",
        "root": root,
    }
    topic = Own(app, "t", value_type=int, **options)
    assert set(options) | {"pattern", "config"} == set(get_type_hints(TopicOptions, localns={"Topic": famulus.Topic}))
    assert set(ChannelOptions.__annotations__) < set(TopicOptions.__annotations__) < set(Changes.__annotations__)
    for copy in (topic, topic.clone()):
        assert isinstance(copy, Own)
        assert {name: getattr(copy, name) for name in options} == options
        assert copy.config == {"cleanup.policy": "compact,delete", "retention.ms": "60000"}


def test_retention_may_be_a_timedelta_and_config_values_numbers() -> None:
    topic = famulus.App("units").topic(
        "t", retention=timedelta(days=1), config={"segment.bytes": 1024, "min.cleanable.dirty.ratio": 0.1, "x": True}
    )
    assert topic.retention == 86_400.0
    assert topic.config == {
        "segment.bytes": "1024",
        "min.cleanable.dirty.ratio": "0.1",
        "x": "true",
        "retention.ms": "86400000",
    }


# -- derived topics ----------------------------------------------------------------------------------------


def test_a_derived_topic_has_the_options_of_its_root() -> None:
    app = famulus.App("derives")
    orders = app.topic("orders", value_type=Order, key_type=str, partitions=3, retention=60.0)
    big = orders.derive_topic("big-orders", partitions=6)
    assert_type(big, famulus.Topic[Order])
    assert (big.name, big.value_type, big.key_type, big.partitions, big.retention) == (
        "big-orders",
        Order,
        str,
        6,
        60.0,
    )
    assert (big.root, orders.root) == (orders, None)
    counts = orders.derive_topic(prefix="shop-", suffix="-counts", value_type=int)
    assert_type(counts, famulus.Topic[int])
    assert (counts.name, counts.value_type) == ("shop-orders-counts", int)
    assert orders.derive(name="x").root is orders


def test_several_topics_and_patterns_are_derived_too() -> None:
    app = famulus.App("derives")
    several = app.topic("a", "b")
    assert several.derive_topic(suffix="-x").topics == ("a-x", "b-x")
    assert several.derive_topic(topics=("c", "d")).topics == ("c", "d")
    pattern = app.topic(pattern="a.*")
    assert pattern.derive_topic().pattern == re.compile("a.*")
    assert pattern.derive_topic("one").pattern is None
    assert several.derive_topic(pattern="z").topics == ()
    with pytest.raises(famulus.ImproperlyConfigured, match="around names, not around a pattern"):
        pattern.derive_topic(suffix="-x")


# -- at the broker -----------------------------------------------------------------------------------------


async def test_get_partition_key_says_where_a_key_goes(broker: MemoryBroker) -> None:
    app = app_on(broker)
    topic, open_ended = app.topic("t", key_type=str, partitions=7), app.topic("u", key_type=str)
    async with famulus.open_app(app):
        receipt = await (await topic.send(1, key="ada"))
        assert topic.get_partition_key("ada") == receipt.partition
        assert topic.get_partition_key("ada", 3) == 3
        with pytest.raises(famulus.ImproperlyConfigured, match="topic 'u' has no declared number of partitions"):
            open_ended.get_partition_key("ada")


async def test_declare_creates_a_topic_as_described_and_checks_one_that_is_there(broker: MemoryBroker) -> None:
    app = app_on(broker)
    async with famulus.open_app(app) as running:
        topic = running.topic("t", partitions=3, config={"segment.bytes": 1024})
        await topic.declare()
        assert broker.partition_counts() == {"t": 3}
        assert broker.topic("t").config["segment.bytes"] == "1024"
        await topic.declare()
        with pytest.raises(famulus.TopicMismatch, match=r"'t' has 3 partitions .* declared with 5: .*add_partitions"):
            await topic.clone(partitions=5).declare()
        with pytest.raises(famulus.TopicMismatch, match=r"has segment.bytes=1024 .* declared with segment.bytes=2048"):
            await topic.clone(config={"segment.bytes": 2048}).declare()


async def test_maybe_declare_creates_only_what_is_missing(broker: MemoryBroker) -> None:
    broker.create_topic("theirs", 4)
    app = app_on(broker)
    async with famulus.open_app(app) as running:
        await running.topic("theirs", partitions=2).maybe_declare()
        await running.topic("new", partitions=2).maybe_declare()
        assert broker.partition_counts() == {"new": 2, "theirs": 4}
        with pytest.raises(famulus.TopicMismatch):
            await running.topic("theirs", partitions=2, internal=True).maybe_declare()


async def test_pain_17_declared_partitions_that_the_broker_does_not_have_are_told_at_start(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.create_topic("few", 2)
    broker.create_topic("many", 8)
    app = app_on(broker)
    for name in ("few", "many"):
        app.topic(name, partitions=4)
    async with famulus.open_app(app):
        assert broker.partition_counts() == {"few": 2, "many": 8}
    few, many = [record.getMessage() for record in caplog.records if record.name == "famulus.topic"]
    assert few.startswith(
        "topic 'few' has 2 partitions at the broker and is declared with 4: declare it with partitions=2, or add "
        "partitions, `await transport.add_partitions('few', 4)` (keys move then)"
    )
    assert many.startswith(
        "topic 'many' has 8 partitions at the broker and is declared with 4: declare it with partitions=8"
    )
    assert "delete" not in few + many  # it is not ours


def test_create_topic_declares_a_topic_and_creates_nothing() -> None:
    app = famulus.App("creates")
    topic = famulus.create_topic(
        app, "t", partitions=4, replication_factor=2, config={"segment.bytes": 1024}, value_type=Order
    )
    assert app.topics == {"t": topic}
    assert (topic.partitions, topic.replicas, topic.config, topic.value_type) == (
        4,
        2,
        {"segment.bytes": "1024"},
        Order,
    )


async def test_a_topic_manager_changes_the_broker_s_topics(broker: MemoryBroker) -> None:
    app = app_on(broker, topic_partitions=6)
    manager = famulus.TopicManager(app)
    with pytest.raises(famulus.AppNotRunning):
        await manager.list_topics()
    async with famulus.open_app(app) as running:
        await manager.create_topic("b", 4, 1, retention_ms=60_000, **{"cleanup.policy": "compact"})
        await famulus.TopicManager(running).create_topic("a")
        assert await manager.list_topics() == ["a", "b"]
        found = await manager.describe_topic("b")
        assert (found.partitions, found.replicas) == (4, 1)
        assert (found.config["retention.ms"], found.config["cleanup.policy"]) == ("60000", "compact")
        assert (await manager.describe_topic("a")).partitions == 6
        await manager.add_partitions("a", 7)
        assert broker.partition_counts() == {"a": 7, "b": 4}
        with pytest.raises(famulus.TopicExists):
            await manager.create_topic("a", 1, 1)
        with pytest.raises(famulus.ImproperlyConfigured, match="topic 'c' partitions=0: expected a whole number"):
            await manager.create_topic("c", 0)
        await manager.delete_topic("a")
        with pytest.raises(famulus.UnknownTopic):
            await manager.delete_topic("a")
        assert await manager.list_topics() == ["b"]
