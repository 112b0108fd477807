"""The brokers side by side: ``python benchmarks/broker.py [--messages N] [--rounds N] [--no-kafka] [--write]``.

From the first send to the commit of the last offset: orders are encoded, buffered, written to the log, fetched, decoded,
handed to an agent, acknowledged and committed, by one process or by a sender and a worker. The same program on SQLite
and on a Kafka of this machine, round by round; beside it what SQLite itself takes. docs/benchmarks.md says more.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from itertools import count
from pathlib import Path

import trio
from _bench import Case, Result, Tally, facts, markdown, measure, show, write_section
from _broker_app import PARTITIONS, Order, declare, order, send
from _kafka_broker import broker_at

import famulus
from famulus.channels.message import TP
from famulus.channels.transport import ConsumerOptions, TopicSpec, Transport, TransportOptions, load_transport

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
SENDER = Path(__file__).with_name("_broker_app.py")

RAW = "raw sqlite3, a row per record"
ONE = "sqlite://, one process"
NORMAL = "the same, durability=normal"
APART = "sqlite://, sender and worker apart"
KAFKA_ONE = "kafka://, one process"
KAFKA_APART = "kafka://, sender and worker apart"
LEAST = {ONE: 60_000, APART: 40_000}

_names = count()


class Silent:
    """A listener of a consumer that never subscribes."""

    async def on_assigned(self, assignment: object) -> None:
        await trio.lowlevel.checkpoint()

    async def on_revoked(self, revoked: object, *, lost: bool) -> None:
        await trio.lowlevel.checkpoint()


def new_directory() -> tempfile.TemporaryDirectory[str]:
    """On the disk of this checkout, since a temporary directory may be in memory."""
    place = ROOT / ".famulus"
    place.mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(dir=place, prefix="benchmark-")


@contextmanager
def sqlite_file(options: str = "") -> Iterator[str]:
    """The URL of a new file."""
    with new_directory() as directory:
        yield f"sqlite://{directory}/broker.db{options}"


def raw_sqlite(messages: int) -> float:
    """What SQLite takes in transactions of 1,000, as an embedded broker could be written at its simplest."""
    value = order(0).dumps()
    with new_directory() as directory:
        db = sqlite3.connect(f"{directory}/raw.db", isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("CREATE TABLE log (position INTEGER PRIMARY KEY, key BLOB, value BLOB, time REAL)")
        begun = time.perf_counter()
        for start in range(0, messages, 1000):
            db.execute("BEGIN")
            rows = [(None, value, 0.0)] * min(1000, messages - start)
            db.executemany("INSERT INTO log (key, value, time) VALUES (?, ?, ?)", rows)
            db.execute("COMMIT")
        seconds = time.perf_counter() - begun
        assert db.execute("SELECT count(*) FROM log").fetchone() == (messages,)
        db.close()
    return seconds


async def all_committed(transport: Transport, name: str, messages: int) -> None:
    """Wait until the group has committed everything."""
    partitions = [TP(name, number) for number in range(PARTITIONS)]
    async with transport.open_consumer(ConsumerOptions(group=name), Silent()) as observer:
        while sum(offset or 0 for offset in (await observer.committed(partitions)).values()) < messages:
            await trio.sleep(0.005)


@asynccontextmanager
async def new_topic(url: str) -> AsyncIterator[tuple[Transport, str]]:
    """A topic of a name that nobody has used, and a connection to its broker beside the app's."""
    transport = load_transport(url, TransportOptions(client_id="observer"))
    name = f"orders-{os.getpid()}-{next(_names)}"
    async with transport.open():
        await transport.create_topic(TopicSpec(name=name, partitions=PARTITIONS))
        yield transport, name
        await transport.delete_topic(name)


async def end_to_end(url: str, messages: int, *, apart: bool) -> float:
    """Seconds from the first send to the commit behind the last event."""
    async with new_topic(url) as (observer, name):
        return await _end_to_end(url, name, observer, messages, apart=apart)


async def _end_to_end(url: str, name: str, observer: Transport, messages: int, *, apart: bool) -> float:
    app, topic = declare(url, name)
    tally = Tally()
    seen = trio.Event()

    @app.agent(topic)
    async def read(stream: famulus.Stream[Order]) -> None:
        async for one in stream:
            tally.count += 1
            tally.checksum += one.number
            if tally.count == messages:
                seen.set()

    async with famulus.open_app(app):
        if apart:
            begun = await send_from_another_process(url, name, messages, seen)
        else:
            begun = time.monotonic()
            await send(topic, messages)
            await seen.wait()
        await all_committed(observer, name, messages)
        seconds = time.monotonic() - begun
    tally.verify(messages)
    return seconds


async def send_from_another_process(url: str, name: str, messages: int, seen: trio.Event, pause: float = 0.0) -> float:
    """Wait until all it has sent was seen; when it began, which its start and its imports did not delay."""
    command = [sys.executable, "-P", str(SENDER), url, name, str(messages), str(pause)]
    done = await trio.run_process(command, capture_stdout=True)
    await seen.wait()
    return float(done.stdout)


async def wake_ups(url: str, messages: int) -> list[float]:
    """Milliseconds from a send in one process to the agent of another, which has nothing else to do."""
    took: list[float] = []
    seen = trio.Event()
    async with new_topic(url) as (_, name):
        app, topic = declare(url, name)

        @app.agent(topic)
        async def read(stream: famulus.Stream[Order]) -> None:
            async for one in stream:
                took.append(1000 * (time.monotonic() - one.sent))
                if len(took) == messages:
                    seen.set()

        async with famulus.open_app(app):
            await send_from_another_process(url, name, messages, seen, pause=0.02)
    return sorted(took)


async def idle(url: str, seconds: float) -> float:
    """The part of a core that a worker takes which waits for messages: a process of its own, with nothing beside it."""
    async with new_topic(url) as (_, name):
        command = [sys.executable, "-P", str(SENDER), url, name, "idle", str(seconds)]
        done = await trio.run_process(command, capture_stdout=True)
    return float(done.stdout)


def under_trio(url: str | None, *, apart: bool = False, options: str = "") -> Callable[[int], float]:
    """A case: on a Kafka, or on a new file."""

    def run(messages: int) -> float:
        with sqlite_file(options) if url is None else nullcontext(url) as where:
            return trio.run(partial(end_to_end, apart=apart), where, messages)

    return run


def verdicts(results: dict[str, Result]) -> list[str]:
    """What was to be reached, and whether it was."""
    return [
        f"{name}: at least {least:,} messages/s: {'reached' if results[name].median >= least else 'missed'}"
        for name, least in LEAST.items()
    ]


def looks(url: str | None, what: str, *, wakes: int, seconds: float) -> Iterator[str]:
    """What it costs to wait, and to be woken."""
    with sqlite_file() if url is None else nullcontext(url) as where:
        took = trio.run(wake_ups, where, wakes)
        yield (
            f"{what}: from a send in another process to the agent {statistics.median(took):.1f} ms (median), "
            f"{took[int(len(took) * 0.99)]:.1f} ms (99 %)"
        )
        yield f"{what}: a worker that waits takes {100 * trio.run(idle, where, seconds):.2f} % of a core"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=200_000, help="per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: %(default)s)")
    parser.add_argument(
        "--idle", type=float, default=20.0, help="seconds to watch a worker that waits (default: %(default)s)"
    )
    parser.add_argument("--no-kafka", action="store_true", help="leave Kafka out")
    parser.add_argument("--broker", help="a Kafka that runs, HOST:PORT (default: one of our own)")
    parser.add_argument("--write", action="store_true", help=f"put the results into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.messages < 100 or options.rounds < 1:
        parser.error(f"--messages {options.messages} --rounds {options.rounds}: expected at least 100, and at least 1")

    with nullcontext(("", "left out, as asked")) if options.no_kafka else broker_at(options.broker) as (address, kafka):
        kafka_url = f"kafka://{address}" if address else ""
        cases = [
            Case(RAW, raw_sqlite),
            Case(ONE, under_trio(None), against=KAFKA_ONE),
            Case(NORMAL, under_trio(None, options="?durability=normal"), against=KAFKA_ONE),
            Case(APART, under_trio(None, apart=True), against=KAFKA_APART),
        ]
        if kafka_url:
            cases += [
                Case(KAFKA_ONE, under_trio(kafka_url)),
                Case(KAFKA_APART, under_trio(kafka_url, apart=True)),
            ]
        machine = facts("trio-asyncio", "aiokafka") | {"sqlite": sqlite3.sqlite_version, "kafka": kafka}
        results = measure(cases, messages=options.messages, rounds=options.rounds)
        notes = [
            f"{options.rounds} rounds of {options.messages:,} messages; orders of {len(order(123_456).dumps())} bytes of JSON, "
            f"{PARTITIONS} partitions"
        ]
        notes += looks(None, "sqlite://", wakes=min(200, options.messages), seconds=options.idle)
        if kafka_url:
            notes += looks(kafka_url, "kafka://", wakes=min(200, options.messages), seconds=options.idle)
        notes += verdicts(results)
    show(machine, results, notes)
    if options.write:
        title = f"Brokers, Python {'.'.join(platform.python_version_tuple()[:2])}"
        write_section(PAGE, title, markdown(title, machine, results, notes))
        print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
