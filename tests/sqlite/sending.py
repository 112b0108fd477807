"""Appends ``[sender, number]`` to the topic "sent" until it is killed, and writes down what was acknowledged.

``sending.py URL SENDER JOURNAL``; number n goes to partition n % 4.
"""

import json
import os
import random
import sys

import trio

from famulus.channels.message import TP, ProducerRecord
from famulus.channels.sqlite import SqliteTransport
from famulus.channels.transport import ProduceResult


async def main(url: str, sender: int, journal: str) -> None:
    chance = random.Random(sender)
    file = os.open(journal, os.O_WRONLY | os.O_APPEND)
    transport = SqliteTransport(url)
    number = 0
    async with transport.open():
        while True:
            batches: dict[TP, list[ProducerRecord]] = {}
            count = chance.choice((1, 4, 40, 4000))
            for one in range(number, number + count):
                record = ProducerRecord(None, json.dumps([sender, one]).encode())
                batches.setdefault(TP("sent", one % 4), []).append(record)
            outcome = await transport.produce(batches)
            assert all(isinstance(result, ProduceResult) for result in outcome.values()), outcome
            os.write(file, json.dumps(list(range(number, number + count))).encode() + b"\n")
            number += count


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3])
