"""The commands `agents`, `settings` and `send`: what they write, and what arrives."""

import json
from collections.abc import Mapping, Sequence

import pytest
import trio
from click.testing import CliRunner, Result

import famulus
from famulus.channels.memory import MemoryTransport
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.partitioner import partition_for
from famulus.channels.transport import ProduceResult, TransportOptions
from famulus.cli import make_program


def make_app() -> famulus.App:
    app = famulus.App("shop", topic_partitions=4)
    orders = app.topic("orders", value_type=bytes)

    @app.agent(orders, name="shop.tally", concurrency=3)
    async def tally(stream: famulus.Stream[bytes]) -> None:
        """Sum up the orders.

        More about it.
        """

    @app.agent(app.channel("bell"), name="shop.ring", help="Ring the [bold]bell[/].")
    async def ring(stream: famulus.Stream[int]) -> None: ...

    @app.agent(name="shop.eu.count")
    async def count_eu(stream: famulus.Stream[int]) -> None: ...

    @app.agent(name="shop.us.count")
    async def count_us(stream: famulus.Stream[int]) -> None: ...

    return app


def call(*arguments: str, app: famulus.App | None = None, **environment: str) -> Result:
    program = make_program(make_app() if app is None else app)
    return CliRunner().invoke(program, arguments, prog_name="shop.py", env=environment)


def cells(text: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    return [row for row in rows if row]


def test_agents_are_a_table() -> None:
    result = call("agents", "--local")
    assert result.exit_code == 0
    assert cells(result.stdout) == [
        ["name", "topic", "concurrency", "help"],
        ["@shop.eu.count", "shop-shop.eu.count", "1", ""],
        ["@shop.ring", "bell (local channel)", "1", "Ring the [bold]bell[/]."],
        ["@shop.tally", "orders", "3", "Sum up the orders."],
        ["@shop.us.count", "shop-shop.us.count", "1", ""],
    ]


def test_agents_of_local_channels_are_shown_when_asked_for_as_in_faust() -> None:
    result = call("agents")
    assert [row[0] for row in cells(result.stdout)] == ["name", "@shop.eu.count", "@shop.tally", "@shop.us.count"]
    assert result.stderr == "1 agent reads a local channel and is not shown: --local\n"
    names = [agent["name"] for agent in json.loads(call("agents", "--json").stdout)]
    assert names == ["shop.eu.count", "shop.tally", "shop.us.count"]


def test_agents_with_isolated_partitions_say_so() -> None:
    app = make_app()

    @app.agent(app.topic("parcels", value_type=bytes), name="shop.pack", isolated_partitions=True)
    async def pack(stream: famulus.Stream[bytes]) -> None: ...

    rows = cells(call("agents", app=app).stdout)
    assert rows[0] == ["name", "topic", "concurrency", "partitions", "help"]
    assert ["@shop.pack", "parcels", "1 each", "isolated", ""] in rows
    assert ["@shop.tally", "orders", "3", "", "Sum up the orders."] in rows
    found = {agent["name"]: agent for agent in json.loads(call("agents", "--json", app=app).stdout)}
    assert (found["shop.pack"]["isolated_partitions"], found["shop.tally"]["isolated_partitions"]) == (True, False)


def test_agents_are_json() -> None:
    found = json.loads(call("agents", "--json", "--local").stdout)
    assert [agent["name"] for agent in found] == ["shop.eu.count", "shop.ring", "shop.tally", "shop.us.count"]
    ring, tally = found[1:3]
    assert ring == {
        "name": "shop.ring",
        "channel": "bell",
        "topic": None,
        "local": True,
        "concurrency": 1,
        "isolated_partitions": False,
        "help": "Ring the [bold]bell[/].",
    }
    assert (tally["topic"], tally["concurrency"]) == ("orders", 3)


def test_settings_tell_where_they_come_from() -> None:
    options = ["--broker", "memory://ada:s3cret@one", "--set", "version=2"]
    result = call(*options, "settings", "--json", FAMULUS_CLIENT_ID="me")
    found = {entry["name"]: (entry["value"], entry["from"]) for entry in json.loads(result.stdout)}
    assert found["broker"] == ("memory://ada:***@one", "command line")
    assert found["version"] == (2, "command line")
    assert found["client_id"] == ("me", "FAMULUS_CLIENT_ID")
    assert found["topic_partitions"] == (4, "App")
    assert found["broker_commit_interval"] == (3.0, "default")


def test_settings_are_a_table_with_their_meaning() -> None:
    lines = call("settings").stdout.splitlines()
    row = next(line for line in lines if "broker_commit_interval" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "broker_commit_interval",
        "3.0",
        "default",
        "seconds between two commits",
    ]
    row = next(line for line in lines if " client_id " in line)
    assert row.split("│")[2].strip() == "-"


# Sending, over a memory broker that says it is shared.


class Shared(MemoryTransport):
    crosses_processes = True
    sent: Mapping[TP, Sequence[ProducerRecord]]
    failure: Exception | None = None
    silent = False

    async def produce(self, batches: Mapping[TP, Sequence[ProducerRecord]]) -> Mapping[TP, ProduceResult | Exception]:
        if self.silent:
            await trio.sleep_forever()
        if self.failure is not None:
            return dict.fromkeys(batches, self.failure)
        self.sent = batches
        return await super().produce(batches)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Shared:
    """The transport that the next call of `send` uses."""
    transport = Shared()

    def load(url: str, options: TransportOptions) -> Shared:
        transport.options = options
        return transport

    monkeypatch.setattr("famulus.app.connecting.load_transport", load)
    return transport


def test_a_value_is_sent_to_a_topic_as_it_is_given(shared: Shared) -> None:
    result = call("send", "orders", '{"cents": 5}', "-K", "ada", "--header", "source=shell", "--header", "x=")
    assert result.exit_code == 0, result.output
    partition = partition_for(b"ada", 4)
    assert result.stdout == f"sent to orders, partition {partition}, offset 0\n"
    [(tp, [record])] = shared.sent.items()
    assert tp == TP("orders", partition)
    assert (record.key, record.value) == (b"ada", b'{"cents": 5}')
    assert record.headers == (("source", b"shell"), ("x", b""))


@pytest.mark.parametrize("target", ["@shop.tally", "@tally"])
def test_a_value_is_sent_to_the_topic_of_an_agent(shared: Shared, target: str) -> None:
    result = call("send", target, "21", "--partition", "3")
    assert result.stdout == "sent to orders, partition 3, offset 0\n"


def test_a_message_without_a_key_goes_to_any_partition(shared: Shared) -> None:
    assert call("send", "@eu.count", "1").exit_code == 0
    [(tp, [record])] = shared.sent.items()
    assert tp.topic == "shop-shop.eu.count"
    assert 0 <= tp.partition < 4
    assert record.key is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["@nobody", "1"],
            "@nobody is no agent of app shop; expected one of: @shop.eu.count, @shop.ring, @shop.tally, @shop.us.count",
        ),
        (
            ["@count", "1"],
            "@count means 2 agents of app shop; "
            "expected one of: @shop.eu.count, @shop.ring, @shop.tally, @shop.us.count",
        ),
        (
            ["@ring", "1"],
            "@shop.ring reads the local channel bell, which only its own process reaches; "
            "expected an agent that reads a topic",
        ),
        (["orders", "1", "--partition", "4"], "--partition 4: topic orders has the partitions 0 to 3"),
        (["orders", "1", "--header", "source"], "--header source: expected NAME=VALUE"),
    ],
)
def test_a_message_that_cannot_be_meant(shared: Shared, arguments: list[str], expected: str) -> None:
    result = call("send", *arguments)
    assert result.exit_code == 2
    assert result.stderr == f"Error: {expected}\n"


def test_a_topic_that_the_broker_does_not_have(shared: Shared) -> None:
    result = call("send", "nowhere", "1")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: not sent: ")
    assert "nowhere" in result.stderr


def test_an_agents_name_without_its_sign_is_pointed_out(shared: Shared) -> None:
    result = call("send", "tally", "1")
    assert result.exit_code == 1
    assert result.stderr.endswith("did you mean the agent, @tally?\n")


def test_a_message_that_the_broker_does_not_take(shared: Shared) -> None:
    shared.failure = famulus.ProduceError("the disk is full")
    result = call("send", "orders", "1")
    assert (result.exit_code, result.stderr) == (1, "Error: not sent: the disk is full\n")


def test_a_broker_that_is_silent(shared: Shared) -> None:
    shared.silent = True
    result = call("--set", "producer_delivery_timeout=0.001", "send", "orders", "1")
    assert result.exit_code == 1
    assert result.stderr == "Error: not sent: broker memory:// did not answer within 0.001 s\n"


def test_a_broker_that_cannot_be_reached(shared: Shared) -> None:
    shared.failure = famulus.BrokerUnavailable("connection refused")
    result = call("send", "orders", "1")
    assert result.exit_code == 1
    assert result.stderr == "Error: not sent: broker memory:// cannot be reached: connection refused\n"


def test_nothing_is_sent_to_a_broker_inside_a_process() -> None:
    result = call("send", "@tally", "1")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(
        "Error: broker memory:// lives inside one process, so no other process can receive what `send` sends; "
        "expected a broker that processes share"
    )


class Wire(famulus.Channel[bytes]):
    async def listen(self, intake: famulus.Intake, *, task_status: trio.TaskStatus[None]) -> None: ...


def app_of_many_sources() -> famulus.App:
    app = famulus.App("many")
    sources = {
        "several": app.topic("eu", "us", partitions=3, value_type=bytes),
        "pattern": app.topic(pattern="asia-.*", value_type=bytes),
        "wire": Wire(app, "radio"),
    }
    for name, source in sources.items():

        @app.agent(source, name=name)
        async def reads(stream: famulus.Stream[bytes]) -> None: ...

    return app


def test_agents_tell_of_several_topics_patterns_and_foreign_channels() -> None:
    result = call("agents", app=app_of_many_sources())
    sources = [line.split("│")[2].strip() for line in result.stdout.splitlines() if "@" in line]
    assert sources == ["asia-.* (pattern)", "eu, us", "radio (foreign channel)"]
    found = json.loads(call("agents", "--json", app=app_of_many_sources()).stdout)
    assert [(agent["channel"], agent["topic"]) for agent in found] == [
        ("asia-.*", None),
        ("eu,us", None),
        ("radio", None),
    ]


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        ("@several", "reads eu, us; expected the name of the one that is meant"),
        ("@pattern", "reads all topics that match 'asia-.*'; expected the name of the one that is meant"),
        ("@wire", "reads the channel radio, which takes its messages in from elsewhere: send them there"),
    ],
)
def test_send_to_an_agent_without_a_single_topic_is_refused(agent: str, reason: str) -> None:
    result = call("send", agent, "1", app=app_of_many_sources())
    assert result.exit_code != 0
    assert reason in " ".join(result.stderr.split())


def test_topics_create_takes_what_is_declared_for_several() -> None:
    result = call("topics", "create", "us", app=app_of_many_sources())
    assert "created topic us with 3 partitions" in result.stdout
