"""The app of `broker.py`, and its processes: the sender, ``_broker_app.py URL NAME MESSAGES PAUSE``,
or the worker that waits, ``_broker_app.py URL NAME idle SECONDS``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import trio

import famulus

__all__ = ["PARTITIONS", "Order", "declare", "order", "send"]

PARTITIONS = 4


class Order(famulus.Record):
    """About 100 bytes of JSON; `sent` is a time, `time.monotonic()`, where that counts."""

    number: int
    account: str
    cents: int
    currency: str
    sent: float


def order(number: int, sent: float = 1234567.123456789) -> Order:
    return Order(number, f"account-{number % 1000:04}", 1250, "EUR", sent)


def declare(url: str, name: str, commit_interval: float = 0.1) -> tuple[famulus.App, famulus.Topic[Order]]:
    """The app `name`, whose topic has the same name."""
    app = famulus.App(name, broker=url, broker_commit_interval=commit_interval)
    return app, app.topic(name, value_type=Order, partitions=PARTITIONS)


async def send(
    topic: famulus.Topic[Order], messages: int, pause: float = 0.0, clock: Callable[[], float] = time.monotonic
) -> None:
    """Send the orders 0 to `messages` - 1, and wait for the last of each partition to be in the log."""
    receipts = []
    for number in range(messages):
        if pause:
            await trio.sleep(pause)
            sent = await topic.send(order(number, clock()), partition=number % PARTITIONS)
        else:
            sent = await topic.send(order(number), partition=number % PARTITIONS)
        if number >= messages - PARTITIONS:
            receipts.append(sent)
    for receipt in receipts:
        await receipt


async def sender(url: str, name: str, messages: int, pause: float) -> None:
    """Send, and print when it began."""
    app, topic = declare(url, name)
    async with famulus.open_app(app):
        print(time.monotonic(), flush=True)
        await send(topic, messages, pause)


async def idle(url: str, name: str, seconds: float) -> None:
    """Wait for messages with an agent, and print what part of a core that took, with the settings as they are by default."""
    app, topic = declare(url, name, commit_interval=3.0)

    @app.agent(topic)
    async def read(stream: famulus.Stream[Order]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app):
        await trio.sleep(1)  # what it does in the beginning
        begun = time.process_time()
        await trio.sleep(seconds)
        print((time.process_time() - begun) / seconds, flush=True)


if __name__ == "__main__":
    where, topic_name, what, number = sys.argv[1:]
    if what == "idle":
        trio.run(idle, where, topic_name, float(number))
    else:
        trio.run(sender, where, topic_name, int(what), float(number))
