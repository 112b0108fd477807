"""`Channel`: a named or nameless way from senders to streams; this class is the local one, within a run.

Each stream or agent on a channel gets everything that is put into it; the actors of one agent share. What is put
before anyone reads waits for the first reader. `put` waits when a reader's buffer is full.
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import trio

from .errors import BufferFull, ImproperlyConfigured
from .event import Event
from .future import DeliveryCallback, FutureMessage
from .hand import current_hand
from .inbox import EventInbox
from .message import HeadersArg, Message, as_headers
from .runs import Declaration, Run, current_run
from .steps import Processor
from .stream import Stream
from .subscription import ChannelSubscription, Subscription, readers_of
from .transport import ProduceResult

__all__ = ["Channel"]

T = TypeVar("T")

_HERE = ProduceResult(-1)


class Channel(Generic[T]):
    """A channel within one run of its App: values are passed as they are, nothing is encoded.

    To read from another means of communication, subclass it and override `subscribe` (what readers get) and `send`.

    Args:
        app: the declaration it belongs to.
        name: for reports; made from the app's id by default.
        key_type, value_type: what it carries; for type checkers, and for topics that it is regrouped into.
        maxsize: events that wait for one reader before senders wait; setting `stream_buffer_maxsize` by default.

    Resource handling: a declaration, nothing to close. Its buffers belong to a run.
    """

    def __init__(
        self,
        app: Declaration,
        name: str | None = None,
        *,
        key_type: Any = None,
        value_type: Any = None,
        key_serializer: str | None = None,
        value_serializer: str | None = None,
        maxsize: int | None = None,
        acks: bool = True,
    ) -> None:
        if maxsize is not None and maxsize < 1:
            raise ImproperlyConfigured(f"channel maxsize={maxsize!r}: expected a whole number of at least 1")
        self.app = app
        self.name = name or f"{app.id}-channel-{id(self):x}"
        self.key_type = key_type
        self.value_type = value_type
        self.key_serializer = key_serializer
        self.value_serializer = value_serializer
        self.maxsize = maxsize
        self.acks = acks

    # -- reading -------------------------------------------------------------------------------------------

    def bound(self, run: Run) -> int:
        """Messages that may wait for one reader in this run."""
        return self.maxsize or run.options.stream_buffer_maxsize

    def subscribe(self, run: Run, name: str, *, shared: bool = False) -> Subscription:
        """A new reader in a run. Streams are made over it."""
        return ChannelSubscription(run, self, name, shared=shared)

    def stream(self, *, processors: Iterable[Processor] = ()) -> Stream[T]:
        """A stream over all that comes into the channel from now on, in the current run.

        What came before belongs to those who read then: for work that must not be missed over a restart, use an agent.

        Args:
            processors: functions, plain or async, through which each value goes, in this order.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)

        def subscribe() -> Subscription:
            return self.subscribe(run, f"stream of {self.name}")

        hand = current_hand.get()
        stream: Stream[T] = Stream(subscribe() if hand is None else hand.make(self, subscribe), acks=self.acks)
        for processor in processors:
            stream.add_processor(processor)
        return stream

    def throw(self, error: BaseException) -> None:
        """Raise this from every stream that reads the channel in the current run, before anything else comes.

        Of the actors of an agent, one gets it.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        for reader in readers_of(current_run(self.app), self):
            reader.throw(error)

    async def maybe_declare(self) -> None:
        """Create what the channel needs where others keep it; a local one needs nothing."""

    def __aiter__(self) -> Any:
        return self.stream().events()

    async def on_key_decode_error(self, error: Exception, message: Message) -> None:
        """Called for a message whose key cannot be decoded, before it is skipped; to be overridden."""

    async def on_value_decode_error(self, error: Exception, message: Message) -> None:
        """Called for a message whose value cannot be decoded, before it is skipped; to be overridden."""

    # -- sending -------------------------------------------------------------------------------------------

    async def send(
        self,
        value: Any = None,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp: float | None = None,
        headers: HeadersArg = None,
        key_serializer: str | None = None,
        value_serializer: str | None = None,
        callback: DeliveryCallback | None = None,
    ) -> FutureMessage:
        """Send a value, waiting for room. The result is a promise: await it for the receipt.

        Sent while an event is in hand, it belongs to that event, whose offset waits for its delivery.

        Args:
            timestamp: seconds since the epoch; the time of sending by default.
            callback: called with the settled promise; what it returns is awaited.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)
        event = self._event(key, value, timestamp, headers)
        if run.pacer.due():
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        await _state(run, self).put(event, self.bound(run))
        future = self._sent(callback)
        if callback is not None:
            result = callback(future)
            if inspect.isawaitable(result):
                await result
        return future

    async def put(self, value: T) -> None:
        """Send a value, waiting for room."""
        await self.send(value)

    def send_soon(
        self,
        value: Any = None,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp: float | None = None,
        headers: HeadersArg = None,
        key_serializer: str | None = None,
        value_serializer: str | None = None,
        callback: DeliveryCallback | None = None,
    ) -> FutureMessage:
        """Send a value without waiting; a callback has to be a plain function here.

        Raises:
            BufferFull: no room in the buffer of some reader.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)
        _state(run, self).put_nowait(self._event(key, value, timestamp, headers), self.bound(run))
        future = self._sent(callback)
        if callback is not None:
            callback(future)
        return future

    def _event(self, key: Any, value: Any, timestamp: float | None, headers: HeadersArg) -> Event[Any]:
        pairs = as_headers(headers) if headers else ()
        when = time.time() if timestamp is None else timestamp
        return Event(key, value, pairs, Message(self.name, 0, -1, when, 0, pairs, None, None))

    def _sent(self, callback: DeliveryCallback | None) -> FutureMessage:
        future = FutureMessage(self.name, callback=callback)
        future.partition = 0
        future.settle(_HERE, 0)
        return future

    # -- its readers in a run ------------------------------------------------------------------------------

    def attach(self, run: Run, inbox: EventInbox) -> None:
        """Give what is put to this inbox too; the first one also gets what has been waiting."""
        _state(run, self).attach(inbox)

    def detach(self, run: Run, inbox: EventInbox) -> None:
        """Stop giving to this inbox."""
        _state(run, self).detach(inbox)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class _LocalState:
    """A local channel in one run: its readers, and what was put before the first of them came."""

    __slots__ = ("_early", "_inboxes", "_room")

    def __init__(self) -> None:
        self._inboxes: list[EventInbox] = []
        self._early: deque[Event[Any]] = deque()
        self._room = trio.lowlevel.ParkingLot()

    def attach(self, inbox: EventInbox) -> None:
        self._inboxes.append(inbox)
        while self._early:
            try:
                inbox.put_nowait(self._early[0])
            except trio.WouldBlock:
                break
            self._early.popleft()
        self._room.unpark_all()

    def detach(self, inbox: EventInbox) -> None:
        if inbox in self._inboxes:
            self._inboxes.remove(inbox)

    async def put(self, event: Event[Any], bound: int) -> None:
        """All readers get it or, when this is cancelled, none. Readers may come and go while it waits."""
        while True:
            inboxes = self._inboxes
            if not inboxes:
                if len(self._early) < bound:
                    self._early.append(event)
                    return
                await self._room.park()
            elif len(inboxes) == 1:
                event.message.refcount = 1
                try:
                    inboxes[0].put_nowait(event)
                    return
                except trio.WouldBlock:
                    pass
                try:
                    await inboxes[0].put(event)
                    return
                except trio.ClosedResourceError:
                    continue  # that reader has left
            elif (full := self._full()) is not None:
                await full.wait_room()
            else:
                self._put_to_all(event)
                return

    def _full(self) -> EventInbox | None:
        return next((inbox for inbox in self._inboxes if inbox.buffered >= inbox.maxsize), None)

    def _put_to_all(self, event: Event[Any]) -> None:
        event.message.refcount = len(self._inboxes)
        for inbox in self._inboxes:
            inbox.put_nowait(Event(event.key, event.value, event.headers, event.message))

    def put_nowait(self, event: Event[Any], bound: int) -> None:
        if not self._inboxes:
            if len(self._early) >= bound:
                raise BufferFull(
                    f"{event.message.topic}: {bound} events wait for a first reader; use `await send(...)`"
                )
            self._early.append(event)
            return
        full = self._full()
        if full is not None:
            raise BufferFull(f"{full.name}: {full.maxsize} events wait; use `await send(...)`, or raise maxsize")
        self._put_to_all(event)


def _state(run: Run, channel: Channel[Any]) -> _LocalState:
    return run.state(channel, _LocalState)
