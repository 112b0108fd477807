"""What we use of the inside of aiokafka's group membership. What all that read use of it stands in `reading.py`, the
records in `records.py`: everything private is in these three, each piece with its reason.

Written for aiokafka 0.14; `tests/kafka` fails where a release changes one of these. Why at all:

- Commits: `commit()` sends whatever generation the coordinator has by then. A commit held back over a rebalance was
  seen to be accepted for a partition that the member no longer owned.
- Committed offsets: since version 2 of the answer a group's error stands beside its partitions, where `aiokafka` does
  not look. While a coordinator is loading, it took the group for one that has committed nothing, and began anew.
- Patterns: a subscription by pattern that matches what was subscribed to before is no new one to the client, so nothing
  tells when it stands. We say at once which topics match.
- Static membership: a member that the broker no longer knows joins anew, and so evicts the one that replaced it.
- Connections: one that the broker has closed is replaced without being closed here, where somebody asks for it in the
  moment before the client has noticed. Its socket was left to the garbage collector, its requests to their timeout.
- Metadata: each look at a topic asks the broker to make it, where brokers do that by themselves, which is their default.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from contextlib import suppress
from functools import partial
from re import Pattern
from types import coroutine
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.consumer.subscription_state import SubscriptionType
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import OffsetAndMetadata

from ..channels.errors import BrokerUnavailable, CommitRefused
from ..channels.message import TP
from .bridge import Bridge
from .errors import GONE, by_code, translated
from .reading import ReadingInside

__all__ = ["Attempt", "ConsumerInside", "close_what_is_dropped", "close_what_is_replaced", "create_no_topics"]

log = logging.getLogger("famulus.kafka")

_COORDINATOR_WAIT = 2.0  # seconds that a commit waits for the group's coordinator to be found
_COORDINATOR_GONE = (kafka_errors.GroupCoordinatorNotAvailableError, kafka_errors.NotCoordinatorForGroupError)
_COORDINATOR_MOVES = (*_COORDINATOR_GONE, kafka_errors.GroupLoadInProgressError)


def close_what_is_replaced(client: Any) -> None:
    """Have a client of any kind close each connection that has ended before it makes another in its place."""
    inside: Any = getattr(client, "_client", None) or client.client
    get_connection = inside._get_conn

    async def close_and_get(node: int, *, group: Any = ConnectionGroup.DEFAULT, **more: Any) -> Any:
        connection = inside._conns.get((node, group))
        if connection is not None and not connection.connected():
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
        return await get_connection(node, group=group, **more)

    inside._get_conn = close_and_get


def close_what_is_dropped(client: Any) -> None:
    """Have a client of any kind close its first connection when it is cancelled while it waits for the answer to its first request.

    Nobody but the coroutine that waits knows that connection.
    """
    inside: Any = getattr(client, "_client", None) or client.client
    begin = inside.bootstrap

    @coroutine
    def begin_or_close() -> Generator[Any, Any, None]:
        waiting = begin()
        step = partial(waiting.send, None)
        connection: Any = None
        try:
            while True:
                try:
                    awaited = step()
                except StopIteration:
                    return
                try:
                    step = partial(waiting.send, (yield awaited))
                except BaseException as error:  # the cancellation; other errors are raised inside
                    connection = waiting.cr_frame.f_locals.get("bootstrap_conn")
                    step = partial(waiting.throw, error)
        finally:
            if connection is not None:
                connection.close()

    inside.bootstrap = begin_or_close


def create_no_topics(client: Any) -> None:
    """Have a client of any kind look at its topics without making them, which brokers do for those who do not forbid it.

    A topic that it had written to, and that was deleted, would come back with the next look, as long as the client lives. It
    is not looked at any more instead, until it is used again.
    """
    inside: Any = getattr(client, "_client", None) or client.client
    unsent: Any = getattr(getattr(client, "_message_accumulator", None), "_batches", ())

    async def update(cluster: Any, topics: set[str]) -> bool:
        request = MetadataRequest(list(topics) if topics else None, allow_auto_topic_creation=False)
        nodes: list[Any] = [broker.nodeId for broker in cluster.brokers()]
        bootstrap = ("bootstrap", ConnectionGroup.DEFAULT)
        if bootstrap in inside._conns:
            nodes.append("bootstrap")
        random.shuffle(nodes)
        for node in nodes:
            connection = await inside._get_conn(node)
            if connection is None:
                continue
            try:
                metadata = await connection.send(request)
            except (kafka_errors.KafkaError, TimeoutError) as error:
                log.debug("no metadata from node %s: %r", node, error)
                continue
            if not metadata.brokers:
                return False
            for topic in metadata.to_object()["topics"]:
                name = topic["topic"]
                unknown = by_code(topic["error_code"]) is kafka_errors.UnknownTopicOrPartitionError
                if unknown and cluster.partitions_for_topic(name) and not any(tp.topic == name for tp in unsent):
                    topics.discard(name)
            cluster.update_metadata(metadata)
            if bootstrap in inside._conns and cluster.brokers():
                inside._conns.pop(bootstrap).close()
            return True
        log.debug("no broker tells of its topics: %s", nodes)
        cluster.failed_update(None)
        return False

    inside._metadata_update = update


class Attempt:
    """One commit: what, as whom, and whether somebody still wants it."""

    __slots__ = ("generation", "offsets", "wanted")

    def __init__(self, offsets: Mapping[TP, int], generation: int) -> None:
        self.offsets = {tp: OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        self.generation = generation
        self.wanted = True


class ConsumerInside(ReadingInside):
    """The inside of one started consumer in a group. Methods that are not async may be called from trio and asyncio alike."""

    def __init__(self, bridge: Bridge, consumer: AIOKafkaConsumer, group: str) -> None:
        super().__init__(bridge, consumer)
        anything: Any = consumer
        self._group = group
        self._coordinator: Any = anything._coordinator
        self._commit_lock = asyncio.Lock()
        self._finding: asyncio.Task[None] | None = None
        self._left = False
        self._coordinator._send_req = self._checked(self._coordinator._send_req)

    # -- the group -----------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """The coordinator's; -1 when the group does not know us."""
        generation: int = self._coordinator.generation
        return generation

    @property
    def subscription(self) -> object:
        """The subscription that is in force; a new object for each new one. None before the first."""
        return self._subscription.subscription

    @property
    def topics(self) -> frozenset[str]:
        """What is subscribed to."""
        subscription = self._subscription.subscription
        return frozenset() if subscription is None else frozenset(subscription.topics or ())

    def check_errors(self) -> None:
        """As there; also what concerns the group."""
        task = self._coordinator._coordination_task
        if not (self._left or task.cancelled()):
            self._coordinator.check_errors()
        if not self._left:
            super().check_errors()

    def subscribe(
        self,
        topics: Collection[str],
        pattern: Pattern[str] | None,
        listener: ConsumerRebalanceListener,
    ) -> None:
        """Replace the subscription; unlike the public method also by one of another kind, or by none.

        Args:
            topics: with a pattern, those that match it now.
        """
        state = self._subscription
        state._subscription_type = SubscriptionType.NONE
        state._subscribed_pattern = None
        if pattern is not None:
            self._consumer.subscribe(pattern=pattern, listener=listener)
            state.subscribe_from_pattern(set(topics))
        elif topics:
            self._consumer.subscribe(topics=list(topics), listener=listener)
        else:
            state.subscribe(set(), listener=listener)
            self._client.set_topics([])

    def rejoin(self) -> None:
        """Begin a rebalance."""
        self._coordinator.request_rejoin()

    def guard_membership(self, on_forgotten: Callable[[], None]) -> None:
        """Never join anew when the group has forgotten this member; call `on_forgotten` instead."""

        def reset_generation() -> None:
            if not self._left:
                on_forgotten()
                self.end_coordination()

        self._coordinator.reset_generation = reset_generation

    def end_coordination(self) -> None:
        """Take no part in rebalances any more."""
        self._left = True
        self._coordinator._coordination_task.cancel()

    async def leave(self, *, say_so: bool) -> None:
        """Leave the group and close the client. `say_so`: tell the group, which static members do not.

        Not `stop()` alone: that waits for a rebalance under way, and `LeaveGroup` behind it on the same connection.
        """
        self.end_coordination()
        coordinator = self._coordinator
        await asyncio.wait({coordinator._coordination_task})
        member = coordinator.member_id
        coordinator.generation = -1
        if say_so and member and coordinator.coordinator_id is not None:
            with suppress(kafka_errors.KafkaError):  # the session runs out instead
                await self._client.send(coordinator.coordinator_id, LeaveGroupRequest(self._group, member))
        await self._consumer.stop()

    def _checked(self, send: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """Requests to the coordinator, with the error raised that an answer has for all of its partitions."""

        async def send_checked(request: Any) -> Any:
            response = await send(request)
            if isinstance(request, OffsetFetchRequest):
                error = by_code(getattr(response, "error_code", 0))
                if error is not None:
                    if error in _COORDINATOR_GONE:
                        self._coordinator.coordinator_dead()
                    raise error(self._group)
            return response

        return send_checked

    # -- commits -------------------------------------------------------------------------------------------

    async def _find_coordinator(self) -> None:
        """Find the group's coordinator, for a bounded time.

        Raises:
            BrokerUnavailable: not found; the search goes on.
        """
        if self._coordinator.coordinator_id is not None:
            return
        finding = self._finding
        if finding is None or finding.done():
            finding = self._finding = asyncio.ensure_future(self._coordinator.ensure_coordinator_known())
        await asyncio.wait({finding}, timeout=_COORDINATOR_WAIT)
        if not finding.done():
            raise BrokerUnavailable(f"the coordinator of group {self._group!r} is not reached; it is tried again")
        finding.result()

    async def commit(self, attempt: Attempt) -> None:
        """Commit under the attempt's generation, or not at all.

        Raises:
            CommitRefused, BrokerUnavailable: as `Consumer.commit` has it.
        """
        doing = f"committing for group {self._group!r}"
        async with self._commit_lock:
            while attempt.wanted:
                await self._find_coordinator()
                if not attempt.wanted:
                    return
                if self.generation != attempt.generation:
                    raise CommitRefused(
                        f"{doing}: generation {attempt.generation} is over, the group is at {self.generation}"
                    )
                try:
                    # The request is made before its first await, with the generation that was just checked.
                    await self._coordinator._do_commit_offsets(None, attempt.offsets)
                    return
                except GONE as error:
                    raise translated(error, doing) from error
                except _COORDINATOR_MOVES:
                    await asyncio.sleep(0.1)

    async def committed(self, partitions: Collection[TP]) -> dict[TP, int | None]:
        """The group's offsets; retries while the coordinator moves."""
        while True:
            await self._find_coordinator()
            try:
                found = await self._coordinator._do_fetch_commit_offsets(list(partitions))
            except _COORDINATOR_MOVES:
                await asyncio.sleep(0.1)
            else:
                return {tp: found[tp].offset if tp in found else None for tp in partitions}
