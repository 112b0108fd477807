"""Calls: how an agent is asked. `Agent` and `BoundAgent` have them as methods.

No call starts a task. What waits for an answer is a slot in the run's `Replies`, which is gone when the caller is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from ..channels.arguments import SendOptions
from ..channels.channel import Channel
from ..channels.errors import ImproperlyConfigured
from ..channels.future import DeliveryCallback, FutureMessage
from ..channels.message import Headers, as_headers
from ..channels.runs import Run
from ..channels.topic import Topic
from ..models import NotReady
from .errors import AgentError
from .replies import Replies
from .slots import AskSlot, MemberSlot, PromiseSlot, ReplySlot, StreamSlot
from .waiting import asking, begin_wait
from .wire import Mode, request_headers

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["Items", "ReplyPromise", "ReplyStream", "ReplyTo", "Results", "ask", "ask_nowait", "forwarded"]

R = TypeVar("R")

Items = Iterable[tuple[Any, Any]] | AsyncIterable[tuple[Any, Any]]
"""Pairs of key and value."""

ReplyTo: TypeAlias = "Agent[Any, Any] | Channel[Any] | str"
"""Where answers are sent instead of to the caller: an agent that reads a topic, a topic, or a topic's name."""


async def _request(
    run: Run, slot: ReplySlot, replies: Replies, value: Any, key: Any, options: SendOptions, mode: Mode = "first"
) -> None:
    """Send what the slot waits for the answer of."""
    channel = slot.agent.channel
    headers = replies.headers(slot, mode)
    if not options and channel.hands_over:
        await trio.lowlevel.checkpoint_if_cancelled()
        event = channel.offer(run, key, value, headers)
        if event is not None:
            await channel.hand_out(run, event)
        return
    if isinstance(channel, Topic):
        if not replies.ready.is_set():
            await replies.reachable(slot.agent)
        if not options and type(channel).send is Topic.send:
            try:
                request = channel.serdes(run).request(key, value, headers, RequestMessage)
            except NotReady:  # a codec has something to fetch first
                pass
            else:
                request.slot, request.replies = slot, replies
                await channel.submit(run, request)
                return
    given = options.get("headers")
    options["headers"] = (*as_headers(given), *headers) if given else headers
    if isinstance(channel, Topic):
        options["callback"] = _delivery(replies, slot, options.get("callback"))
    if run.is_current():
        await channel.send(value, key=key, **options)
    else:
        with run.current():
            await channel.send(value, key=key, **options)


class RequestMessage(FutureMessage):
    """A request on its way to a topic. One that is not delivered will have no answer."""

    __slots__ = ("replies", "slot")

    replies: Replies
    slot: ReplySlot

    def fail(self, error: Exception, *, run_ends: bool = False) -> None:
        super().fail(error, run_ends=run_ends)
        _undelivered(self.replies, self.slot, error)


def _undelivered(replies: Replies, slot: ReplySlot, error: Exception) -> None:
    if replies.waits_for(slot):
        replies.forget(slot)
        slot.failure(AgentError(slot.agent.name, f"the request was not delivered: {error}"))


def _delivery(replies: Replies, slot: ReplySlot, then: DeliveryCallback | None) -> DeliveryCallback:
    """A request that is not delivered will have no answer."""

    def told(future: FutureMessage) -> Any:
        error = future.error
        if error is not None:
            _undelivered(replies, slot, error)
        return None if then is None else then(future)

    return told


async def ask(
    run: Run, agent: Agent[Any, R], value: Any, key: Any, correlation_id: str | None, options: SendOptions
) -> R:
    """See `Agent.ask`."""
    replies = Replies.of(run)
    slot = replies.open(agent, AskSlot, correlation_id)
    asker = asking()
    try:
        if asker is not None:
            await begin_wait(run, asker, slot)
        if options or not agent.channel.hands_over:
            await _request(run, slot, replies, value, key, options)
        else:  # the same without a further coroutine: each costs as much as a part of the way
            await trio.lowlevel.checkpoint_if_cancelled()
            event = agent.channel.offer(run, key, value, replies.headers(slot, "first"))
            if event is not None:
                await agent.channel.hand_out(run, event)
        if not slot.settled:
            await slot.arrival()
        answer: R = slot.result()
        return answer
    finally:
        if not slot.settled:
            replies.forget(slot)
        if asker is not None:
            asker.waits_for = None


class ReplyPromise(Generic[R]):
    """An answer that will come: ``await promise`` gives it. Several tasks may wait for it.

    Made by `ask_nowait`. When the last wait for it is cancelled, or nobody has it any more, the request is given up: its
    answer is dropped when it comes.

    Attributes:
        correlation_id: of the request.
        reply_to: the run's reply address.
    """

    __slots__ = ("__weakref__", "_replies", "_slot", "correlation_id", "reply_to")

    def __init__(self, replies: Replies, slot: PromiseSlot) -> None:
        self._replies = replies
        self._slot = slot
        self.correlation_id = slot.correlation_id.decode()
        self.reply_to = replies.address.decode()

    def done(self) -> bool:
        """Whether the answer has come, or there will be none."""
        return self._slot.settled

    def result(self) -> R:
        """The answer.

        Raises:
            trio.WouldBlock: it has not come.
            AgentError: the agent failed on the request, or gave no answer; or the promise was given up.
        """
        answer: R = self._slot.result()
        return answer

    def __await__(self) -> Generator[Any, Any, R]:
        return self._wait().__await__()

    async def _wait(self) -> R:
        slot = self._slot
        if slot.settled or slot.given_up:
            await trio.lowlevel.checkpoint()
            return self.result()
        asker = asking()
        try:
            if asker is not None:
                await begin_wait(self._replies.run, asker, slot)
            if not slot.settled:
                await slot.waiters.park()
        except trio.Cancelled:
            if not slot.settled and not slot.waiters:
                slot.given_up = True
                self._replies.forget(slot)
            raise
        finally:
            if asker is not None:
                asker.waits_for = None
        return self.result()

    def __del__(self) -> None:
        slot = getattr(self, "_slot", None)
        if slot is not None and not slot.settled:
            self._replies.forget(slot)

    def __repr__(self) -> str:
        return f"<ReplyPromise {self._slot.agent.name} {'done' if self.done() else 'pending'}>"


async def ask_nowait(
    run: Run, agent: Agent[Any, R], value: Any, key: Any, correlation_id: str | None, options: SendOptions
) -> ReplyPromise[R]:
    """See `Agent.ask_nowait`."""
    replies = Replies.of(run)
    slot = replies.open(agent, PromiseSlot, correlation_id)
    promise: ReplyPromise[R] = ReplyPromise(replies, slot)
    try:
        await _request(run, slot, replies, value, key, options)
    except BaseException:
        replies.forget(slot)
        raise
    return promise


class ReplyStream(AsyncIterator[R], Generic[R]):
    """All that an agent answers to one request, part by part, in order.

    Made by `ask_stream`; the request is sent when the first part is waited for. To leave it early, use it as a context, which
    also lets an agent go on that waits for a slow caller::

        async with agent.ask_stream(value) as parts:
            async for part in parts: ...

    ``contextlib.aclosing`` does the same. One task may iterate over it.
    """

    __slots__ = ("__weakref__", "_correlation_id", "_key", "_options", "_replies", "_run", "_slot", "_value")

    def __init__(
        self, run: Run, agent: Agent[Any, R], value: Any, key: Any, correlation_id: str | None, options: SendOptions
    ) -> None:
        self._run = run
        self._replies = replies = Replies.of(run)
        self._correlation_id = correlation_id
        self._value = value
        self._key = key
        self._options: SendOptions | None = options
        most = run.options.reply_buffer_maxsize
        self._slot = replies.open(agent, lambda agent, identity: StreamSlot(agent, identity, most), correlation_id)

    def __aiter__(self) -> ReplyStream[R]:
        return self

    async def __anext__(self) -> R:
        slot, run = self._slot, self._run
        asker = asking()
        try:
            if asker is not None:
                await begin_wait(run, asker, slot)
            options, self._options = self._options, None
            if options is not None:
                await self._send(options)
            elif run.pacer.due():
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.checkpoint_if_cancelled()
            part: R = await slot.next()
            return part
        finally:
            if asker is not None:
                asker.waits_for = None

    async def _send(self, options: SendOptions) -> None:
        given = cast(SendOptions, {**options})
        try:
            await _request(self._run, self._slot, self._replies, self._value, self._key, given, "parts")
        except BaseException:
            self._options = options  # not sent: it may be tried again
            raise
        self._value = self._key = None

    async def aclose(self) -> None:
        """Take no more parts. Those that come are dropped and counted."""
        self._leave()
        await trio.lowlevel.checkpoint_if_cancelled()

    def _leave(self) -> None:
        if not self._slot.closed:
            self._replies.leave(self._slot)

    async def __aenter__(self) -> ReplyStream[R]:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._leave()

    def __del__(self) -> None:
        slot = getattr(self, "_slot", None)
        if slot is not None and not slot.closed:  # the garbage collector may come in any thread
            self._replies.call(self._replies.leave, slot)

    def __repr__(self) -> str:
        return f"<ReplyStream of {self._slot.agent.name}>"


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
        del self.open[index]
        self.answers.append((index, value, error))
        if self._task is not None:
            reschedule(self._task)
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
        key, value = pair
        number = self._next
        gathering = self._gathering
        slot = self._replies.open(
            self.agent, lambda agent, identity: MemberSlot(agent, identity, gathering, number), None
        )
        gathering.open[number] = slot
        try:
            await _request(self._run, slot, self._replies, value, key, cast(SendOptions, {**self._options}))
        except BaseException as error:
            unanswered = gathering.open.pop(number, None) is not None
            self._replies.forget(slot)
            if not (unanswered and isinstance(error, trio.Cancelled)):  # else it is sent when this is iterated again
                self._next, self._item = number + 1, None
            raise
        self._next, self._item = number + 1, None

    async def aclose(self) -> None:
        """Wait for no more answers. Those that come are dropped and counted."""
        self._leave()
        await trio.lowlevel.checkpoint_if_cancelled()

    def _leave(self) -> None:
        self._exhausted = True
        gathering = self._gathering
        for slot in gathering.open.values():
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


def forwarded(run: Run, reply_to: Any, correlation_id: str | None, given: Any) -> Headers:
    """The headers of a request whose answers go to a topic of the user's.

    Raises:
        ImproperlyConfigured: it is no topic that can be written to.
    """
    target = getattr(reply_to, "channel", reply_to)
    if isinstance(target, Topic):
        name = target.destination
    elif isinstance(target, str) and target:
        name = target
    else:
        what = "a channel inside the process" if isinstance(target, Channel) else "none of these"
        raise ImproperlyConfigured(
            f"reply_to={reply_to!r}: expected a topic, its name, or an agent that reads one; this is {what}"
        )
    identity = Replies.of(run).new_id() if correlation_id is None else correlation_id
    return (*as_headers(given), *request_headers(name.encode(), identity.encode(), "values"))
