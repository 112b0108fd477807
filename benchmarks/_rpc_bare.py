"""The programs of `rpc.py` with nothing but aiokafka on our bridge: a number is written to one topic, read from it in another
process, and its answer written to a second topic and read from that. There and back, and no more.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import trio
from _rpc_meter import WARM_UP, Meter, answer_to, ready, task
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from famulus.kafka.bridge import Bridge

job = task()
meter = Meter()


async def open_both(topic: str) -> tuple[Any, Any]:
    """A producer, and a consumer at the end of a topic."""
    producer = AIOKafkaProducer(bootstrap_servers=job.address)
    await producer.start()
    consumer = AIOKafkaConsumer(bootstrap_servers=job.address, enable_auto_commit=False)
    await consumer.start()
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    await consumer.seek_to_end(partition)
    await consumer.position(partition)
    return producer, consumer


async def numbers(consumer: Any) -> list[int]:
    """Those that come next."""
    batches = await consumer.getmany(timeout_ms=60_000)
    return [int(message.value) for messages in batches.values() for message in messages]


async def serve() -> None:
    producer, consumer = await open_both(job.topic)
    ready()
    while True:
        for number in await numbers(consumer):
            await producer.send(job.replies, b"%d" % answer_to(number), partition=0)


async def call() -> None:
    producer, consumer = await open_both(job.replies)

    async def ask(number: int) -> int:
        await producer.send(job.topic, b"%d" % number, partition=0)
        (answer,) = await numbers(consumer)
        return answer

    for number in range(WARM_UP):
        await ask(number)
    for number in range(job.asks):
        meter.ask()
        meter.answered(number, await ask(number))
    answers: list[object] = []
    for _ in meter.twice():
        answers.clear()
        for number in range(job.at_once):
            await producer.send(job.topic, b"%d" % number, partition=0)
        while len(answers) < job.at_once:
            answers += await numbers(consumer)
    meter.end_at_once(answers)
    meter.report(job)
    await asyncio.wait_for(consumer.stop(), 10)
    await asyncio.wait_for(producer.stop(), 10)


async def main() -> None:
    async with Bridge().open() as bridge:
        if job.role == "call":
            await bridge.call(call)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.call, serve)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
