"""`FutureMessage`: the promise that a message will be delivered, and its receipt."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any

import trio

from .event import Event
from .message import TP, Headers, ProducerRecord, RecordMetadata
from .transport import ProduceResult

__all__ = ["DeliveryCallback", "FutureMessage"]

DeliveryCallback = Callable[["FutureMessage"], Awaitable[None] | None]
"""Called once with the settled future; an awaitable that it returns is awaited by the producer's task."""


class FutureMessage(ProducerRecord):
    """A message on its way: the record to be written, and its fate. Await it for its `RecordMetadata`; several tasks may.

    Resource handling: nothing needs to be closed; cancelling an awaiter ends its wait and not the delivery.

    Error handling: awaiting it raises what kept the message out of the log (`ProduceError` and other
    `TransportError`). A failure that nobody awaits is still logged, counted, and a failure of the event from
    whose handling the message was sent.
    """

    __slots__ = (
        "_error",
        "_index",
        "_receipt",
        "_waiters",
        "callback",
        "deadline",
        "events",
        "partition",
        "persistent",
        "size",
        "topic",
    )

    # Without a call of the record's own, since one of these is made for each send.
    def __init__(
        self,
        topic: str,
        key: bytes | None = None,
        value: bytes | None = None,
        headers: Headers = (),
        timestamp: float | None = None,
        *,
        callback: DeliveryCallback | None = None,
    ) -> None:
        self.topic = topic
        self.key = key
        self.value = value
        self.headers = headers
        self.timestamp = timestamp
        self.callback = callback
        self.partition = -1
        self.persistent = False  # never given up while the run lives: a dead letter
        self.deadline = 0.0  # of its delivery; set once there is trouble
        self.size = 0
        self._receipt: ProduceResult | None = None
        self._index = 0
        self._error: Exception | None = None
        self._waiters: trio.lowlevel.ParkingLot | None = None
        self.events: Event[Any] | tuple[Event[Any], ...] | None = None

    @property
    def sent(self) -> bool:
        """Whether it has been handed over for delivery; what `as_future_message` gives has not."""
        return self.size > 0 or self.done()

    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._receipt is not None or self._error is not None

    @property
    def error(self) -> Exception | None:
        """What kept the message out of the log, as far as is known."""
        return self._error

    def result(self) -> RecordMetadata:
        """The receipt.

        Raises:
            trio.WouldBlock: not delivered yet.
            TransportError: what kept the message out of the log.
        """
        if self._error is not None:
            raise self._error
        receipt = self._receipt
        if receipt is None:
            raise trio.WouldBlock
        timestamp, kind = receipt.timestamp, 1
        if timestamp is None:
            timestamp, kind = self.timestamp or 0.0, 0
        base = receipt.base_offset
        offset = base + self._index if base >= 0 else -1
        return RecordMetadata(self.topic, self.partition, TP(self.topic, self.partition), offset, timestamp, kind)

    def __await__(self) -> Generator[Any, Any, RecordMetadata]:
        return self._wait().__await__()

    async def _wait(self) -> RecordMetadata:
        await self.wait_settled()
        return self.result()

    async def wait_settled(self) -> None:
        """Wait until the outcome is known, whatever it is."""
        if self.done():
            await trio.lowlevel.checkpoint()
            return
        if self._waiters is None:
            self._waiters = trio.lowlevel.ParkingLot()
        await self._waiters.park()

    def belongs_to(self, event: Event[Any]) -> None:
        """Make it an output of this event, whose offset then waits for its delivery. There may be several."""
        event.message.refcount += 1
        self.events = event if self.events is None else (*_all(self.events), event)

    def settle(self, receipt: ProduceResult, index: int) -> None:
        """The broker has it, as number `index` of its batch. Called by the producer."""
        self._receipt = receipt
        self._index = index
        events = self.events
        if events is None:
            pass
        elif isinstance(events, tuple):
            for event in events:
                event.message.release()
        else:  # released here, without a call: most have one event
            message = events.message
            count = message.refcount = message.refcount - 1
            if count == 0 and message.tracker is not None:
                message.tracker.done(message)
        if self._waiters is not None:
            self._waiters.unpark_all()

    def fail(self, error: Exception, *, run_ends: bool = False) -> None:
        """It will not be delivered. Called by the producer.

        When that is because the run ends, its event has not failed: it stays unacknowledged and comes again.
        """
        self._error = error
        if self.events is not None and not run_ends:
            for event in _all(self.events):
                event.fail(error)
        if self._waiters is not None:
            self._waiters.unpark_all()

    def give_up(self, error: Exception) -> None:
        """It will not be delivered, and its event need not wait for that."""
        self._error = error
        if self.events is not None:
            for event in _all(self.events):
                event.message.release()
        if self._waiters is not None:
            self._waiters.unpark_all()

    @property
    def outputs_of(self) -> tuple[Event[Any], ...]:
        """The events that it is an output of."""
        return () if self.events is None else _all(self.events)

    @property
    def expendable(self) -> bool:
        """Whether it is no trouble when its topic is not there: an answer whose caller has left."""
        return False

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for what comes of it: a request, or the answer to one."""
        return False

    def shrink(self) -> bool:
        """Its topic does not take it, for its size: become smaller, and say whether it did."""
        return False

    def __repr__(self) -> str:
        state = "failed" if self._error else "delivered" if self._receipt else "pending" if self.size else "unsent"
        return f"<FutureMessage {self.topic} {state}>"


def _all(events: Event[Any] | tuple[Event[Any], ...]) -> tuple[Event[Any], ...]:
    return events if isinstance(events, tuple) else (events,)
