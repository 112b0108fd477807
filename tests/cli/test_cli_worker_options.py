"""What the options of `worker` about its group and its broker do, and that its help teaches them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import famulus
from famulus.cli import make_program
from famulus.testing.worker_process import WorkerProcess

pytestmark = pytest.mark.real_time

APP = """
import famulus
from famulus.channels.runs import current_run

app = famulus.App("shop", broker="memory://", consumer_group_instance_id="declared")

@app.task
async def show() -> None:
    settings = current_run(app).options
    print(f"id {settings.consumer_group_instance_id}, patience {settings.broker_start_timeout}", flush=True)
    app.stop()

if __name__ == "__main__":
    app.main()
"""

Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start("worker", "--fail-fast")``: run ``python shop.py worker --fail-fast``."""
    script = tmp_path / "shop.py"
    script.write_text(APP)
    started: list[WorkerProcess] = []

    def start(*arguments: str) -> WorkerProcess:
        started.append(WorkerProcess([str(script), *arguments], log=tmp_path / f"{len(started)}.log"))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


async def test_without_them_the_apps_own_settings_hold(start: Start) -> None:
    worker = start("worker", "--no-banner")
    assert await worker.wait() == 0
    assert worker.lines("^id declared, patience inf$")


async def test_they_are_settings_of_this_run_and_win_over_all_others(start: Start) -> None:
    worker = start(
        "--set", "broker_start_timeout=60", "worker", "--no-banner", "--instance-id", "shop-1", "--fail-fast"
    )
    assert await worker.wait() == 0
    assert worker.lines(r"^id shop-1, patience 0\.0$")


async def test_an_empty_instance_id_is_refused_by_name(start: Start) -> None:
    worker = start("worker", "--instance-id", "")
    assert await worker.wait() == 2
    assert worker.log == "Error: setting consumer_group_instance_id='': expected text that is not empty\n"


async def test_fail_fast_without_a_broker_is_one_line_and_exit_code_1(start: Start) -> None:
    with socket.socket() as nobody:  # bound, and does not listen
        nobody.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*nobody.getsockname())
        worker = start("--broker", f"kafka://{address}", "worker", "--no-banner", "--fail-fast")
        assert await worker.wait() == 1
    (line,) = worker.log.splitlines()
    assert line.startswith(f"Error: the worker ends: BrokerUnavailable: no Kafka broker answers at {address}: see that")
    assert "--broker kafka://HOST:PORT" in line


async def test_what_the_kafka_client_logs_itself_is_shown_with_loglevel_debug_only(start: Start) -> None:
    for level in ("info", "debug"):
        worker = start("--broker", "kafka://127.0.0.1:1", "worker", "--no-banner", "--fail-fast", "-l", level)
        assert await worker.wait() == 1
        assert bool(worker.lines("aiokafka")) == (level == "debug"), worker.log


def test_the_help_teaches_them() -> None:
    result = CliRunner().invoke(make_program(famulus.App("shop")), ["worker", "--help"])
    text = " ".join(result.output.split())
    assert "--instance-id NAME Static group membership: this worker's own lasting name" in text
    assert "--fail-fast Exit with 1 if no broker can be reached at the start" in text
