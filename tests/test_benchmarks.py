"""The benchmarks on Kafka run, with few messages and without what has to be installed for it. No time is asserted."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from famulus.testing.kafka import RunningKafka

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.hard_timeout(300)
def test_the_benchmark_on_kafka_compares_famulus_with_bare_aiokafka(kafka_broker: RunningKafka) -> None:
    command = [sys.executable, str(BENCHMARKS / "kafka_agents.py"), "--broker", kafka_broker.url]
    command += ["--only", "raw", "--messages", "400", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    for mode in ("read", "pipe"):
        for program in ("Famulus agent", "raw aiokafka loop"):
            assert f"round 1/1: {mode}, {program}:" in done.stdout
    assert "peak memory below 120 MB" in done.stdout


@pytest.mark.slow
@pytest.mark.hard_timeout(120)
def test_a_program_that_leaves_messages_out_fails_the_benchmark(
    kafka_broker: RunningKafka, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    runs = importlib.import_module("_kafka_runs")
    script = tmp_path / "idle.py"
    script.write_text('print(\'{"count": 99, "cents": 0}\')\n')
    idle = runs.Program("idle", str(script), "read", Path(sys.executable))
    with pytest.raises(AssertionError, match=r"idle saw \(99, 0\)"):
        runs.compare(kafka_broker.address, [idle], messages=1000, rounds=1)


@pytest.mark.slow
@pytest.mark.hard_timeout(120)
def test_a_program_that_sends_nothing_fails_the_benchmark(
    kafka_broker: RunningKafka, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    runs = importlib.import_module("_kafka_runs")
    total_cents = importlib.import_module("_kafka_orders").total_cents
    script = tmp_path / "silent.py"
    facts = {
        "count": 100,
        "cents": total_cents(100),
        "started": 0,
        "first": 1,
        "last": 2,
        "done": 2,
        "cpu": 1,
        "peak": 1,
    }
    script.write_text(f"import json\nprint(json.dumps({facts!r}))\n")
    silent = runs.Program("silent", str(script), "pipe", Path(sys.executable))
    with pytest.raises(AssertionError, match="orders=0"):
        runs.compare(kafka_broker.address, [silent], messages=1000, rounds=1)


@pytest.mark.slow
@pytest.mark.hard_timeout(300)
def test_the_benchmark_of_streams_checks_what_each_way_of_reading_leaves(kafka_broker: RunningKafka) -> None:
    command = [sys.executable, str(BENCHMARKS / "streams.py"), "--broker", kafka_broker.url]
    command += ["--only", "raw", "--messages", "1000", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    for mode in ("group_by", "take", "echo", "two agents"):
        assert f"round 1/1: {mode}, Famulus:" in done.stdout
    assert "Read from 1 to 64 partitions: Famulus, 64 partitions at least 0.9 x Famulus, 4 partitions:" in done.stdout


@pytest.mark.slow
@pytest.mark.hard_timeout(120)
def test_a_rival_that_is_known_to_stall_is_reported_and_left_out(
    kafka_broker: RunningKafka, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    runs = importlib.import_module("_kafka_runs")
    script = tmp_path / "stalled.py"
    script.write_text('print(\'{"count": 99, "cents": 0, "started": 1, "done": 31}\')\n')
    rival = runs.Program("rival", str(script), "read", Path(sys.executable), faulty=True)
    faults: list[str] = []
    assert runs.compare(kafka_broker.address, [rival], messages=1000, rounds=1, faults=faults) == []
    assert faults == ["rival stalled: after 30 s it had seen 99 of 100 messages"]


@pytest.mark.slow
@pytest.mark.hard_timeout(300)
def test_the_benchmark_of_calls_compares_them_with_bare_ones_in_one_process_and_on_kafka(
    kafka_broker: RunningKafka,
) -> None:
    command = [
        sys.executable,
        str(BENCHMARKS / "rpc.py"),
        "--broker",
        kafka_broker.url,
        "--only",
        "raw",
        "--rounds",
        "1",
    ]
    command += ["--asks", "100", "--at-once", "100", "--joined", "200", "--local-asks", "200"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    for program in ("Famulus", "Famulus, the worker asks itself", "bare: aiokafka there and back"):
        assert f"round 1/1: {program}:" in done.stdout
    assert "ask on a local channel: at least 0.7 x bare ask between two tasks:" in done.stdout
    assert "Famulus: p50 of a request at most 1.25 x bare: aiokafka there and back:" in done.stdout
    assert "join over a memory topic" in done.stdout


def test_an_answer_that_is_not_the_right_one_fails_the_benchmark_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    meter = importlib.import_module("_rpc_meter").Meter()
    meter.ask()
    with pytest.raises(AssertionError, match="7 was answered 14"):
        meter.answered(7, 14)
    with pytest.raises(AssertionError, match="1 was answered None"):
        meter.end_at_once([1, None])
