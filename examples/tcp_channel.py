"""A channel over TCP: lines come in, and the number of each goes back when the agent is done with it.

python examples/tcp_channel.py worker      # listens on port 8765
python examples/tcp_channel.py client 10   # in another terminal: sends 10 orders and prints what is acknowledged
"""

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import trio

import famulus

PORT = int(os.environ.get("TCP_CHANNEL_PORT", "8765"))
LONGEST = 65536  # bytes of a line


class TCPChannel(famulus.Channel[Any]):
    """Each line is a number and a value, as in ``17 {"account": "ada", "cents": 1250}``; ``17`` goes back when it is done."""

    async def listen(self, intake: famulus.Intake, *, task_status: trio.TaskStatus[Any]) -> None:
        await trio.serve_tcp(partial(self.serve, intake), PORT, host="127.0.0.1", task_status=task_status)

    async def serve(self, intake: famulus.Intake, connection: trio.SocketStream) -> None:
        async with connection, intake.connection() as orders, aclosing(lines(connection)) as received:
            async for line in received:
                number, _, value = line.partition(b" ")
                await orders.deliver(value, key=number, on_ack=partial(connection.send_all, number + b"\n"))


async def lines(connection: trio.SocketStream) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for chunk in connection:
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            yield line
        if len(rest) > LONGEST:
            raise trio.BrokenResourceError(f"a line of more than {LONGEST} bytes")


class Order(famulus.Record):
    account: str
    cents: int


app = famulus.App("tcp-orders")


@app.agent(TCPChannel(app, "orders", value_type=Order, maxsize=100), on_failure="retry", max_attempts=3)
async def book(stream: famulus.Stream[Order]) -> None:
    async for order in stream:
        if order.cents < 0:
            raise ValueError(f"{order} takes money back")  # it is tried twice more, then it becomes a dead letter
        print(f"booked {order.cents} cents of {order.account}", flush=True)


async def client(count: int) -> None:
    """Sends again, over a new connection, what was not acknowledged over the last one."""
    unacked = {b"%d" % n: b'{"account": "ada", "cents": %d}' % n for n in range(1, count + 1)}
    while unacked:
        try:
            async with await trio.open_tcp_stream("127.0.0.1", PORT) as connection, trio.open_nursery() as nursery:
                nursery.start_soon(connection.send_all, b"".join(b"%b %b\n" % order for order in unacked.items()))
                async with aclosing(lines(connection)) as acks:
                    while unacked:
                        unacked.pop(number := await anext(acks), None)
                        print(f"acknowledged: {number.decode()}", flush=True)
        except* (OSError, trio.BrokenResourceError, StopAsyncIteration):
            print(f"the connection broke, {len(unacked)} orders to send again", flush=True)
            await trio.sleep(0.2)


if __name__ == "__main__":
    trio.run(client, int(sys.argv[2])) if sys.argv[1:2] == ["client"] else app.main()
