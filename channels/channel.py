"""`Channel`: a named or nameless way from senders to streams; this class is the local one, within a run.

Each stream or agent on a channel gets everything that is put into it; the actors of one agent share, and so do those
who call `get`. What is put before anyone reads waits for the first reader. `put` waits when a reader's buffer is full.
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import AsyncIterator, Hashable, Iterable
from typing import Any, Generic, Self, TypeVar, Unpack

import trio

from ..models import Schema
from .arguments import (
    Changes,
    ChannelOptions,
    MessageOptions,
    OnDecodeError,
    SendOptions,
    SendSoonOptions,
    Serializer,
    changed,
    check_options,
    schema_of,
)
from .event import Event
from .foreign import ForeignSubscription
from .future import DeliveryCallback, FutureMessage
from .getting import Getter
from .hand import current_hand
from .inbox import EventInbox
from .intake import Intake
from .local import LocalState
from .message import Headers, HeadersArg, Message, as_headers, as_timestamp
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

    To read from another means of communication, subclass it and override `listen`; see there.

    Args:
        app: the declaration it belongs to.
        name: for reports; made from the app's id by default.
        value_type: what it carries; for type checkers, and for topics that it is regrouped into.
        options: see `ChannelOptions`.

    Resource handling: a declaration, nothing to close. Its buffers belong to a run.
    """

    key_type: Any
    value_type: Any
    maxsize: int | None
    acks: bool
    on_decode_error: OnDecodeError = "skip"
    dead_letter: str | None = None
    hands_over: bool
    """Whether what is sent goes to its readers in this process and nowhere else: its class does not override `send`."""

    def __init__(
        self,
        app: Declaration,
        name: str | None = None,
        *,
        value_type: Any = None,
        **options: Unpack[ChannelOptions],
    ) -> None:
        self.app = app
        self._describe(name, value_type, options)

    def _describe(self, name: str | None, value_type: Any, options: ChannelOptions) -> None:
        """Check and keep what it is declared with; for a copy once more."""
        check_options(f"channel {name!r}" if name else "channel", options, ChannelOptions)
        self._configure(name or f"{self.app.id}-channel-{id(self):x}", value_type, options)

    def _configure(self, name: str, value_type: Any, options: ChannelOptions) -> None:
        self.name = name
        self._options: dict[str, Any] = {"value_type": value_type, **options}
        self.schema = schema = schema_of(self._options)
        self.key_type = schema.key_type
        self.value_type = schema.value_type
        self.key_serializer = schema.key_serializer
        self.value_serializer = schema.value_serializer
        self.maxsize = options.get("maxsize")
        self.acks = options.get("acks", True)
        self._root: Channel[Any] = self
        self.hands_over = type(self).send is Channel.send

    # -- copies --------------------------------------------------------------------------------------------

    def clone(self, **changes: Unpack[Changes]) -> Self:
        """Another view of this channel: what is put into one, the readers of both get.

        `__init__` is not called again: what a subclass keeps in attributes of its own, the copy has too.

        Args:
            changes: what is otherwise here than there.

        Raises:
            ImproperlyConfigured: a value is not what its option takes.
        """
        options: Any = changed(self._options, changes)
        name = options.pop("name", self.name)
        clone = copy.copy(self)
        clone._describe(name, options.pop("value_type", None), options)
        clone._root = self._root
        return clone

    def derive(self, **changes: Unpack[Changes]) -> Channel[Any]:
        """A channel like this one with other options; see `clone`, which this is for a local channel."""
        return self.clone(**changes)

    # -- declaring -----------------------------------------------------------------------------------------

    async def declare(self) -> None:
        """Make what the channel needs outside the process; a local channel needs nothing."""
        await trio.lowlevel.checkpoint()

    async def maybe_declare(self) -> None:
        """The same, but only what is missing."""
        await trio.lowlevel.checkpoint()

    # -- reading -------------------------------------------------------------------------------------------

    @property
    def place(self) -> Hashable:
        """What is read; channels of which this is equal are read alike."""
        return self

    def overlaps(self, other: Channel[Any]) -> bool:
        """Whether something may be read from both."""
        return self.place == other.place

    def bound(self, run: Run) -> int:
        """Messages that may wait for one reader in this run."""
        return self.maxsize or run.options.stream_buffer_maxsize

    def subscribe(self, run: Run, name: str, *, shared: bool = False) -> Subscription:
        """A new reader in a run. Streams are made over it."""
        if self.is_foreign:
            return ForeignSubscription(run, self, name, shared=shared)
        return ChannelSubscription(run, self, name, shared=shared)

    @property
    def is_foreign(self) -> bool:
        """Whether it reads from another means of communication: its class overrides `listen`."""
        return type(self).listen is not Channel.listen

    async def listen(self, intake: Intake, *, task_status: trio.TaskStatus[Any]) -> None:
        """Receive from another means of communication; to be overridden.

        A subclass that overrides it makes a channel over sockets, a queue server, a device. It runs as a supervised child of
        the run while somebody reads the channel: call ``task_status.started()`` when it is ready, which agents and `open_app`
        wait for, and ``await intake.deliver(data, on_ack=...)`` for each message. It is cancelled at the end, after the agents
        have finished what they had and the acknowledgements of that were given back. If it raises or returns, it is started
        again, with backoff; before it was ready, the app does not start.

        What is sent to the channel in this program goes to its readers here, unless the subclass overrides `send` as well.
        """
        raise NotImplementedError(f"{type(self).__name__}.listen is to be overridden")

    def stream(self, *, processors: Iterable[Processor] = ()) -> Stream[T]:
        """A stream over all that comes into the channel from now on, in the current run.

        What came before belongs to those who read then: for work that must not be missed over a restart, use an agent.

        Args:
            processors: functions, plain or async, through which each value goes, in this order.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)

        def subscribe(shared: bool) -> Subscription:
            return self.subscribe(run, f"stream of {self.name}", shared=shared)

        hand = current_hand.get()
        stream: Stream[T] = Stream(subscribe(False) if hand is None else hand.make(self, subscribe), acks=self.acks)
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

    def events(self) -> AsyncIterator[Event[T]]:
        """A stream over the channel's events: values with their key, headers and message. See `stream`."""
        return self.stream().events()

    def __aiter__(self) -> Any:
        return self.stream().events()

    async def get(self) -> Event[T]:
        """Wait for the next event. All who call this in a run are one reader: each event goes to one of them.

        The event is the caller's to acknowledge: ``async with event:``, or `event.ack()`. The offset of a topic waits for
        that. Deadlines are the caller's too; cancelled, it has taken nothing.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)
        getter = run.state(("get", self), lambda: Getter(self.subscribe(run, f"get of {self.name}")))
        return await getter.take()

    def empty(self) -> bool:
        """Whether `get` would have to wait: nothing is buffered for it here.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)
        getter: Getter | None = run.found(("get", self))
        return not self._waits_for_reader(run) if getter is None else getter.empty()

    def _waits_for_reader(self, run: Run) -> bool:
        """Whether a first reader would find something."""
        return self._state(run).early

    async def on_key_decode_error(self, error: Exception, message: Message) -> None:
        """Called for a message whose key cannot be decoded, before it is skipped; to be overridden.

        What it raises is logged.
        """

    async def on_value_decode_error(self, error: Exception, message: Message) -> None:
        """Called for a message whose value cannot be decoded, before it is skipped; to be overridden.

        What it raises is logged.
        """

    # -- sending -------------------------------------------------------------------------------------------

    async def send(self, value: Any = None, *, key: Any = None, **options: Unpack[SendOptions]) -> FutureMessage:
        """Send a value, waiting for room. The result is a promise: await it for the receipt.

        Args:
            options: see `SendOptions`. A local channel has one partition, encodes nothing, and delivers at once.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)
        event = _event(self.name, key, value, **options)
        if run.pacer.due():
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        await self._state(run).put(event, self.bound(run))
        future = _deliver(FutureMessage(self.name, timestamp=event.message.timestamp))
        if options:
            await _call_back(future, options.get("callback"))
        return future

    def offer(self, run: Run, key: Any, value: Any, headers: Headers) -> Event[Any] | None:
        """Hand a value to the one reader, if there is one and it has room: None. Else its event, for `hand_out`.

        For requests, which need no receipt, and whose senders go on to wait for the answer.
        """
        event = Event(key, value, headers, Message(self.name, 0, -1, time.time(), 0, headers, None, None))
        state: LocalState = run.found(self._root) or self._state(run)
        return None if state.offer(event) else event

    async def pass_on(self, value: Any, source: Message, *, key: Any, timestamp: float, headers: HeadersArg) -> None:
        """Send what was made of a message on its way through here: that one is not done before this one is."""
        run = current_run(self.app)
        event = _event(self.name, key, value, timestamp=timestamp, headers=headers)
        event.message.stand_for(source)
        try:
            await self._state(run).put(event, self.bound(run))
        except BaseException:
            source.release()
            raise

    async def put(self, value: T) -> None:
        """Send a value, waiting for room."""
        await self.send(value)

    def send_soon(self, value: Any = None, *, key: Any = None, **options: Unpack[SendSoonOptions]) -> FutureMessage:
        """Send a value without waiting. See `send`; a callback that waits is awaited by a task of the run.

        Raises:
            BufferFull: no room in the buffer of some reader.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)
        event = _event(self.name, key, value, **options)
        self._state(run).put_nowait(event, self.bound(run))
        future = _deliver(FutureMessage(self.name, timestamp=event.message.timestamp))
        callback = options.get("callback")
        result = None if callback is None else callback(future)
        if inspect.isawaitable(result):
            waiting = result
            future.callback = lambda _: waiting
            run.producer.callbacks.add(future)
        return future

    def as_future_message(
        self, value: Any = None, *, key: Any = None, **options: Unpack[MessageOptions]
    ) -> FutureMessage:
        """The promise of a message that is still to be sent, by `publish_message`.

        Args:
            options: see `MessageOptions`.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        current_run(self.app)
        return _Unsent(_event(self.name, key, value, **options), options.get("callback"))

    async def publish_message(self, fut: FutureMessage, wait: bool = True) -> FutureMessage:
        """Send what `as_future_message` of this channel has made, waiting for room. Returns it.

        Args:
            wait: also for its delivery.

        Raises:
            ValueError: it is another channel's, or was sent before.
            TransportError: with `wait`, what kept it from being delivered.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        if not isinstance(fut, _Unsent) or fut.topic != self.name or fut.event is None:
            raise ValueError(f"{fut!r} is no unsent message of channel {self.name}")
        run = current_run(self.app)
        event, fut.event = fut.event, None
        try:
            await trio.lowlevel.checkpoint()
            await self._state(run).put(event, self.bound(run))
        except BaseException:  # cancelled: no reader has it, and it may be published again
            fut.event = event
            raise
        await _call_back(_deliver(fut), fut.callback)
        return fut

    # -- its readers in a run ------------------------------------------------------------------------------

    def attach(self, run: Run, inbox: EventInbox) -> None:
        """Give what is put to this inbox too; the first one also gets what has been waiting."""
        self._state(run).attach(inbox)

    def detach(self, run: Run, inbox: EventInbox) -> None:
        """Stop giving to this inbox."""
        self._state(run).detach(inbox)

    def _state(self, run: Run) -> LocalState:
        return run.state(self._root, LocalState)

    async def hand_out(self, run: Run, event: Event[Any]) -> int:
        """Give an event to all readers, waiting for room. Returns how many got it; 0: it waits for the first one."""
        return await self._state(run).put(event, self.bound(run))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class _Unsent(FutureMessage):
    """The promise of a message that a local channel is still to get."""

    __slots__ = ("event",)

    def __init__(self, event: Event[Any], callback: DeliveryCallback | None) -> None:
        super().__init__(
            event.message.topic, headers=event.headers, timestamp=event.message.timestamp, callback=callback
        )
        self.event: Event[Any] | None = event


def _event(
    name: str,
    key: Any,
    value: Any,
    *,
    partition: int | None = None,
    timestamp: float | None = None,
    headers: HeadersArg = None,
    schema: Schema | None = None,
    key_serializer: Serializer = None,
    value_serializer: Serializer = None,
    callback: DeliveryCallback | None = None,
    force: bool = False,
    eager_partitioning: bool | None = None,
) -> Event[Any]:
    pairs = as_headers(headers) if headers else ()
    when = time.time() if timestamp is None else as_timestamp(timestamp)
    return Event(key, value, pairs, Message(name, 0, -1, when, 0, pairs, None, None))


def _deliver(future: FutureMessage) -> FutureMessage:
    """What is in the readers' buffers is delivered."""
    future.partition = 0
    future.settle(_HERE, 0)
    return future


async def _call_back(future: FutureMessage, callback: DeliveryCallback | None) -> None:
    if callback is not None:
        result = callback(future)
        if inspect.isawaitable(result):
            await result
