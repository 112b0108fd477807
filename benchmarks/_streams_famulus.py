"""The programs of `streams.py` for Famulus: a worker that reads orders in one of several ways."""

from __future__ import annotations

import sys

from _kafka_meter import Meter, task

import famulus

job = task()
meter = Meter()
app = famulus.App(job.group, broker=f"kafka://{job.address}")


class Order(famulus.Record):
    number: int
    account: str
    cents: int
    currency: str
    placed: str


orders = app.topic(job.topic, value_type=Order)
copies = app.topic(job.output, value_type=Order)


def end() -> None:
    meter.see_last()
    app.stop()


async def read(stream: famulus.Stream[Order]) -> None:
    async for order in stream:
        if not meter.count:
            meter.see_first()
        meter.count += 1
        meter.cents += order.cents
        if meter.count == job.messages:
            end()


async def read_too(stream: famulus.Stream[Order]) -> None:
    """One of two agents: both count."""
    async for order in stream:
        if not meter.count:
            meter.see_first()
        meter.count += 1
        meter.cents += order.cents
        if meter.count == 2 * job.messages:
            end()


def account(order: Order) -> str:
    if not meter.first:
        meter.see_first()
    return order.account


async def group_by(stream: famulus.Stream[Order]) -> None:
    async for order in stream.group_by(account):
        meter.count += 1
        meter.cents += order.cents
        if meter.count == job.messages:
            end()


async def take(stream: famulus.Stream[Order]) -> None:
    async for some in stream.take(100, within=1):
        if not meter.count:
            meter.see_first()
        meter.count += len(some)
        meter.cents += sum([order.cents for order in some])
        if meter.count == job.messages:
            end()


async def echo(stream: famulus.Stream[Order]) -> None:
    async for order in stream.echo(copies):
        if not meter.count:
            meter.see_first()
        meter.count += 1
        meter.cents += order.cents
        if meter.count == job.messages:
            end()


if job.mode == "two agents":
    app.agent(orders, name="first")(read_too)
    app.agent(orders, name="second")(read_too)
else:
    app.agent(orders)({"read": read, "group_by": group_by, "take": take, "echo": echo}[job.mode])

if __name__ == "__main__":
    sys.argv[1:] = ["worker", "-l", "warning", "--no-banner"]
    meter.start()
    try:
        app.main()
    except SystemExit as ended:  # in order: what was sent is delivered, and the offsets are committed
        if ended.code:
            raise
    meter.report()
