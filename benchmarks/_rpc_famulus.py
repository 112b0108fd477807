"""The programs of `rpc.py` for Famulus: a run with one agent, and a client of it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import trio
from _rpc_meter import WARM_UP, Meter, answer_to, ready, task

import famulus

job = task()
meter = Meter()
app = famulus.App(job.name, broker=f"kafka://{job.address}")


@app.agent(app.topic(job.topic, value_type=int))
async def answer(numbers: famulus.Stream[int]) -> AsyncIterator[int]:
    async for number in numbers:
        yield answer_to(number)


async def call() -> None:
    for number in range(WARM_UP):
        await answer.ask(number)
    for number in range(job.asks):
        meter.ask()
        meter.answered(number, await answer.ask(number))
    answers: list[object] = [None] * job.at_once

    async def one(number: int) -> None:
        answers[number] = await answer.ask(number)

    for _ in meter.twice():
        async with trio.open_nursery() as nursery:
            for number in range(job.at_once):
                nursery.start_soon(one, number)
    meter.end_at_once(answers)
    if job.joined:
        meter.begin()
        joined = await answer.join(range(job.joined))
        meter.end_join([*joined])
    meter.report(job)


async def main() -> None:
    if job.role == "call":
        async with famulus.open_client(app):
            await call()
        return
    async with famulus.open_app(app):
        if job.role == "both":
            await call()
        else:
            ready()
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    trio.run(main)
