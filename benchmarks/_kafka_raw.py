"""The programs of `kafka_agents.py` for bare aiokafka: the least that reads JSON orders, and sends them on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
from _kafka_meter import RAISE, Meter, Task, task
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer


async def read(job: Task, meter: Meter, consumer: Any) -> None:
    loads = json.loads if job.mode == "read-json" else orjson.loads
    # One alone, so that the clock starts before the first batch is unpacked and not after it.
    batches = {None: [await consumer.getone()]}
    meter.see_first()
    while True:
        for messages in batches.values():
            for message in messages:
                order = loads(message.value)
                meter.count += 1
                meter.cents += order["cents"]
        if meter.count == job.messages:
            break
        batches = await consumer.getmany(timeout_ms=1000)
    meter.see_last()


async def pipe(job: Task, meter: Meter, consumer: Any) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=job.address)
    await producer.start()
    batches = {None: [await consumer.getone()]}
    meter.see_first()
    while True:
        deliveries = []
        for messages in batches.values():
            for message in messages:
                order = orjson.loads(message.value)
                meter.count += 1
                meter.cents += order["cents"]
                order["cents"] += RAISE
                deliveries.append(await producer.send(job.output, orjson.dumps(order)))
        for delivery in deliveries:
            await delivery
        await consumer.commit()
        if meter.count == job.messages:
            break
        batches = await consumer.getmany(timeout_ms=1000)
    meter.see_last()
    await producer.stop()


async def main() -> None:
    job, meter = task(), Meter()
    meter.start()
    consumer = AIOKafkaConsumer(
        job.topic,
        bootstrap_servers=job.address,
        group_id=job.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    await (pipe if job.mode == "pipe" else read)(job, meter, consumer)
    meter.report()
    await consumer.stop()


if __name__ == "__main__":
    asyncio.run(main())
