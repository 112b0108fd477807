"""The contract of transports, as a test suite: whoever writes a transport subclasses `TransportContract`.

    class TestRedisTransport(TransportContract):
        @asynccontextmanager
        async def open_broker(self):
            async with some_redis() as port:
                yield BrokerHarness(f"redis://localhost:{port}")

The tests are methods (``async def test_...``), so pytest needs a plugin that runs those under trio, as
``famulus.testing.plugin`` does. They wait for conditions, bounded by the harness's `patience`: on virtual
time nothing really waits.

What a transport does not have, or what its broker cannot be ordered to do in tests, has to be said, with the reason:

    class TestRedisTransport(TransportContract):
        without = {
            "transactions": "Redis cannot write to several streams at once",
            "compact": "Redis has no compaction",
            "test_partitions_have_a_default": "a stream has one partition, always",
        }

These tests are skipped with their reason, which ``pytest -rs`` lists. What is missing and not named in `without` fails,
and so does a name there that is nothing of the suite's.

`open_broker` is entered once per test. A broker that is slow to start may be shared: names are never used
twice. It should not hold a nursery open around its `yield`, since a skipped test leaves it by an exception.
"""

from __future__ import annotations

from .contract_admin import AdminContract, TransactionContract
from .contract_commits import CommitContract
from .contract_faults import FaultContract
from .contract_groups import GroupContract
from .contract_kit import CAPABILITIES, BrokerHarness, GroupMember, Recorder
from .contract_logs import LogContract
from .contract_readers import ReaderContract, ReaderFaultContract
from .faults import BrokerFaults, MemoryBrokerFaults

__all__ = [
    "CAPABILITIES",
    "BrokerFaults",
    "BrokerHarness",
    "GroupMember",
    "MemoryBrokerFaults",
    "Recorder",
    "TransportContract",
]


class TransportContract(
    LogContract,
    ReaderContract,
    GroupContract,
    CommitContract,
    AdminContract,
    TransactionContract,
    FaultContract,
    ReaderFaultContract,
):
    """Everything that `famulus.channels.transport` promises. Override `open_broker`; `without` says what is not there."""
