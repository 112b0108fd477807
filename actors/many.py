"""`map` and `join`: many requests, no more than a window of them at once."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from ..channels.arguments import SendOptions
from ..channels.runs import Run
from ..channels.waking import NOTHING
from .calls import send_request
from .replies import Replies
from .slots import MemberSlot
from .waiting import asking, begin_wait

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["Items", "Results", "keyed"]

R = TypeVar("R")

Items = Iterable[tuple[Any, Any]] | AsyncIterable[tuple[Any, Any]]
"""Pairs of key and value."""


class Gathering:
    """What the slots of a `Results` have gathered. They keep this, and not the iterator, which may be dropped meanwhile.

    Attributes:
        open: by their number, the requests that have no answer yet.
        answers: those that have come: number, value, or an error.
    """

    __slots__ = ("_task", "answers", "open")

    def __init__(self) -> None:
        self.open: dict[int, MemberSlot] = {}
        self.answers: deque[tuple[int, Any, Exception | None]] = deque()
        self._task: Task | None = None

    def arrived(self, index: int, value: Any, error: Exception | None) -> None:
        """For the slots: an answer is there."""
        self.open.pop(index, None)
        self.answers.append((index, value, error))
        if self._task is not None:
            reschedule(self._task, NOTHING)
            self._task = None

    async def wait(self) -> None:
        """Wait until one is there."""
        if self._task is not None:
            raise trio.BusyResourceError("another task waits for the next of these answers")
        self._task = current_task()
        await wait_task_rescheduled(self._abort)

    def _abort(self, _: Any) -> Abort:
        self._task = None
        return Abort.SUCCEEDED


class Results(AsyncIterator[R], Generic[R]):
    """The answers to many requests, each as it comes.

    Made by `map` and `kvmap`. No more than a window of requests wait for their answers at once; the next values are taken, and
    sent, while it is iterated. One task may do that. To leave it early, use it as a context, or `contextlib.aclosing`.

    Attributes:
        index: which of the values, from 0 on, the last answer belongs to.
    """

    __slots__ = (
        "__weakref__",
        "_exhausted",
        "_gathering",
        "_item",
        "_items",
        "_next",
        "_options",
        "_replies",
        "_run",
        "_source",
        "_window",
        "agent",
        "correlation_id",
        "index",
    )

    def __init__(self, run: Run, agent: Agent[Any, R], items: Items, window: int | None, options: SendOptions) -> None:
        if window is not None and (not isinstance(window, int) or window < 1):
            raise ValueError(f"window={window!r}: expected a whole number of at least 1")
        self._run = run
        self._replies = Replies.of(run)
        self._window = window or run.options.reply_window
        self._options = options
        self._items, self._source = _iterators(items)
        self._gathering = Gathering()
        self._next = 0
        self._item: tuple[Any, Any] | None = None
        self._exhausted = False
        self.agent = agent
        self.correlation_id: bytes | None = None  # there are several; see `waiting.Awaited`
        self.index = -1

    def __aiter__(self) -> Results[R]:
        return self

    async def __anext__(self) -> R:
        asker = asking()
        gathering, pacer = self._gathering, self._run.pacer
        try:
            if pacer.due():
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.checkpoint_if_cancelled()
            while not gathering.answers:
                if not self._exhausted and len(gathering.open) < self._window:
                    await self._ask_next()
                    continue
                if not gathering.open:
                    raise StopAsyncIteration
                if asker is not None:
                    await begin_wait(self._run, asker, self)
                if not gathering.answers:
                    await gathering.wait()
        finally:
            if asker is not None:
                asker.waits_for = None
        self.index, value, error = gathering.answers.popleft()
        if error is not None:
            try:
                raise error
            finally:
                del error  # see `AskSlot.result`
        answer: R = value
        return answer

    @property
    def arrived(self) -> bool:
        """See `waiting.Awaited`."""
        return bool(self._gathering.answers)

    async def _ask_next(self) -> None:
        """Take a value and send the request."""
        pair: Any = self._item
        if pair is None:
            try:
                pair = next(self._items) if self._source is None else await self._source.__anext__()
            except (StopIteration, StopAsyncIteration):
                self._exhausted = True
                return
            self._item = pair
        try:
            key, value = pair
        except (TypeError, ValueError):
            raise TypeError(f"{pair!r}: expected a pair, (key, value)") from None
        number = self._next
        gathering = self._gathering
        try:
            slot = self._replies.open(
                self.agent, lambda agent, identity: MemberSlot(agent, identity, gathering, number), None
            )
        except Exception:  # refused: that is the result for this value
            self._give_up(number)
            raise
        gathering.open[number] = slot
        try:
            await send_request(self._run, slot, self._replies, value, key, cast(SendOptions, {**self._options}))
        except BaseException as error:
            unanswered = gathering.open.pop(number, None) is not None
            self._replies.forget(slot)
            if not (unanswered and isinstance(error, trio.Cancelled)):  # else it is sent when this is iterated again
                self._give_up(number)
            raise
        self._next, self._item = number + 1, None

    def _give_up(self, number: int) -> None:
        """What is raised now is the result for this value."""
        self.index = number
        self._next, self._item = number + 1, None

    async def aclose(self) -> None:
        """Wait for no more answers. Those that come are dropped and counted."""
        self._leave()
        await trio.lowlevel.checkpoint_if_cancelled()

    def _leave(self) -> None:
        self._exhausted = True
        gathering = self._gathering
        for slot in list(gathering.open.values()):
            self._replies.forget(slot)
        gathering.open.clear()
        gathering.answers.clear()

    async def __aenter__(self) -> Results[R]:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._leave()

    def __del__(self) -> None:
        if getattr(self, "_gathering", None) is not None:
            self._leave()

    async def in_order(self) -> list[R]:
        """All answers, in the order of the values.

        Raises:
            AgentError: of the first request on which the agent failed.
        """
        found: list[Any] = []
        try:
            async for value in self:
                index = self.index
                if index == len(found):
                    found.append(value)
                else:
                    found.extend([None] * (index + 1 - len(found)))
                    found[index] = value
        finally:
            self._leave()
        return found

    def __repr__(self) -> str:
        return f"<Results of {self.agent.name} waiting={len(self._gathering.open)} sent={self._next}>"


def _iterators(items: Items) -> tuple[Any, Any]:
    """The one iterator or the other."""
    if isinstance(items, Mapping):
        raise TypeError("expected pairs of key and value, and this is a mapping: give its items()")
    if isinstance(items, AsyncIterable):
        return None, aiter(items)
    try:
        return iter(items), None
    except TypeError:
        raise TypeError(f"{items!r}: expected an iterable or an async iterable") from None


class Keyed(AsyncIterator[tuple[Any, Any]]):
    """The values of an async iterable, all with one key."""

    __slots__ = ("_key", "_values")

    def __init__(self, values: AsyncIterable[Any], key: Any) -> None:
        self._values = aiter(values)
        self._key = key

    async def __anext__(self) -> tuple[Any, Any]:
        return self._key, await self._values.__anext__()


def keyed(values: Iterable[Any] | AsyncIterable[Any], key: Any) -> Items:
    """Values with one key, or None, for all."""
    if isinstance(values, AsyncIterable):
        return Keyed(values, key)
    try:
        return ((key, value) for value in values)
    except TypeError:
        raise TypeError(f"{values!r}: expected an iterable or an async iterable of values") from None
