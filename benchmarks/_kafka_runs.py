"""Programs of `kafka_agents.py` run side by side: each in a process of its own, checked, round by round."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import attrs
from _kafka_orders import check_output, create_topic, delete_topic, total_cents, write_orders

__all__ = ["Program", "Result", "Run", "compare"]

_PATIENCE = 300.0  # seconds that a program may take
_WARM_UP = 0.1  # of the messages, in a round that does not count
_names = count()


@attrs.frozen
class Program:
    """One of those that are compared.

    Attributes:
        name: in the tables.
        script: the file, beside this one or anywhere.
        mode: what the script is asked to do: "read", or "pipe" to read, change and send; with a variant behind a hyphen.
        python: the interpreter that has what it needs.
        share: of the messages that it gets, where it is much slower than the others.
    """

    name: str
    script: str
    mode: str
    python: Path
    share: float = 1.0

    @property
    def sends(self) -> bool:
        return self.mode.startswith("pipe")


@attrs.frozen
class Run:
    """What one process did.

    Attributes:
        messages: it processed.
        seconds: from its first message to its last, or to the commit behind its last output.
        cpu: seconds that its threads computed meanwhile; unlike the time it hardly depends on what else the machine does.
        from_process, from_app: seconds to its first message, since the process and since the app was started.
        peak: bytes of memory that it had at the most (VmHWM).
    """

    messages: int
    seconds: float
    cpu: float
    from_process: float
    from_app: float
    peak: int

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds


@attrs.frozen
class Result:
    """The runs of a program, one for each round."""

    program: Program
    runs: Sequence[Run]

    @property
    def rates(self) -> list[float]:
        return [run.rate for run in self.runs]

    def median(self, value: Callable[[Run], float]) -> float:
        return statistics.median(map(value, self.runs))

    def ratio(self, other: Result) -> float:
        """The median of the ratios of the rounds: a busy moment of the machine hits both sides of one."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True))


def compare(address: str, programs: Sequence[Program], *, messages: int, rounds: int) -> list[Result]:
    """Run every program once per round, in turn, after one short round that does not count."""
    topics: dict[int, str] = {}

    def topic_of(amount: int) -> str:
        if amount not in topics:
            topics[amount] = _name(f"orders-{amount}")
            asyncio.run(write_orders(address, topics[amount], amount))
        return topics[amount]

    runs: dict[Program, list[Run]] = {program: [] for program in programs}
    try:
        for number in range(-1, rounds):
            for program in programs:
                amount = max(100, int(messages * program.share * (_WARM_UP if number < 0 else 1)))
                run = _run(address, program, topic_of(amount), amount)
                what = "warming up" if number < 0 else f"round {number + 1}/{rounds}"
                print(f"{what}: {program.mode}, {program.name}: {run.rate:,.0f}/s", flush=True)
                if number >= 0:
                    runs[program].append(run)
    finally:
        for topic in topics.values():
            asyncio.run(delete_topic(address, topic))
    return [Result(program, runs[program]) for program in programs]


def _name(what: str) -> str:
    """Of a topic or group that nobody has used: also where the broker is not ours."""
    return f"benchmark-{what}-{os.getpid()}-{time.time_ns()}-{next(_names)}"


def _run(address: str, program: Program, topic: str, messages: int) -> Run:
    group, output = _name("group"), _name("output")
    if program.sends:
        asyncio.run(create_topic(address, output))
    try:
        run = _process(program, [program.mode, address, topic, output, group, str(messages)], messages)
        if program.sends:
            asyncio.run(check_output(address, topic, output, group, messages))
        return run
    finally:
        if program.sends:
            asyncio.run(delete_topic(address, output))


def _process(program: Program, arguments: Sequence[str], messages: int) -> Run:
    script = Path(__file__).parent / program.script
    command = [str(program.python), "-W", "ignore", str(script), *arguments]
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            printed, complained = process.communicate(timeout=_PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
    reports = [line for line in printed.splitlines() if line.startswith("{")]
    if process.returncode or not reports:
        raise RuntimeError(f"{program.name} ended with {process.returncode}:\n{printed}\n{complained}")
    facts = json.loads(reports[-1])
    seen, expected = (facts["count"], facts["cents"]), (messages, total_cents(messages))
    if seen != expected:
        raise AssertionError(f"{program.name} saw {seen} messages and cents, expected {expected}")
    first, end = facts["first"], facts["done" if program.sends else "last"]
    return Run(messages, end - first, facts["cpu"], first - begun, first - facts["started"], facts["peak"])
