"""Draining: what streams may still finish when partitions are given up, or the run ends.

The event in hand is finished. Where several readers share a topic, they also share its committed offset: the slower ones
may go on, for a bounded time, with what the fastest has taken already, since all that would be delivered to it again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import trio

from .batch_cursor import BatchCursor
from .cursor import Cursor
from .inbox import BatchInbox
from .message import TP, Message
from .tracker import PartitionTracker

__all__ = ["Drain"]

log = logging.getLogger("famulus.conductor")

_LOOK = 0.02  # seconds between two looks whether the slower readers have caught up


class Drain:
    """The cursors of one run, and what they are waited for.

    Args:
        timeout: seconds that it may take.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._cursors: dict[Cursor, None] = {}  # in order
        self._stop_by: float | None = None

    def watch(self, cursor: Cursor) -> None:
        """Wait for this cursor's event in hand when its partition is revoked."""
        self._cursors[cursor] = None

    def unwatch(self, cursor: Cursor) -> None:
        self._cursors.pop(cursor, None)

    @property
    def cursors(self) -> list[Cursor]:
        return list(self._cursors)

    # -- a revocation --------------------------------------------------------------------------------------

    async def wait(self, trackers: Mapping[TP, PartitionTracker]) -> None:
        """Wait for what is in hand of these partitions, and for the slower readers; cancel what takes too long."""
        revoked = frozenset(trackers)
        _let_catch_up(trackers, self.cursors)
        with trio.move_on_after(self._timeout):
            for cursor in self.cursors:
                while cursor.holds(revoked):
                    if cursor.idle is None:
                        cursor.idle = trio.Event()
                    await cursor.idle.wait()
            catching_up = any(tracker.until >= 0 for tracker in trackers.values())  # else nobody can be behind
            while any(cursor.holds(revoked) or (catching_up and cursor.behind()) for cursor in self.cursors):
                await trio.sleep(_LOOK)
        for tracker in trackers.values():
            tracker.until = -1
        self.interrupt(revoked)

    def interrupt(self, revoked: frozenset[TP]) -> None:
        """Cancel those who still work on what is no longer ours; their event is processed by the next owner."""
        for cursor in self.cursors:
            cursor.look_again()
            if cursor.holds(revoked) and cursor.interrupt is not None and cursor.event is not None:
                message = cursor.event.message
                log.warning("cancelled the processing of %s@%d: its partition was revoked", message.tp, message.offset)
                cursor.interrupt()

    # -- the end of the run --------------------------------------------------------------------------------

    def begin_stop(self, trackers: Mapping[TP, PartitionTracker]) -> None:
        """The first stream was asked to stop with the run: from here on the slower ones only catch up."""
        if self._stop_by is None:
            # Half of the time: an event that is begun at the last moment has the other half.
            self._stop_by = trio.current_time() + self._timeout / 2
            _let_catch_up(trackers, self.cursors)

    def may_catch_up(self) -> bool:
        """Whether a stream that was asked to stop may still take what others have taken."""
        return self._stop_by is not None and trio.current_time() < self._stop_by


def _let_catch_up(trackers: Mapping[TP, PartitionTracker], cursors: list[Cursor]) -> None:
    """Set for each partition how far its fastest reader has come, where another one is behind."""
    shared = {tp: tracker for tp, tracker in trackers.items() if len(tracker.inboxes) > 1}
    if not shared:
        return
    next_of: dict[BatchInbox, dict[TP, int]] = {}  # the first offset that was not taken from an inbox
    for cursor in cursors:
        if isinstance(cursor, BatchCursor):
            _note(next_of.setdefault(cursor.inbox, {}), cursor.rest)
    for inbox in {inbox for tracker in shared.values() for inbox in tracker.inboxes}:
        for batch in inbox.peek():
            _note(next_of.setdefault(inbox, {}), batch)
    for tp, tracker in shared.items():
        if any(inbox.closed for inbox in tracker.inboxes):  # what it had is not read by anybody: nothing is won
            continue
        taken = [next_of.get(inbox, {}).get(tp, tracker.ledger.newest) for inbox in tracker.inboxes]
        if min(taken) < max(taken):
            tracker.until = max(taken)


def _note(lowest: dict[TP, int], messages: Sequence[Message]) -> None:
    for message in messages:
        tp = message.tp
        if message.offset < lowest.get(tp, message.offset + 1):
            lowest[tp] = message.offset
