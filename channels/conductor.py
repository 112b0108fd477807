"""The conductor: takes batches from the transport's consumer, hands them to every subscriber, commits what is done.

One per run, driven by two supervised tasks, `run` (fetching) and `commits.run`. Their state is in objects and not in the
tasks, so either may be restarted in the middle of a stream. It never waits for a slow subscriber: partitions
whose subscribers have no room are left out of the next fetch, and paused at the broker when that lasts.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import TypeAlias

import trio

from ..supervision import trap_stop
from .committer import Committer, Ownership
from .counters import Counters, PartitionStatistics
from .cursor import Cursor
from .draining import Drain
from .errors import MemberReplaced, TransportError, UnknownTopic
from .inbox import BatchInbox
from .ledger import PartitionLedger
from .message import TP, Message, some_names
from .options import MessagingOptions
from .producer import Producer
from .readers import Interest, Item, Readers, Split
from .retry import Retry
from .subscribing import Subscriber
from .tracker import PartitionTracker
from .transport import Assignment, Batch, Consumer, ConsumerOptions, OffsetReset, Transport
from .watchdog import Watchdog

__all__ = ["Conductor"]

log = logging.getLogger("famulus.conductor")

Free: TypeAlias = tuple[PartitionTracker, int]
"""A partition, and for how many messages of it there is room."""


class Conductor:
    """Subscriptions and assignment of one run.

    Attributes:
        commits: makes the commits.
    """

    def __init__(
        self,
        transport: Transport,
        producer: Producer,
        options: MessagingOptions,
        counters: Counters,
        *,
        group: str,
    ) -> None:
        self._transport = transport
        self._producer = producer
        self._options = options
        self._counters = counters
        self._consumer_options = ConsumerOptions(
            group=group,
            instance_id=options.consumer_group_instance_id,
            offset_reset=options.consumer_auto_offset_reset,
            session_timeout=options.broker_session_timeout,
            rebalance_timeout=options.broker_rebalance_timeout,
            on_reset=self._on_reset,
        )
        self._readers = Readers()
        self._subscriber = Subscriber(transport, options)
        self._watchdog = Watchdog(options)
        self._draining = Drain(options.stream_drain_timeout)
        self._owned = Ownership()
        self._turn = 0
        self._changed = trio.Event()
        self._assigned = trio.Event()
        self._begun = False
        self._stopping = False
        self._replaced: MemberReplaced | None = None
        self._ended = trio.Event()
        self.commits = Committer(self._owned, options, counters, on_tick=self._tick)

    # -- subscriptions -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Subscribe and fetch from now on; until then additions are only collected.

        So agents that start one after the other cause one rebalance and not many, and all of them get the first message.
        """
        self._begun = True
        self._announce()

    def add(self, interest: Interest, inbox: BatchInbox) -> None:
        """Give every message of these topics to this inbox too, from what is fetched next."""
        self._readers.add(interest, inbox)
        self._announce()

    def add_split(self, interest: Interest, split: Split) -> None:
        """The same for a reader that has an inbox for each partition number."""
        self._readers.add_split(interest, split)
        for tp, tracker in self._owned.trackers.items():
            tracker.inboxes = self._readers.readers_of(tp)
        self._readers.assigned(self._owned.trackers)
        self._announce()

    def _announce(self, leaving: frozenset[Item] = frozenset()) -> None:
        """The subscriptions have changed."""
        self._subscriber.want(self._readers.items, leaving=leaving)
        before, self._assigned = self._assigned, trio.Event()
        before.set()
        if self._begun:
            self._changed.set()
            self.wake()

    def watch(self, cursor: Cursor) -> None:
        """Wait for this cursor's event in hand when its partition is revoked."""
        cursor.on_drain = self._begin_stop
        cursor.may_catch_up = self._draining.may_catch_up
        self._draining.watch(cursor)

    def unwatch(self, cursor: Cursor) -> None:
        self._draining.unwatch(cursor)

    def _begin_stop(self) -> None:
        self._draining.begin_stop(self._owned.trackers)

    def remove(self, inbox: BatchInbox, *, leave: bool) -> frozenset[str]:
        """Close an inbox; what it holds stays unacknowledged, and its log still has it.

        Returns the topics that others go on reading, so that what this reader still has of them is to be released.

        Args:
            leave: the reader goes and the run goes on. Other readers' offsets do not wait for what this one
                had not read; a topic without other readers is given up.
        """
        waiting = inbox.close()
        if not leave or inbox not in self._readers:
            # It stays listed, without room: nothing may pass a reader that comes back with the next run.
            return frozenset()
        unwanted, read_on = self._readers.remove(inbox)
        self._left(waiting, unwanted, read_on)
        return read_on

    def remove_split(self, split: Split, *, leave: bool) -> frozenset[str]:
        """The same for a reader that has an inbox for each partition number."""
        waiting = split.close()
        if not leave or split not in self._readers:
            return frozenset()
        unwanted, read_on = self._readers.remove_split(split)
        self._left(waiting, unwanted, read_on)
        return read_on

    def _left(self, waiting: Collection[Message], unwanted: frozenset[Item], read_on: frozenset[str]) -> None:
        for message in waiting:
            if message.topic in read_on:
                message.release()
        if unwanted:
            self._announce(unwanted)
        self.wake()  # others may have waited for its room

    def topics_read(self, *, apart_from: Collection[BatchInbox]) -> frozenset[str]:
        """The topics that others than these read."""
        return self._readers.topics_read(apart_from=apart_from)

    async def wait_assigned(self) -> None:
        """Wait until everything that was added has its assignment; a topic that is missing is waited for."""
        while not self._subscriber.settled:
            await self._assigned.wait()

    @property
    def partitions(self) -> Mapping[TP, PartitionTracker]:
        """The partitions that are ours now."""
        return self._owned.trackers

    @property
    def generation(self) -> int:
        return self._owned.generation

    def partition_statistics(self) -> dict[TP, PartitionStatistics]:
        """How far the partitions that are ours have come."""
        consumer = self._owned.consumer
        found: dict[TP, PartitionStatistics] = {}
        if consumer is None:
            return found
        for tp, tracker in self._owned.trackers.items():
            try:
                highwater = consumer.highwater(tp)
            except KeyError:  # lost, and nobody has told us yet
                continue
            acknowledged = tracker.ledger.committable
            found[tp] = PartitionStatistics(
                committed=max(tracker.committed, 0), acknowledged=acknowledged, highwater=max(highwater, acknowledged)
            )
        return found

    # -- fetching ------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch and hand over until asked to stop; then give the partitions up, which commits."""
        stop = trap_stop(self._ask_stop)
        task_status.started()
        await self._changed.wait()
        if self._stopping:
            return
        try:
            await self._read()
        except MemberReplaced as error:  # a restart would join again: see `watch_membership`
            self._replaced = error
            self._ended.set()
            await stop.wait()

    async def watch_membership(self) -> None:
        """Wait until this worker must not be a member of its group any more, and raise why.

        Raises:
            MemberReplaced: always.
        """
        await self._ended.wait()
        assert self._replaced is not None, "set before"
        raise MemberReplaced(str(self._replaced)) from None  # where it was noticed says nothing

    async def _read(self) -> None:
        self._subscriber.begin_anew()
        self.commits.refused = None
        retry = Retry("fetching", self._options, log, patient_with=(UnknownTopic,))
        try:
            async with self._transport.open_consumer(self._consumer_options, self) as consumer:
                self._owned.consumer = consumer
                while not self._stopping:
                    try:
                        await self._step(consumer)
                    except TransportError as error:
                        await retry.wait(error)
                    else:
                        retry.clear()
        finally:
            self._owned.consumer = None

    async def _step(self, consumer: Consumer) -> None:
        # Once they are revoked the group is being joined, which takes as long as its other members do.
        refused = self.commits.refused if self._owned.trackers else None
        if refused is not None and trio.current_time() - refused[0] >= self._options.broker_session_timeout:
            raise refused[1]  # no rebalance came of it: the supervisor has us join anew
        if self._subscriber.look_at < inf and trio.current_time() >= self._subscriber.look_at:
            await self._subscriber.settle(consumer)
            if self._subscriber.settled:
                self._assigned.set()
        batches: list[Batch] = []
        look_at = self._subscriber.look_at
        if look_at == inf:  # as almost always: a scope would cost more than the wait
            batches = await consumer.fetch(self._room(consumer))
        else:
            with trio.move_on_at(look_at):
                batches = await consumer.fetch(self._room(consumer))
        for batch in batches:
            self._deliver(batch)

    def _room(self, consumer: Consumer) -> dict[TP, int]:
        """What may be fetched now, per partition; long stalls are paused at the broker, and resumed."""
        room: dict[TP, int] = {}
        all_free = [(tracker, tracker.room) for tracker in self._owned.trackers.values()]
        open_: dict[str, list[Free]] = {}
        for free in all_free:
            if free[1] > 0:
                open_.setdefault(free[0].tp.topic, []).append(free)
        for found in open_.values():
            shared = [inbox.room for inbox in found[0][0].inboxes if not inbox.alone]
            if not shared:
                room.update({tracker.tp: most for tracker, most in found})
                continue
            least = min(shared)
            share = max(1, least // len(found))
            scarce = min([most for _, most in found]) < len(found)
            for tracker, most in self._few(consumer, found, least) if scarce else found:
                room[tracker.tp] = share if share < most else most
        self._pause(consumer, all_free)
        return room

    def _few(self, consumer: Consumer, found: list[Free], room: int) -> list[Free]:
        """Where there is room for fewer messages than partitions: those known to have some, each in its turn.

        Where none is known to have any, all are asked: then a buffer may take one message of each, at the most.
        """
        lagging = [free for free in found if consumer.highwater(free[0].tp) > consumer.position(free[0].tp)]
        if not lagging:
            return found
        self._turn += 1
        start = self._turn % len(lagging)
        return [*lagging[start:], *lagging[:start]][: max(1, room)]

    def _pause(self, consumer: Consumer, all_free: Sequence[Free]) -> None:
        """Pause at the broker what has been full for long, and resume it."""
        pause: list[TP] = []
        resume: list[TP] = []
        for tracker, free in all_free:
            if free > 0:
                tracker.blocked_since = None
                if tracker.paused:
                    tracker.paused = False
                    resume.append(tracker.tp)
            elif tracker.blocked_since is None:
                tracker.blocked_since = trio.current_time()
            elif not tracker.paused and trio.current_time() - tracker.blocked_since >= self._options.stream_pause_after:
                tracker.paused = True
                pause.append(tracker.tp)
        if pause:
            log.info(
                "paused %s: its stream has been full for %g s", some_names(pause), self._options.stream_pause_after
            )
            consumer.pause(pause)
        if resume:
            consumer.resume(resume)

    def _deliver(self, batch: Batch) -> None:
        tracker = self._owned.trackers.get(batch.tp)
        if tracker is None or tracker.live != batch.generation:
            return
        first = batch.messages[0].offset
        if first < tracker.ledger.newest:  # a transport that does not tell of it: the topic was made anew
            tracker = self._begin_anew(tracker, first)
        self._counters.messages_received += len(batch.messages)
        tracker.deliver(batch.messages, batch.next_offset)

    def wake(self) -> None:
        if self._owned.consumer is not None:
            self._owned.consumer.wake()

    def _ask_stop(self) -> None:
        self._stopping = True
        self._changed.set()
        self.wake()

    # -- rebalances (the transport calls these) ------------------------------------------------------------

    async def on_assigned(self, assignment: Assignment) -> None:
        """Open an account for each partition."""
        consumer = self._owned.consumer
        if consumer is None:
            return
        self._counters.rebalances += 1
        late = await self._begin_late(consumer, assignment)
        self._owned.generation = assignment.generation
        self._readers.assigned(assignment.partitions)
        self._owned.trackers = {
            tp: self._tracker(tp, assignment.generation, consumer.position(tp)) for tp in sorted(assignment.partitions)
        }
        for tp in late:
            self._owned.trackers[tp].committed -= 1  # so that the next commit says where it begins
        self.commits.assigned()
        self._subscriber.assigned(assignment.partitions)
        log.info("generation %d: %d partitions assigned", assignment.generation, len(self._owned.trackers))
        self.wake()

    def _tracker(self, tp: TP, generation: int, position: int) -> PartitionTracker:
        return PartitionTracker(
            tp,
            PartitionLedger(generation, position),
            self._readers.readers_of(tp),
            max_span=self._options.stream_max_span,
            counters=self._counters,
            acks=self.commits.acks,
            on_due=self.commits.due,
            on_room=self.wake,
        )

    async def _begin_late(self, consumer: Consumer, assignment: Assignment) -> frozenset[TP]:
        """With "latest": partitions where the group begins only now, so that where it begins is to be committed.

        Else what comes until the next rebalance would be passed over then. A topic that we waited for is read from its
        start: all that is in it came since.
        """
        if self._options.consumer_auto_offset_reset != "latest":
            return frozenset()
        try:
            committed = await consumer.committed(assignment.partitions)
        except TransportError as error:
            log.warning("where group %s begins is not known: %s", self._consumer_options.group, error)
            return frozenset()
        late = frozenset(tp for tp, offset in committed.items() if offset is None)
        for tp in late:
            if tp.topic in self._subscriber.waited_for:
                await consumer.seek(tp, 0)
        return late

    def _on_reset(self, reset: OffsetReset) -> None:
        """What was to be read next is not in the log: say so, count what is gone, go on where the transport goes on."""
        tracker = self._owned.trackers.get(reset.tp)
        if tracker is None or tracker.live < 0:
            return
        policy = f"consumer_auto_offset_reset={self._options.consumer_auto_offset_reset}"
        if reset.gone:
            self._counters.messages_gone += reset.gone
            log.warning(
                "%s: %d messages from %d on are gone, deleted by the broker before they were read; going on at %d (%s)",
                reset.tp,
                reset.gone,
                reset.wanted,
                reset.position,
                policy,
            )
            if reset.position > tracker.ledger.newest:
                tracker.ledger.deliver_offsets((), reset.position)
            # Where the transport knew of it before we began, we began there; the group has not committed that yet.
            tracker.committed = min(tracker.committed, reset.wanted)
        else:
            log.warning(
                "%s ends before %d, which was to be read next: it was made anew, or its log was cut off; going on at %d (%s)",
                reset.tp,
                reset.wanted,
                reset.position,
                policy,
            )
            self._begin_anew(tracker, reset.position)

    def _begin_anew(self, tracker: PartitionTracker, position: int) -> PartitionTracker:
        """The log of a partition is another one: what was read of the old one is void."""
        fresh = self._tracker(tracker.tp, tracker.live, position)
        fresh.committed = position - 1  # so that the next commit puts it right
        fresh.paused = tracker.paused
        tracker.close()
        self._owned.trackers[tracker.tp] = fresh
        return fresh

    async def on_revoked(self, revoked: frozenset[TP], *, lost: bool) -> None:
        """Let go: stop delivery, wait for what is in hand, flush, commit. When lost, only discard."""
        trackers = {tp: tracker for tp, tracker in self._owned.trackers.items() if tp in revoked}
        for tracker in trackers.values():
            tracker.close()
        try:
            if lost:
                log.warning("lost %s: other workers own them now; what is in hand is discarded", some_names(trackers))
                self.commits.lost()
                self._draining.interrupt(revoked)
            elif trackers:
                if not self._stopping:  # at shutdown the agents have stopped before us
                    await self._drain(trackers)
                with trio.move_on_after(self._options.producer_flush_timeout):
                    await self._producer.flush()
                await self.commits.commit_and_stop(trackers)
        finally:
            for tp in trackers:
                self._owned.trackers.pop(tp, None)

    async def _drain(self, trackers: Mapping[TP, PartitionTracker]) -> None:
        await self._draining.wait(trackers)

    def _tick(self) -> None:
        """By the commit interval: who is stuck, what is full but not paused yet, what refusal came without a rebalance."""
        trackers = self._owned.trackers.values()
        self._watchdog.look(self._draining.cursors, trackers)
        if self.commits.refused is not None or any(t.blocked_since is not None and not t.paused for t in trackers):
            self.wake()

    def __repr__(self) -> str:
        owned = self._owned
        topics = sorted(str(getattr(item, "pattern", item)) for item in self._subscriber.subscribed)
        return f"<Conductor generation={owned.generation} topics={topics} partitions={len(owned.trackers)}>"
