"""What a task has in hand: the event it is working on, so that its outputs and answers find their way to it.

One `Hand` per task that iterates streams, in a context variable: tasks that it starts share it, and what they send
belongs to the same event. A hand and its cursors outlive the task: the next incarnation of a crashed actor takes
them over, with everything that was not done.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from .cursor import Cursor
from .event import Event

__all__ = ["CursorSource", "Hand", "current_event", "current_hand"]


class CursorSource(Protocol):
    """What streams read from: something that gives out cursors."""

    def open_cursor(self) -> Cursor: ...

    def __hash__(self) -> int: ...


class Closable(Protocol):
    def close(self) -> None: ...


class Hand:
    """A slot for the event in hand, and the cursors of the streams that its task reads.

    Attributes:
        event: what the task works on now.
        worked: whether an event was finished since this was last set to False.
        reached: called when a stream is first waited on: the task is up.
        made: streams that the task made itself, which end with it.
    """

    __slots__ = ("_cursors", "event", "interrupt", "made", "owner", "prepare", "reached", "worked")

    def __init__(
        self,
        *,
        owner: object | None = None,
        prepare: Callable[[Event[Any], Cursor], None] | None = None,
        interrupt: Callable[[], None] | None = None,
    ) -> None:
        self.event: Event[Any] | None = None
        self.worked = False
        self.owner = owner
        self.prepare = prepare
        self.interrupt = interrupt
        self.reached: Callable[[], None] | None = None
        self.made: list[Closable] = []
        self._cursors: dict[CursorSource, Cursor] = {}

    def cursor(self, source: CursorSource) -> Cursor:
        """This hand's place in what `source` gives; the same one each time."""
        cursor = self._cursors.get(source)
        if cursor is None:
            cursor = self._cursors[source] = source.open_cursor()
            cursor.prepare = self.prepare
            cursor.interrupt = self.interrupt
        return cursor

    def close_streams(self) -> None:
        """The task is over: close the streams that it made. What is in hand and not done is not acknowledged."""
        for stream in self.made:
            stream.close()
        self.made.clear()

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

    def drop(self) -> Event[Any] | None:
        """Empty the hand without acknowledging; the caller answers for the event that it gets."""
        event = self.event
        for cursor in self._cursors.values():
            if cursor.event is event:
                cursor.let_go()
        self.give_back()
        return event

    def __repr__(self) -> str:
        return f"<Hand {self.event!r}>"


current_hand: ContextVar[Hand | None] = ContextVar("famulus_hand", default=None)


def current_event() -> Event[Any] | None:
    """The event that the current task is working on, or None outside a stream's loop."""
    hand = current_hand.get()
    return None if hand is None else hand.event
