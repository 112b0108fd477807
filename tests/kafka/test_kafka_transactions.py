"""What an error of a Kafka transaction says about its outcome, without a broker and on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import errors as kafka_errors

from famulus.channels.errors import BrokerUnavailable, ProduceError, TransportError
from famulus.kafka.bridge import Bridge
from famulus.kafka.transactions import KafkaTransactions
from famulus.kafka.url import parse_url


class Client:
    """Stands in for aiokafka's producer: one of its calls fails, or hangs."""

    def __init__(self, failing: str, error: Exception | None) -> None:
        self.failing, self.error = failing, error
        self.calls: list[str] = []
        self._txn_manager = self

    def is_fatal_error(self) -> bool:
        return False

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            if self.error is None:
                await asyncio.sleep(10_000)
            else:
                raise self.error

    async def begin_transaction(self) -> None:
        await self._call("begin")

    async def commit_transaction(self) -> None:
        await self._call("commit")

    async def stop(self) -> None:
        await self._call("stop")


async def failed(failing: str, error: Exception | None) -> TransportError:
    client = Client(failing, error)

    class Transactions(KafkaTransactions):
        async def _started(self) -> Any:
            return client

    async with Bridge().open() as bridge:
        transactions = Transactions(bridge, parse_url("kafka://localhost"), client_id="test", stop_timeout=1.0)
        with pytest.raises(TransportError) as caught:
            await transactions.transact({}, {}, group="g", owner=None, generation=1)
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind"),
    [(kafka_errors.KafkaConnectionError(), BrokerUnavailable), (kafka_errors.InvalidTxnState(), ProduceError)],
)
async def test_an_error_is_in_doubt_once_the_broker_was_asked_to_commit(
    error: Exception, kind: type[TransportError]
) -> None:
    certain = await failed("begin", error)
    assert isinstance(certain, kind)
    assert not certain.in_doubt
    doubtful = await failed("commit", error)
    assert isinstance(doubtful, kind)
    assert doubtful.in_doubt
    assert "nothing of it was written" not in str(doubtful)


async def test_a_transaction_without_an_answer_is_in_doubt() -> None:
    error = await failed("begin", None)
    assert isinstance(error, BrokerUnavailable)
    assert error.in_doubt
