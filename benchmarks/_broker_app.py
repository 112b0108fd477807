"""The app of `broker.py`, and the sender that runs in a process of its own: ``_broker_app.py URL NAME MESSAGES [PAUSE]``."""

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


def declare(url: str, name: str) -> tuple[famulus.App, famulus.Topic[Order]]:
    """The app `name`, whose topic has the same name."""
    app = famulus.App(name, broker=url, broker_commit_interval=0.1)
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


async def main(url: str, name: str, messages: int, pause: float) -> None:
    app, topic = declare(url, name)
    async with famulus.open_app(app):
        print(time.monotonic(), flush=True)
        await send(topic, messages, pause)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), float([*sys.argv, "0"][4]))
