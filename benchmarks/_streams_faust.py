"""The programs of `streams.py` for faust-streaming, in an environment of its own: a worker that reads orders.

`echo` and `group_by` of Faust do not await deliveries; its commit flushes the producer and does not ask what became
of the messages. A program that comes no further says after some seconds how far it came.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from typing import Any

import faust  # type: ignore[import-not-found, unused-ignore]  # see `_environments.py`
from _kafka_meter import Meter, task

PATIENCE = 30.0  # seconds without a further message

job = task()
meter = Meter()
app = faust.App(
    job.group,
    broker=f"kafka://{job.address}",
    store="memory://",
    consumer_auto_offset_reset="earliest",
    topic_partitions=4,
    topic_replication_factor=1,
    datadir=tempfile.mkdtemp(),
)
done = asyncio.Event()


class Order(faust.Record, serializer="json"):  # type: ignore[call-arg, misc, unused-ignore]
    number: int
    account: str
    cents: int
    currency: str
    placed: str


orders = app.topic(job.topic, value_type=Order)
copies = app.topic(job.output, value_type=Order)


def end() -> None:
    meter.see_last()
    done.set()


async def read(stream: Any) -> None:
    async for order in stream:
        if not meter.count:
            meter.see_first()
        meter.count += 1
        meter.cents += order.cents
        if meter.count == job.messages:
            end()


async def read_too(stream: Any) -> None:
    """One of two agents: both count."""
    async for order in stream:
        if not meter.count:
            meter.see_first()
        meter.count += 1
        meter.cents += order.cents
        if meter.count == 2 * job.messages:
            end()


def account(order: Any) -> Any:
    if not meter.first:
        meter.see_first()
    return order.account


async def group_by(stream: Any) -> None:
    async for order in stream.group_by(account, name="account"):
        meter.count += 1
        meter.cents += order.cents
        if meter.count == job.messages:
            end()


async def take(stream: Any) -> None:
    async for some in stream.take(100, within=1):
        if not meter.count:
            meter.see_first()
        meter.count += len(some)
        meter.cents += sum([order.cents for order in some])
        if meter.count == job.messages:
            end()


async def echo(stream: Any) -> None:
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


async def finish() -> None:
    waiting = asyncio.ensure_future(done.wait())
    seen = -1
    while not done.is_set() and meter.count > seen:
        seen = meter.count
        await asyncio.wait({waiting}, timeout=PATIENCE)
    if done.is_set() and job.mode in ("echo", "group_by"):
        await asyncio.sleep(0)  # the agent asks for the next message, which acknowledges the last
        await app.consumer.commit()
    meter.report()
    os._exit(0)  # stopping in order takes seconds, and is not measured


app.task(finish)

if __name__ == "__main__":
    sys.argv[1:] = ["worker", "--without-web", "-l", "warn"]
    meter.start()
    app.main()
