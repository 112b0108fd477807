"""What supervision costs: ``python benchmarks/supervision.py [--children N] [--rounds N] [--write]``.

A crash and the restart after it beside a bare spawn-and-switch, and the start of a pool's children beside bare tasks with a
cancel scope each, round by round. Times are processor time: nothing here waits for anything, and a busy machine adds nothing.
"""

from __future__ import annotations

import argparse
import gc
import io
import logging
import platform
import tracemalloc
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from time import process_time
from typing import Any

import trio
from _bench import Case, Result, facts, measure, write_section
from rich.console import Console
from rich.table import Table

from famulus.supervision import Backoff, OneForOneSupervisor, child, open_supervisor, pool

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
AT_ONCE = OneForOneSupervisor(max_restarts=inf, backoff=Backoff(min=0, max=0))

SPAWN = "bare spawn and switch"
CRASH = "crash → running again"
LOGGED = "the same, with log records"
TASKS = "bare tasks with a scope each"
POOL = "children of a pool"

CRASH_LIMIT, POOL_LIMIT, MEMORY_LIMIT = 6.0, 3.0, 8.0


class Countdown:
    """Knows when so many things have happened."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.done = trio.Event()

    def count(self) -> None:
        self.left -= 1
        if not self.left:
            self.done.set()


# One task after the other.


async def spawn(number: int) -> float:
    """Start a task, and wait until it has run."""
    count = Countdown(number)

    async def body(ran: trio.Event) -> None:
        count.count()
        ran.set()

    async with trio.open_nursery() as nursery:
        begun = process_time()
        for _ in range(number):
            ran = trio.Event()
            nursery.start_soon(body, ran)
            await ran.wait()
        seconds = process_time() - begun
    assert count.left == 0
    return seconds


async def crash(number: int, *, logged: bool) -> float:
    """A child crashes as soon as it runs, so many times."""
    log = logging.getLogger("famulus.supervision")
    handler = logging.StreamHandler(io.StringIO())  # formats each record, traceback and all
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if logged else logging.CRITICAL)
    count = Countdown(number)

    async def body() -> None:
        count.count()
        if not count.left:
            await trio.sleep_forever()
        raise ValueError("crash")

    async with open_supervisor(AT_ONCE) as sup:
        begun = process_time()
        handle = await sup.start(child(body))
        await count.done.wait()
        seconds = process_time() - begun
        assert handle.restarts == number - 1
    log.removeHandler(handler)
    log.setLevel(logging.CRITICAL)
    return seconds


# Many at once.


async def tasks(number: int, *, memory: list[float] | None = None) -> float:
    count = Countdown(number)

    async def body() -> None:
        with trio.CancelScope():
            count.count()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with Allocated(memory, number):
            begun = process_time()
            for _ in range(number):
                nursery.start_soon(body)
            await count.done.wait()
            seconds = process_time() - begun
        nursery.cancel_scope.cancel()
    return seconds


async def members(number: int, *, memory: list[float] | None = None) -> float:
    count = Countdown(number)

    async def body() -> None:
        count.count()
        await trio.sleep_forever()

    async with open_supervisor() as sup:
        many = (await sup.start(pool(body, name="many"))).supervisor
        with Allocated(memory, number):
            begun = process_time()
            for _ in range(number):
                await many.start_child()
            seconds = process_time() - begun
        assert (many.counts().active, count.left) == (number, 0)
    return seconds


class Allocated:
    """Notes how many bytes a block has left allocated for each of so many, if there is a list to note it in."""

    def __init__(self, found: list[float] | None, number: int) -> None:
        self.found = found
        self.number = number

    def __enter__(self) -> None:
        if self.found is not None:
            gc.collect()
            tracemalloc.start()

    def __exit__(self, *_: object) -> None:
        if self.found is not None:
            gc.collect()
            self.found.append(tracemalloc.get_traced_memory()[0] / self.number)
            tracemalloc.stop()


def extra_memory(number: int) -> float:
    """KiB that a pool's child takes beyond a bare task with a scope."""
    bare, ours = list[float](), list[float]()
    trio.run(partial(tasks, memory=bare), number)
    trio.run(partial(members, memory=ours), number)
    return (ours[0] - bare[0]) / 1024


# Together.


def verdicts(results: dict[str, Result], extra: float, children: int) -> list[str]:
    """What was to be reached, and whether it was."""
    crash, start = cost(results, CRASH), cost(results, POOL)
    return [
        f"{CRASH}, log records off, at most {CRASH_LIMIT:g} x {SPAWN}: {crash:.2f} x, {_verdict(crash <= CRASH_LIMIT)}",
        f"{children:,} {POOL}, at most {POOL_LIMIT:g} x {TASKS}: {start:.2f} x, {_verdict(start <= POOL_LIMIT)}",
        f"memory beyond that of a bare task, at most {MEMORY_LIMIT:g} KiB a child: {extra:.1f} KiB, "
        f"{_verdict(extra <= MEMORY_LIMIT)}",
    ]


def cost(results: dict[str, Result], name: str) -> float:
    """How many times the time of what it is measured against a case takes: the median of the rounds' ratios."""
    result = results[name]
    return results[result.case.against].ratio(result)


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


HEADER = ("", "µs each (median)", "lowest to highest", "ratio (median)")


def rows(results: dict[str, Result]) -> list[tuple[str, str, str, str]]:
    made = []
    for name, result in results.items():
        against = result.case.against
        ratio = f"{cost(results, name):.2f} x {against}" if against else ""
        lowest, highest = 1e6 / max(result.rates), 1e6 / min(result.rates)
        made.append((name, f"{1e6 / result.median:.1f}", f"{lowest:.1f} to {highest:.1f}", ratio))
    return made


def show(machine: Mapping[str, str], results: dict[str, Result], notes: Sequence[str]) -> None:
    console = Console(width=max(120, Console().width), highlight=False)
    for name, fact in machine.items():
        console.print(f"{name:12} {fact}")
    table = Table(*HEADER)
    for row in rows(results):
        table.add_row(*row)
    console.print(table, *notes, sep="\n")


def markdown(title: str, machine: Mapping[str, str], results: dict[str, Result], notes: Sequence[str]) -> str:
    lines = [f"## {title}", "", *(f"- {name}: {fact}" for name, fact in machine.items()), ""]
    lines += [f"| {' | '.join(HEADER)} |", "|---|---:|---:|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(results)]
    lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def under_trio(function: Callable[[int], Coroutine[Any, Any, float]]) -> Callable[[int], float]:
    return lambda number: trio.run(function, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--children", type=int, default=10_000, help="and crashes, per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="that count (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help=f"put the results into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.children < 100:
        parser.error(f"--children {options.children}: expected at least 100")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: expected at least 1")
    logging.getLogger("famulus.supervision").propagate = False

    cases = [
        Case(SPAWN, under_trio(spawn)),
        Case(CRASH, under_trio(partial(crash, logged=False)), against=SPAWN),
        Case(LOGGED, under_trio(partial(crash, logged=True)), share=0.2, against=SPAWN),
        Case(TASKS, under_trio(tasks)),
        Case(POOL, under_trio(members), against=TASKS),
    ]
    machine = facts()
    results = measure(cases, messages=options.children, rounds=options.rounds)
    notes = [f"{options.rounds} rounds of {options.children:,}; processor time"]
    notes += verdicts(results, extra_memory(options.children), options.children)
    show(machine, results, notes)
    if options.write:
        title = f"Supervision, Python {'.'.join(platform.python_version_tuple()[:2])}"
        write_section(PAGE, title, markdown(title, machine, results, notes))
        print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
