"""The Kafka transport keeps the contract of transports, on a real broker. Faults: `test_kafka_faults.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from famulus.channels.transport import Transport, TransportOptions
from famulus.kafka import KafkaTransport
from famulus.testing.contract import BrokerHarness
from famulus.testing.contract_admin import AdminContract, TransactionContract
from famulus.testing.contract_commits import CommitContract
from famulus.testing.contract_groups import GroupContract
from famulus.testing.contract_logs import LogContract
from famulus.testing.contract_readers import ReaderContract
from famulus.testing.kafka import RunningKafka


class KafkaHarness(BrokerHarness):
    """Transports by class, so that they are found without an installed entry point."""

    def transport(self, client_id: str = "contract") -> Transport:
        return KafkaTransport(self.url, TransportOptions(client_id=client_id, default_partitions=4))


@pytest.mark.real_time
@pytest.mark.hard_timeout(90)
class TestKafkaTransport(
    LogContract, ReaderContract, GroupContract, CommitContract, AdminContract, TransactionContract
):
    @pytest.fixture(autouse=True)
    def _broker(self, kafka_broker: RunningKafka) -> None:
        self.url = f"{kafka_broker.url}?metadata_max_age=1"

    @asynccontextmanager
    async def open_broker(self) -> AsyncIterator[BrokerHarness]:
        yield KafkaHarness(self.url, patience=30.0)
