"""The contract of transports, as a test suite: whoever writes a transport subclasses `TransportContract`.

    class TestRedisTransport(TransportContract):
        @asynccontextmanager
        async def open_broker(self):
            async with some_redis() as port:
                yield BrokerHarness(f"redis://localhost:{port}")

The tests are methods (``async def test_...``), so pytest needs a plugin that runs those under trio, as
``famulus.testing.plugin`` does. They wait for conditions, bounded by the harness's `patience`: on virtual
time nothing really waits. A test of a fault that the harness cannot order is skipped.

`open_broker` is entered once per test. A broker that is slow to start may be shared: names are never used
twice. It should not hold a nursery open around its `yield`, since a skipped test leaves it by an exception.
"""

from __future__ import annotations

from .contract_admin import AdminContract, TransactionContract
from .contract_commits import CommitContract
from .contract_faults import FaultContract
from .contract_groups import GroupContract
from .contract_kit import BrokerHarness, GroupMember, Recorder
from .contract_logs import LogContract
from .faults import BrokerFaults, MemoryBrokerFaults

__all__ = [
    "BrokerFaults",
    "BrokerHarness",
    "GroupMember",
    "MemoryBrokerFaults",
    "Recorder",
    "TransportContract",
]


class TransportContract(LogContract, GroupContract, CommitContract, AdminContract, TransactionContract, FaultContract):
    """Everything that `famulus.channels.transport` promises. Override `open_broker`."""
