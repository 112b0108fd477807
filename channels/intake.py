"""`Intake`: where `Channel.listen` puts what arrives by another means of communication, and how acks go back.

One for the whole of `listen`, and one for each connection that it opens. An intake gives acknowledgements back in a
task of its own, one after the other, so an agent never waits for a slow sender.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Protocol

import trio

from .message import HeadersArg, Message, as_headers, as_timestamp

__all__ = ["Arrival", "Intake", "OnAck", "Receiver", "bare", "open_intake"]

log = logging.getLogger("famulus.channel")

OnAck = Callable[[], object]
"""What tells the sender that its message is done with. What it returns is awaited, where that can be awaited."""

_BROKEN = (trio.BrokenResourceError, ConnectionError)


class Receiver(Protocol):
    """What intakes hand over to: all of a channel's readers in one run.

    Attributes:
        name: of the channel.
        max_pending: messages of one intake that may be without an acknowledgement given back.
        intakes: those that are open.
    """

    name: str
    max_pending: int
    intakes: set[Intake]

    async def hold(self) -> None: ...

    def number(self) -> int: ...

    async def hand_out(self, message: Message) -> int: ...

    def acked(self) -> None: ...

    def flushed(self) -> None: ...


class Intake:
    """Takes in what arrives. Made by the run, for `Channel.listen`.

    Resource handling: it lasts as long as that call of `listen`, one of `connection` as long as its block. What is
    acknowledged later is not given back any more: its sender sends it again.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._open = True
        self._pending = 0
        self._due: deque[OnAck] = deque()
        self._more_due = trio.Event()
        self._fewer_pending = trio.lowlevel.ParkingLot()

    async def deliver(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: HeadersArg = None,
        timestamp: float | None = None,
        on_ack: OnAck | None = None,
    ) -> None:
        """Hand a message to every reader of the channel, waiting for room in their buffers (the channel's `maxsize`).

        Waits as well while `stream_max_span` messages of this intake are not acknowledged, and for ever once the run is
        stopping. Cancelled, it has not handed over anything.

        Key and value are decoded as the channel's types say. What cannot be decoded goes to `on_key_decode_error` or
        `on_value_decode_error`, is counted, and counts as done with.

        Args:
            timestamp: seconds since the epoch; the time of arrival by default.
            on_ack: called, without arguments, when every reader is done with the message and what it sent for it is
                delivered. If it fails, so does the connection, or without one `listen`.

        Raises:
            trio.ClosedResourceError: the block of its connection, or `listen`, has ended.
        """
        receiver = self._receiver
        while self._open and self._pending >= receiver.max_pending:
            await self._fewer_pending.park()
        await receiver.hold()
        if not self._open:
            raise trio.ClosedResourceError(f"channel {receiver.name}: this connection has ended")
        when = time.time() if timestamp is None else as_timestamp(timestamp)
        pairs = as_headers(headers) if headers else ()
        message = Message(receiver.name, 0, receiver.number(), when, 0, pairs, key, value, Arrival.live)
        arrival = message.tracker = Arrival(self, on_ack)
        message.refcount = 1
        self._pending += 1
        try:
            arrival.readers = await receiver.hand_out(message)
        except BaseException:
            arrival.drop()
            raise

    def connection(self) -> AbstractAsyncContextManager[Intake]:
        """An intake for one connection: ``async with intake.connection() as intake:``.

        Its acknowledgements are given back in order, and wait for no other connection's. At the end of the block it
        waits until everything that it delivered is acknowledged and that is given back.

        Error handling: a connection that breaks (`trio.BrokenResourceError`, `ConnectionError`, in the block or in
        `on_ack`) ends the block alone, and is logged. Any other failure leaves the block.
        """
        return _connection(self._receiver)

    @property
    def pending(self) -> int:
        """Messages whose acknowledgement was not given back yet."""
        return self._pending

    @property
    def flushed(self) -> bool:
        """Whether every acknowledgement so far was given back."""
        return not self._due

    # -- for the run -----------------------------------------------------------------------------------------

    def done(self, on_ack: OnAck | None) -> None:
        """Every reader is done with a message."""
        self._receiver.acked()
        if on_ack is None or not self._open:
            self.settle()
        else:
            self._due.append(on_ack)
            self._more_due.set()

    def settle(self) -> None:
        """One message needs no more care."""
        self._pending -= 1
        if self._pending == 0 or self._pending == self._receiver.max_pending - 1:
            self._fewer_pending.unpark_all()

    async def give_back(self) -> None:
        """Call what is to be called for each acknowledged message, in the order of the acknowledgements."""
        while True:
            while self._due:
                result = self._due[0]()
                if inspect.isawaitable(result):
                    await result
                self._due.popleft()
                self.settle()
            self._receiver.flushed()
            self._more_due = trio.Event()
            await self._more_due.wait()

    async def wait_settled(self) -> None:
        """Wait until nothing is pending."""
        while self._pending:
            await self._fewer_pending.park()

    def close(self) -> None:
        """Give back nothing any more."""
        self._open = False
        self._due.clear()
        self._fewer_pending.unpark_all()

    def __repr__(self) -> str:
        return f"<Intake of {self._receiver.name} pending={self._pending} {'open' if self._open else 'closed'}>"


class Arrival:
    """The tracker of one message that arrived.

    Attributes:
        readers: how many got it.
    """

    __slots__ = ("_intake", "_left", "_on_ack", "readers")

    live = 0
    until = -1

    def __init__(self, intake: Intake, on_ack: OnAck | None) -> None:
        self._intake: Intake | None = intake
        self._on_ack = on_ack
        self._left = 0
        self.readers = 1

    def done(self, message: Message) -> None:
        """Every holder has released it."""
        intake, self._intake = self._intake, None
        if intake is not None:
            intake.done(self._on_ack)

    def leave(self) -> bool:
        """A reader leaves without having finished with it. Returns whether another one has it, or has finished with it."""
        self._left += 1
        if self._left < self.readers:
            return True
        self.drop()
        return False

    def drop(self) -> None:
        """Nobody will process it: it is not acknowledged, and no longer waited for."""
        intake, self._intake = self._intake, None
        if intake is not None:
            intake.settle()


@asynccontextmanager
async def open_intake(receiver: Receiver) -> AsyncIterator[Intake]:
    """An intake and its task. A failure leaves in the group of their nursery."""
    intake = Intake(receiver)
    receiver.intakes.add(intake)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intake.give_back)
            yield intake
            await intake.wait_settled()
            nursery.cancel_scope.cancel()
    finally:
        receiver.intakes.discard(intake)
        intake.close()
        receiver.flushed()


@asynccontextmanager
async def _connection(receiver: Receiver) -> AsyncIterator[Intake]:
    with bare():
        intake: Intake | None = None
        try:
            async with open_intake(receiver) as intake:
                yield intake
        except* _BROKEN as broken:
            left = 0 if intake is None else intake.pending
            log.info(
                "channel %s: a connection broke, %d messages without ack: %s",
                receiver.name,
                left,
                broken.exceptions[0],
            )


@contextmanager
def bare() -> Iterator[None]:
    """A single failure leaves as itself, not in the group of a nursery of ours."""
    failure: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        failure = group.exceptions[0] if len(group.exceptions) == 1 else group
    if failure is not None:  # raised here, it keeps its own cause and context
        raise failure
