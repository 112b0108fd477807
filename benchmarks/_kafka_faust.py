"""The programs of `kafka_agents.py` for faust-streaming, in an environment of its own: a worker with one agent.

`pipe` awaits the delivery of each message before it goes on; `pipe-unawaited` leaves that to the commit, which
flushes the producer and does not ask what became of the messages.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from typing import Any

import faust  # type: ignore[import-not-found, unused-ignore]  # see `_environments.py`
from _kafka_meter import RAISE, Meter, task

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
raised = app.topic(job.output, value_type=Order)


async def read(stream: Any) -> None:
    async for order in stream:
        if not meter.count:
            meter.see_first()
        meter.count += 1
        meter.cents += order.cents
        if meter.count == job.messages:
            meter.see_last()
            done.set()


async def pipe(stream: Any) -> None:
    async for order in stream:
        if not meter.count:
            meter.see_first()
        meter.count += 1
        meter.cents += order.cents
        order.cents += RAISE
        sent = await raised.send(value=order)
        if job.mode == "pipe":
            await sent
        if meter.count == job.messages:
            meter.see_last()
            done.set()


app.agent(orders)(read if job.mode == "read" else pipe)


async def finish() -> None:
    await done.wait()
    if job.mode != "read":
        await asyncio.sleep(0)  # the agent asks for the next message, which acknowledges the last
        await app.consumer.commit()
    meter.report()
    os._exit(0)  # stopping in order takes seconds, and is not measured


app.task(finish)

if __name__ == "__main__":
    sys.argv[1:] = ["worker", "--without-web", "-l", "warn"]
    meter.start()
    app.main()
