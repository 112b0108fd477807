"""What streams do on a real Kafka beside others: ``python benchmarks/streams.py [--messages N] [--rounds N] [--write]``.

A local Kafka is started, or `--broker` names one. JSON orders lie in topics; each program is a consumer group of its
own in a process of its own, one program after the other, round by round: it regroups them by account, takes them by
the hundred, repeats them to another topic, gives them to two agents, or reads them from 1 to 64 partitions.
docs/benchmarks.md says what exactly is compared.
"""

from __future__ import annotations

import argparse
import logging
import platform
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from _bench import facts, write_section
from _environments import RIVALS, interpreters
from _kafka_broker import broker_at
from _kafka_orders import PARTITIONS, encoded
from _kafka_runs import Program, compare
from _kafka_table import Section, markdown, show

from famulus.testing.kafka_broker import KafkaBrokerError

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
SLOW = 0.1  # of the messages, for what is much slower than the others
FEW, MANY = 4, 64

OURS = "Famulus"
FAUST = "faust-streaming"
QUIX = "quixstreams"
RAW = "raw aiokafka loop"

TITLES: Mapping[str, str] = {
    "group_by": "group_by: through a topic keyed by account",
    "take": "take(100)",
    "echo": "echo to another topic; delivered and committed",
    "two-agents": "Two agents on one topic; each gets every message",
    "partitions": f"Read from 1 to {MANY} partitions",
}
TARGETS: Mapping[tuple[str, str], float] = {
    ("group_by", QUIX): 2,
    ("partitions", f"{OURS}, {FEW} partitions"): 0.9,
}


def programs(what: str, found: Mapping[str, Path]) -> list[Program]:
    """What is compared in one section, the first with all others."""
    ours = partial(Program, script="_streams_famulus.py", python=found["famulus"])
    if what == "partitions":
        return [*_over_partitions(ours, found)]
    mode = what.replace("-", " ")
    readers = 2 if what == "two-agents" else 1
    made = [ours(OURS, mode=mode, readers=readers)]
    if "faust" in found:
        made.append(Program(FAUST, "_streams_faust.py", mode, found["faust"], SLOW, readers=readers, faulty=True))
    if "quix" in found and what != "take":
        made.append(Program(QUIX, "_streams_quix.py", mode, found["quix"], readers=readers))
    return made


def _over_partitions(ours: Callable[..., Program], found: Mapping[str, Path]) -> Iterator[Program]:
    for count in (MANY, FEW, 1, 16):
        yield ours(
            f"{OURS}, {count} partitions" if count > 1 else f"{OURS}, 1 partition", mode="read", partitions=count
        )
    for name, key, script, share in (
        (FAUST, "faust", "_streams_faust.py", SLOW),
        (QUIX, "quix", "_streams_quix.py", 1),
        (RAW, "raw", "_kafka_raw.py", 1),
    ):
        if key in found:
            for count in (MANY, FEW):
                yield Program(
                    f"{name}, {count} partitions", script, "read", found[key], share, count, faulty=key == "faust"
                )


def verdicts(what: str, section: Section) -> Iterator[str]:
    """What was to be reached, and whether it was."""
    title, (ours, *others) = section
    for other in others:
        target = TARGETS.get((what, other.program.name))
        if target is not None:
            ratio = ours.ratio(other)
            reached = "reached" if ratio >= target else "missed"
            yield f"{title}: {ours.program.name} at least {target:g} x {other.program.name}: {reached}, {ratio:.2f} x"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=200_000, help="per run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: %(default)s)")
    parser.add_argument("--broker", metavar="URL", help="a running Kafka; FAMULUS_TEST_KAFKA=host:port does the same")
    parser.add_argument("--only", action="append", choices=RIVALS, help="compare with this one; repeatable")
    parser.add_argument("--what", action="append", choices=tuple(TITLES), help="this part of it; repeatable")
    parser.add_argument("--write", action="store_true", help=f"put the results into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.messages < 1000 or options.rounds < 1:
        parser.error("expected --messages of at least 1000 and --rounds of at least 1")
    if options.write and (options.only or options.what):
        parser.error("--write takes a whole run, without --only and --what")

    logging.getLogger("aiokafka").setLevel(logging.ERROR)  # it warns of topics that were just deleted
    found, about_rivals = interpreters(options.only or RIVALS)
    machine = facts("trio-asyncio", "aiokafka")
    sections: list[Section] = []
    faults: list[str] = []
    reached: list[str] = []
    try:
        with broker_at(options.broker) as (address, broker):
            machine["broker"] = broker
            for what in options.what or TITLES:
                compared = programs(what, found)
                found_wrong: list[str] = []
                results = compare(
                    address, compared, messages=options.messages, rounds=options.rounds, faults=found_wrong
                )
                faults += [f"{TITLES[what]}: {problem}" for problem in found_wrong]
                sections.append((TITLES[what], results))
                reached += verdicts(what, sections[-1])
    except KafkaBrokerError as problem:
        parser.exit(1, f"{problem}\n")
    about = (
        f"{options.rounds} rounds of {options.messages:,} orders of {len(encoded(123_456))} bytes, "
        f"in {PARTITIONS} partitions where nothing else is said"
    )
    notes = [about, *about_rivals, *faults, *reached]
    show(machine, sections, notes)
    if options.write:
        title = f"Streams on Kafka, Python {'.'.join(platform.python_version_tuple()[:2])}"
        write_section(PAGE, title, markdown(title, machine, sections, notes))
        print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
