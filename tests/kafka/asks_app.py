"""The app that the fault tests of calls run, as workers and as clients: ``square`` answers a number with its square.

``asks_app.py --broker URL worker`` is a worker, ``asks_app.py --broker URL client`` a client that asks without end until it
is interrupted. ``NUMBERS`` names the app, its group and its topic; the other variables are optional:

- ``NUMBERS_JOURNAL``: the file for ``pid partition offset number`` of each answer, in one write each, before it is given.
- ``ASKS_PACE``: seconds that an answer takes.
- ``ASKS_COUNT``: the worker asks so many itself, once its agent is up, and prints how they ended, as JSON.
- ``ASKS_FROM``: the first number that the worker or client asks.
- ``ASKS_NAME``: of the client, which has its answers under this name also after a restart.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator

import trio

import famulus

NAME = os.environ.get("NUMBERS", "asks")
JOURNAL = os.environ.get("NUMBERS_JOURNAL", os.devnull)
PACE = float(os.environ.get("ASKS_PACE", "0"))
COUNT = int(os.environ.get("ASKS_COUNT", "0"))
FROM = int(os.environ.get("ASKS_FROM", "0"))
CLIENT = os.environ.get("ASKS_NAME")
PATIENCE = 60.0  # seconds for one answer

app = famulus.App(NAME)
asks = app.topic(NAME, value_type=int)


@app.agent(asks, name="square")
async def square(stream: famulus.Stream[int]) -> AsyncIterator[int]:
    journal = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        async for event in stream.events():
            if PACE:
                await trio.sleep(PACE)
            message = event.message
            os.write(journal, b"%d %d %d %d\n" % (os.getpid(), message.partition, message.offset, event.value))
            yield event.value**2
    finally:
        os.close(journal)


class Asking:
    """Numbers are asked, and counted by how that ended."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()

    async def ask(self, number: int) -> None:
        try:
            with trio.fail_after(PATIENCE):
                answer = await square.ask(number, key=f"k{number % 64}")
        except famulus.AgentError:
            self.ended["refused"] += 1
        except trio.TooSlowError:
            self.ended["late"] += 1
        else:
            self.ended["answered" if answer == number**2 else "wrong"] += 1
            if self.ended.total() % 100 == 0:
                print(f"asked {self.ended.total()}", flush=True)


@app.task
async def ask_some() -> None:
    if COUNT:
        asking = Asking()
        async with trio.open_nursery() as nursery:
            for number in range(FROM, FROM + COUNT):
                nursery.start_soon(asking.ask, number)
        print(f"ended {json.dumps(asking.ended)}", flush=True)


async def until_interrupted(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT) as interrupts:
        print("asking", flush=True)
        async for _ in interrupts:
            scope.cancel()


async def be_client(broker: str) -> None:
    asking = Asking()
    async with famulus.open_client(app, broker=broker, consumer_group_instance_id=CLIENT) as client:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_interrupted, nursery.cancel_scope)
                slots = trio.CapacityLimiter(50)

                async def ask(number: int) -> None:
                    async with slots:
                        await asking.ask(number)

                number = FROM
                while True:
                    while slots.statistics().tasks_waiting < 10:
                        nursery.start_soon(ask, number)
                        number += 1
                        await trio.lowlevel.checkpoint()
                    await trio.sleep(0.001)
        finally:
            print(f"ended {json.dumps({**asking.ended, 'dropped': client.statistics().replies_dropped})}", flush=True)


def sockets() -> list[str]:
    """What this process is still connected to."""
    links: list[str] = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the directory itself was open while it was listed
            links.append(os.readlink(f"/proc/self/fd/{entry}"))
    return [link for link in links if link.startswith("socket:")]


def client(broker: str) -> None:
    """Until SIGINT. Then nothing may be left, and it says what is."""
    before = sockets()
    trio.run(be_client, broker)
    left = {"threads": threading.active_count() - 1, "sockets": len(set(sockets()) - set(before))}
    print(f"left {json.dumps(left)}", flush=True)


if __name__ == "__main__":
    if sys.argv[-1] == "client":
        client(sys.argv[2])
    else:
        app.main()
