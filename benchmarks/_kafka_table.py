"""The results of `kafka_agents.py` as tables, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from _bench import rate
from _kafka_runs import Result
from rich.console import Console
from rich.table import Table

__all__ = ["Section", "markdown", "show"]

HEADER = (
    "",
    "messages/s (median)",
    "lowest to highest",
    "Famulus is",
    "CPU per message",
    "peak memory",
    "first message after start of the process",
    "of the app",
)

Section = tuple[str, Sequence[Result]]
"""What was done, and the results; the first is Famulus's."""


def rows(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    ours = results[0]
    for result in results:
        messages = result.runs[0].messages
        fewer = "" if messages == ours.runs[0].messages else f" ({messages:,} messages)"
        yield (
            result.program.name + fewer,
            rate(result.median(lambda run: run.rate)),
            f"{rate(min(result.rates))} to {rate(max(result.rates))}",
            "" if result is ours else f"{ours.ratio(result):.2f} x",
            f"{result.median(lambda run: run.cpu / run.messages) * 1e6:.2f} µs",
            f"{max(run.peak for run in result.runs) / 1e6:.0f} MB",
            f"{result.median(lambda run: run.from_process):.2f} s",
            f"{result.median(lambda run: run.from_app):.2f} s",
        )


def show(machine: Mapping[str, str], sections: Sequence[Section], notes: Sequence[str]) -> None:
    """Print the facts, the tables and the notes."""
    console = Console(width=max(140, Console().width), highlight=False)
    for name, fact in machine.items():
        console.print(f"{name:12} {fact}")
    for title, results in sections:
        table = Table(*HEADER, title=title)
        for row in rows(results):
            table.add_row(*row)
        console.print(table)
    console.print(*notes, sep="\n")


def markdown(title: str, machine: Mapping[str, str], sections: Sequence[Section], notes: Sequence[str]) -> str:
    """The same as a section of a page."""
    lines = [f"## {title}", "", *(f"- {name}: {fact}" for name, fact in machine.items())]
    for what, results in sections:
        lines += ["", f"### {what}", "", _line(HEADER), "|---|---:|---:|---:|---:|---:|---:|---:|"]
        lines += map(_line, rows(results))
    lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
