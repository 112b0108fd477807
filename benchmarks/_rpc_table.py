"""The results of `rpc.py` on Kafka as a table, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from _bench import rate
from _rpc_runs import Load, Result
from rich.console import Console
from rich.table import Table

__all__ = ["kafka_markdown", "show_kafka"]


def _header(load: Load) -> tuple[str, ...]:
    return (
        "",
        "one after the other: p50",
        "p95",
        "p99",
        "CPU of who asks",
        "p50 of Famulus is",
        f"{load.at_once:,} at once, answers/s",
        "Famulus is",
        f"join of {load.joined:,}, values/s",
    )


def _rows(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    ours = results[0]
    for result in results:
        joined = [run.joined for run in result.runs if run.joined is not None]
        yield (
            result.program.name,
            *(f"{1e3 * seconds:.2f} ms" for seconds in _latencies(result)),
            f"{1e3 * result.median(lambda run: run.cpu):.2f} ms",
            "" if result is ours else f"{ours.ratio(result, lambda run: run.p50):.2f} x",
            rate(result.median(lambda run: run.at_once)),
            "" if result is ours else f"{ours.ratio(result, lambda run: run.at_once):.2f} x",
            rate(sorted(joined)[len(joined) // 2]) if joined else "",
        )


def _latencies(result: Result) -> tuple[float, float, float]:
    return (
        result.median(lambda run: run.p50),
        result.median(lambda run: run.p95),
        result.median(lambda run: run.p99),
    )


def show_kafka(load: Load, results: Sequence[Result]) -> None:
    """Print the table; the first result is Famulus's."""
    table = Table(*_header(load), title="On Kafka")
    for row in _rows(results):
        table.add_row(*row)
    console = Console(highlight=False)
    Console(width=max(140, console.width), highlight=False).print(table)


def kafka_markdown(load: Load, results: Sequence[Result]) -> str:
    """The same as a part of a page."""
    lines = ["### On Kafka", "", _line(_header(load)), "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    return "\n".join([*lines, *map(_line, _rows(results))]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
