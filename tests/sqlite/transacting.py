"""Doubles the numbers of "source" into "sink", outputs and offsets of each fetch in one transaction: ``transacting.py URL``."""

import sys

import trio

from famulus.channels.errors import CommitRefused
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.sqlite import SqliteTransport
from famulus.channels.transport import ConsumerOptions


class Listener:
    async def on_assigned(self, assignment: object) -> None:
        print("assigned", flush=True)

    async def on_revoked(self, revoked: object, *, lost: bool) -> None:
        await trio.lowlevel.checkpoint()


async def main(url: str) -> None:
    transport = SqliteTransport(url)
    async with transport.open(), transport.open_consumer(ConsumerOptions(group="doubling"), Listener()) as consumer:
        await consumer.subscribe(["source"])
        while True:
            for batch in await consumer.fetch(dict.fromkeys(consumer.assignment.partitions, 7)):
                outputs = [ProducerRecord(None, b"%d" % (2 * int(message.value or b""))) for message in batch.messages]
                try:
                    await transport.transact(
                        {TP("sink", batch.tp.partition): outputs},
                        {batch.tp: batch.next_offset},
                        group="doubling",
                        generation=batch.generation,
                    )
                except CommitRefused:
                    print("refused", flush=True)  # the partition is another's now, and so is what was fetched


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
