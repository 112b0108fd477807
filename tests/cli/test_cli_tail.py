"""``topics tail`` over each broker: messages as the broker holds them, in no group."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import TopicSpec, TransportOptions, load_transport
from famulus.cli import make_program
from famulus.testing.kafka import RunningKafka
from famulus.testing.worker_process import WorkerProcess


@pytest.fixture(params=["memory", "sqlite", "kafka"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "kafka":
        kafka: RunningKafka = request.getfixturevalue("kafka_broker")
        yield kafka.url
    elif request.param == "sqlite":
        yield f"sqlite://{tmp_path}/broker.db"
    else:
        name = f"tail-{uuid.uuid4().hex}"
        MemoryBroker.named(name)
        yield f"memory://{name}"
        MemoryBroker.forget(name)


@pytest.fixture
def name(url: str) -> str:
    """A topic of two partitions with five messages in the first and two in the second."""
    name = f"orders-{uuid.uuid4().hex}"

    async def write() -> None:
        transport = load_transport(url, TransportOptions())
        async with transport.open():
            await transport.create_topic(TopicSpec(name=name, partitions=2))
            headers = (("source", b"web"),)
            first = [ProducerRecord(b"key", b"%d" % number, headers, 1.7e9) for number in range(5)]
            second = [ProducerRecord(None, b"\xff\x00", (), 1.7e9), ProducerRecord(b"k", None, (), 1.7e9)]
            outcome = await transport.produce({TP(name, 0): first, TP(name, 1): second})
            assert not any(isinstance(result, Exception) for result in outcome.values())

    trio.run(write)
    return name


def call(*arguments: str) -> Result:
    clean = {"FAMULUS_BROKER": None, "FAMULUS_APP": None}
    return CliRunner().invoke(make_program(None), arguments, prog_name="famulus", env=clean)


def tail(url: str, *arguments: str) -> list[str]:
    result = call("--broker", url, "topics", "tail", *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def test_all_that_is_there_is_shown_with_its_place_time_key_value_and_headers(url: str, name: str) -> None:
    lines = tail(url, name, "--all", "--no-follow")
    assert len(lines) == 7
    first = [line for line in lines if line.startswith(f"{name}-0@")]
    assert first[0].startswith(f"{name}-0@0  2023-11-1")
    assert first[0].endswith("  key  0  source=web")
    assert sorted(line.split("  ", 2)[2] for line in lines if line.startswith(f"{name}-1@")) == [
        "(none)  0xff00",
        "k  (none)",
    ]


def test_programs_get_an_object_a_line(url: str, name: str) -> None:
    shown = [json.loads(line) for line in tail(url, name, "--all", "--no-follow", "--json", "--partition", "1")]
    time = "2023-11-14T22:13:20.000+00:00"
    assert shown == [
        {"partition": 1, "offset": 0, "timestamp": time, "key": None, "value": {"base64": "/wA="}, "headers": []},
        {"partition": 1, "offset": 1, "timestamp": time, "key": "k", "value": None, "headers": []},
    ]


def test_the_last_ones_of_each_partition(url: str, name: str) -> None:
    places = sorted(line.split("  ")[0] for line in tail(url, name, "--last", "1", "--no-follow"))
    assert places == [f"{name}-0@4", f"{name}-1@1"]
    assert len(tail(url, name, "--all", "--count", "3")) == 3


def test_what_cannot_be_shown_says_why(url: str, name: str) -> None:
    for arguments, complaint in [
        ([name, "--partition", "2", "--all"], "has partitions 0 to 1, no 2"),
        (["nowhere-to-be-found", "--all"], "nowhere-to-be-found"),
        ([name, "--no-follow"], "expected --all or --last with it"),
        ([name, "--all", "--last", "3"], "expected one of them"),
    ]:
        result = call("--broker", url, "topics", "tail", *arguments)
        assert result.exit_code != 0
        assert complaint in result.stderr


def test_what_comes_is_shown_when_it_comes(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/broker.db"

    async def main() -> None:
        transport = load_transport(url, TransportOptions())
        async with transport.open():
            await transport.create_topic(TopicSpec(name="orders", partitions=1))
            arguments = ["-m", "famulus", "--broker", url, "topics", "tail", "orders", "--all", "--count", "4"]
            process = WorkerProcess(arguments, log=tmp_path / "log")
            try:
                for number in range(4):
                    await transport.produce({TP("orders", 0): [ProducerRecord(None, b"value %d" % number)]})
                    await process.wait_for(f"value {number}")
                assert await process.wait() == 0
            finally:
                process.kill()

    trio.run(main)
