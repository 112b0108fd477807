"""Famulus on a real Kafka beside others: ``python benchmarks/kafka_agents.py [--messages N] [--rounds N] [--write]``.

A local Kafka is started, or `--broker` names one. JSON orders lie in a topic of 4 partitions; each program reads them
as a consumer group of its own, in a process of its own, one program after the other, round by round. Then each reads
them, changes them and sends them on to another topic. docs/benchmarks.md says what exactly is compared.
"""

from __future__ import annotations

import argparse
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from _bench import facts, write_section
from _environments import RIVALS, interpreters
from _kafka_broker import broker_at
from _kafka_orders import PARTITIONS, encoded
from _kafka_runs import Program, Result, compare
from _kafka_table import Section, markdown, show

from famulus.testing.kafka_broker import KafkaBrokerError

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
SLOW = 0.1  # of the messages, for what is much slower than the others

OURS = "Famulus agent"
FAUST_AGENT = "faust-streaming agent"
UNAWAITED = "the same, deliveries not awaited"
QUIX_APP = "quixstreams app"
RAW = "raw aiokafka loop"
RAW_JSON = "the same, json instead of orjson"

READ = "Read"
PIPE = "Read, change, send; delivered and committed"
TARGETS: Mapping[tuple[str, str], float] = {
    (READ, FAUST_AGENT): 25,
    (READ, QUIX_APP): 2,
    (READ, RAW): 0.75,
    (PIPE, FAUST_AGENT): 40,
    (PIPE, QUIX_APP): 2,
}
MOST_MEMORY = 120e6  # bytes


def programs(found: Mapping[str, Path]) -> dict[str, list[Program]]:
    """What is compared, by section; Famulus first."""
    made: dict[str, list[Program]] = {READ: [], PIPE: []}
    for section, mode in ((READ, "read"), (PIPE, "pipe")):
        add = made[section].append
        add(Program(OURS, "_kafka_famulus.py", mode, found["famulus"]))
        if "faust" in found:
            make = partial(Program, script="_kafka_faust.py", python=found["faust"], share=SLOW)
            add(make(FAUST_AGENT, mode=mode))
            if section == PIPE:
                add(make(UNAWAITED, mode="pipe-unawaited"))
        if "quix" in found:
            add(Program(QUIX_APP, "_kafka_quix.py", mode, found["quix"]))
        if "raw" in found:
            add(Program(RAW, "_kafka_raw.py", mode, found["raw"]))
            if section == READ:
                add(Program(RAW_JSON, "_kafka_raw.py", "read-json", found["raw"]))
    return made


def verdicts(sections: Sequence[Section]) -> Iterator[str]:
    """What was to be reached, and whether it was."""
    for title, (ours, *others) in sections:
        for other in others:
            target = TARGETS.get((title, other.program.name))
            if target is not None:
                ratio = ours.ratio(other)
                yield f"{title}: at least {target:g} x {other.program.name}: {_verdict(ratio >= target)}, {ratio:.2f} x"
        peak = max(run.peak for run in ours.runs)
        yield f"{title}: peak memory below {MOST_MEMORY / 1e6:.0f} MB: {_verdict(peak < MOST_MEMORY)}, {peak / 1e6:.0f} MB"
        for other in others:
            if title == READ and other.program.name == FAUST_AGENT:
                yield from _starts(ours, other)


def _starts(ours: Result, faust: Result) -> Iterator[str]:
    for since, of in (("process", lambda run: run.from_process), ("app", lambda run: run.from_app)):
        mine, theirs = ours.median(of), faust.median(of)
        yield (
            f"{READ}: first message after start of the {since} no later than with {FAUST_AGENT}: "
            f"{_verdict(mine <= theirs)}, {mine:.2f} s and {theirs:.2f} s"
        )


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=200_000, help="per run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: %(default)s)")
    parser.add_argument("--broker", metavar="URL", help="a running Kafka; FAMULUS_TEST_KAFKA=host:port does the same")
    parser.add_argument("--only", action="append", choices=RIVALS, help="compare with this one; repeatable")
    parser.add_argument("--what", choices=("read", "pipe"), help="one half of it")
    parser.add_argument("--write", action="store_true", help=f"put the results into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.messages < 100 or options.rounds < 1:
        parser.error("expected --messages of at least 100 and --rounds of at least 1")
    if options.write and (options.only or options.what):
        parser.error("--write takes a whole run, without --only and --what")

    logging.getLogger("aiokafka").setLevel(logging.ERROR)  # it warns of topics that were just deleted
    found, notes = interpreters(options.only or RIVALS)
    compared = programs(found)
    if options.what:
        del compared[PIPE if options.what == "read" else READ]
    machine = facts("trio-asyncio", "aiokafka")
    try:
        with broker_at(options.broker) as (address, what):
            machine["broker"] = what
            sections = [
                (title, compare(address, chosen, messages=options.messages, rounds=options.rounds))
                for title, chosen in compared.items()
            ]
    except KafkaBrokerError as problem:
        parser.exit(1, f"{problem}\n")
    about = f"{options.rounds} rounds of {options.messages:,} orders of {len(encoded(123_456))} bytes in {PARTITIONS} partitions"
    notes = [about, *notes, *verdicts(sections)]
    show(machine, sections, notes)
    if options.write:
        title = f"On Kafka, Python {'.'.join(platform.python_version_tuple()[:2])}"
        write_section(PAGE, title, markdown(title, machine, sections, notes))
        print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
