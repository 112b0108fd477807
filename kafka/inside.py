"""What we use of the inside of aiokafka's group membership. What all that read use of it stands in `reading.py`, the
records in `records.py`, what is put right in clients of any kind in `corrections.py`: each private piece has its reason there.

Written for aiokafka 0.14; `tests/kafka` fails where a release changes one of these. Why at all:

- Commits: `commit()` sends whatever generation the coordinator has by then. A commit held back over a rebalance was
  seen to be accepted for a partition that the member no longer owned.
- Committed offsets: since version 2 of the answer a group's error stands beside its partitions, where `aiokafka` does
  not look. While a coordinator is loading, it took the group for one that has committed nothing, and began anew.
- Patterns: a subscription by pattern that matches what was subscribed to before is no new one to the client, so nothing
  tells when it stands. We say at once which topics match.
- Static membership: a member that the broker no longer knows joins anew, and so evicts the one that replaced it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from re import Pattern
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import errors as kafka_errors
from aiokafka.consumer.subscription_state import SubscriptionType
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata

from ..channels.errors import BrokerUnavailable, CommitRefused
from ..channels.message import TP
from .bridge import Bridge
from .errors import GONE, by_code, translated
from .reading import ReadingInside

__all__ = ["Attempt", "ConsumerInside"]

log = logging.getLogger("famulus.kafka")

_COORDINATOR_WAIT = 2.0  # seconds that a commit waits for the group's coordinator to be found
_COORDINATOR_GONE = (kafka_errors.GroupCoordinatorNotAvailableError, kafka_errors.NotCoordinatorForGroupError)
_COORDINATOR_MOVES = (*_COORDINATOR_GONE, kafka_errors.GroupLoadInProgressError)


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
