"""The app that the fault tests run as worker processes: it doubles numbers, and writes down each one that it has seen.

``NUMBERS`` names the app, its group and its topics; the other variables are optional:

- ``NUMBERS_JOURNAL``: the file for ``pid partition offset number`` of each event, in one write each.
- ``NUMBERS_PACE``: seconds that an event takes.
- ``NUMBERS_HOLD``: while this file exists, the event in hand waits, and it prints that it is held.
- ``NUMBERS_FEED``: so many messages of a kilobyte that each worker sends by itself to ``NUMBERS-fed``.
- ``NUMBERS_FEED_FROM``: it begins when this file is there.
"""

import os

import trio

import famulus

NAME = os.environ.get("NUMBERS", "numbers")
PACE = float(os.environ.get("NUMBERS_PACE", "0"))
HOLD = os.environ.get("NUMBERS_HOLD", "")
FEED = int(os.environ.get("NUMBERS_FEED", "0"))
FEED_FROM = os.environ.get("NUMBERS_FEED_FROM", "")
JOURNAL = os.environ.get("NUMBERS_JOURNAL", os.devnull)


def there(path: str) -> bool:
    return bool(path) and os.path.exists(path)


app = famulus.App(NAME)
numbers = app.topic(NAME, value_type=int)
doubled = app.topic(f"{NAME}-doubled", value_type=int)
fed = app.topic(f"{NAME}-fed", value_type=bytes, value_serializer="raw")


@app.agent(numbers)
async def double(stream: famulus.Stream[int]) -> None:
    journal = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        async for event in stream.events():
            if PACE:
                await trio.sleep(PACE)
            if there(HOLD):
                print("held", flush=True)
            while there(HOLD):
                await trio.sleep(0.02)
            await doubled.send(2 * event.value, key=event.key)
            message = event.message
            os.write(journal, b"%d %d %d %d\n" % (os.getpid(), message.partition, message.offset, event.value))
    finally:
        os.close(journal)


@app.task
async def feed() -> None:
    while FEED_FROM and not there(FEED_FROM):
        await trio.sleep(0.02)
    for number in range(FEED):
        await fed.send(b"%d".ljust(1000) % number)
    if FEED:
        print(f"fed {FEED}", flush=True)


if __name__ == "__main__":
    app.main()
