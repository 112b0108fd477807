"""What a task has in hand: the event it is working on, so that its outputs and answers find their way to it.

One `Hand` per task that iterates streams, in a context variable: tasks that it starts share it, and what they send
belongs to the same event. A hand and its cursors outlive the task: the next incarnation of a crashed actor takes
them over, with everything that was not done.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from .crew import Crew
from .cursor import Cursor
from .event import Event, FailurePolicy
from .message import Message

__all__ = ["CursorSource", "Hand", "current_event", "current_hand"]


class CursorSource(Protocol):
    """What streams read from: something that gives out cursors."""

    @property
    def closed(self) -> bool: ...

    def open_cursor(self, hand: Hand, /) -> Cursor: ...

    def __hash__(self) -> int: ...


class Output(Protocol):
    """Something sent, whose delivery an event waits for."""

    def belongs_to(self, event: Event[Any]) -> None: ...


class MadeSource(CursorSource, Protocol):
    """A subscription that a task made itself, by `channel.stream()`."""

    @property
    def channel(self) -> Readable: ...

    def hand_over(self, hand: Any, /) -> None: ...

    def close(self, *, leave: bool) -> None: ...


class Readable(Protocol):
    """A channel."""

    @property
    def place(self) -> Hashable: ...


M = TypeVar("M", bound=MadeSource)


class Hand:
    """A slot for the event in hand, and the cursors of the streams that its task reads.

    Attributes:
        event: what the task works on now.
        worked: whether an event was finished since this was last set to False.
        reached: called when a stream is first waited on: the task is up.
        failures: what becomes of an event that failed; where there is none, it is delivered again.
        one_by_one: events that failed together are delivered again each alone.
        refuse: called with a message that cannot be decoded, and why.
        crew: shares the streams that it makes with other hands.
    """

    __slots__ = (
        "_at_first",
        "_cursors",
        "_made",
        "_spare",
        "_stopping",
        "crew",
        "event",
        "fail",
        "failures",
        "interrupt",
        "one_by_one",
        "owner",
        "prepare",
        "reached",
        "refuse",
        "worked",
    )

    def __init__(
        self,
        *,
        owner: object | None = None,
        prepare: Callable[[Event[Any]], None] | None = None,
        interrupt: Callable[[], None] | None = None,
        fail: Callable[[Exception], None] | None = None,
        failures: FailurePolicy | None = None,
        one_by_one: bool = False,
        refuse: Callable[[Message, Exception], None] | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.event: Event[Any] | None = None
        self.worked = False
        self.owner = owner
        self.prepare = prepare
        self.interrupt = interrupt
        self.fail = fail
        self.failures = failures
        self.one_by_one = one_by_one
        self.refuse = refuse
        self.crew = crew
        self.reached: Callable[[], None] | None = None
        self._cursors: dict[CursorSource, Cursor] = {}
        self._made: list[Any] = []
        self._spare: list[Any] = []
        self._stopping: bool | None = None
        self._at_first: int | None = None

    @property
    def cursors(self) -> list[Cursor]:
        """Its places in all that its task reads."""
        return [*self._cursors.values()]

    def cursor(self, source: CursorSource) -> Cursor:
        """This hand's place in what `source` gives; the same one each time."""
        cursor = self._cursors.get(source)
        if cursor is None:
            self._cursors = {source: cursor for source, cursor in self._cursors.items() if not source.closed}
            cursor = self._cursors[source] = source.open_cursor(self)
            cursor.bind(self)
            if self._stopping is not None:
                cursor.stop(drain=self._stopping)
        return cursor

    def claim(self, output: Output) -> None:
        """What the task sends belongs to everything that it has in hand: one event of each stream that it reads."""
        if len(self._cursors) <= 1:
            if self.event is not None:
                output.belongs_to(self.event)
            return
        for cursor in self._cursors.values():
            if cursor.event is not None:
                output.belongs_to(cursor.event)

    # -- the task's life -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """A new incarnation of the task: what the one before had in hand comes first, its own streams wait to be reclaimed."""
        self._stopping = None
        self.worked = False
        self.give_back()
        for cursor in self._cursors.values():
            cursor.resume()
        self._spare, self._made = [*self._made, *self._spare], []
        self._at_first = None

    def stop(self, *, drain: bool) -> None:
        """End the streams after the event in hand; with `drain`, after what no log has."""
        self._stopping = drain
        for cursor in self._cursors.values():
            cursor.stop(drain=drain)

    def finish(self) -> None:
        """The task returned: what is in hand is done."""
        if self.event is not None:
            self.worked = True
        for cursor in self._cursors.values():
            cursor.finish()
        self.event = None

    def give_back(self) -> None:
        """Have what is in hand redelivered first, to whoever takes this hand over."""
        for cursor in self._cursors.values():
            cursor.give_back()
        self.event = None

    def drop(self) -> list[Event[Any]]:
        """Empty the hand without acknowledging; the caller answers for the events that it gets, one of each stream."""
        events = [cursor.event for cursor in self._cursors.values() if cursor.event is not None]
        for cursor in self._cursors.values():
            cursor.once_done = None
            cursor.let_go()
        self.give_back()
        return events

    @property
    def asked(self) -> Event[Any] | None:
        """The event that an answer belongs to: the one in hand, unless nobody asked it while another stream's was asked."""
        event = self.event
        if len(self._cursors) > 1 and (event is None or event.request is None):
            in_hand = [cursor.event for cursor in self._cursors.values() if cursor.event is not None]
            return next((other for other in in_hand if other.request is not None), event or next(iter(in_hand), None))
        return event

    # -- streams that the task makes itself ----------------------------------------------------------------

    def make(self, channel: Readable, subscribe: Callable[[bool], M]) -> M:
        """A subscription for a stream that the task makes: one that a crashed incarnation left behind, or a new one.

        Args:
            subscribe: told whether other hands will read it too.
        """
        place = channel.place
        found: M | None
        if self.crew is not None:
            number = sum(made.channel.place == place for made in self._made)
            found = self.crew.join(place, number, self, lambda: subscribe(True))
        else:
            found = next((spare for spare in self._spare if spare.channel.place == place), None)
            if found is None:
                found = subscribe(False)
        if found in self._spare:
            self._spare.remove(found)
        self._made.append(found)
        return found

    def unmake(self, source: Any) -> bool:
        """Close a stream that this task has made. Returns whether it has."""
        if source not in self._made:
            return False
        self._made.remove(source)
        self._leave(source, leave=True, for_good=True)
        return True

    def _leave(self, source: Any, *, leave: bool, for_good: bool) -> None:
        if self.crew is None or self.crew.leave(source, self, for_good=for_good):
            source.close(leave=leave)
        elif for_good:
            self._cursors = {source: cursor for source, cursor in self._cursors.items() if not cursor.handed_over}

    def come_to_first(self) -> None:
        """The task has come to its first stream: what it has made until now, to combine with that, is made at each start."""
        self._at_first = len(self._made)

    def close_passing(self) -> None:
        """The task has crashed: close the streams that it made on its way; what it makes at each start waits for that."""
        passing = [] if self._at_first is None else self._made[self._at_first :]
        self._made = [source for source in self._made if source not in passing]
        for source in [*passing, *self._spare]:
            self._leave(source, leave=True, for_good=True)
        self._spare = []
        self._cursors = {source: cursor for source, cursor in self._cursors.items() if not source.closed}

    def close_spare_later(self) -> None:
        """Once the first event is finished: by then a stream inside the loop has been made again, too."""
        if self._spare:
            for cursor in self._cursors.values():
                cursor.after_event(self.close_spare)

    def close_spare(self) -> None:
        """Close the streams that a crashed incarnation has left and this one has not made again."""
        spare, self._spare = self._spare, []
        for source in spare:
            self._leave(source, leave=True, for_good=True)

    def close_made(self, *, leave: bool, for_good: bool = False) -> None:
        """Close the streams that the task made. With `leave`, others no longer wait for what it had not read.

        Args:
            for_good: nobody takes this hand over; what it has not finished of streams that it shares goes to the others.
        """
        for source in [*self._made, *self._spare]:
            self._leave(source, leave=leave, for_good=for_good)
        self._made, self._spare = [], []
        self._cursors = {source: cursor for source, cursor in self._cursors.items() if not source.closed}

    def __repr__(self) -> str:
        return f"<Hand {self.event!r}>"


current_hand: ContextVar[Hand | None] = ContextVar("famulus_hand", default=None)


def current_event() -> Event[Any] | None:
    """The event that the current task is working on, the last of a `take`; None outside a stream's loop."""
    hand = current_hand.get()
    if hand is None:
        return None
    event = hand.event or hand.asked
    return None if event is None else event.parts[-1]
