"""A shop of three agents that ask each other, with deadlines and a retry: ``python examples/orders.py``.

`checkout` asks `price` and `stock`. The supplier is silent when it is first asked for pears: the deadline passes, and
`price` is tried again. Plums run out: that failure goes through `checkout` to the customer, and the agents go on.
"""

import logging
from collections.abc import AsyncIterator

import trio

import famulus

app = famulus.App("orders", broker="memory://")  # "kafka://..." spreads the agents over machines


class Order(famulus.Record):
    customer: str
    item: str
    count: int


class Bill(famulus.Record):
    customer: str
    cents: int


async def supplier(item: str, attempt: int) -> int:
    """Cents for one. Stands for a service that others run."""
    await trio.sleep(60 if item == "pear" and attempt == 1 else 0.05)
    return {"apple": 30, "pear": 45}.get(item, 60)


@app.agent(name="price", concurrency=10, on_failure="retry", max_attempts=3, backoff=0.1)
async def price(stream: famulus.Stream[str]) -> AsyncIterator[int]:
    async for event in stream.events():
        with trio.fail_after(0.5):  # what takes longer has failed, and is tried again
            cents = await supplier(event.value, event.attempt)
        yield cents  # the answer to whoever asked; never inside a `with` of trio's


class Stock:
    """Orders of one item have one key, so one partition and one actor: they come in order, and need no lock."""

    def __init__(self, **left: int) -> None:
        self.left = left
        self.take = app.agent(name="stock", isolated_partitions=True, partitions=4)(self._take)

    async def _take(self, stream: famulus.Stream[Order]) -> AsyncIterator[int]:
        async for order in stream:
            if order.count > self.left[order.item]:
                raise LookupError(f"{self.left[order.item]} {order.item}s left")
            self.left[order.item] -= order.count
            yield self.left[order.item]


stock = Stock(apple=100, pear=10, plum=1)


def announce(bill: Bill) -> None:
    print(f"  {bill.customer} owes {bill.cents / 100:.2f}")


@app.agent(name="checkout", concurrency=10, sink=[announce])
async def checkout(stream: famulus.Stream[Order]) -> AsyncIterator[Bill]:
    async for order in stream:
        with trio.fail_after(3):  # each who asks has a deadline of its own: who gives up ends no one else's work
            cents = await price.ask(order.item)  # a type checker knows: an int
            await stock.take.ask(order, key=order.item)
        yield Bill(order.customer, order.count * cents)


async def main() -> None:
    logging.getLogger("famulus").setLevel(logging.CRITICAL)  # failures are expected here
    async with famulus.open_app(app):
        with trio.fail_after(10):
            bill = await checkout.ask(Order("ada", "apple", 3))
            print("one order:", bill.cents, "cents")

            orders = [Order("bob", "pear", 2), Order("cyd", "apple", 10), Order("dan", "plum", 1)]
            bills = await checkout.join(orders)  # all at once, answers in the order of the values
            print("three more:", sum(bill.cents for bill in bills), "cents; attempts lost:", price.info().retried)

            try:
                await checkout.ask(Order("eve", "plum", 1))
            except famulus.AgentError as error:
                print("no luck:", error)


if __name__ == "__main__":
    trio.run(main)
