"""An agent that is declared while the app runs, and a question to it: ``python examples/hello.py``."""

from collections.abc import AsyncIterator

import trio

import famulus


async def main() -> None:
    async with famulus.open_app() as app:  # nothing configured: the broker lives in this process

        @app.agent()  # starts at once, supervised
        async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for n in stream:
                yield 2 * n  # the answer to whoever asked

        with trio.fail_after(10):  # deadlines belong to the caller
            answer = await double.ask(21)
        print(f"double(21) is {answer}")


if __name__ == "__main__":
    trio.run(main)
