"""The commands under `topics`: the same over each broker, with an app and without."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import ConsumerOptions, TransportOptions, load_transport
from famulus.cli import make_program
from famulus.testing.contract_kit import Changes, Recorder
from famulus.testing.kafka import RunningKafka


@pytest.fixture(params=["memory", "sqlite", "kafka"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A broker's, with topics that this test knows nothing of."""
    if request.param == "kafka":
        kafka: RunningKafka = request.getfixturevalue("kafka_broker")
        yield kafka.url
        return
    if request.param == "sqlite":
        yield f"sqlite://{tmp_path}/broker.db"
        return
    name = f"topics-{uuid.uuid4().hex}"
    MemoryBroker.named(name)
    yield f"memory://{name}"
    MemoryBroker.forget(name)


@pytest.fixture
def name() -> str:
    return f"orders-{uuid.uuid4().hex}"


def call(*arguments: str, input: str | None = None, app: famulus.App | None = None, **environment: str) -> Result:
    clean = {"FAMULUS_BROKER": None, "FAMULUS_APP": None, **environment}
    return CliRunner().invoke(make_program(app), arguments, prog_name="famulus", env=clean, input=input)


def cells(output: str) -> list[list[str]]:
    """The rows of the tables in an output."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]


async def write(url: str, topic: str, partition: int, count: int) -> None:
    transport = load_transport(url, TransportOptions())
    async with transport.open():
        tp = TP(topic, partition)
        outcome = await transport.produce({tp: [ProducerRecord(b"key", b"x", (), time.time())] * count})
        assert not isinstance(outcome[tp], Exception)


def test_a_topic_is_created_listed_grown_and_deleted(url: str, name: str) -> None:
    created = call("--broker", url, "topics", "create", name, "--partitions", "2")
    assert (created.exit_code, created.stdout) == (0, f"created topic {name} with 2 partitions\n")
    assert [name, "2", "1"] in cells(call("--broker", url, "topics", "list").stdout)

    grown = call("--broker", url, "topics", "add-partitions", name, "--total", "5")
    assert (grown.exit_code, grown.stdout) == (0, f"topic {name} has 5 partitions\n")
    listed = json.loads(call("--broker", url, "topics", "list", "--json").stdout)
    assert {"name": name, "partitions": 5, "replicas": 1, "internal": False} in listed

    deleted = call("--broker", url, "topics", "delete", name, "--yes")
    assert (deleted.exit_code, deleted.stdout) == (0, f"deleted topic {name}\n")
    assert name not in call("--broker", url, "topics", "list").stdout


def test_an_existing_topic_is_an_error_or_left_as_it_is(url: str, name: str) -> None:
    create = ["--broker", url, "topics", "create", name]
    assert call(*create, "--partitions", "3").exit_code == 0
    again = call(*create, "--partitions", "8")
    assert again.exit_code == 1
    assert again.stderr.splitlines()[-1].startswith("Error: ")
    assert name in again.stderr
    left = call(*create, "--partitions", "8", "--if-missing")
    assert (left.exit_code, left.stdout) == (0, f"topic {name} is there already, with 3 partitions\n")


def test_a_description_has_the_configuration_and_where_the_logs_begin_and_end(url: str, name: str) -> None:
    config = ["--config", "cleanup.policy=compact", "--config", "retention.ms=60000"]
    assert call("--broker", url, "topics", "create", name, "--partitions", "2", *config).exit_code == 0
    trio.run(write, url, name, 1, 3)
    found = json.loads(call("--broker", url, "topics", "describe", name, "--offsets", "--json").stdout)
    offsets = [{"partition": 0, "earliest": 0, "latest": 0}, {"partition": 1, "earliest": 0, "latest": 3}]
    assert found["offsets"] == offsets
    assert (found["name"], found["partitions"], found["replicas"], found["internal"]) == (name, 2, 1, False)
    assert (found["config"]["cleanup.policy"], found["config"]["retention.ms"]) == ("compact", "60000")
    assert found["app"] is None

    rows = cells(call("--broker", url, "topics", "describe", name, "--offsets").stdout)
    assert ["topic", name] in rows
    assert ["partitions", "2"] in rows
    assert ["1", "0", "3", "3"] in rows
    assert ["cleanup.policy", "compact"] in rows


@pytest.mark.parametrize(
    "command", [["describe"], ["describe", "--offsets"], ["delete", "--yes"], ["add-partitions", "--total", "9"]]
)
def test_a_topic_that_is_not_there_is_told_in_one_line(url: str, name: str, command: list[str]) -> None:
    result = call("--broker", url, "topics", *command, name)
    assert (result.exit_code, result.stdout) == (1, "")
    [line] = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert line.startswith("Error: ")
    assert repr(name) in line


def test_fewer_partitions_are_refused(url: str, name: str) -> None:
    assert call("--broker", url, "topics", "create", name, "--partitions", "4").exit_code == 0
    result = call("--broker", url, "topics", "add-partitions", name, "--total", "4")
    assert result.exit_code == 1
    [line] = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert line.startswith(f"Error: topic {name!r} has 4 partitions")


def test_nothing_is_deleted_without_a_yes_or_where_one_is_missing(url: str, name: str) -> None:
    assert call("--broker", url, "topics", "create", name).exit_code == 0
    asked = call("--broker", url, "topics", "delete", name, input="n\n")
    assert asked.exit_code == 1
    assert f"Delete {name} with all messages at {url}?" in asked.stdout
    assert call("--broker", url, "topics", "delete", name, f"{name}-too", "--yes").exit_code == 1
    assert name in call("--broker", url, "topics", "list").stdout
    agreed = call("--broker", url, "topics", "delete", name, input="y\n")
    assert (agreed.exit_code, agreed.stdout.splitlines()[-1]) == (0, f"deleted topic {name}")


def test_the_broker_s_own_topics_are_listed_when_asked_for(kafka_broker: RunningKafka, name: str) -> None:
    create = ["--broker", kafka_broker.url, "topics", "create", name]
    assert call(*create).exit_code == 0
    describe = ["--broker", kafka_broker.url, "topics", "describe"]

    async def join_a_group() -> None:  # the first one of a broker makes its own topic
        transport = load_transport(kafka_broker.url, TransportOptions())
        listener = Recorder(Changes())
        async with (
            transport.open(),
            transport.open_consumer(ConsumerOptions(group=f"group-{name}"), listener) as consumer,
        ):
            await consumer.subscribe([name])

    trio.run(join_a_group)
    own = ["__consumer_offsets"]
    assert own not in [row[:1] for row in cells(call("--broker", kafka_broker.url, "topics", "list").stdout)]
    assert own in [row[:1] for row in cells(call("--broker", kafka_broker.url, "topics", "list", "--all").stdout)]
    assert ["internal", "a topic of the broker's own"] in cells(call(*describe, *own).stdout)


# With an app.


def make_app(broker: str, name: str) -> famulus.App:
    app = famulus.App("shop", broker=broker, topic_partitions=3)
    orders = app.topic(name, value_type=bytes, partitions=6, retention=60)
    audit = app.topic(f"{name}-audit")

    @app.agent(orders, name="shop.tally", sink=[audit])
    async def tally(stream: famulus.Stream[bytes]) -> AsyncIterator[int]:
        async for _ in stream:
            yield 1

    @app.agent(app.channel("bell"), name="shop.ring")
    async def ring(stream: famulus.Stream[int]) -> None: ...

    return app


def test_an_app_s_topic_is_created_as_it_is_declared(url: str, name: str) -> None:
    app = make_app(url, name)
    assert call("topics", "create", name, app=app).stdout == f"created topic {name} with 6 partitions\n"
    found = json.loads(call("topics", "describe", name, "--json", app=app).stdout)
    assert found["config"]["retention.ms"] == "60000"
    audit = f"{name}-audit"
    assert call("topics", "create", audit, app=app).stdout == f"created topic {audit} with 3 partitions\n"
    given = [f"{name}-given", "--partitions", "1"]
    assert call("topics", "create", *given, app=app).stdout == f"created topic {name}-given with 1 partition\n"


def test_a_description_says_what_the_app_does_with_the_topic(url: str, name: str) -> None:
    app = make_app(url, name)
    derived = f"shop-{name}-account-repartition"
    for topic in (name, f"{name}-audit", f"{name}-other", derived):
        assert call("topics", "create", topic, app=app).exit_code == 0

    def uses(topic: str) -> list[str]:
        return [row[1] for row in cells(call("topics", "describe", topic, app=app).stdout) if row[0] == "app shop"]

    assert uses(name) == ["declares it with 6 partitions", "@shop.tally reads it"]
    assert uses(f"{name}-audit") == ["@shop.tally sends its answers to it"]
    assert uses(derived) == [f"group_by regroups {name} through it, which @shop.tally reads"]
    assert uses(f"{name}-other") == ["no agent of it reads or writes it by declaration"]


# The broker.


def test_the_broker_may_come_from_the_environment(url: str, name: str) -> None:
    assert call("topics", "create", name, "--partitions", "1", FAMULUS_BROKER=url).exit_code == 0
    assert name in call("topics", "list", FAMULUS_BROKER=url).stdout


def test_without_any_broker_it_says_how_to_name_one() -> None:
    result = call("topics", "list")
    assert result.exit_code == 2
    assert "which broker? expected --broker URL" in result.stderr


def test_a_broker_in_this_process_begins_empty_and_it_says_so() -> None:
    result = call("--broker", "memory://", "topics", "list")
    assert (result.exit_code, result.stdout) == (0, "broker memory:// has no topics\n")
    assert result.stderr.startswith("note: broker memory:// lives inside one process")
    assert json.loads(call("--broker", "memory://", "topics", "list", "--json").stdout) == []


def test_a_broker_that_is_not_there_is_told_in_one_line_without_the_password() -> None:
    result = call("--broker", "kafka://ada:s3cret@127.0.0.1:1?connect_timeout=5", "topics", "list")
    assert (result.exit_code, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: broker kafka://ada:***@127.0.0.1:1")
    assert "cannot be reached" in line
    assert "s3cret" not in result.output


def test_help_teaches_by_example() -> None:
    alone = call("topics")
    assert alone.exit_code == 0
    assert alone.stdout == call("topics", "--help").stdout
    assert "famulus --broker kafka://localhost:9092 topics create orders --partitions 4" in alone.stdout
    for command in ("list", "describe", "create", "delete", "add-partitions"):
        assert f"famulus --broker kafka://localhost:9092 topics {command}" in call("topics", command, "-h").stdout
