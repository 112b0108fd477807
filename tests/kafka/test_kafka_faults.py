"""The Kafka transport when the broker, a member or the network does not do its part: the contract, on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import ConnectionGroup
from aiokafka.protocol.group import JoinGroupRequest, LeaveGroupRequest
from aiokafka.structs import TopicPartition

from famulus.channels.message import TP
from famulus.channels.transport import Transport, TransportOptions
from famulus.kafka import KafkaTransport
from famulus.kafka.bridge import Bridge
from famulus.testing.contract import BrokerFaults, BrokerHarness, GroupMember
from famulus.testing.contract_faults import FaultContract
from famulus.testing.contract_readers import ReaderFaultContract
from famulus.testing.kafka_broker import KafkaBroker


class KafkaFaults(BrokerFaults):
    """What a real broker can be made to suffer, by signals to its process and by a second client."""

    def __init__(self, broker: KafkaBroker) -> None:
        self.broker = broker

    async def stop(self) -> None:
        await trio.to_thread.run_sync(self.broker.stop_process)

    async def start(self) -> None:
        await trio.to_thread.run_sync(self.broker.start_process)

    async def lose_member(self, group: str, client_id: str) -> None:
        """Say goodbye in its name: to the group it is the same as a session that has expired."""

        async def lose(admin: Any) -> None:
            member = next(member for member in await members(admin, group) if member["client_id"] == client_id)
            coordinator = await admin.find_coordinator(group)
            response = await admin._client.send(coordinator, LeaveGroupRequest(group, member["member_id"]))
            assert response.error_code == 0

        await self._as_admin(lose)

    async def rebalance(self, group: str) -> None:
        """Join the group, and be gone again before its members have noticed."""

        async def join_and_leave(admin: Any) -> None:
            coordinator = await admin.find_coordinator(group)
            (member, *_) = await members(admin, group)
            protocols = [("range", member["member_metadata"])]

            async def join(member_id: str) -> Any:
                dynamic: Any = None  # aiokafka's annotation forgets it
                request = JoinGroupRequest(group, 6000, 6000, member_id, dynamic, "consumer", protocols)
                return await admin._client.send(coordinator, request)

            name = (await join("")).member_id  # the first answer only gives us a name
            joining = asyncio.ensure_future(join(name))
            while (await state(admin, group)) == "Stable":
                await asyncio.sleep(0.01)
            leave = LeaveGroupRequest(group, name)
            assert (await admin._client.send(coordinator, leave, group=ConnectionGroup.COORDINATION)).error_code == 0
            await joining

        await self._as_admin(join_and_leave)

    def holding_produce(self, tp: TP, *, after_write: bool) -> AbstractAsyncContextManager[None]:
        """The whole broker stands still. Whether a write is in the log then, it decides itself."""
        return self._suspended()

    @asynccontextmanager
    async def _suspended(self) -> AsyncIterator[None]:
        self.broker.suspend()
        try:
            yield
        finally:
            self.broker.resume()

    async def skip_offsets(self, tp: TP, count: int) -> None:
        """An aborted transaction: its records are passed over by readers, and its marker takes the last offset."""

        async def abort() -> None:
            reader = AIOKafkaConsumer(bootstrap_servers=self.broker.address)
            producer = AIOKafkaProducer(bootstrap_servers=self.broker.address, transactional_id=f"skip-{tp}")
            await reader.start()
            await producer.start()
            try:
                partition = TopicPartition(*tp)
                end = (await reader.end_offsets([partition]))[partition]
                await producer.begin_transaction()
                for _ in range(count - 1):
                    await producer.send_and_wait(tp.topic, b"never", partition=tp.partition)
                await producer.abort_transaction()
                while (await reader.end_offsets([partition]))[partition] < end + count:  # the marker comes a bit later
                    await asyncio.sleep(0.01)
            finally:
                await producer.stop()
                await reader.stop()

        async with Bridge().open() as bridge:
            await bridge.call(abort)

    async def _as_admin(self, act: Callable[[Any], Awaitable[None]]) -> None:
        async def run() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.broker.address)
            await admin.start()
            try:
                await act(admin)
            finally:
                await admin.close()

        async with Bridge().open() as bridge:
            await bridge.call(run)


async def described(admin: Any, group: str) -> Any:
    (response,) = await admin.describe_consumer_groups([group])
    (answer,) = response.to_object()["groups"]
    return answer


async def members(admin: Any, group: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await described(admin, group))["members"]
    return found


async def state(admin: Any, group: str) -> str:
    found: str = (await described(admin, group))["state"]
    return found


class KafkaHarness(BrokerHarness):
    """Transports by class, so that they are found without an installed entry point."""

    def transport(self, client_id: str = "contract") -> Transport:
        return KafkaTransport(self.url, TransportOptions(client_id=client_id, default_partitions=4))


@pytest.mark.real_time
@pytest.mark.hard_timeout(120)
class TestKafkaTransportUnderFaults(FaultContract, ReaderFaultContract):
    without = {  # noqa: RUF012  # declared as a ClassVar in the base
        "refuse_commits": "a broker refuses no commit of a member that it knows",
        "fail_produce": "a broker does not fail one write of a healthy partition",
        "compact": "a broker compacts when it likes, and not which records one likes",
    }

    @pytest.fixture(autouse=True)
    def _broker(self, own_kafka_broker: KafkaBroker) -> None:
        self.broker = own_kafka_broker

    @asynccontextmanager
    async def member(
        self, broker: BrokerHarness, group: str, topics: Collection[str], *, client_id: str = "contract", **more: Any
    ) -> AsyncIterator[GroupMember]:
        """Heartbeats of "one", which gets the lowest partitions, are rare: others hear first that it is lost."""
        broker.session_timeout = 18.0 if client_id == "one" else 3.0  # a heartbeat each 6 s, and each second
        async with super().member(broker, group, topics, client_id=client_id, **more) as member:
            yield member

    @asynccontextmanager
    async def open_broker(self) -> AsyncIterator[BrokerHarness]:
        await trio.to_thread.run_sync(self.broker.start_process)  # where a test has failed with the broker stopped
        yield KafkaHarness(f"{self.broker.url}?metadata_max_age=1", faults=KafkaFaults(self.broker), patience=60.0)
