"""What we use of aiokafka's inside: everything private stands here and in `records.py`, each piece with its reason.

Written for aiokafka 0.14; `tests/kafka` fails where a release changes one of these. Why at all:

- Records: `getmany` makes a `ConsumerRecord` for each, takes one limit for all partitions, throws away what was read
  ahead of a paused one, and leaks a counter when it is cancelled. Taking what the client has fetched from where it
  keeps it is synchronous, so it cannot be cancelled in the middle; it makes our messages directly.
- Commits: `commit()` sends whatever generation the coordinator has by then. A commit held back over a rebalance was
  seen to be accepted for a partition that the member no longer owned.
- Committed offsets: since version 2 of the answer a group's error stands beside its partitions, where `aiokafka` does
  not look. While a coordinator is loading, it took the group for one that has committed nothing, and began anew.
- Patterns: a subscription by pattern that matches what was subscribed to before is no new one to the client, so nothing
  tells when it stands. We say at once which topics match.
- Resets: where an offset is out of range the client goes on elsewhere, and tells nobody.
- Damaged partitions: what a broker answers for one whose log it cannot read is logged by the client, without the
  partition's name, and asked again at once, 300 times a second.
- Static membership: a member that the broker no longer knows joins anew, and so evicts the one that replaced it.
- Connections: one that the broker has closed is replaced without being closed here, where somebody asks for it in the
  moment before the client has noticed. Its socket was left to the garbage collector, its requests to their timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from re import Pattern
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.consumer.subscription_state import SubscriptionType
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from ..channels.errors import BrokerUnavailable, CommitRefused
from ..channels.message import TP, Message
from .errors import CALL_FAILURES, DAMAGED, GONE, by_code, translated
from .records import Unpacker

__all__ = ["Attempt", "ConsumerInside", "close_what_is_replaced"]

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


class Attempt:
    """One commit: what, as whom, and whether somebody still wants it."""

    __slots__ = ("generation", "offsets", "wanted")

    def __init__(self, offsets: Mapping[TP, int], generation: int) -> None:
        self.offsets = {tp: OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        self.generation = generation
        self.wanted = True


class ConsumerInside:
    """The inside of one started consumer. Methods that are not async may be called from trio and asyncio alike."""

    def __init__(self, consumer: AIOKafkaConsumer, group: str) -> None:
        # aiokafka has no types for its inside.
        anything: Any = consumer
        self._consumer = consumer
        self._group = group
        self._client: Any = anything._client
        self._fetcher: Any = anything._fetcher
        self._coordinator: Any = anything._coordinator
        self._subscription: Any = anything._subscription
        self._commit_lock = asyncio.Lock()
        self._finding: asyncio.Task[None] | None = None
        self._left = False
        self.resets: dict[TP, int] = {}
        """Partitions whose next offset, this one, is out of the log's range; the client finds another."""
        self._coordinator._send_req = self._checked(self._coordinator._send_req)
        self._client.send = self._watched(self._client.send)

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
        """Raise what the client's background tasks have to report; they go on when it is taken."""
        task = self._coordinator._coordination_task
        if not (self._left or task.cancelled()):
            self._coordinator.check_errors()
        if self._fetcher.error_future.done() and not self._left:
            self._fetcher.error_future.result()

    def has(self, topic: str) -> bool:
        """Whether the client's metadata have this topic."""
        return self._client.cluster.partitions_for_topic(topic) is not None

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

    @property
    def connected(self) -> bool:
        """Whether there is a connection to any broker."""
        return any(connection.connected() for connection in self._client._conns.values())

    def refresh_metadata(self) -> None:
        """Look for new topics and partitions soon."""
        self._client.force_metadata_update()

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

    # -- positions -----------------------------------------------------------------------------------------

    def position(self, tp: TP) -> int | None:
        """Where the client goes on; None while it finds out."""
        state = self._state(tp)
        return None if state is None or not state.has_valid_position else state.position

    def highwater(self, tp: TP) -> int:
        """As the last fetch had it; -1 before the first."""
        state = self._state(tp)
        return -1 if state is None or state.highwater is None else state.highwater

    def seek(self, tp: TP, offset: int) -> None:
        self._fetcher.seek_to(tp, offset)

    def _state(self, tp: TP) -> Any:
        subscription = self._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        return None if assignment is None else assignment.state_value(tp)

    # -- records -------------------------------------------------------------------------------------------

    def news(self) -> asyncio.Future[None]:
        """A future that is done when records have arrived, or when `check_errors` has something."""
        future: asyncio.Future[None] = self._fetcher._create_fetch_waiter()
        return future

    def take(self, tp: TP, most: int, generation: int) -> list[Message]:
        """Up to `most` messages of what has been fetched of a partition; moves its position, over markers too.

        Raises:
            KafkaError: what kept the partition from being read; its position is unmoved.
        """
        fetcher = self._fetcher
        result: Any = fetcher._records.get(tp)
        if result is None:
            return []
        if not issubclass(type(result), FetchResult):
            self._drop(tp)
            if isinstance(result._error, kafka_errors.RecordTooLargeError):
                self.seek(tp, self._state(tp).position - 1)  # the client has passed it over
            result.check_raise()
        if not result.check_assignment(tp):  # fetched before a rebalance or a seek
            self._drop(tp)
            return []
        records: Any = result._partition_records
        unpacker: Unpacker | None = vars(records).get("unpacker")
        if unpacker is None:
            unpacker = records.unpacker = Unpacker(records, tp, generation)
        try:
            messages = unpacker.take(most)
        except BaseException as error:
            self._drop(tp)  # else the next call would go on behind what was lost with the error
            if isinstance(error, Exception) and not isinstance(error, CALL_FAILURES):
                # Its checksum is right, and its contents are not.
                raise kafka_errors.CorruptRecordException(repr(error)) from error
            raise
        result._update_position()
        if unpacker.ended:
            records.unpacker = None  # they know each other, and the fetched bytes would wait for the garbage collector
            self._drop(tp)
        return messages

    def _watched(self, send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Requests of any kind, with what keeps a partition from being read put where `take` finds it."""

        async def send_watched(node: int, request: Any, **more: Any) -> Any:
            response = await send(node, request, **more)
            if isinstance(request, FetchRequest):
                for topic, partitions in response.topics:
                    for partition, code, *_ in partitions:
                        if code == kafka_errors.OffsetOutOfRangeError.errno:
                            self._note_reset(TP(topic, partition), request)
                        elif code != 0:
                            self._note_damage(TP(topic, partition), by_code(code))
            return response

        return send_watched

    def _note_reset(self, tp: TP, request: FetchRequest) -> None:
        asked = {(topic, partition): offset for topic, each in request.topics for partition, offset, *_ in each}
        if self.position(tp) == asked.get(tp):  # else it is an answer to what does not matter any more
            self.resets[tp] = asked[tp]

    def _note_damage(self, tp: TP, error: type[Exception] | None) -> None:
        state, fetcher = self._state(tp), self._fetcher
        if error is None or not issubclass(error, DAMAGED) or state is None or tp in fetcher._records:
            return
        fetcher._set_error(TopicPartition(*tp), error())
        for waiter in list(fetcher._fetch_waiters):
            fetcher._notify(waiter)

    def _drop(self, tp: TP) -> None:
        fetcher = self._fetcher
        fetcher._records.pop(tp, None)
        fetcher._notify(fetcher._wait_consume_future)
