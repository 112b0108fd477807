"""The progress watchdog: names the stream that does not get on, the message, and where its task stands.

An agent may take its time, so by default this only says so. With ``stream_watchdog_action="restart"`` what it does counts
as a failure: its failure policy takes the event, its supervisor starts it again, or gives up and ends the worker.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from weakref import WeakKeyDictionary

import attrs
import trio

from .cursor import Cursor
from .errors import StreamStuck
from .event import Event
from .options import MessagingOptions
from .stacks import stack_of
from .tracker import PartitionTracker

__all__ = ["Watchdog"]

log = logging.getLogger("famulus.watchdog")


@attrs.define
class _Seen:
    """What stood there at the last look."""

    what: object
    since: float
    told: bool = False


class Watchdog:
    """Looks now and then at what each stream has in hand, and at how far each partition has come."""

    def __init__(self, options: MessagingOptions) -> None:
        self._timeout = options.stream_watchdog_timeout
        self._restarts = options.stream_watchdog_action == "restart"
        self._seen: WeakKeyDictionary[object, _Seen] = WeakKeyDictionary()

    def look(self, cursors: Iterable[Cursor], trackers: Collection[PartitionTracker]) -> None:
        """Warn of what has stood still for longer than allowed; once each."""
        if not self._timeout:
            return
        busy = False
        for cursor in cursors:
            event = cursor.event
            if event is None or event.acked:
                self._seen.pop(cursor, None)
                busy = busy or (cursor.gathered is not None and bool(cursor.gathered.events))
                continue
            busy = True
            lasted = self._lasted(cursor, event)
            if lasted is not None:
                self._report(cursor, event, lasted)
        if busy:  # what waits, waits behind that
            return
        for tracker in trackers:
            ledger = tracker.ledger
            if not ledger.in_flight:
                self._seen.pop(tracker, None)
                continue
            lasted = self._lasted(tracker, ledger.committable)
            if lasted is not None:
                log.warning(
                    "%s@%d has not been acknowledged for %.0f s, and nobody has it in hand (%d messages wait): is its "
                    "agent running, is event.ack() missing, or an output of it not delivered?",
                    tracker.tp,
                    ledger.committable,
                    lasted,
                    ledger.in_flight,
                )

    def _lasted(self, key: object, what: object) -> float | None:
        """How long it has been the same, when that is to be told now."""
        now = trio.current_time()
        seen = self._seen.get(key)
        if seen is None or (seen.what is not what and seen.what != what):
            self._seen[key] = _Seen(what, now)
        elif not seen.told and now - seen.since >= self._timeout:
            seen.told = True
            return now - seen.since
        return None

    def _report(self, cursor: Cursor, event: Event[object], lasted: float) -> None:
        message = event.message
        error = StreamStuck(f"{cursor.name} has had {message.tp}@{message.offset} in hand for {lasted:.0f} s")
        log.warning("%s; its task stands at\n%s", error, _place(cursor.task))
        if self._restarts and cursor.fail is not None:
            cursor.fail(error)


def _place(task: trio.lowlevel.Task | None) -> str:
    """Where a task waits, its innermost frame last."""
    return "    (its task has ended)" if task is None else stack_of(task)
