"""The memory transport keeps the contract of transports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from famulus.channels.memory import MemoryBroker
from famulus.testing.contract import BrokerHarness, MemoryBrokerFaults, TransportContract

NAMES = count(1)


class TestMemoryTransport(TransportContract):
    auto_create = True

    @asynccontextmanager
    async def open_broker(self) -> AsyncIterator[BrokerHarness]:
        broker = MemoryBroker(f"contract-{next(NAMES)}", auto_create=self.auto_create).register()
        try:
            yield BrokerHarness(
                f"memory://{broker.name}",
                faults=MemoryBrokerFaults(broker),
                creates_missing_topics=self.auto_create,
            )
            assert broker.statistics().members == 0
        finally:
            MemoryBroker.forget(broker.name)


class TestMemoryTransportThatCreatesNothing(TestMemoryTransport):
    auto_create = False
