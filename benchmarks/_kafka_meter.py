"""What each program of `kafka_agents.py` and `streams.py` measures of itself. It runs in every rival's environment: nothing
but Python.

A program is started as ``python _kafka_X.py MODE HOST:PORT TOPIC OUTPUT GROUP MESSAGES``, with "read" or "pipe" for one,
processes that many messages, and prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

RAISE = 100
"""Cents that a program which reads, changes and sends adds to each order."""


class Task(NamedTuple):
    """What the command line says."""

    mode: str
    address: str
    topic: str
    output: str
    group: str
    messages: int


def task() -> Task:
    mode, address, topic, output, group, messages = sys.argv[1:]
    del sys.argv[1:]
    return Task(mode, address, topic, output, group, int(messages))


class Meter:
    """Counts and sums what a program sees, and keeps the times, all by the clock that processes share.

    Attributes:
        count, cents: the messages seen, and their sum.
        started: when the app was started; modules were imported before.
        first, last: when the first and the last message were seen.
        cpu: seconds that the process had computed by the first.
    """

    def __init__(self) -> None:
        self.count = self.cents = 0
        self.started = self.first = self.last = self.cpu = 0.0

    def start(self) -> None:
        self.started = time.monotonic()

    def see_first(self) -> None:
        self.first, self.cpu = time.monotonic(), time.process_time()

    def see_last(self) -> None:
        self.last = time.monotonic()

    def report(self) -> None:
        """Print it all, as of now: by now everything is done."""
        facts = {
            "count": self.count,
            "cents": self.cents,
            "started": self.started,
            "first": self.first,
            "last": self.last,
            "done": time.monotonic(),
            "cpu": time.process_time() - self.cpu,
            "peak": peak_memory(),
        }
        print(json.dumps(facts), file=sys.__stdout__, flush=True)  # Faust takes `sys.stdout` for its log


def peak_memory() -> int:
    """The most memory that this process had, in bytes: VmHWM, "high water mark"."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
