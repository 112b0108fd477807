"""What each program of `rpc.py` shares, whatever it calls with. It runs in every rival's environment: nothing but Python.

A program is started as ``python _rpc_X.py ROLE HOST:PORT NAME ASKS AT_ONCE JOINED``. As "serve" it answers, prints "ready" and
goes on until its input ends. As "call" it asks another process, as "both" itself, and prints one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

WARM_UP = 50
"""Requests that do not count, one after the other."""


class Task(NamedTuple):
    """What the command line says.

    Attributes:
        name: of this comparison's app and topics at the broker; nobody has used it before.
        asks: requests one after the other.
        at_once: requests that wait at the same time, all sent before the first answer is looked at.
        joined: values of one `join`; 0 leaves it out.
    """

    role: str
    address: str
    name: str
    asks: int
    at_once: int
    joined: int

    @property
    def topic(self) -> str:
        return f"{self.name}-requests"

    @property
    def replies(self) -> str:
        return f"{self.name}-replies"


def task() -> Task:
    role, address, name, asks, at_once, joined = sys.argv[1:]
    del sys.argv[1:]
    return Task(role, address, name, int(asks), int(at_once), int(joined))


def answer_to(number: int) -> int:
    """What every program answers."""
    return 2 * number + 1


class Meter:
    """Keeps what was measured, and lets no number stand for an answer that nobody got."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.at_once = self.join = 0.0
        self._asked = self._begun = self._cpu = self._cpu_begun = 0.0

    def ask(self) -> None:
        """A request is about to be made."""
        if not self.seconds:
            self._cpu_begun = time.process_time()
        self._asked = time.perf_counter()

    def answered(self, number: int, answer: object) -> None:
        """Its answer is there."""
        self.seconds.append(time.perf_counter() - self._asked)
        self._cpu = time.process_time() - self._cpu_begun
        check(number, answer)

    def begin(self) -> None:
        """Many requests are about to be made."""
        self._begun = time.perf_counter()

    def twice(self) -> Iterator[None]:
        """For many requests at once: the first time warms up, as the first ones one after the other do; the second counts."""
        yield
        self.begin()
        yield

    def end_at_once(self, answers: list[object]) -> None:
        self.at_once = time.perf_counter() - self._begun
        check_all(answers)

    def end_join(self, answers: list[object]) -> None:
        self.join = time.perf_counter() - self._begun
        check_all(answers)

    def report(self, job: Task) -> None:
        """Print it all."""
        assert len(self.seconds) == job.asks, f"{len(self.seconds)} answers for {job.asks} requests"
        hundredths = statistics.quantiles(self.seconds, n=100)
        facts = {
            "p50": hundredths[49],
            "p95": hundredths[94],
            "p99": hundredths[98],
            "cpu": self._cpu / job.asks,
            "at_once": job.at_once / self.at_once,
            "joined": job.joined / self.join if self.join else None,
        }
        print(json.dumps(facts), file=sys.__stdout__, flush=True)  # Faust takes `sys.stdout` for its log


def check(number: int, answer: object) -> None:
    assert answer == answer_to(number), f"{number} was answered {answer!r}"


def check_all(answers: list[object]) -> None:
    for number, answer in enumerate(answers):
        check(number, answer)


def ready() -> None:
    """Say that requests are answered from now on."""
    print("ready", file=sys.__stdout__, flush=True)
