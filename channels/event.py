"""`Event`: a message with its value decoded, in the hands of one stream."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .message import Headers, Message

if TYPE_CHECKING:
    from .cursor import Cursor

__all__ = ["Event", "FailurePolicy", "Request"]

T = TypeVar("T")


class Request(Protocol):
    """Somebody waits for an answer to this event. Implemented by the agents' layer."""

    def answer(self, value: Any) -> None:
        """The agent's answer."""

    def acked(self) -> None:
        """The event is done with, whether it was answered or not."""


FailurePolicy = Callable[["Event[Any]", BaseException], None]
"""Decides what becomes of an event that failed. It takes over one hold on the event's message."""


class Event(Generic[T]):
    """One message as one stream got it.

    Attributes:
        key, value: decoded with the channel's types.
        headers: pairs of name and bytes, in order.
        message: the bytes, and topic, partition, offset, timestamp.
        attempt: 1, and one more for each time that it is redelivered after a failure.
        acked: whether this stream is done with it.

    ``async with event:`` acknowledges it when the block ends without an exception.
    """

    __slots__ = ("acked", "attempt", "cursor", "failure", "headers", "key", "message", "on_failure", "request", "value")

    def __init__(
        self,
        key: Any,
        value: T,
        headers: Headers,
        message: Message,
        cursor: Cursor | None = None,
        on_failure: FailurePolicy | None = None,
    ) -> None:
        self.key = key
        self.value = value
        self.headers = headers
        self.message = message
        self.attempt = 1
        self.acked = False
        self.failure: BaseException | None = None
        self.request: Request | None = None
        self.cursor = cursor
        self.on_failure = on_failure

    def ack(self) -> bool:
        """Be done with it: once every stream that got the message is, its offset may be committed.

        Again does nothing. Returns whether this call did it.
        """
        if self.acked:
            return False
        self.acked = True
        if self.failure is not None and self.on_failure is not None:
            self.on_failure(self, self.failure)
            return True
        message = self.message  # released here, without a call: this is done for every event
        count = message.refcount = message.refcount - 1
        if count == 0:
            tracker = message.tracker
            if tracker is not None:
                tracker.done(message)
        if self.request is not None:
            self.request.acked()
        return True

    def abandon(self) -> None:
        """Its reader goes for good: others no longer wait for it, and a later `ack` does nothing."""
        if not self.acked:
            self.acked = True
            self.message.release()

    def reply(self, value: Any) -> None:
        """Answer whoever asked; nothing happens when nobody did. The first answer counts."""
        if self.request is not None:
            self.request.answer(value)

    def fail(self, error: BaseException) -> None:
        """One of its outputs was not delivered: a failure of this event, once it is out of its actor's hand.

        The output's own hold on the message is given up, or handed over to the failure policy.
        """
        first = self.failure is None
        self.failure = error
        if first and self.acked and self.on_failure is not None:
            self.on_failure(self, error)
        else:
            self.message.release()

    def repeat(self) -> Event[T]:
        """The same message once more, since its handling was cut off; takes over this event's hold on the message.

        What was sent for this one no longer matters: what is sent for the new one does.
        """
        event = Event(self.key, self.value, self.headers, self.message, self.cursor, self.on_failure)
        event.attempt = self.attempt
        event.request = self.request
        self.acked = True
        self.on_failure = self.request = None
        return event

    def again(self) -> Event[T]:
        """The same message for a further attempt."""
        event = self.repeat()
        event.attempt += 1
        return event

    async def __aenter__(self) -> Event[T]:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is None:
            self.ack()

    def __repr__(self) -> str:
        state = "acked" if self.acked else "in hand"
        return f"<Event {self.message.tp}@{self.message.offset} key={self.key!r} {state}>"
