"""What the benchmarks share: cases measured side by side, the facts of the machine, and tables of the results."""

from __future__ import annotations

import gc
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

__all__ = ["Case", "Result", "Tally", "facts", "markdown", "measure", "rate", "show", "write_section"]

FACTS_OF = ("famulus", "trio", "orjson", "attrs")


class Tally:
    """What a consumer saw, so that no number stands for messages that nobody processed."""

    __slots__ = ("checksum", "count")

    def __init__(self) -> None:
        self.count = 0
        self.checksum = 0

    def verify(self, messages: int) -> None:
        """Check that the numbers 0 to `messages` - 1 were seen, each once.

        Raises:
            AssertionError: something was lost, or came twice.
        """
        expected = messages * (messages - 1) // 2
        if (self.count, self.checksum) != (messages, expected):
            raise AssertionError(
                f"saw {self.count} messages with sum {self.checksum}, expected {messages} with {expected}"
            )


@attrs.frozen
class Case:
    """One thing to measure.

    Attributes:
        name: in the tables.
        run: processes so many messages, checks that it did, and returns the seconds it took.
        share: of the messages that this case gets, where it is much slower or faster than the others.
        against: the name of the case that its ratio is taken to.
    """

    name: str
    run: Callable[[int], float]
    share: float = 1.0
    against: str = ""


@attrs.frozen
class Result:
    """The rates of a case, in messages per second, one for each round."""

    case: Case
    rates: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    def ratio(self, other: Result) -> float:
        """The median of the ratios of the rounds: a busy moment of the machine hits both sides of one."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True))


def measure(cases: Sequence[Case], *, messages: int, rounds: int) -> dict[str, Result]:
    """Run every case once per round, in turn, after one short round that does not count."""
    rates: dict[str, list[float]] = {case.name: [] for case in cases}
    for number in range(-1, rounds):
        for case in cases:
            amount = max(100, int(messages * case.share) // (10 if number < 0 else 1))
            gc.collect()
            seconds = case.run(amount)
            if number >= 0:
                rates[case.name].append(amount / seconds)
    return {case.name: Result(case, rates[case.name]) for case in cases}


def facts(*packages: str) -> dict[str, str]:
    """The machine, how busy it was, and the versions that the numbers belong to. Take them before measuring.

    Args:
        packages: whose versions count besides those of `FACTS_OF`.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory / 1e9:.0f} GB",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "system": platform.platform(terse=True),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in FACTS_OF + packages),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def rows(results: dict[str, Result]) -> list[tuple[str, str, str, str]]:
    """Name, median, span and ratio of each result."""
    made = []
    for name, result in results.items():
        against = results.get(result.case.against)
        ratio = "" if against is None else f"{result.ratio(against):.2f} x {against.case.name}"
        made.append((name, rate(result.median), f"{rate(min(result.rates))} to {rate(max(result.rates))}", ratio))
    return made


def rate(value: float) -> str:
    """Four digits are more than such numbers hold.

    >>> rate(123456.7)
    '123,500'
    """
    return f"{float(f'{value:.4g}'):,.0f}"


HEADER = ("", "messages/s (median)", "lowest to highest", "ratio (median)")


def show(machine: Mapping[str, str], results: dict[str, Result], notes: Sequence[str]) -> None:
    """Print the facts, the table and the notes."""
    console = Console(width=max(120, Console().width), highlight=False)
    for name, fact in machine.items():
        console.print(f"{name:12} {fact}")
    table = Table(*HEADER)
    for row in rows(results):
        table.add_row(*row)
    console.print(table, *notes, sep="\n")


def markdown(title: str, machine: Mapping[str, str], results: dict[str, Result], notes: Sequence[str]) -> str:
    """The same as a section of a page."""
    lines = [f"## {title}", ""]
    lines += [f"- {name}: {fact}" for name, fact in machine.items()]
    lines += ["", _line(HEADER), "|---|---:|---:|---|"]
    lines += [_line(row) for row in rows(results)]
    lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_section(page: Path, title: str, section: str) -> None:
    """Put a section into a page in place of the one with the same title, or at its end."""
    before, found, after = page.read_text().partition(f"## {title}\n")
    if found:
        _, heading, rest = after.partition("\n## ")
        after = heading.lstrip("\n") + rest
        page.write_text(before + section + ("\n" + after if after else ""))
    else:
        page.write_text(before.rstrip("\n") + "\n\n" + section)
