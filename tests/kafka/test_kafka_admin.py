"""Topics on a real broker: those that are ours are made, checked and trimmed, new partitions are found, errors say what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest

import famulus
from famulus.channels.errors import TopicExists, TransportError, UnknownTopic
from famulus.channels.message import TP
from famulus.channels.partitioner import partition_for
from famulus.channels.transport import ConsumerOptions, ProduceResult, TopicSpec
from famulus.kafka import KafkaTransport
from famulus.kafka.bridge import Bridge
from famulus.testing.contract import Recorder
from famulus.testing.contract_kit import Changes, numbered
from famulus.testing.kafka import RunningKafka
from famulus.testing.kafka_broker import KafkaBroker

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(90)]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.sleep(0.02)


def grouping(
    name: str, broker: RunningKafka, *, partitions: int | None = None, seen: list[int] | None = None
) -> famulus.App:
    """An app that groups the numbers of a topic of its name by their text."""
    app = famulus.App(name, broker=broker.url, topic_trim_interval=0.2, broker_commit_interval=0.1)

    @app.agent(app.topic(f"{name}-in", value_type=int), name="tally")
    async def tally(stream: famulus.Stream[int]) -> None:
        async for number in stream.group_by(str, name="text", partitions=partitions):
            if seen is not None:
                seen.append(number)

    return app


@asynccontextmanager
async def administered(broker: RunningKafka) -> AsyncIterator[KafkaTransport]:
    transport = KafkaTransport(broker.url)
    async with transport.open():
        yield transport


async def lags_of_a_new_group(transport: KafkaTransport, topic: str) -> list[int]:
    """How many messages of each partition of a topic are there."""
    async with transport.open_consumer(ConsumerOptions(group=f"looks-at-{topic}"), Recorder(Changes())) as consumer:
        await consumer.subscribe([topic])
        return [consumer.highwater(tp) - consumer.position(tp) for tp in sorted(consumer.assignment.partitions)]


async def refusal(app: famulus.App) -> str:
    with pytest.raises(ExceptionGroup) as caught:
        async with famulus.open_app(app):
            raise AssertionError("it has started")
    found: BaseException | None = caught.value.subgroup(famulus.TopicMismatch)
    while isinstance(found, BaseExceptionGroup):
        (found,) = found.exceptions
    return str(found)


async def test_a_repartition_topic_keeps_everything_until_it_is_committed(kafka_broker: RunningKafka) -> None:
    seen: list[int] = []
    app = grouping("trims", kafka_broker, seen=seen)
    topic = "trims-trims-in-text-repartition"
    async with administered(kafka_broker) as transport:
        await transport.create_topic(TopicSpec(name="trims-in", partitions=2))
        async with famulus.open_app(app) as running:
            description = await transport.describe_topic(topic)
            assert (description.partitions, description.config["retention.ms"]) == (2, "-1")
            for number in range(100):
                await app.topics["trims-in"].send(number)
            with trio.fail_after(30):
                await until(lambda: len(seen) == 100)
                await until(lambda: running.statistics().lag == 0)
                while any(await lags_of_a_new_group(transport, topic)):
                    await trio.sleep(0.1)
        assert sorted(seen) == list(range(100))


async def test_pain_17_a_source_that_got_more_partitions_refuses_to_start_and_names_the_command(
    kafka_broker: RunningKafka,
) -> None:
    topic = "grown-grown-in-text-repartition"
    async with administered(kafka_broker) as transport:
        await transport.create_topic(TopicSpec(name="grown-in", partitions=1))
        async with famulus.open_app(grouping("grown", kafka_broker)):
            pass
        await transport.add_partitions("grown-in", 2)
        text = await refusal(grouping("grown", kafka_broker))
        assert f"'grown-in' has 2 partitions now, and {topic!r}, through which it is grouped, was made with 1" in text
        assert f"`famulus --broker {kafka_broker.url} topics delete {topic}`" in text
        async with famulus.open_app(grouping("grown", kafka_broker, partitions=1)):  # as it says
            pass
        await transport.delete_topic(topic)
        async with famulus.open_app(grouping("grown", kafka_broker)):
            assert await transport.partition_count(topic) == 2


async def test_an_internal_topic_with_another_configuration_names_the_command(kafka_broker: RunningKafka) -> None:
    async with administered(kafka_broker) as transport:
        await transport.create_topic(TopicSpec(name="kept-too-short", partitions=1, config={"retention.ms": "1000"}))
        app = famulus.App("configured", broker=kafka_broker.url)
        app.topic("kept-too-short", internal=True, compacting=True, deleting=True, retention=2.0)
        text = await refusal(app)
        assert "'kept-too-short' has cleanup.policy=delete, retention.ms=1000 at the broker" in text
        assert (
            f"`kafka-configs.sh --bootstrap-server {kafka_broker.address} --alter --entity-type topics --entity-name "
            "kept-too-short --add-config cleanup.policy=[compact,delete],retention.ms=2000`"
        ) in text


async def test_an_internal_topic_that_fits_is_used_again(kafka_broker: RunningKafka) -> None:
    app = famulus.App("fits", broker=kafka_broker.url)
    app.topic("fits-all", internal=True, partitions=2, compacting=True, deleting=True, retention=3600)
    for _ in range(2):
        async with famulus.open_app(app):
            pass


async def test_what_a_broker_refuses_to_create_says_why(kafka_broker: RunningKafka) -> None:
    async with administered(kafka_broker) as transport:
        for spec, reason in (
            (TopicSpec(name="not a name", partitions=1), "not a name"),
            (TopicSpec(name="replicas", partitions=1, replicas=3), "replication factor"),
            (TopicSpec(name="config", partitions=1, config={"retention.ms": "long"}), "retention.ms"),
            (TopicSpec(name="none", partitions=0), "partitions"),
        ):
            with pytest.raises(TransportError, match=reason) as caught:
                await transport.create_topic(spec)
            assert not caught.value.retriable
            assert not isinstance(caught.value, TopicExists | UnknownTopic)
            assert spec.name not in await transport.list_topics()


async def test_what_is_trimmed_and_not_there_is_named(kafka_broker: RunningKafka) -> None:
    async with administered(kafka_broker) as transport:
        await transport.delete_records({})
        with pytest.raises(UnknownTopic, match="not-there-to-trim"):
            await transport.delete_records({TP("not-there-to-trim", 0): 1})


async def test_partitions_added_at_run_time_are_written_and_read(kafka_broker: RunningKafka) -> None:
    app = famulus.App("grows", broker=f"{kafka_broker.url}?metadata_max_age=0.5", topic_metadata_age=0.5)
    numbers = app.topic("grows-in", key_type=str, value_type=int)
    seen: dict[int, int] = {}

    @app.agent(numbers)
    async def read(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            seen[event.value] = event.message.partition

    async with administered(kafka_broker) as transport:
        await transport.create_topic(TopicSpec(name="grows-in", partitions=2))
        async with famulus.open_app(app):
            for number in range(10):
                await (await numbers.send(number, key=f"k{number}"))
            await transport.add_partitions("grows-in", 5)  # by somebody else: another transport
            number = 10
            with trio.fail_after(30):
                while not any(partition > 1 for partition in seen.values()):
                    await (await numbers.send(number, key=f"k{number}"))
                    await trio.sleep(0.05)
                    number += 1
                last = number
                for number in range(last, last + 20):
                    await (await numbers.send(number, key=f"k{number}"))
                await until(lambda: len(seen) == last + 20)
    assert all(seen[number] == partition_for(b"k%d" % number, 2) for number in range(10))
    assert all(seen[number] == partition_for(b"k%d" % number, 5) for number in range(last, last + 20))


# -- authorization -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded_broker(kafka_jars: object) -> Iterator[KafkaBroker]:
    """A broker where eve may log in, and nothing else; without a login one may do everything."""
    settings = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    with KafkaBroker(listeners=["SASL_PLAINTEXT"], users={"eve": "secret"}, settings=settings) as broker:
        yield broker


async def test_what_the_acls_do_not_allow_is_said_and_final(guarded_broker: KafkaBroker) -> None:
    tp, missing = TP("guarded", 0), TP("guarded-and-missing", 0)
    async with administered(guarded_broker) as owner:
        await owner.create_topic(TopicSpec(name=tp.topic, partitions=1))
        await owner.produce({tp: numbered(0, 1)})
    eve = KafkaTransport(f"kafka://eve:secret@{guarded_broker.address_of('SASL_PLAINTEXT')}?security=sasl_plaintext")
    denied = "ACLs do not allow it"
    async with eve.open():
        for outcome in (await eve.produce({tp: numbered(1, 2), missing: numbered(0, 1)})).values():
            assert isinstance(outcome, TransportError)
            assert not outcome.retriable
            assert denied in str(outcome)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: eve.create_topic(TopicSpec(name="eve-s", partitions=1)),
            lambda: eve.partition_count(tp.topic),
            lambda: eve.describe_topic(tp.topic),
            lambda: eve.delete_topic(tp.topic),
            lambda: eve.delete_records({tp: 1}),
            lambda: eve.transact({tp: numbered(0, 1)}, {}, group="", generation=-1),
        ]
        for call in calls:
            with pytest.raises(TransportError, match=denied) as caught:
                await call()
            assert not caught.value.retriable


async def allow(broker: KafkaBroker, user: str, topic: str) -> None:
    """Let a user do everything with a topic."""
    kind, literal, all_operations, allows = 2, 3, 2, 3  # by Kafka's enumerations

    async def create() -> None:
        admin: Any = AIOKafkaAdminClient(bootstrap_servers=broker.address)
        await admin.start()
        try:
            request = CreateAclsRequest(kind, topic, literal, f"User:{user}", "*", all_operations, allows)
            response = await admin._send_request(request)
            assert [code for code, _ in response.creation_responses] == [0]
        finally:
            await admin.close()

    async with Bridge().open() as bridge:
        await bridge.call(create)


async def test_what_is_not_allowed_hides_nothing_of_what_is(guarded_broker: KafkaBroker) -> None:
    allowed, forbidden = TP("allowed", 0), TP("forbidden", 0)
    async with administered(guarded_broker) as owner:
        for tp in (allowed, forbidden):
            await owner.create_topic(TopicSpec(name=tp.topic, partitions=1))
    await allow(guarded_broker, "eve", allowed.topic)
    eve = KafkaTransport(f"kafka://eve:secret@{guarded_broker.address_of('SASL_PLAINTEXT')}?security=sasl_plaintext")
    async with eve.open():
        outcome = await eve.produce({forbidden: numbered(0, 1), allowed: numbered(0, 1)})
        assert isinstance(outcome[allowed], ProduceResult)
        assert isinstance(outcome[forbidden], TransportError)
