"""What Famulus costs inside one process: ``python benchmarks/in_process.py [--messages N] [--rounds N] [--write]``.

Side by side, round by round: a bare trio memory channel, Famulus's memory topic and local channel, `ask`, and the
channel agent of faust-streaming in an environment that is made for it. Every consumer counts and sums what it sees.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import attrs
import trio
import trio.testing
from _bench import Case, Result, Tally, facts, markdown, measure, show, write_section
from _environments import FAUST, make_environment

import famulus
from famulus.channels.memory_broker import PRIVATE_MAX_RECORDS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
BUFFER = 1000
LOG_SIZE = 4 * PRIVATE_MAX_RECORDS  # of 4 partitions that nobody reads yet

BARE = "bare trio channel"
TOPIC = "memory topic → agent"
SENDING = "send → memory topic → agent"
CHANNEL = "local channel → agent"
BARE_ASK = "bare ask between two tasks"
ASK = "ask"
CHANNEL_ASK = "ask on a local channel"
FAUST_CHANNEL = "faust-streaming channel → agent"


class Order(famulus.Record):
    """About 100 bytes of JSON."""

    number: int
    account: str
    cents: int
    currency: str
    placed: str


def order(number: int) -> Order:
    return Order(number, f"account-{number % 1000:04}", 1250, "EUR", "2013-01-01T10:00:00Z")


# A memory channel of trio's, one item per hop.


async def bare_channel(messages: int) -> float:
    tally = Tally()
    send, receive = trio.open_memory_channel[int](BUFFER)

    async def produce() -> None:
        async with send:
            for number in range(messages):
                await send.send(number)

    begun = perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        async for number in receive:
            tally.count += 1
            tally.checksum += number
    seconds = perf_counter() - begun
    tally.verify(messages)
    return seconds


# Topics: encoded, stored, fetched in batches, decoded into a Record, acknowledged, committed.


class OrderReader:
    """Counts orders, and knows when it saw the first and the last."""

    def __init__(self, messages: int) -> None:
        self.tally = Tally()
        self.messages = messages
        self.begun = self.ended = 0.0
        self.done = trio.Event()

    async def read(self, orders: famulus.Stream[Order]) -> None:
        tally = self.tally
        async for order in orders:
            if not tally.count:
                self.begun = perf_counter()
            tally.count += 1
            tally.checksum += order.number
            if tally.count == self.messages:
                self.ended = perf_counter()
                self.done.set()


async def memory_topic(messages: int) -> float:
    """From the first event to the last; all are in the log when the agent comes."""
    async with famulus.open_app() as app:
        orders = app.topic("orders", value_type=Order, partitions=4)
        receipts = deque[famulus.FutureMessage](maxlen=4)
        for number in range(messages):
            receipts.append(await orders.send(order(number), partition=number % 4))
        for receipt in receipts:  # the last of each partition
            await receipt
        reader = OrderReader(messages)
        app.agent(orders)(reader.read)
        await reader.done.wait()
    reader.tally.verify(messages)
    return reader.ended - reader.begun


async def sending_to_memory_topic(messages: int) -> float:
    """From before the first send to the last event; sender and agent at the same time."""
    async with famulus.open_app() as app:
        orders = app.topic("orders", value_type=Order, partitions=4)
        reader = OrderReader(messages)
        app.agent(orders)(reader.read)
        await (await orders.send(order(0), partition=0))
        begun = perf_counter()
        for number in range(1, messages):
            await orders.send(order(number), partition=number % 4)
        await reader.done.wait()
    reader.tally.verify(messages)
    return reader.ended - begun


async def local_channel(messages: int) -> float:
    """The counterpart of the bare channel: from before the first send to the last event."""
    tally = Tally()
    done = trio.Event()
    async with famulus.open_app() as app:
        numbers = app.channel(value_type=int, maxsize=BUFFER)

        @app.agent(numbers)
        async def consume(stream: famulus.Stream[int]) -> None:
            async for number in stream:
                tally.count += 1
                tally.checksum += number
                if tally.count == messages:
                    done.set()

        await trio.testing.wait_all_tasks_blocked()
        begun = perf_counter()
        for number in range(messages):
            await numbers.send(number)
        await done.wait()
        seconds = perf_counter() - begun
    tally.verify(messages)
    return seconds


# Questions, each asked when the one before is answered.


@attrs.define(eq=False)
class Question:
    number: int
    answered: trio.Event = attrs.Factory(trio.Event)
    answer: int = 0


async def bare_ask(messages: int) -> float:
    tally = Tally()
    send, receive = trio.open_memory_channel[Question](BUFFER)

    async def answer() -> None:
        async for question in receive:
            question.answer = question.number
            question.answered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        begun = perf_counter()
        async with send:
            for number in range(messages):
                question = Question(number)
                await send.send(question)
                await question.answered.wait()
                tally.count += 1
                tally.checksum += question.answer
        seconds = perf_counter() - begun
    tally.verify(messages)
    return seconds


async def ask(messages: int, *, local: bool) -> float:
    tally = Tally()
    async with famulus.open_app() as app:

        @app.agent(app.channel(value_type=int) if local else None)
        async def echo(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for number in stream:
                yield number

        await echo.ask(0)
        begun = perf_counter()
        for number in range(messages):
            tally.checksum += await echo.ask(number)
            tally.count += 1
        seconds = perf_counter() - begun
    tally.verify(messages)
    return seconds


# faust-streaming, in its own environment and process.


def faust_channel(python: Path, messages: int) -> float:
    command = [str(python), "-W", "ignore", str(Path(__file__).with_name("_faust.py")), str(messages)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    seconds, count, checksum = ran.stdout.split()
    tally = Tally()
    tally.count, tally.checksum = int(count), int(checksum)
    tally.verify(messages)
    return float(seconds)


# Together.


def verdicts(results: dict[str, Result]) -> list[str]:
    """What was to be reached, and whether it was."""
    bare, topic, channel = results[BARE], results[TOPIC], results[CHANNEL]
    topic_reached = topic.median >= 150_000 or topic.ratio(bare) >= 1.4
    return [
        f"{TOPIC}, at least 150,000/s or 1.4 x {BARE}: {_verdict(topic_reached)}",
        f"{CHANNEL}, at least 0.8 x {BARE}: {_verdict(channel.ratio(bare) >= 0.8)}",
    ]


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


def under_trio(function: Callable[[int], Coroutine[Any, Any, float]]) -> Callable[[int], float]:
    return lambda messages: trio.run(function, messages)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=200_000, help="per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: %(default)s)")
    parser.add_argument("--no-faust", action="store_true", help="leave faust-streaming out")
    parser.add_argument("--write", action="store_true", help=f"put the results into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if not 100 <= options.messages <= LOG_SIZE:
        parser.error(
            f"--messages {options.messages}: expected 100 to {LOG_SIZE}, which a memory:// broker of a run keeps"
        )
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: expected at least 1")

    cases = [
        Case(BARE, under_trio(bare_channel)),
        Case(TOPIC, under_trio(memory_topic), against=BARE),
        Case(SENDING, under_trio(sending_to_memory_topic), share=0.5, against=BARE),
        Case(CHANNEL, under_trio(local_channel), against=BARE),
        Case(BARE_ASK, under_trio(bare_ask), share=0.2),
        Case(ASK, under_trio(partial(ask, local=False)), share=0.05, against=BARE_ASK),
        Case(CHANNEL_ASK, under_trio(partial(ask, local=True)), share=0.05, against=BARE_ASK),
    ]
    notes = [
        f"{options.rounds} rounds of {options.messages:,} messages; orders of {len(order(123_456).dumps())} bytes of JSON"
    ]
    faust = "left out, as asked" if options.no_faust else make_environment(*FAUST)
    if isinstance(faust, str):
        notes.append(f"faust-streaming: {faust}")
    else:
        cases.append(Case(FAUST_CHANNEL, partial(faust_channel, faust), share=0.1, against=BARE))
        notes.append(f"faust-streaming is {FAUST[0]} on the same Python, in a process of its own")
    machine = facts()
    results = measure(cases, messages=options.messages, rounds=options.rounds)
    notes += verdicts(results)
    show(machine, results, notes)
    if options.write:
        title = f"In one process, Python {'.'.join(platform.python_version_tuple()[:2])}"
        write_section(PAGE, title, markdown(title, machine, results, notes))
        print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
