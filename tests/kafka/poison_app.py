"""The app that a fault test runs as a worker process: among good numbers some fail once, and some always.

Variables as for `numbers_app.py`: ``NUMBERS``, ``NUMBERS_JOURNAL``. What is given up is written down at its last attempt.
"""

import os

import trio

import famulus

NAME = os.environ.get("NUMBERS", "numbers")
JOURNAL = os.environ.get("NUMBERS_JOURNAL", os.devnull)
ATTEMPTS = 3

app = famulus.App(NAME)
numbers = app.topic(NAME, value_type=int)


def failures(number: int) -> int:
    """How often a number fails before it does not."""
    return ATTEMPTS if number % 40 == 7 else 1 if number % 40 == 21 else 0


@app.agent(
    numbers,
    on_failure="retry",
    max_attempts=ATTEMPTS,
    supervisor_strategy=famulus.OneForOneSupervisor(
        max_restarts=float("inf"), backoff=famulus.Backoff(min=0.05, max=0.2)
    ),
)
async def work(stream: famulus.Stream[int]) -> None:
    journal = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        async for event in stream.events():
            await trio.sleep(0.001)
            fails = event.attempt <= failures(event.value)
            if not fails or event.attempt == ATTEMPTS:
                message = event.message
                os.write(journal, b"%d %d %d %d\n" % (os.getpid(), message.partition, message.offset, event.value))
            if fails:
                raise ValueError(f"number {event.value}, attempt {event.attempt}")
    finally:
        os.close(journal)


if __name__ == "__main__":
    app.main()
