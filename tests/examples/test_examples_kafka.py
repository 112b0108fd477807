"""The example `hello.py` and the commands over a real Kafka, unchanged, as the processes that a user starts.

The demo over Kafka is in `test_example_flights.py`.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from famulus.testing.kafka import RunningKafka

ROOT = Path(__file__).parent.parent.parent
LIMIT = 60.0  # seconds that any wait may take on a busy machine; only a broken program gets there

pytestmark = [pytest.mark.slow, pytest.mark.hard_timeout(5 * LIMIT)]

SHOP = """
from collections.abc import AsyncIterator
import famulus

app = famulus.App("shop-{id}")
orders = app.topic("orders-{id}", value_type=int)

@app.agent(orders, name="tally")
async def tally(stream: famulus.Stream[int]) -> None:
    async for cents in stream:
        print("tallied", cents, flush=True)

@app.agent(name="audit", partitions=1)
async def audit(stream: famulus.Stream[str]) -> None:
    async for line in stream:
        print("audited", line, flush=True)
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FAMULUS_", "COVERAGE_"))}
    return {**kept, "PYTHONUTF8": "1", **variables}


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """The id of an app in shop.py, with names of its own."""
    id = uuid.uuid4().hex
    (tmp_path / "shop.py").write_text(SHOP.replace("{id}", id))
    return id


@pytest.fixture(params=["--broker", "FAMULUS_BROKER"])
def famulus(request: pytest.FixtureRequest, kafka_broker: RunningKafka, tmp_path: Path) -> list[str]:
    """The beginning of a command line of shop.py on the broker, which is named by option or by environment."""
    command = [sys.executable, "-P", "-m", "famulus", "-A", "shop"]
    if request.param == "--broker":
        return [*command, "--broker", kafka_broker.url]
    return ["env", f"FAMULUS_BROKER={kafka_broker.url}", *command]


@pytest.fixture
def run(famulus: list[str], tmp_path: Path) -> Run:
    """``run("send", "orders", "1")``: a command, to its end."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*famulus, *arguments],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=LIMIT,
            check=False,
        )

    return run


class Worker:
    """A worker; what it writes goes to files."""

    def __init__(self, command: list[str], directory: Path) -> None:
        self._files = [directory / "worker.out", directory / "worker.err"]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = subprocess.Popen(
                [*command, "worker", "--no-banner"],
                cwd=directory,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def said(self) -> str:
        return "".join(file.read_text(encoding="utf-8") for file in self._files)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + LIMIT
        while text not in self.said:
            assert time.monotonic() < deadline, f"no {text!r} in {LIMIT} s:\n{self.said}"
            assert self.process.poll() is None, f"ended without {text!r}:\n{self.said}"
            time.sleep(0.02)


@pytest.fixture
def worker(famulus: list[str], shop: str, tmp_path: Path) -> Iterator[Worker]:
    """A worker of shop.py, from the start of the test on."""
    worker = Worker(famulus, tmp_path)
    yield worker
    if worker.process.poll() is None:
        worker.process.kill()
    worker.process.wait()


def test_the_commands_of_an_app_work_on_kafka(run: Run, worker: Worker, shop: str, kafka_broker: RunningKafka) -> None:
    create = f"famulus --broker {kafka_broker.url} topics create orders-{shop} --partitions N"
    worker.wait_for(f"create it with `{create}`")  # it waits for its topic, and says what to do
    created = run(*create.replace("N", "4").split()[3:])
    assert created.stdout == f"created topic orders-{shop} with 4 partitions\n", created.stderr
    worker.wait_for("ready: app shop")

    sent = run("send", f"orders-{shop}", "1250", "-K", "ada")
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.startswith(f"sent to orders-{shop}, partition ")
    worker.wait_for("tallied 1250")
    assert run("send", "@audit", '"a line"').stdout == f"sent to shop-{shop}-audit, partition 0, offset 0\n"
    worker.wait_for("audited a line")

    agents = json.loads(run("agents", "--json").stdout)
    assert {agent["name"]: agent["topic"] for agent in agents} == {
        "tally": f"orders-{shop}",
        "audit": f"shop-{shop}-audit",
    }
    settings = {each["name"]: each for each in json.loads(run("settings", "--json").stdout)}
    assert settings["broker"]["value"] == kafka_broker.url
    assert settings["broker"]["from"] in ("command line", "FAMULUS_BROKER")

    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(LIMIT) == 0, worker.said
    assert "Traceback" not in worker.said


def test_hello_asks_its_agent_over_kafka(kafka_broker: RunningKafka, tmp_path: Path) -> None:
    for _ in range(2):  # the second time, the topic and the group are there
        ran = subprocess.run(
            [sys.executable, "-W", "error", str(ROOT / "examples" / "hello.py")],
            cwd=tmp_path,
            env=environment(FAMULUS_BROKER=kafka_broker.url),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=LIMIT,
            check=False,
        )
        assert (ran.returncode, ran.stdout) == (0, "double(21) is 42\n"), ran.stderr
