"""A member of a Kafka consumer group: assignment, fetching, commits. `KafkaTransport.open_consumer` makes it.

The client's background tasks (heartbeats, rebalances, reading ahead) live in asyncio. `fetch` takes what they have
read, in trio and without waiting, and waits only for news; so nothing can be cancelled in the middle, and streams
that are full hold up nothing. Rebalances are a matter of `membership.py`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from re import Pattern

import trio
from aiokafka import AIOKafkaConsumer

from ..channels.errors import BrokerUnavailable, CommitRefused, TransportError
from ..channels.message import TP
from ..channels.readers import one_pattern
from ..channels.transport import Assignment, Batch, Consumer, ConsumerOptions, OffsetReset, RebalanceListener
from .ahead import ReadAhead
from .bridge import Bridge
from .errors import CALL_FAILURES, translated, unknown_topic
from .inside import Attempt, ConsumerInside
from .membership import Membership

__all__ = ["KafkaConsumer"]

_INTERNAL = frozenset({"__consumer_offsets", "__transaction_state", "__share_group_state"})  # no pattern means these
_POLL = 0.5  # seconds between two looks for a broker that is away


class KafkaConsumer(Consumer):
    """Made for a client that is started. Its transport runs `membership.run` beside the body."""

    def __init__(
        self,
        bridge: Bridge,
        client: AIOKafkaConsumer,
        options: ConsumerOptions,
        listener: RebalanceListener,
        *,
        list_topics: Callable[[], Awaitable[Sequence[str]]],
        commit_timeout: float,
        broker: str,
    ) -> None:
        self.options = options
        self._bridge = bridge
        self._list_topics = list_topics
        self._commit_timeout = commit_timeout
        self._broker = broker
        self.inside = ConsumerInside(bridge, client, options.group)
        self.membership = Membership(client, self.inside, options, listener, self.wake)
        self._wanted: tuple[frozenset[str], Pattern[str] | None] | None = None
        self._replaced: object = None
        self._woken = False
        self._ahead = ReadAhead(self.inside, f"reading as group {options.group!r}", self.position)

    def _check_open(self) -> None:
        if self.membership.closed:
            raise trio.ClosedResourceError("this consumer has left its group")

    def _check_errors(self, doing: str) -> None:
        try:
            self.inside.check_errors()
        except CALL_FAILURES as error:
            raise translated(error, f"{doing} in group {self.options.group!r}") from error

    async def leave(self) -> None:
        """In asyncio: leave the group, and close the client. A static member's partitions wait for its return."""
        await self.inside.leave(say_so=self.options.instance_id is None)

    # -- subscription --------------------------------------------------------------------------------------

    async def subscribe(self, topics: Collection[str], *, pattern: Pattern[str] | None = None) -> None:
        if trio.lowlevel.current_task() is self.membership.task:
            raise RuntimeError("subscribe() in a rebalance callback would wait for itself: use another task")
        await trio.lowlevel.checkpoint()
        self._check_open()
        wanted = (frozenset(topics), pattern)
        if wanted != self._wanted:
            there = await self._check_topics(wanted[0])
            regex = None if pattern is None else whole_names(pattern, wanted[0])
            found = wanted[0]
            if regex is not None:
                found |= {topic for topic in there - _INTERNAL if regex.match(topic)}
            self._wanted = wanted
            self._replaced = self.inside.subscription
            await self._bridge.call(self._apply, found, regex)
        while not self.membership.granted(self.inside.subscription, not_before=self._replaced):
            self._check_open()
            self._check_errors("subscribing")
            await self._wait_for_news()

    async def _apply(self, topics: frozenset[str], regex: Pattern[str] | None) -> None:
        self.inside.subscribe(topics, regex, self.membership.listener)

    async def _check_topics(self, topics: frozenset[str]) -> frozenset[str]:
        """Subscribing to a missing topic, or asking for it, may create it with one partition: so list them first."""
        while True:
            try:
                there = frozenset(await self._list_topics())
            except BrokerUnavailable:
                self._check_open()
                await trio.sleep(_POLL)
            else:
                break
        missing = topics - there
        if missing:
            raise unknown_topic(min(missing), self._broker)
        return there

    @property
    def assignment(self) -> Assignment:
        return self.membership.assignment

    # -- reading -------------------------------------------------------------------------------------------

    async def fetch(self, room: Mapping[TP, int]) -> list[Batch]:
        if self._woken:
            await trio.lowlevel.checkpoint()
        else:
            await self._ahead.begin()
        while True:
            self._check_open()
            self._check_errors("fetching")
            batches = self._collect(room) if self.membership.serving else []
            if batches:
                self._woken = False
                return batches
            if self._woken:
                self._woken = False
                return []
            await self._wait_for_news()

    def _collect(self, room: Mapping[TP, int]) -> list[Batch]:
        """What has been read ahead of these partitions. Positions move here and nowhere else, without a checkpoint."""
        batches: list[Batch] = []
        assignment = self.membership.assignment
        if self.inside.resets:
            self._report_resets(assignment)
        if self._ahead.damage:
            self._ahead.damage.keep(assignment.partitions)
        for tp, most in room.items():
            if tp not in assignment.partitions or tp in self.membership.paused or most < 1:
                continue
            try:
                messages = self._ahead.take(tp, most, assignment.generation)
            except TransportError:
                if batches:
                    return batches  # these have moved their positions; the error comes again, or is over
                raise
            if messages:
                batches.append(Batch(tp, assignment.generation, messages, self.position(tp), self.highwater(tp)))
        return batches

    def _report_resets(self, assignment: Assignment) -> None:
        """Tell of partitions that go on elsewhere, once it is known where."""
        resets = self.inside.resets
        for tp, wanted in list(resets.items()):
            position = self.inside.position(tp)
            if tp not in assignment.partitions or position == wanted:
                del resets[tp]
            elif position is not None:
                del resets[tp]
                self.membership.positions[tp] = position
                self.membership.ends[tp] = position
                if self.options.on_reset is not None:
                    self.options.on_reset(OffsetReset(tp, wanted, position))

    async def _wait_for_news(self) -> None:
        """Wait until records have arrived, `wake` is called, or the client has an error to report."""
        # An app that only sends has subscribed to nothing, and waits for nothing.
        await self._ahead.wait(watched=bool(self.inside.topics))

    def wake(self) -> None:
        self._woken = True
        self._ahead.tell()

    def position(self, tp: TP) -> int:
        known = self.membership.positions[tp]
        position = self.inside.position(tp)
        if position is None:
            return known
        self.membership.positions[tp] = position
        return position

    def highwater(self, tp: TP) -> int:
        end = self.membership.ends[tp]
        return max(end, self.inside.highwater(tp), self.position(tp))

    async def seek(self, tp: TP, offset: int) -> None:
        await trio.lowlevel.checkpoint()
        if tp not in self.membership.positions:
            raise KeyError(tp)
        if offset < 0:
            raise ValueError(f"seek of {tp} to {offset}: expected an offset of at least 0")
        self.inside.seek(tp, offset)
        self.membership.positions[tp] = offset
        self._ahead.tell()

    def pause(self, partitions: Collection[TP]) -> None:
        """Leave them out of `fetch`. At most one chunk of each is read ahead, and kept, so `resume` is immediate."""
        self.membership.paused.update(tp for tp in partitions if tp in self.membership.positions)

    def resume(self, partitions: Collection[TP]) -> None:
        self.membership.paused.difference_update(partitions)
        self._ahead.tell()

    # -- commits -------------------------------------------------------------------------------------------

    async def commit(self, offsets: Mapping[TP, int], *, generation: int) -> None:
        await trio.lowlevel.checkpoint()
        self.check_ownership(offsets, generation)
        if not offsets:
            return
        attempt = Attempt(offsets, generation)
        self.membership.attempts.add(attempt)
        try:
            with trio.move_on_after(self._commit_timeout):
                await self._bridge.call(self.inside.commit, attempt)
                if attempt.wanted:
                    return
                raise CommitRefused(f"group {self.options.group!r}: its partitions were revoked meanwhile")
            raise BrokerUnavailable(f"committing for group {self.options.group!r}: no answer in time; commit again")
        except CALL_FAILURES as error:
            raise translated(error, f"committing for group {self.options.group!r}") from error
        finally:
            attempt.wanted = False
            self.membership.attempts.discard(attempt)

    def check_ownership(self, partitions: Collection[TP], generation: int) -> None:
        """Whether these may be committed now.

        Raises:
            CommitRefused: this member does not own them under this generation.
        """
        assignment = self.membership.assignment
        who = f"group {self.options.group!r}"
        if generation < 0 or generation != assignment.generation:
            raise CommitRefused(f"{who}: generation {generation} is not {assignment.generation}, this member's")
        foreign = sorted(tp for tp in partitions if tp not in assignment.partitions)
        if foreign:
            raise CommitRefused(f"{who}: {foreign[0]} is not this member's in generation {generation}")

    async def look_up(self, partitions: Collection[TP]) -> Mapping[TP, int | None]:
        """`committed`, in asyncio."""
        return await self.inside.committed(partitions)

    async def committed(self, partitions: Collection[TP]) -> Mapping[TP, int | None]:
        await trio.lowlevel.checkpoint()
        doing = f"asking for the offsets of group {self.options.group!r}"
        with trio.move_on_after(self._commit_timeout):
            try:
                return await self._bridge.call(self.look_up, tuple(partitions))
            except TransportError:
                raise
            except CALL_FAILURES as error:
                raise translated(error, doing) from error
        raise BrokerUnavailable(f"{doing}: no answer in time; ask again")

    def __repr__(self) -> str:
        membership = self.membership
        state = "closed" if membership.closed else "serving" if membership.serving else "joining"
        return f"<KafkaConsumer of {self.options.group!r} {state} {len(membership.assignment.partitions)} partitions>"


def whole_names(pattern: Pattern[str], topics: Collection[str]) -> Pattern[str]:
    """One pattern for what matches `pattern` as a whole and for these names; aiokafka anchors only the start.

    >>> whole_names(re.compile("(?i)orders-.."), ["a.b"]).match("ORDERS-eu") is not None
    True
    >>> whole_names(re.compile("orders"), []).match("orders-eu") is None
    True
    """
    whole = one_pattern([pattern, *topics])
    assert whole is not None, "there is a pattern"
    return re.compile(f"(?:{whole.pattern})\\Z")
