"""Programs of `rpc.py` side by side on one broker: a process that answers and one that asks, or one that does both."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Timer

import attrs
from _kafka_orders import create_topic, delete_topic

__all__ = ["Load", "Program", "Result", "Run", "compare"]

_PATIENCE = 300.0  # seconds that a process may take
_names = count()


@attrs.frozen
class Load:
    """What each program is given to do; see `_rpc_meter.Task`."""

    asks: int
    at_once: int
    joined: int


@attrs.frozen
class Program:
    """One of those that are compared.

    Attributes:
        name: in the tables.
        script: the file, beside this one.
        python: the interpreter that has what it needs.
        alone: one process asks itself; otherwise a second one answers.
        joins: it has a `join` to be measured.
    """

    name: str
    script: str
    python: Path
    alone: bool = False
    joins: bool = False


@attrs.frozen
class Run:
    """What one round gave.

    Attributes:
        p50, p95, p99: seconds of a request, one after the other: so many in a hundred took no longer.
        cpu: seconds that the process which asks computed for each of these.
        at_once: requests per second, all made at the same time.
        joined: values per second of a `join`; None where there is none.
    """

    p50: float
    p95: float
    p99: float
    cpu: float
    at_once: float
    joined: float | None


@attrs.frozen
class Result:
    """The runs of a program, one for each round."""

    program: Program
    runs: Sequence[Run]

    def median(self, value: Callable[[Run], float]) -> float:
        return statistics.median(map(value, self.runs))

    def ratio(self, other: Result, value: Callable[[Run], float]) -> float:
        """The median of the ratios of the rounds: a busy moment of the machine hits both sides of one."""
        pairs = zip(self.runs, other.runs, strict=True)
        return statistics.median(value(mine) / value(theirs) for mine, theirs in pairs)


def compare(address: str, programs: Sequence[Program], load: Load, *, rounds: int) -> list[Result]:
    """Run every program once per round, in turn, after one short round that does not count."""
    runs: dict[Program, list[Run]] = {program: [] for program in programs}
    short = Load(load.asks // 10 + 2, load.at_once // 10 + 1, load.joined // 10)
    for number in range(-1, rounds):
        what = "warming up" if number < 0 else f"round {number + 1}/{rounds}"
        for program in programs:
            run = _run(address, program, short if number < 0 else load)
            print(f"{what}: {program.name}: {run.p50 * 1e3:.2f} ms, at once {run.at_once:,.0f}/s", flush=True)
            if number >= 0:
                runs[program].append(run)
    return [Result(program, done) for program, done in runs.items()]


def _run(address: str, program: Program, load: Load) -> Run:
    name = f"benchmark-rpc-{os.getpid()}-{time.time_ns()}-{next(_names)}"
    topics = [f"{name}-requests", f"{name}-replies"]
    for topic in topics:
        asyncio.run(create_topic(address, topic, partitions=1))
    arguments = [address, name, str(load.asks), str(load.at_once), str(load.joined if program.joins else 0)]
    try:
        if program.alone:
            return _ask(program, "both", arguments)
        with _serving(program, arguments):
            return _ask(program, "call", arguments)
    finally:
        for topic in topics:
            asyncio.run(delete_topic(address, topic))


def _command(program: Program, role: str, arguments: Sequence[str]) -> list[str]:
    return [str(program.python), "-W", "ignore", str(Path(__file__).parent / program.script), role, *arguments]


def _ask(program: Program, role: str, arguments: Sequence[str]) -> Run:
    command = _command(program, role, arguments)
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=_PATIENCE, check=False, stdin=subprocess.DEVNULL
    )
    reports = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode or not reports:
        raise RuntimeError(f"{program.name} ended with {ran.returncode}:\n{ran.stdout}\n{ran.stderr}")
    return Run(**json.loads(reports[-1]))


@contextmanager
def _serving(program: Program, arguments: Sequence[str]) -> Iterator[None]:
    """A process that answers, until the end of the block. What it logs goes where ours does."""
    command = _command(program, "serve", arguments)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        patience = Timer(_PATIENCE, process.kill)
        patience.start()
        try:
            if not any(line.strip() == "ready" for line in process.stdout):
                raise RuntimeError(f"{program.name} ended before it was ready")
            yield
        finally:
            patience.cancel()
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()
