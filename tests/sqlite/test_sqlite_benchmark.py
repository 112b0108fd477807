"""The benchmark of the brokers runs, with few messages and without Kafka. Of times only those of waiting are asserted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "broker.py"


def run(*, messages: int, idle: float) -> str:
    command = [sys.executable, str(BENCHMARK), "--no-kafka", "--messages", str(messages), "--rounds", "1"]
    done = subprocess.run([*command, "--idle", str(idle)], capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.hard_timeout(180)
def test_the_benchmark_of_the_brokers_counts_what_each_way_commits() -> None:
    shown = run(messages=100, idle=0.2)
    for case in ("raw sqlite3, a row per record", "sqlite://, one process", "sqlite://, sender and worker apart"):
        assert case in shown
    assert "% of a core" in shown


@pytest.mark.torture  # it wants the machine for itself
@pytest.mark.hard_timeout(180)
def test_a_message_of_another_process_is_there_within_50_ms_and_who_waits_takes_less_than_a_percent_of_a_core() -> None:
    shown = " ".join(run(messages=200, idle=10).split())
    found = re.search(r"to the agent ([\d.]+) ms \(median\).*takes ([\d.]+) % of a core", shown)
    assert found, shown
    assert float(found[1]) < 50
    assert float(found[2]) < 1
