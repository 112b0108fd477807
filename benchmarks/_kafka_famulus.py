"""The programs of `kafka_agents.py` for Famulus: a worker with one agent."""

from __future__ import annotations

import sys

from _kafka_meter import RAISE, Meter, task

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
raised = app.topic(job.output, value_type=Order)


async def read(stream: famulus.Stream[Order]) -> None:
    async for order in stream:
        if not meter.count:
            meter.see_first()
        meter.count += 1
        meter.cents += order.cents
        if meter.count == job.messages:
            meter.see_last()
            app.stop()


async def pipe(stream: famulus.Stream[Order]) -> None:
    async for order in stream:
        if not meter.count:
            meter.see_first()
        meter.count += 1
        meter.cents += order.cents
        order.cents += RAISE
        await raised.send(value=order)
        if meter.count == job.messages:
            meter.see_last()
            app.stop()


app.agent(orders)(read if job.mode == "read" else pipe)

if __name__ == "__main__":
    sys.argv[1:] = ["worker", "-l", "warning", "--no-banner"]
    meter.start()
    try:
        app.main()
    except SystemExit as ended:  # in order: what was sent is delivered, and the offsets are committed
        if ended.code:
            raise
    meter.report()
