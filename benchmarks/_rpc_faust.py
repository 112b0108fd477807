"""The programs of `rpc.py` for faust-streaming, in an environment of its own: a worker with one agent, and a client of it."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from typing import Any

import faust  # type: ignore[import-not-found, unused-ignore]  # see `_environments.py`
from _rpc_meter import WARM_UP, Meter, answer_to, ready, task

job = task()
meter = Meter()
app = faust.App(
    job.name,
    broker=f"kafka://{job.address}",
    store="memory://",
    topic_partitions=1,
    topic_replication_factor=1,
    reply_create_topic=True,
    datadir=tempfile.mkdtemp(),
)


async def _answer(numbers: Any) -> Any:
    async for number in numbers:
        yield answer_to(number)


answer: Any = app.agent(app.topic(job.topic, value_type=int), name="answer")(_answer)


async def call() -> None:
    for number in range(WARM_UP):
        await answer.ask(number)
    for number in range(job.asks):
        meter.ask()
        meter.answered(number, await answer.ask(number))
    answers: list[object] = []
    for _ in meter.twice():
        answers = await asyncio.gather(*[answer.ask(number) for number in range(job.at_once)])
    meter.end_at_once(answers)
    meter.report(job)
    os._exit(0)  # stopping in order takes seconds, and is not measured


async def client() -> None:
    app.finalize()
    await app.start_client()
    await call()


async def worker() -> None:
    while not app.rebalancing and not app.consumer.assignment():
        await asyncio.sleep(0.1)
    if job.role == "both":
        await call()
    ready()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    if job.role == "call":
        asyncio.run(client())
    else:
        app.task(worker)
        sys.argv[1:] = ["worker", "--without-web", "-l", "warn"]
        app.main()
