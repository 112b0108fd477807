"""The channel agent of faust-streaming, in an environment of its own: ``python _faust.py MESSAGES``.

Prints seconds, count and checksum. No broker is involved: the agent runs without its app's worker.
"""

import asyncio
import sys
import time
from typing import Any

import faust  # type: ignore[import-not-found, unused-ignore]  # installed by in_process.py, not in our environment


async def main(messages: int) -> None:
    app = faust.App("benchmark", broker="kafka://", store="memory://", web_enabled=False)
    channel = app.channel(value_type=int, maxsize=1000)
    done = asyncio.Event()
    count = checksum = 0

    async def consume(stream: Any) -> None:
        nonlocal count, checksum
        async for number in stream:
            count += 1
            checksum += number
            if count == messages:
                done.set()

    agent = app.agent(channel)(consume)
    app.finalize()
    app.flow_control.resume()
    await agent.start()
    await asyncio.sleep(0.1)
    begun = time.perf_counter()
    for number in range(messages):
        await channel.send(value=number)
    await done.wait()
    print(time.perf_counter() - begun, count, checksum)
    await agent.stop()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
