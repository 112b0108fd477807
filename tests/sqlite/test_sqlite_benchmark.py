"""The benchmark of the brokers runs, with few messages and without Kafka. No time is asserted."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "broker.py"


@pytest.mark.slow
@pytest.mark.hard_timeout(180)
def test_the_benchmark_of_the_brokers_counts_what_each_way_commits() -> None:
    command = [sys.executable, str(BENCHMARK), "--no-kafka", "--messages", "100", "--rounds", "1", "--idle", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    for case in ("raw sqlite3, a row per record", "sqlite://, one process", "sqlite://, sender and worker apart"):
        assert case in done.stdout
    assert "% of a core" in done.stdout
