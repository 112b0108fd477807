"""The conductor: takes batches from the transport's consumer, hands them to every subscriber, commits what is done.

One per run, driven by two supervised tasks, `run` (fetching) and `commits.run`. Their state is in objects and not in the
tasks, so either may be restarted in the middle of a stream. It never waits for a slow subscriber: partitions
whose subscribers have no room are left out of the next fetch, and paused at the broker when that lasts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import inf

import trio

from ..supervision import trap_stop
from .committer import Committer, Ownership
from .counters import Counters, PartitionStatistics
from .cursor import Cursor
from .errors import MemberReplaced, TransportError, UnknownTopic
from .inbox import BatchInbox
from .ledger import PartitionLedger
from .message import TP, some_names
from .options import MessagingOptions
from .producer import Producer
from .retry import Retry
from .tracker import PartitionTracker
from .transport import Assignment, Batch, Consumer, ConsumerOptions, Transport

__all__ = ["Conductor"]

log = logging.getLogger("famulus.conductor")


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
        )
        self._readers: dict[str, list[BatchInbox]] = {}  # the lists stay, since trackers share them
        self._leaving: set[str] = set()
        self._cursors: dict[Cursor, None] = {}  # in order
        self._owned = Ownership()
        self._turn = 0
        self._subscribed: frozenset[str] = frozenset()
        self._changed = trio.Event()
        self._assigned = trio.Event()
        self._begun = False
        self._stopping = False
        self._replaced: MemberReplaced | None = None
        self._ended = trio.Event()
        self._missing = Retry("subscribing", options, log, patient_with=(UnknownTopic,))
        self._look_again = -inf  # when a topic that is missing is looked for again
        self.commits = Committer(self._owned, options, counters, on_tick=self._tick)

    # -- subscriptions -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Subscribe and fetch from now on; until then additions are only collected.

        So agents that start one after the other cause one rebalance and not many, and all of them get the first message.
        """
        self._begun = True
        self._announce()

    @property
    def _wanted(self) -> frozenset[str]:
        return frozenset(topic for topic, inboxes in self._readers.items() if inboxes)

    def add(self, topic: str, inbox: BatchInbox) -> None:
        """Give every message of a topic to this inbox too, from what is fetched next."""
        self._readers.setdefault(topic, []).append(inbox)
        self._announce()

    def _announce(self) -> None:
        """The subscriptions have changed."""
        before, self._assigned = self._assigned, trio.Event()
        before.set()
        if self._begun:
            self._changed.set()
            self.wake()

    def watch(self, cursor: Cursor) -> None:
        """Wait for this cursor's event in hand when its partition is revoked."""
        self._cursors[cursor] = None

    def unwatch(self, cursor: Cursor) -> None:
        self._cursors.pop(cursor, None)

    def remove(self, topic: str, inbox: BatchInbox, *, leave: bool) -> bool:
        """Close an inbox; what it holds stays unacknowledged, and its log still has it.

        Returns whether others go on reading, so that what this reader still has is to be released.

        Args:
            leave: the reader goes and the run goes on. Other readers' offsets do not wait for what this one
                had not read; without other readers the topic's partitions are given up.
        """
        waiting = inbox.close()
        readers = self._readers.get(topic, [])
        if inbox not in readers:
            return False
        if not leave:  # it stays listed, without room: nothing may pass a reader that comes back with the next run
            return False
        readers.remove(inbox)
        if readers:
            for message in waiting:
                message.release()
            return True
        self._leaving.add(topic)
        self._announce()
        return False

    async def wait_assigned(self) -> None:
        """Wait until everything that was added has its assignment."""
        while self._leaving or self._subscribed != self._wanted:
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
                committed=tracker.committed, acknowledged=acknowledged, highwater=max(highwater, acknowledged)
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
        self._subscribed = frozenset()
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
        if trio.current_time() >= self._look_again:
            await self._try_subscribe(consumer)
        batches: list[Batch] = []
        with trio.move_on_at(self._look_again if self._look_again > trio.current_time() else inf):
            batches = await consumer.fetch(self._room(consumer))
        for batch in batches:
            self._deliver(batch)

    async def _try_subscribe(self, consumer: Consumer) -> None:
        """Subscribe; what is subscribed already does not wait for a topic that is missing."""
        try:
            await self._subscribe(consumer)
        except UnknownTopic as error:
            if not self._subscribed:
                raise
            self._look_again = trio.current_time() + self._missing.delay(error)
        else:
            self._missing.clear()

    async def _subscribe(self, consumer: Consumer) -> None:
        """Bring the subscription up to date. A topic that lost its last reader is given up first, even if it has one again.

        So what the reader before had fetched and not acknowledged comes to the new one.
        """
        leaving = self._leaving & self._subscribed
        if leaving:
            remaining = self._subscribed - leaving
            await consumer.subscribe(remaining)
            self._subscribed = remaining
        self._leaving -= leaving
        self._leaving &= self._subscribed
        wanted = self._wanted
        if wanted != self._subscribed:
            await consumer.subscribe(wanted)
            self._subscribed = wanted
        self._assigned.set()

    def _room(self, consumer: Consumer) -> dict[TP, int]:
        """What may be fetched now, per partition; long stalls are paused at the broker, and resumed."""
        room: dict[TP, int] = {}
        free = {tp: tracker.room for tp, tracker in self._owned.trackers.items()}
        open_: dict[str, list[PartitionTracker]] = {}
        for tp, tracker in self._owned.trackers.items():
            if free[tp] > 0:
                open_.setdefault(tp.topic, []).append(tracker)
        for trackers in open_.values():
            share = max(1, min(inbox.room for inbox in trackers[0].inboxes) // len(trackers))
            scarce = min(free[tracker.tp] for tracker in trackers) < len(trackers)
            for tracker in self._few(consumer, trackers) if scarce else trackers:
                room[tracker.tp] = min(share, free[tracker.tp])
        self._pause(consumer, free)
        return room

    def _few(self, consumer: Consumer, trackers: list[PartitionTracker]) -> list[PartitionTracker]:
        """Where there is room for fewer messages than partitions: those known to have some, each in its turn.

        Where none is known to have any, all are asked: then a buffer may take one message of each, at the most.
        """
        lagging = [t for t in trackers if consumer.highwater(t.tp) > consumer.position(t.tp)]
        if not lagging:
            return trackers
        free = min(inbox.room for inbox in trackers[0].inboxes)
        self._turn += 1
        start = self._turn % len(lagging)
        return [*lagging[start:], *lagging[:start]][: max(1, free)]

    def _pause(self, consumer: Consumer, free: Mapping[TP, int]) -> None:
        """Pause at the broker what has been full for long, and resume it."""
        now = trio.current_time()
        pause: list[TP] = []
        resume: list[TP] = []
        for tp, tracker in self._owned.trackers.items():
            if free[tp] > 0:
                tracker.blocked_since = None
                if tracker.paused:
                    tracker.paused = False
                    resume.append(tp)
            elif tracker.blocked_since is None:
                tracker.blocked_since = now
            elif not tracker.paused and now - tracker.blocked_since >= self._options.stream_pause_after:
                tracker.paused = True
                pause.append(tp)
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
        self._owned.generation = assignment.generation
        self._owned.trackers = {
            tp: PartitionTracker(
                tp,
                PartitionLedger(assignment.generation, consumer.position(tp)),
                self._readers.setdefault(tp.topic, []),
                max_span=self._options.stream_max_span,
                counters=self._counters,
                on_acked=self.commits.acked,
                on_room=self.wake,
            )
            for tp in sorted(assignment.partitions)
        }
        self.commits.assigned()
        log.info("generation %d: %d partitions assigned", assignment.generation, len(self._owned.trackers))
        self.wake()

    async def on_revoked(self, revoked: frozenset[TP], *, lost: bool) -> None:
        """Let go: stop delivery, wait for what is in hand, flush, commit. When lost, only discard."""
        trackers = {tp: tracker for tp, tracker in self._owned.trackers.items() if tp in revoked}
        for tracker in trackers.values():
            tracker.close()
        try:
            if lost:
                log.warning("lost %s: other workers own them now; what is in hand is discarded", some_names(trackers))
                self.commits.lost()
                self._interrupt(revoked)
            elif trackers:
                if not self._stopping:  # at shutdown the agents have stopped before us
                    await self._drain(revoked)
                with trio.move_on_after(self._options.producer_flush_timeout):
                    await self._producer.flush()
                await self.commits.commit_and_stop(trackers)
        finally:
            for tp in trackers:
                self._owned.trackers.pop(tp, None)

    async def _drain(self, revoked: frozenset[TP]) -> None:
        with trio.move_on_after(self._options.stream_drain_timeout):
            for cursor in list(self._cursors):
                while cursor.holds(revoked):
                    if cursor.idle is None:
                        cursor.idle = trio.Event()
                    await cursor.idle.wait()
        self._interrupt(revoked)

    def _interrupt(self, revoked: frozenset[TP]) -> None:
        """Cancel those who still work on what is no longer ours; their event is processed by the next owner."""
        for cursor in list(self._cursors):
            if cursor.holds(revoked) and cursor.interrupt is not None and cursor.event is not None:
                message = cursor.event.message
                log.warning("cancelled the processing of %s@%d: its partition was revoked", message.tp, message.offset)
                cursor.interrupt()

    def _tick(self) -> None:
        """By the commit interval: look again at what is full but not paused yet, and at a refusal without a rebalance."""
        trackers = self._owned.trackers.values()
        if self.commits.refused is not None or any(t.blocked_since is not None and not t.paused for t in trackers):
            self.wake()

    def __repr__(self) -> str:
        owned = self._owned
        return f"<Conductor generation={owned.generation} topics={sorted(self._subscribed)} partitions={len(owned.trackers)}>"
