"""Slots: where answers arrive. One for each request that somebody waits for, or will; see `Replies`.

A slot knows nothing of how an answer came. Those who wait are woken by the scheduler itself, without events or tasks.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from ..channels.waking import NOTHING
from .errors import AgentError

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["AskSlot", "Collector", "MemberSlot", "PromiseSlot", "ReplySlot", "StreamSlot"]


class ReplySlot:
    """A place for the answer to one request.

    Attributes:
        agent: who was asked.
        correlation_id: of the request.
        single: whether one value settles it.
    """

    __slots__ = ("agent", "correlation_id")

    single = True

    def __init__(self, agent: Agent[Any, Any], correlation_id: bytes) -> None:
        self.agent = agent
        self.correlation_id = correlation_id

    @property
    def arrived(self) -> bool:
        """Whether there is something for whoever waits."""
        raise NotImplementedError

    def value(self, value: Any) -> None:
        """The answer."""
        raise NotImplementedError

    def failure(self, error: Exception) -> None:
        """There will be no answer, or no more."""
        raise NotImplementedError


class AskSlot(ReplySlot):
    """One caller's wait for one answer.

    Attributes:
        settled: whether the answer has come, or there will be none.
        task: whoever waits for that sets this, and waits with `abort`; see `ask`.
    """

    __slots__ = ("_error", "_value", "settled", "task")

    def __init__(self, agent: Agent[Any, Any], correlation_id: bytes) -> None:
        self.agent = agent
        self.correlation_id = correlation_id
        self.settled = False
        self._value: Any = None
        self._error: Exception | None = None
        self.task: Task | None = None

    @property
    def arrived(self) -> bool:
        return self.settled

    def value(self, value: Any) -> None:
        self.settled = True
        self._value = value
        if self.task is not None:
            reschedule(self.task, NOTHING)
            self.task = None

    def failure(self, error: Exception) -> None:
        self._error = error
        self.value(None)

    def abort(self, _: Any) -> Abort:
        """The wait is cancelled."""
        self.task = None
        return Abort.SUCCEEDED

    def result(self) -> Any:
        """The answer, once it is settled.

        Raises:
            AgentError: the agent failed on the request, or gave no answer.
        """
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # else it and this frame keep each other until the garbage collector comes
        return self._value


class PromiseSlot(ReplySlot):
    """An answer that several may wait for, later."""

    __slots__ = ("_error", "_value", "given_up", "settled", "waiters")

    def __init__(self, agent: Agent[Any, Any], correlation_id: bytes) -> None:
        super().__init__(agent, correlation_id)
        self.settled = self.given_up = False
        self._value: Any = None
        self._error: Exception | None = None
        self.waiters = trio.lowlevel.ParkingLot()

    @property
    def arrived(self) -> bool:
        return self.settled

    def value(self, value: Any) -> None:
        self.settled = True
        self._value = value
        self.waiters.unpark_all()

    def failure(self, error: Exception) -> None:
        self._error = error
        self.value(None)

    def result(self) -> Any:
        """The answer.

        Raises:
            trio.WouldBlock: it has not come.
            AgentError: see `AskSlot.wait`; or a wait for it was cancelled.
        """
        if self._error is not None:
            raise copy.copy(self._error)  # its traceback would keep this slot, which keeps it
        if self.settled:
            return self._value
        if self.given_up:
            raise AgentError(
                self.agent.name, "the wait for its answer was cancelled: ask again, with the same correlation_id"
            )
        raise trio.WouldBlock


class StreamSlot(ReplySlot):
    """The parts of one answer, in order, each once, for one caller. Bounded.

    Attributes:
        crowded: whether it holds as many as it should.
        closed: nothing more is taken: all parts have come, or there was a failure, or the caller has left.
    """

    __slots__ = ("_buffer", "_error", "_maxsize", "_received", "_room", "_task", "closed")

    single = False

    def __init__(self, agent: Agent[Any, Any], correlation_id: bytes, maxsize: int) -> None:
        super().__init__(agent, correlation_id)
        self._maxsize = maxsize
        self._buffer: deque[Any] = deque()
        self._received = 0
        self._error: Exception | None = None
        self._task: Task | None = None
        self._room: trio.lowlevel.ParkingLot | None = None
        self.closed = False

    @property
    def arrived(self) -> bool:
        return bool(self._buffer) or self.closed

    def value(self, value: Any) -> None:
        """An answer from who knows nothing of parts."""
        self.part(1, value)
        self.end(self._received)

    def part(self, number: int, value: Any) -> bool:
        """A part came. False: it was here before, or one before it is missing, which a further attempt may bring."""
        if self.closed or number != self._received + 1:
            return False
        if len(self._buffer) > self._maxsize:
            self.failure(
                AgentError(
                    self.agent.name,
                    f"{len(self._buffer)} parts of its answer wait: the caller is too slow, and the agent cannot wait for it; "
                    "take them faster, or raise the setting reply_buffer_maxsize",
                )
            )
            return False
        self._received = number
        self._buffer.append(value)
        self._wake()
        return True

    def end(self, count: int) -> None:
        """There are no more parts than these."""
        if count > self._received:
            missing = count - self._received
            self.failure(
                AgentError(self.agent.name, f"{missing} of {count} parts of its answer were lost on their way")
            )
        else:
            self.close()

    def failure(self, error: Exception) -> None:
        if not self.closed:
            self._error = error
            self.close()

    def close(self) -> None:
        """Take nothing more; an agent that waits for room goes on."""
        self.closed = True
        self._wake()
        self._unpark()

    @property
    def crowded(self) -> bool:
        return len(self._buffer) >= self._maxsize and not self.closed

    async def wait_room(self) -> None:
        """Wait until the caller has taken a part, or has left."""
        if self.crowded:
            if self._room is None:
                self._room = trio.lowlevel.ParkingLot()
            await self._room.park()

    def _unpark(self) -> None:
        if self._room is not None:
            self._room.unpark_all()

    def _wake(self) -> None:
        if self._task is not None:
            reschedule(self._task, NOTHING)
            self._task = None

    def _abort(self, _: Any) -> Abort:
        self._task = None
        return Abort.SUCCEEDED

    async def next(self) -> Any:
        """The next part.

        Raises:
            StopAsyncIteration: there are no more.
            AgentError: the agent failed after the parts that came before.
        """
        if not self._buffer and not self.closed:
            if self._task is not None:
                raise trio.BusyResourceError("another task waits for the next part of this answer")
            self._task = current_task()
            await wait_task_rescheduled(self._abort)
        if self._buffer:
            value = self._buffer.popleft()
            self._unpark()
            return value
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # see `AskSlot.result`
        raise StopAsyncIteration


class Collector(Protocol):
    """Who has several requests open at once."""

    def arrived(self, index: int, value: Any, error: Exception | None, /) -> None: ...


class MemberSlot(ReplySlot):
    """The answer to one of several requests, for their collector."""

    __slots__ = ("_collector", "_index")

    def __init__(self, agent: Agent[Any, Any], correlation_id: bytes, collector: Collector, index: int) -> None:
        self.agent = agent
        self.correlation_id = correlation_id
        self._collector = collector
        self._index = index

    @property
    def arrived(self) -> bool:
        return False  # nobody waits for one of them alone

    def value(self, value: Any) -> None:
        self._collector.arrived(self._index, value, None)

    def failure(self, error: Exception) -> None:
        self._collector.arrived(self._index, None, error)
