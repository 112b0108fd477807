"""What a call from one agent to another costs: ``python benchmarks/rpc.py [--asks N] [--rounds N] [--write]``.

Inside one process: `ask` of an agent on a local channel and over a memory topic, beside a bare question from one trio task to
another and beside pykka. On Kafka: one process asks and another one answers, with Famulus, faust-streaming, and nothing but
aiokafka; one request after the other, then many at once. docs/benchmarks.md says what exactly is compared.
"""

from __future__ import annotations

import argparse
import logging
import platform
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

from _bench import Case, Tally, facts, markdown, measure, show, write_section
from _bench import Result as LocalResult
from _environments import PYKKA, interpreters, make_environment
from _kafka_broker import broker_at
from _rpc_runs import Load, Program, Result, compare
from _rpc_table import kafka_markdown, show_kafka
from in_process import ask, bare_ask, under_trio

import famulus
from famulus.testing.kafka_broker import KafkaBrokerError

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RIVALS = ("faust", "pykka", "raw")
SLOW = 0.2  # of the requests, for what is much slower than the others

BARE = "bare ask between two tasks"
LOCAL = "ask on a local channel"
MEMORY = "ask over a memory topic"
PYKKA_ASK = "pykka ask"
JOIN_LOCAL = "join on a local channel"
JOIN_MEMORY = "join over a memory topic"

OURS = "Famulus"
OURS_ALONE = "Famulus, the worker asks itself"
FAUST = "faust-streaming"
FAUST_ALONE = "faust-streaming, the worker asks itself"
HOPS = "bare: aiokafka there and back"

LEAST_OF_BARE = 0.7
MOST_OF_FAUST = 0.85
MOST_OF_HOPS = 1.25
LEAST_AT_ONCE = 20.0


# Inside one process.


async def join(messages: int, *, local: bool) -> float:
    """One `join` of so many values, from the call to the list of answers."""
    tally = Tally()
    async with famulus.open_app() as app:

        @app.agent(app.channel(value_type=int) if local else None)
        async def echo(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for number in stream:
                yield number

        await echo.ask(0)
        begun = perf_counter()
        answers = await echo.join(range(messages))
        seconds = perf_counter() - begun
    assert list(answers) == list(range(messages)), "the answers are not those to the values"
    tally.count, tally.checksum = len(answers), sum(answers)
    tally.verify(messages)
    return seconds


def pykka_ask(python: Path, messages: int) -> float:
    command = [str(python), str(Path(__file__).with_name("_rpc_pykka.py")), str(messages)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    seconds, count, checksum = ran.stdout.split()
    tally = Tally()
    tally.count, tally.checksum = int(count), int(checksum)
    tally.verify(messages)
    return float(seconds)


def cases(pykka: Path | None, *, asks: int, joined: int) -> list[Case]:
    """What is compared inside one process; the shares are of `asks`."""
    made = [
        Case(BARE, under_trio(bare_ask)),
        Case(LOCAL, under_trio(partial(ask, local=True)), against=BARE),
        Case(MEMORY, under_trio(partial(ask, local=False)), share=SLOW, against=BARE),
    ]
    if pykka is not None:
        made.append(Case(PYKKA_ASK, partial(pykka_ask, pykka), against=BARE))
    made.append(Case(JOIN_LOCAL, under_trio(partial(join, local=True)), share=joined / asks, against=BARE))
    made.append(Case(JOIN_MEMORY, under_trio(partial(join, local=False)), share=joined / asks, against=BARE))
    return made


def local_verdicts(results: Mapping[str, LocalResult]) -> Iterator[str]:
    """What was to be reached inside one process, and whether it was."""
    ours = results[LOCAL]
    of_bare = ours.ratio(results[BARE])
    yield f"{LOCAL}: at least {LEAST_OF_BARE:g} x {BARE}: {_verdict(of_bare >= LEAST_OF_BARE)}, {of_bare:.2f} x"
    if PYKKA_ASK in results:
        of_pykka = ours.ratio(results[PYKKA_ASK])
        yield f"{LOCAL}: faster than {PYKKA_ASK}: {_verdict(of_pykka > 1)}, {of_pykka:.2f} x"


# On Kafka.


def programs(found: Mapping[str, Path]) -> list[Program]:
    """What is compared on Kafka; Famulus first."""
    made = [Program(OURS, "_rpc_famulus.py", found["famulus"], joins=True)]
    if "faust" in found:
        made.append(Program(FAUST, "_rpc_faust.py", found["faust"]))
    if "raw" in found:
        made.append(Program(HOPS, "_rpc_bare.py", found["raw"]))
    made.append(Program(OURS_ALONE, "_rpc_famulus.py", found["famulus"], alone=True, joins=True))
    if "faust" in found:
        made.append(Program(FAUST_ALONE, "_rpc_faust.py", found["faust"], alone=True))
    return made


def kafka_verdicts(load: Load, results: Sequence[Result]) -> Iterator[str]:
    """What was to be reached on Kafka, and whether it was."""
    ours, by_name = results[0], {result.program.name: result for result in results}
    for name, most in ((FAUST, MOST_OF_FAUST), (HOPS, MOST_OF_HOPS)):
        if name in by_name:
            ratio = ours.ratio(by_name[name], lambda run: run.p50)
            yield f"{OURS}: p50 of a request at most {most:g} x {name}: {_verdict(ratio <= most)}, {ratio:.2f} x"
    if FAUST in by_name:
        ratio = ours.ratio(by_name[FAUST], lambda run: run.at_once)
        yield (
            f"{OURS}: {load.at_once:,} requests at once at least {LEAST_AT_ONCE:g} x {FAUST}: "
            f"{_verdict(ratio >= LEAST_AT_ONCE)}, {ratio:.2f} x"
        )


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


# Together.


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--asks", type=int, default=1000, help="on Kafka one after the other (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=2000, help="on Kafka at the same time (default: %(default)s)")
    parser.add_argument("--joined", type=int, default=100_000, help="values of one join (default: %(default)s)")
    parser.add_argument("--local-asks", type=int, default=20_000, help="in one process (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: %(default)s)")
    parser.add_argument("--broker", metavar="URL", help="a running Kafka; FAMULUS_TEST_KAFKA=host:port does the same")
    parser.add_argument("--only", action="append", choices=RIVALS, help="compare with this one; repeatable")
    parser.add_argument("--what", choices=("local", "kafka"), help="one half of it")
    parser.add_argument("--write", action="store_true", help=f"put the results into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if min(options.asks, options.at_once, options.joined, options.local_asks) < 100 or options.rounds < 1:
        parser.error("expected counts of at least 100 and --rounds of at least 1")
    if options.write and (options.only or options.what):
        parser.error("--write takes a whole run, without --only and --what")

    logging.getLogger("aiokafka").setLevel(logging.ERROR)  # it warns of topics that were just deleted
    rivals = options.only or RIVALS
    found, notes = interpreters([name for name in rivals if name != "pykka"])
    pykka = _pykka(notes) if "pykka" in rivals else None
    machine = facts("trio-asyncio", "aiokafka")
    local: dict[str, LocalResult] = {}
    kafka: list[Result] = []
    load = Load(options.asks, options.at_once, options.joined)
    about = [
        f"{options.rounds} rounds of {options.local_asks:,} requests, one after the other, inside one process; joins of "
        f"{options.joined:,} values"
    ]
    verdicts: list[str] = []
    if options.what != "kafka":
        compared = cases(pykka, asks=options.local_asks, joined=options.joined)
        local = measure(compared, messages=options.local_asks, rounds=options.rounds)
        verdicts += local_verdicts(local)
    if options.what != "local":
        try:
            with broker_at(options.broker) as (address, what):
                machine["broker"] = what
                kafka = compare(address, programs(found), load, rounds=options.rounds)
        except KafkaBrokerError as problem:
            parser.exit(1, f"{problem}\n")
        about.append(
            f"On Kafka {options.rounds} rounds of {load.asks:,} requests, one after the other, in a topic with 1 partition"
        )
        verdicts += kafka_verdicts(load, kafka)
    notes = [*about, *notes, *verdicts]
    if kafka:
        show_kafka(load, kafka)
    show(machine, local, notes)
    if options.write:
        title = f"Calls, Python {'.'.join(platform.python_version_tuple()[:2])}"
        section = markdown(title, machine, local, notes) + "\n" + kafka_markdown(load, kafka)
        write_section(PAGE, title, section)
        print(f"written to {PAGE}")


def _pykka(notes: list[str]) -> Path | None:
    python = make_environment(*PYKKA)
    if isinstance(python, str):
        notes.append(python)
        return None
    notes.append(f"pykka: {', '.join(PYKKA)}, on the same Python, in a process of its own")
    return python


if __name__ == "__main__":
    main()
