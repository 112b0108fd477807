"""The app of the isolation test: one agent that is blocked by a file, one beside it that is free."""

import os

import trio

import famulus

NAME = os.environ.get("BLOCKED", "blocked")
GATE = os.environ.get("BLOCKED_GATE", "")
ALL, EACH = 300_001, 30_000


def there(path: str) -> bool:
    return os.path.exists(path)


app = famulus.App(NAME)
blocked = app.topic(f"{NAME}-blocked", value_type=bytes, value_serializer="raw")
free = app.topic(f"{NAME}-free", value_type=int)


@app.agent(blocked)
async def waits(stream: famulus.Stream[bytes]) -> None:
    seen: set[tuple[int, int]] = set()
    async for event in stream.events():
        if not seen:
            print("blocked now", flush=True)
        while there(GATE):
            await trio.sleep(0.05)
        message = event.message
        if (message.partition, message.offset) in seen:
            print("twice", message, flush=True)
        seen.add((message.partition, message.offset))
        if len(seen) == ALL:
            print(f"all {ALL}", flush=True)


@app.agent(free)
async def runs(stream: famulus.Stream[int]) -> None:
    count = 0
    async for _ in stream:
        count += 1
        if count == EACH:
            print(f"free {count}", flush=True)


if __name__ == "__main__":
    app.main()
