"""Commits of one run: by interval, by count, when asked, and when partitions are given up.

Law 2 lives here and in the ledger: a commit is made for the partitions of one generation, one at a time, and only while they
are ours. What the broker refuses is lost, what it cannot take now waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import attrs
import trio

from .counters import Counters
from .errors import AppNotRunning, CommitRefused, TransportError
from .message import TP, some_names
from .options import MessagingOptions
from .tracker import AckCount, PartitionTracker
from .transport import Consumer

__all__ = ["Committer", "Ownership"]

log = logging.getLogger("famulus.conductor")


@attrs.define
class Ownership:
    """What a run owns at this moment: written by the conductor, read by the committer."""

    consumer: Consumer | None = None
    generation: int = -1
    trackers: dict[TP, PartitionTracker] = attrs.field(factory=dict)


class _Request:
    """Somebody waits for a commit."""

    __slots__ = ("failure", "settled")

    def __init__(self) -> None:
        self.settled = trio.Event()
        self.failure: Exception | None = None

    def settle(self, failure: Exception | None) -> None:
        self.failure = failure
        self.settled.set()


class Committer:
    """Commits what is acknowledged.

    Args:
        on_tick: called after each round, for what else goes by the commit interval.

    Attributes:
        acks: counts down to an early commit.
        refused: when the broker refused a commit of the present generation, and how; None after an assignment.
    """

    def __init__(
        self, owned: Ownership, options: MessagingOptions, counters: Counters, *, on_tick: Callable[[], None]
    ) -> None:
        self._owned = owned
        self._options = options
        self._every = options.broker_commit_every
        self.acks = AckCount(self._every)
        self._counters = counters
        self._on_tick = on_tick
        self._lock = trio.Lock()
        self._open = False
        self._failing = False
        self._due = trio.Event()
        self._requests: list[_Request] = []
        self._ended = False
        self.refused: tuple[float, CommitRefused] | None = None

    def assigned(self) -> None:
        """Partitions of a new generation are ours: commits may be made."""
        self._open = True
        self.refused = None

    def lost(self) -> None:
        """They belong to others now: none is made until the next assignment."""
        self._open = False

    def due(self) -> None:
        """Enough messages are done: commit now."""
        if not self._due.is_set():
            self._due.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit every `broker_commit_interval` seconds, and early after `broker_commit_every` messages."""
        task_status.started()
        while True:
            with trio.move_on_after(self._options.broker_commit_interval):
                await self._due.wait()
            self._due = trio.Event()
            self.acks.left = self._every
            await self._round()
            self._on_tick()

    async def _round(self) -> None:
        requests, self._requests = self._requests, []
        failure: Exception | None = None
        try:
            async with self._lock:
                if self._open:
                    failure = await self._commit(dict(self._owned.trackers))
                elif requests and self._owned.trackers:
                    failure = CommitRefused("the partitions are being reassigned, or belong to other workers")
        except BaseException:  # a crash or a stop: the next incarnation answers them, or the end of the run
            self._requests[:0] = requests
            self._due.set()
            raise
        for request in requests:
            request.settle(failure)

    async def commit(self) -> None:
        """Have what is acknowledged now committed, and wait for it. Cancelling this ends the wait only.

        Raises:
            CommitRefused: other workers own the partitions now.
            BrokerUnavailable, trio.TooSlowError: it will be tried again.
            AppNotRunning: the run ended before it was made.
        """
        if self._ended:
            raise AppNotRunning("the app has stopped")
        request = _Request()
        self._requests.append(request)
        self._due.set()
        await request.settled.wait()
        if request.failure is not None:
            raise request.failure

    async def commit_and_stop(self, trackers: Mapping[TP, PartitionTracker]) -> None:
        """The last commit of partitions that are given up, after the one under way; none follows until an assignment."""
        async with self._lock:
            self._open = False
            await self._commit(trackers)

    def close(self) -> None:
        """The run has ended: nobody waits for a commit any more."""
        self._ended = True
        for request in self._requests:
            request.settle(AppNotRunning("the app stopped before the commit was made"))
        self._requests.clear()

    async def _commit(self, trackers: Mapping[TP, PartitionTracker]) -> Exception | None:
        """Commit these, and return what kept it from being done.

        Meanwhile the partitions may have been lost and assigned anew: the answer then says nothing of the new generation.
        """
        consumer, generation = self._owned.consumer, self._owned.generation
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
            log.warning("commit of %s refused, what is in hand is discarded: %s", some_names(offsets), error)
            if generation == self._owned.generation:
                self._open = False
                self.refused = (trio.current_time(), error)
                for tracker in trackers.values():
                    tracker.close()
            return error
        except (TransportError, trio.TooSlowError) as error:
            self._counters.commits_failed += 1
            if not self._failing:  # said once, and again when it is over
                self._failing = True
                log.warning("commit of %s failed, it will be tried again: %r", some_names(offsets), error)
            return error
        self._counters.commits += 1
        if self._failing:
            self._failing = False
            log.info("commits go on")
        for tp, offset in offsets.items():
            trackers[tp].committed = offset
        return None
