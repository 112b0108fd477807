"""`Event`: a message with its value decoded, in the hands of one stream."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from trio.lowlevel import in_trio_task

from .message import Headers, HeadersArg, Message

if TYPE_CHECKING:
    from .channel import Channel
    from .cursor import Cursor
    from .future import FutureMessage

__all__ = ["UNCHANGED", "AckResult", "Event", "FailurePolicy", "Request"]

T = TypeVar("T")


class Request(Protocol):
    """Somebody waits for an answer to this event. Implemented by the agents' layer."""

    def answer(self, value: Any, event: Event[Any], /) -> bool:
        """The agent's answer. Whether to `wait_room` before the next one.

        Raises:
            EncodeError: it has to travel, and cannot be encoded.
        """
        ...

    async def wait_room(self) -> None:
        """Wait until whoever asked can take more."""

    def acked(self, event: Event[Any], /) -> None:
        """The event is being acknowledged, whether it was answered or not."""

    def again(self) -> Request:
        """The same request, for the event that takes this one's place."""
        ...


class AckResult(int):
    """What `ack` gives: true if that call acknowledged. It is there at once, and may be awaited too, as Faust's programs do."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, bool]:
        return bool(self)
        yield

    def __repr__(self) -> str:
        return repr(bool(self))


class _Unchanged:
    """Says that an argument was not given, where None means something."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = _Unchanged()

_ACKED, _NOT_ACKED = AckResult(1), AckResult(0)

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

    def ack(self) -> AckResult:
        """Be done with it: once every stream that got the message is, its offset may be committed.

        Again does nothing. Returns whether this call did it; ``await event.ack()`` does the same.
        """
        if self.acked:
            return _NOT_ACKED
        self.acked = True
        if self.failure is not None and self.on_failure is not None:
            self.on_failure(self, self.failure)
            return _ACKED
        if self.request is not None:
            self.request.acked(self)  # first: the offset waits for what it sends
        message = self.message  # released here, without a call: this is done for every event
        count = message.refcount = message.refcount - 1
        if count == 0:
            tracker = message.tracker
            if tracker is not None:
                tracker.done(message)
        return _ACKED

    def abandon(self) -> None:
        """Its reader goes for good: others no longer wait for it, and a later `ack` does nothing."""
        if not self.acked:
            self.acked = True
            self.message.release()

    def reply(self, value: Any) -> None:
        """Answer whoever asked; nothing happens when nobody did. The first answer counts; to `ask_stream`, all do.

        Raises:
            EncodeError: the answer has to go to another process, and cannot be encoded.
            NotReady: the same, and its codec has to ask a schema registry first, for which this cannot wait.
            RuntimeError: called in another thread than that of the app.
        """
        if self.request is None:
            return
        if not in_trio_task():
            raise RuntimeError("event.reply(...) in another thread: call trio.from_thread.run_sync(event.reply, value)")
        self.request.answer(value, self)

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

    def crash(self, policy: FailurePolicy, error: BaseException) -> None:
        """Its actor raised on it: the policy decides what becomes of it."""
        if not self.acked:
            self.acked = True
            policy(self, error)

    @property
    def parts(self) -> Sequence[Event[Any]]:
        """The events that it stands for: itself, or those of a `take`."""
        return (self,)

    def pass_on(self) -> None:
        """It leaves the hand unacknowledged, since that is the user's to do."""

    def repeats(self) -> list[Event[Any]]:
        """What is to be delivered again when it is not finished."""
        return [] if self.acked else [self.repeat()]

    def repeat(self) -> Event[T]:
        """The same message once more, since its handling was cut off; takes over this event's hold on the message.

        What was sent for this one no longer matters: what is sent for the new one does. Its value is decoded anew, since
        the one before may have been changed.
        """
        cursor = self.cursor
        value = self.value if cursor is None else cursor.decoded(self)
        event: Event[T] = Event(self.key, value, self.headers, self.message, cursor, self.on_failure)
        event.attempt = self.attempt
        event.request = None if self.request is None else self.request.again()
        self.acked = True
        self.on_failure = self.request = None
        return event

    def again(self) -> Event[T]:
        """The same message for a further attempt."""
        event = self.repeat()
        event.attempt += 1
        return event

    async def forward(
        self,
        channel: Channel[Any] | str,
        *,
        key: Any = UNCHANGED,
        value: Any = UNCHANGED,
        partition: int | None = None,
        timestamp: float | None = None,
        headers: HeadersArg = None,
    ) -> FutureMessage:
        """Send the message on as it is: key and value as the bytes that came, with its headers and its timestamp.

        Args:
            channel: a channel or topic, or the name of a topic, which then has the types of this event's channel.
            key, value: others instead, encoded as the channel's.
            partition: where to write it; chosen by the key by default.
            timestamp: seconds since the epoch; the message's own by default.
            headers: others instead. Without them those of the message go on, a question's reply address too.

        Raises:
            EncodeError: a new key or value cannot be encoded.
        """
        from .forwarding import forward

        return await forward(
            self, channel, key=key, value=value, partition=partition, timestamp=timestamp, headers=headers
        )

    async def send(
        self,
        channel: Channel[Any] | str,
        *,
        key: Any = UNCHANGED,
        value: Any = UNCHANGED,
        **options: Any,
    ) -> FutureMessage:
        """Send its key and value, decoded as they are, to another channel, which encodes them in its own way.

        Args:
            options: see `Channel.send`.
        """
        from .forwarding import target_of

        return await target_of(self, channel).send(
            self.value if value is UNCHANGED else value, key=self.key if key is UNCHANGED else key, **options
        )

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
