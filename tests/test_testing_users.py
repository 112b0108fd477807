"""A user's own test, as the README of a shop would have it (PAIN row 18)."""

from collections.abc import AsyncIterator

import trio

import famulus
from famulus.testing import MemoryBroker, settle


async def test_pain_18_a_user_tests_without_a_broker_and_without_waiting() -> None:
    app = famulus.App("shop", broker="memory://pain-18")
    orders = app.topic("orders", value_type=int, partitions=2)
    seen: list[int] = []

    @app.agent(orders)
    async def tally(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for cents in stream:
            seen.append(cents)
            yield sum(seen)

    broker = MemoryBroker.named("pain-18")
    try:
        async with famulus.open_app(app):
            await orders.send(3)
            await settle()
            assert seen == [3]
            broker.faults.stop()
            await orders.send(4)
            await trio.sleep(60)  # virtual: over at once
            assert seen == [3]
            broker.faults.start()
        assert len(broker.messages("orders")) == 2
    finally:
        MemoryBroker.forget("pain-18")
