"""Transactions: batches and a group's offsets become visible together, or not at all.

One transactional producer per transport, started by the first transaction, for one transaction at a time. Its id is
the run's own, so what a frozen one leaves open is ended by the broker after its timeout.

What the client cannot do: tell the broker the group's generation with the offsets (KIP-447), so the broker does not
check it. It is checked here, last before the offsets are sent; a member that is frozen in between and thrown out
meanwhile may commit once more. Nor does it ask for stable offsets only: a new owner may see the offsets of before
a transaction that is completing at that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol
from uuid import uuid4

import attrs
import trio
from aiokafka import AIOKafkaProducer
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from ..channels.errors import BrokerUnavailable, ProduceError, TransportError
from ..channels.message import TP, ProducerRecord
from ..channels.transport import ProduceResult
from .bridge import Bridge
from .clients import start_client
from .errors import CALL_FAILURES, is_passing, translated
from .producer import make_producer
from .url import KafkaSettings
from .writing import fill

__all__ = ["KafkaTransactions"]


_POLL = 0.005  # seconds between two looks whether the offsets are visible


class Owner(Protocol):
    """Whose offsets are committed: a consumer of this transport."""

    def check_ownership(self, partitions: Collection[TP], generation: int) -> None:
        """Raise `CommitRefused` unless it owns them."""
        ...

    async def look_up(self, partitions: Collection[TP]) -> Mapping[TP, int | None]:
        """In asyncio: the group's committed offsets."""
        ...


@attrs.define
class _Progress:
    """Of one transaction: whether the broker may have been asked to commit it, so that an error leaves doubt."""

    committing: bool = False


class KafkaTransactions:
    """The transactions of one transport."""

    def __init__(self, bridge: Bridge, settings: KafkaSettings, *, client_id: str, stop_timeout: float) -> None:
        self._bridge = bridge
        self._settings = settings
        self._client_id = client_id
        self._stop_timeout = stop_timeout
        self._id = f"{client_id}-{uuid4()}"
        self._client: AIOKafkaProducer | None = None
        self._one_at_a_time = trio.Lock()

    async def transact(
        self,
        batches: Mapping[TP, Sequence[ProducerRecord]],
        offsets: Mapping[TP, int],
        *,
        group: str,
        owner: Owner | None,
        generation: int,
    ) -> dict[TP, ProduceResult]:
        """Write and commit what `owner` owns under this generation.

        Raises:
            CommitRefused: nothing was written.
            ProduceError, BrokerUnavailable: what was written is not visible, unless the error is `in_doubt`.
        """
        async with self._one_at_a_time:
            client = await self._started()
            progress = _Progress()
            call = self._bridge.start(
                self._transact, client, dict(batches), dict(offsets), group, owner, generation, progress
            )
            try:
                with trio.move_on_after(self._settings.produce_timeout):
                    return await call.wait()
                progress.committing = True  # perhaps it still comes to that
                raise BrokerUnavailable("the transaction got no answer in time; it is aborted if it was not complete")
            except TransportError as error:
                error.in_doubt = progress.committing
                raise
            except CALL_FAILURES as error:
                told = translated(error, "in a transaction")
                if not is_passing(error):
                    what = "whether it was written, the group's committed offsets tell"
                    what = what if progress.committing else "nothing of it was written"
                    told = ProduceError(f"in a transaction: {error!r}; {what}")
                told.in_doubt = progress.committing
                raise told from error
            finally:
                if not call.done or _is_broken(client):
                    # A new client with the same id ends what this one has left open.
                    self._client = None
                    self._bridge.start(client.stop)

    async def _started(self) -> AIOKafkaProducer:
        client = self._client
        if client is None:
            client = self._client = await start_client(
                self._bridge,
                self._make,
                AIOKafkaProducer.stop,
                settings=self._settings,
                doing="connecting for transactions",
            )
        return client

    def _make(self) -> AIOKafkaProducer:
        return make_producer(self._settings, self._client_id, transactional_id=self._id, retry_backoff_ms=20)

    async def close(self) -> None:
        """Disconnect, within the time there is."""
        client, self._client = self._client, None
        if client is not None:
            await self._bridge.try_call(self._stop_timeout, client.stop)

    # -- in asyncio, never cancelled -----------------------------------------------------------------------

    async def _transact(
        self,
        client: AIOKafkaProducer,
        batches: Mapping[TP, Sequence[ProducerRecord]],
        offsets: Mapping[TP, int],
        group: str,
        owner: Owner | None,
        generation: int,
        progress: _Progress,
    ) -> dict[TP, ProduceResult]:
        await client.begin_transaction()
        try:
            waiting: dict[TP, asyncio.Future[Any]] = {}
            for tp, records in batches.items():
                builder = client.create_batch()
                fill(builder, records)
                waiting[tp] = await client.send_batch(builder, tp.topic, partition=tp.partition)
            receipts = dict(zip(waiting, await asyncio.gather(*waiting.values()), strict=True))
            if owner is not None and offsets:
                owner.check_ownership(offsets, generation)
                await client.send_offsets_to_transaction(
                    {TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}, group
                )
        except Exception:
            with suppress(*CALL_FAILURES):
                await client.abort_transaction()
            raise
        progress.committing = True
        await client.commit_transaction()
        if owner is not None:
            # Complete is not visible yet: the coordinator writes its markers a moment later.
            while await owner.look_up(offsets) != offsets:
                await asyncio.sleep(_POLL)
        return {
            tp: ProduceResult(receipt.offset, receipt.timestamp / 1000 if receipt.timestamp_type == 1 else None)
            for tp, receipt in receipts.items()
        }


def _is_broken(client: AIOKafkaProducer) -> bool:
    inside: Any = client  # aiokafka has no types for its inside
    return bool(inside._txn_manager.is_fatal_error())
