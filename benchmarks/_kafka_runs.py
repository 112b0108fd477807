"""Programs of `kafka_agents.py` and `streams.py` run side by side: each in a process of its own, checked, round by round."""

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
from _kafka_meter import RAISE
from _kafka_orders import (
    PARTITIONS,
    check_output,
    check_regrouped,
    create_topic,
    delete_topic,
    total_cents,
    write_orders,
)

__all__ = ["Program", "Result", "Run", "Stalled", "compare"]

_PATIENCE = 300.0  # seconds that a program may take
_WARM_UP = 0.1  # of the messages, in a round that does not count
_names = count()


@attrs.frozen
class Program:
    """One of those that are compared.

    Attributes:
        name: in the tables.
        script: the file, beside this one or anywhere.
        mode: what the script is asked to do: "read", "pipe" to read, change and send, "echo" to send on, "group_by", ...;
            with a variant behind a hyphen.
        python: the interpreter that has what it needs.
        share: of the messages that it gets, where it is much slower than the others.
        partitions: of the topic that it reads.
        readers: that get each message.
        faulty: it was seen to stop on its way, to see messages twice, or to commit what it should not. The first is
            reported in place of a result, the others beside it.
    """

    name: str
    script: str
    mode: str
    python: Path
    share: float = 1.0
    partitions: int = PARTITIONS
    readers: int = 1
    faulty: bool = False

    @property
    def sends(self) -> bool:
        return self.mode.startswith(("pipe", "echo"))


class Stalled(Exception):
    """A program ended before it had seen all."""


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


def compare(
    address: str, programs: Sequence[Program], *, messages: int, rounds: int, faults: list[str] | None = None
) -> list[Result]:
    """Run every program once per round, in turn, after one short round that does not count.

    Args:
        faults: takes a line for each fault of a faulty program. One that has stalled has no further rounds, and no result.
    """
    topics: dict[tuple[int, int], str] = {}
    faults = [] if faults is None else faults

    def topic_of(amount: int, partitions: int) -> str:
        key = amount, partitions
        if key not in topics:
            topics[key] = _name(f"orders-{amount}-{partitions}")
            asyncio.run(write_orders(address, topics[key], amount, partitions))
        return topics[key]

    runs: dict[Program, list[Run]] = {program: [] for program in programs}
    try:
        for number in range(-1, rounds):
            what = "warming up" if number < 0 else f"round {number + 1}/{rounds}"
            for program in list(runs):
                amount = max(100, int(messages * program.share * (_WARM_UP if number < 0 else 1)))
                try:
                    run = _run(address, program, topic_of(amount, program.partitions), amount, faults)
                except Stalled as problem:
                    faults.append(str(problem))
                    print(f"{what}: {program.mode}, {problem}", flush=True)
                    del runs[program]
                    continue
                print(f"{what}: {program.mode}, {program.name}: {run.rate:,.0f}/s", flush=True)
                if number >= 0:
                    runs[program].append(run)
    finally:
        for topic in topics.values():
            asyncio.run(delete_topic(address, topic))
    return [Result(program, done) for program, done in runs.items()]


def _name(what: str) -> str:
    """Of a topic or group that nobody has used: also where the broker is not ours."""
    return f"benchmark-{what}-{os.getpid()}-{time.time_ns()}-{next(_names)}"


def _run(address: str, program: Program, topic: str, messages: int, faults: list[str]) -> Run:
    group, output = _name("group"), _name("output")
    if program.sends:
        asyncio.run(create_topic(address, output))
    try:
        arguments = [program.mode, address, topic, output, group, str(messages)]
        run = _process(program, arguments, messages, faults)
        try:
            _check(address, program, topic, output, group, messages)
        except AssertionError as problem:
            if not program.faulty:
                raise
            faults.append(f"{program.name}: {problem}")
        return run
    finally:
        if program.sends:
            asyncio.run(delete_topic(address, output))


def _check(address: str, program: Program, topic: str, output: str, group: str, messages: int) -> None:
    """Look at what a program has left at the broker."""
    if program.sends:
        raised = RAISE if program.mode.startswith("pipe") else 0
        asyncio.run(check_output(address, topic, output, group, messages, raised=raised))
    elif program.mode == "group_by":
        asyncio.run(check_regrouped(address, topic, group, messages))


def _process(program: Program, arguments: Sequence[str], messages: int, faults: list[str]) -> Run:
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
    seen = facts["count"], facts["cents"]
    expected = program.readers * messages, program.readers * total_cents(messages)
    if program.faulty and seen[0] < expected[0]:
        waited = facts["done"] - facts["started"]
        raise Stalled(f"{program.name} stalled: after {waited:.0f} s it had seen {seen[0]:,} of {messages:,} messages")
    if seen != expected:
        problem = f"{program.name} saw {seen} messages and cents, expected {expected}"
        if not program.faulty:
            raise AssertionError(problem)
        faults.append(problem)
    first, end = facts["first"], facts["done" if program.sends else "last"]
    return Run(messages, end - first, facts["cpu"], first - begun, first - facts["started"], facts["peak"])
