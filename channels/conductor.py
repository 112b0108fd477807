"""The conductor: takes batches from the transport's consumer, hands them to every subscriber, commits what is done.

One per run, driven by two supervised tasks, `run` (fetching) and `run_commits`. All its state is in this object and not in
the tasks, so either may be restarted in the middle of a stream. It never waits for a slow subscriber: partitions
whose subscribers have no room are left out of the next fetch, and paused at the broker when that lasts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

from ..supervision import trap_stop
from .counters import Counters
from .cursor import Cursor
from .errors import AppNotRunning, CommitRefused, TransportError
from .inbox import BatchInbox
from .ledger import PartitionLedger
from .message import TP
from .options import MessagingOptions
from .producer import Producer
from .retry import Retry
from .tracker import PartitionTracker
from .transport import Assignment, Batch, Consumer, ConsumerOptions, Transport

__all__ = ["Conductor"]

log = logging.getLogger("famulus.conductor")


class _CommitRequest:
    """Somebody waits for a commit."""

    __slots__ = ("failure", "settled")

    def __init__(self) -> None:
        self.settled = trio.Event()
        self.failure: Exception | None = None

    def settle(self, failure: Exception | None) -> None:
        self.failure = failure
        self.settled.set()


class Conductor:
    """Subscriptions, assignment and commits of one run."""

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
        self._cursors: dict[Cursor, str] = {}
        self._consumer: Consumer | None = None
        self._trackers: dict[TP, PartitionTracker] = {}
        self._turn = 0
        self._generation = -1
        self._subscribed: frozenset[str] = frozenset()
        self._changed = trio.Event()
        self._assigned = trio.Event()
        self._begun = False
        self._stopping = False
        self._commit_lock = trio.Lock()
        self._commits_open = False
        self._commit_failing = False
        self._commit_due = trio.Event()
        self._commit_requests: list[_CommitRequest] = []
        self._closed = False
        self._acked = 0
        self._refused: tuple[float, CommitRefused] | None = None

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

    def watch(self, topic: str, cursor: Cursor) -> None:
        """Wait for this cursor's event in hand when partitions of the topic are revoked."""
        self._cursors[cursor] = topic

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
        readers.remove(inbox)
        if not leave:
            return False
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
        return self._trackers

    @property
    def generation(self) -> int:
        return self._generation

    def lag(self, tp: TP) -> int:
        """Messages of an owned partition that are not acknowledged or not even fetched yet.

        Raises:
            KeyError: not owned.
        """
        tracker = self._trackers[tp]
        if self._consumer is None:
            raise KeyError(tp)
        return self._consumer.highwater(tp) - tracker.ledger.committable

    # -- fetching ------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch and hand over until asked to stop; then give the partitions up, which commits."""
        trap_stop(self._ask_stop)
        task_status.started()
        await self._changed.wait()
        if self._stopping:
            return
        self._subscribed = frozenset()
        self._refused = None
        retry = Retry("fetching", self._options, log)
        try:
            async with self._transport.open_consumer(self._consumer_options, self) as consumer:
                self._consumer = consumer
                while not self._stopping:
                    try:
                        await self._step(consumer)
                    except TransportError as error:
                        await retry.wait(error)
                    else:
                        retry.clear()
        finally:
            self._consumer = None

    async def _step(self, consumer: Consumer) -> None:
        if self._refused is not None and trio.current_time() - self._refused[0] >= self._options.broker_session_timeout:
            raise self._refused[1]  # no rebalance came of it: the supervisor has us join anew
        await self._subscribe(consumer)
        for batch in await consumer.fetch(self._room(consumer)):
            self._deliver(batch)

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
        open_: dict[str, list[PartitionTracker]] = {}
        for tp, tracker in self._trackers.items():
            if tracker.room > 0:
                open_.setdefault(tp.topic, []).append(tracker)
        for trackers in open_.values():
            free = min(tracker.room for tracker in trackers)
            share = max(1, min(inbox.room for inbox in trackers[0].inboxes) // len(trackers))
            for tracker in trackers if free >= len(trackers) else self._few(consumer, trackers):
                room[tracker.tp] = min(share, tracker.room)
        self._pause(consumer, room)
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

    def _pause(self, consumer: Consumer, room: Mapping[TP, int]) -> None:
        """Pause at the broker what has been full for long, and resume it."""
        now = trio.current_time()
        pause: list[TP] = []
        resume: list[TP] = []
        for tp, tracker in self._trackers.items():
            if tp in room or tracker.room > 0:
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
            log.info("paused %s: its stream has been full for %g s", _names(pause), self._options.stream_pause_after)
            consumer.pause(pause)
        if resume:
            consumer.resume(resume)

    def _deliver(self, batch: Batch) -> None:
        tracker = self._trackers.get(batch.tp)
        if tracker is None or tracker.live != batch.generation:
            return
        self._counters.messages_received += len(batch.messages)
        tracker.deliver(batch.messages, batch.next_offset)

    def wake(self) -> None:
        if self._consumer is not None:
            self._consumer.wake()

    def _ask_stop(self) -> None:
        self._stopping = True
        self._changed.set()
        self.wake()

    # -- rebalances (the transport calls these) ------------------------------------------------------------

    async def on_assigned(self, assignment: Assignment) -> None:
        """Open an account for each partition."""
        consumer = self._consumer
        if consumer is None:
            return
        self._counters.rebalances += 1
        self._generation = assignment.generation
        self._refused = None
        self._trackers = {
            tp: PartitionTracker(
                tp,
                PartitionLedger(assignment.generation, consumer.position(tp)),
                self._readers.setdefault(tp.topic, []),
                max_span=self._options.stream_max_span,
                counters=self._counters,
                on_acked=self._on_acked,
                on_room=self.wake,
            )
            for tp in sorted(assignment.partitions)
        }
        self._commits_open = True
        log.info("generation %d: %d partitions assigned", assignment.generation, len(self._trackers))
        self.wake()

    async def on_revoked(self, revoked: frozenset[TP], *, lost: bool) -> None:
        """Let go: stop delivery, wait for what is in hand, flush, commit. When lost, only discard."""
        trackers = {tp: tracker for tp, tracker in self._trackers.items() if tp in revoked}
        for tracker in trackers.values():
            tracker.close()
        try:
            if lost:
                log.warning("lost %s: other workers own them now; what is in hand is discarded", _names(trackers))
                self._commits_open = False
                self._interrupt(revoked)
            elif trackers:
                if not self._stopping:  # at shutdown the agents have stopped before us
                    await self._drain(revoked)
                with trio.move_on_after(self._options.producer_flush_timeout):
                    await self._producer.flush()
                async with self._commit_lock:
                    self._commits_open = False
                    await self._commit(trackers)
        finally:
            for tp in trackers:
                self._trackers.pop(tp, None)

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

    # -- commits -------------------------------------------------------------------------------------------

    def _on_acked(self) -> None:
        self._acked += 1
        if self._acked >= self._options.broker_commit_every and not self._commit_due.is_set():
            self._commit_due.set()

    async def run_commits(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit every `broker_commit_interval` seconds, and early after `broker_commit_every` messages."""
        task_status.started()
        while True:
            with trio.move_on_after(self._options.broker_commit_interval):
                await self._commit_due.wait()
            self._commit_due = trio.Event()
            self._acked = 0
            requests, self._commit_requests = self._commit_requests, []
            failure: Exception | None = None
            try:
                async with self._commit_lock:
                    if self._commits_open:
                        failure = await self._commit(dict(self._trackers))
                    elif requests and self._trackers:
                        failure = CommitRefused("the partitions are being reassigned, or belong to other workers")
            except BaseException:  # a crash or a stop: the next incarnation answers them, or the end of the run
                self._commit_requests[:0] = requests
                self._commit_due.set()
                raise
            for request in requests:
                request.settle(failure)
            stalled = any(
                tracker.blocked_since is not None and not tracker.paused for tracker in self._trackers.values()
            )
            if stalled or self._refused is not None:
                self.wake()

    async def commit(self) -> None:
        """Have what is acknowledged now committed, and wait for it. Cancelling this ends the wait only.

        Raises:
            CommitRefused: other workers own the partitions now.
            BrokerUnavailable, trio.TooSlowError: it will be tried again.
            AppNotRunning: the run ended before it was made.
        """
        if self._closed:
            raise AppNotRunning("the app has stopped")
        request = _CommitRequest()
        self._commit_requests.append(request)
        self._commit_due.set()
        await request.settled.wait()
        if request.failure is not None:
            raise request.failure

    def close(self) -> None:
        """The run has ended: nobody waits for a commit any more."""
        self._closed = True
        for request in self._commit_requests:
            request.settle(AppNotRunning("the app stopped before the commit was made"))
        self._commit_requests.clear()

    async def _commit(self, trackers: Mapping[TP, PartitionTracker]) -> Exception | None:
        """Commit these, and return what kept it from being done.

        What the broker refuses is lost, what it cannot take now waits. Meanwhile the partitions may have been lost
        and assigned anew: the answer then says nothing of the new generation.
        """
        consumer, generation = self._consumer, self._generation
        offsets = {
            tp: tracker.ledger.committable
            for tp, tracker in trackers.items()
            if tracker.ledger.committable > tracker.committed
        }
        if consumer is None or not offsets:
            return None
        try:
            with trio.fail_after(self._options.broker_commit_timeout):
                await consumer.commit(offsets, generation=generation)
        except CommitRefused as error:
            self._counters.commits_failed += 1
            log.warning("commit of %s refused, what is in hand is discarded: %s", _names(offsets), error)
            if generation == self._generation:
                self._commits_open = False
                self._refused = (trio.current_time(), error)
                for tracker in trackers.values():
                    tracker.close()
            return error
        except (TransportError, trio.TooSlowError) as error:
            self._counters.commits_failed += 1
            if not self._commit_failing:  # said once, and again when it is over
                self._commit_failing = True
                log.warning("commit of %s failed, it will be tried again: %r", _names(offsets), error)
            return error
        self._counters.commits += 1
        if self._commit_failing:
            self._commit_failing = False
            log.info("commits go on")
        for tp, offset in offsets.items():
            trackers[tp].committed = offset
        return None

    def __repr__(self) -> str:
        return f"<Conductor generation={self._generation} topics={sorted(self._subscribed)} partitions={len(self._trackers)}>"


def _names(partitions: Mapping[TP, object] | list[TP]) -> str:
    names = sorted(str(tp) for tp in partitions)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
