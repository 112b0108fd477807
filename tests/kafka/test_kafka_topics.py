"""Topics and channels' calls on a real broker: what is declared, made, refused and looked at, dead letters, all of `send`."""

import logging

import pytest
import trio

import famulus
from famulus.channels.message import TP
from famulus.channels.partitioner import partition_for
from famulus.testing.kafka import RunningKafka

pytestmark = [pytest.mark.real_time, pytest.mark.hard_timeout(90)]


async def test_a_topic_manager_changes_the_broker_s_topics(kafka_broker: RunningKafka) -> None:
    app = famulus.App("manages-topics", broker=kafka_broker.url)
    manager = famulus.TopicManager(app)
    async with famulus.open_app(app) as running:
        await manager.create_topic("managed", 2, 1, retention_ms=60_000, **{"cleanup.policy": "compact,delete"})
        assert "managed" in await manager.list_topics()
        with pytest.raises(famulus.TopicExists):
            await manager.create_topic("managed", 2, 1)
        found = await manager.describe_topic("managed")
        assert (found.partitions, found.replicas, found.config["retention.ms"]) == (2, 1, "60000")
        await manager.add_partitions("managed", 3)

        managed = running.topic("managed", partitions=3, retention=60.0, compacting=True, deleting=True)
        await managed.declare()
        await managed.maybe_declare()
        with pytest.raises(
            famulus.TopicMismatch, match=r"3 partitions at the broker.*topics add-partitions managed --total 5"
        ):
            await managed.clone(partitions=5).declare()
        with pytest.raises(famulus.TopicMismatch, match=r"kafka-configs.sh .* --add-config retention.ms=1000"):
            await managed.clone(retention=1.0).declare()
        derived = managed.derive_topic(suffix="-derived", partitions=1)
        await derived.maybe_declare()
        assert (await manager.describe_topic("managed-derived")).config["cleanup.policy"] == "compact,delete"

        for name in ("managed", "managed-derived"):
            await manager.delete_topic(name)
        assert not {"managed", "managed-derived"} & set(await manager.list_topics())


async def test_pain_17_source_topics_are_left_alone_and_what_does_not_fit_is_told_with_the_command(
    kafka_broker: RunningKafka, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "famulus.topic")
    app = famulus.App("leaves-alone", broker=kafka_broker.url)
    async with famulus.open_app(app):
        await famulus.TopicManager(app).create_topic("left-alone", 2)
    app.topic("left-alone", partitions=4, retention=1.0)
    app.topic("left-missing", partitions=4)
    async with famulus.open_app(app):
        assert (await famulus.TopicManager(app).describe_topic("left-alone")).partitions == 2
        assert "left-missing" not in await famulus.TopicManager(app).list_topics()
    (told,) = [record.getMessage() for record in caplog.records if record.name == "famulus.topic"]
    assert "'left-alone' has 2 partitions at the broker and is declared with 4" in told
    assert f"`famulus --broker {kafka_broker.url} topics add-partitions left-alone --total 4`" in told


async def test_a_channel_s_calls_and_dead_letters(kafka_broker: RunningKafka) -> None:
    app = famulus.App("calls", broker=kafka_broker.url, broker_commit_interval=0.1)
    numbers = app.topic(
        "calls-in", key_type=str, value_type=int, partitions=3, internal=True, on_decode_error="dead_letter"
    )
    bytes_in = numbers.clone(value_type=bytes)
    letters = app.topic("calls-in.dead-letter", key_type=str, value_type=bytes, internal=True, partitions=1)
    told: list[int] = []
    with trio.fail_after(60):
        async with famulus.open_app(app) as running:
            future = numbers.send_soon(
                1, key="ada", eager_partitioning=True, callback=lambda sent: told.append(sent.partition)
            )
            assert future.partition == partition_for(b"ada", 3) == numbers.get_partition_key("ada")
            assert (await future).partition == future.partition
            later = numbers.as_future_message(2, key="ada", timestamp=12.5, headers={"h": b"1"})
            assert (await numbers.publish_message(later)).result().offset == 1
            await bytes_in.send(b"oops", key="ada", force=True)
            await numbers.send(3, key="ada")

            events = [await numbers.get() for _ in range(3)]
            assert [event.value for event in events] == [1, 2, 3]
            assert (events[1].message.timestamp, events[1].headers) == (12.5, (("h", b"1"),))
            for event in events:
                event.ack()
            source = TP("calls-in", future.partition)
            while running.statistics().partitions[source].committed < 4:
                await trio.sleep(0.02)
            assert running.statistics().dead_letters == 1

            letter = await letters.get()
            assert (letter.key, letter.value) == ("ada", b"oops")
            headers = dict(letter.headers)
            assert (headers["famulus-dead-letter-topic"], headers["famulus-dead-letter-offset"]) == (b"calls-in", b"2")
    assert told == [future.partition]
