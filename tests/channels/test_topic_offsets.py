"""Where a topic's log ends, and how far the app's group is behind, over each broker."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.testing.kafka import RunningKafka

LIMIT = 30.0


@pytest.fixture(params=["memory", "sqlite", "kafka"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "kafka":
        kafka: RunningKafka = request.getfixturevalue("kafka_broker")
        yield kafka.url
    elif request.param == "sqlite":
        yield f"sqlite://{tmp_path}/"
    else:
        name = f"offsets-{uuid.uuid4().hex}"
        MemoryBroker.named(name)
        yield f"memory://{name}"
        MemoryBroker.forget(name)


@pytest.mark.real_time
async def test_a_topic_tells_where_its_log_ends_and_what_the_group_has_still_before_it(url: str) -> None:
    app = famulus.App(f"offsets-{uuid.uuid4().hex}", broker=url, broker_commit_interval=0.05)
    numbers = app.topic(f"{app.id}-numbers", value_type=int, partitions=3, internal=True)
    others = app.topic(f"{app.id}-others", value_type=int, partitions=1, internal=True)
    gate = trio.Event()

    @app.agent(numbers)
    async def read(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await gate.wait()

    with trio.fail_after(LIMIT):
        async with famulus.open_app(app) as running:
            assert await others.end_offsets() == {0: 0}  # read by nobody, and made by the question
            assert await numbers.end_offsets() == {0: 0, 1: 0, 2: 0}
            assert await numbers.lag() == {0: 0, 1: 0, 2: 0}
            sent = [await numbers.send(value, partition=partition) for partition in (0, 0, 2) for value in (1, 2)]
            for future in sent:
                await future
            assert await numbers.end_offsets() == {0: 4, 1: 0, 2: 2}
            assert await numbers.lag() == {0: 4, 1: 0, 2: 2}
            gate.set()
            while any((await numbers.lag()).values()):
                await trio.sleep(0.05)
            await running.commit()
            assert await numbers.lag() == {0: 0, 1: 0, 2: 0}
            assert await numbers.end_offsets() == {0: 4, 1: 0, 2: 2}


async def test_a_new_group_that_begins_at_the_end_is_not_behind(broker: MemoryBroker) -> None:
    source = famulus.App("source", broker=f"memory://{broker.name}")
    async with famulus.open_app(source):
        await (await source.topic("numbers", value_type=int, partitions=1).send(1))
    for reset, behind in (("earliest", 1), ("latest", 0)):
        app = famulus.App(f"begins-{reset}", broker=f"memory://{broker.name}", consumer_auto_offset_reset=reset)
        async with famulus.open_app(app):
            assert await app.topic("numbers", value_type=int).lag() == {0: behind}


async def test_what_was_deleted_is_no_lag(broker: MemoryBroker) -> None:
    app = famulus.App("trimmed", broker=f"memory://{broker.name}")
    topic = app.topic("numbers", value_type=int, partitions=1)
    async with famulus.open_app(app):
        for value in range(5):
            await (await topic.send(value))
        broker.delete_records(famulus.TP("numbers", 0), 3)
        assert await topic.lag() == {0: 2}


async def test_several_topics_and_patterns_have_no_one_end() -> None:
    async with famulus.open_app() as app:
        with pytest.raises(
            famulus.ImproperlyConfigured, match=r"several topics, which cannot be asked for where it ends"
        ):
            await app.topic("one", "two").end_offsets()
        with pytest.raises(famulus.ImproperlyConfigured, match=r"a pattern, which cannot be asked for its lag"):
            await app.topic(pattern="one.*").lag()


async def test_a_declaration_that_does_not_run_has_nobody_to_ask() -> None:
    with pytest.raises(famulus.AppNotRunning):
        await famulus.App("still").topic("numbers").end_offsets()
