"""Calls: how an agent is asked. `Agent` and `BoundAgent` have them as methods.

No call starts a task. What waits for an answer is a slot in the run's `Replies`, which is gone when the caller is.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

import trio
from trio.lowlevel import checkpoint_if_cancelled, current_task, wait_task_rescheduled

from ..channels.arguments import SendOptions
from ..channels.channel import Channel
from ..channels.errors import ImproperlyConfigured
from ..channels.future import DeliveryCallback, FutureMessage
from ..channels.hand import current_hand
from ..channels.message import Headers, as_headers
from ..channels.runs import Run
from ..channels.topic import Topic
from ..models import NotReady
from .errors import AgentError
from .replies import REPLIES, Replies, check_correlation_id
from .slots import AskSlot, PromiseSlot, ReplySlot
from .waiting import asking, begin_wait
from .wire import REPLY_TO, Mode, request_headers

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["ReplyPromise", "ReplyTo", "ask", "ask_nowait", "forwarded", "send_request"]

R = TypeVar("R")

ReplyTo: TypeAlias = "Agent[Any, Any] | Channel[Any] | str"
"""Where answers are sent instead of to the caller: an agent that reads a topic, a topic, or a topic's name."""

_NO_OPTIONS: Final = {
    "timeout": "deadlines are the caller's, write `with trio.fail_after(seconds):` around the call",
    "reply_to": "an answer comes to the caller; `await agent.send(value, reply_to=topic)` has it sent elsewhere",
}
"""What callers expect to give, and what to do instead."""


async def send_request(
    run: Run, slot: ReplySlot, replies: Replies, value: Any, key: Any, options: SendOptions, mode: Mode = "first"
) -> None:
    """Send what the slot waits for the answer of."""
    channel = slot.agent.channel
    headers = replies.headers(slot, mode)
    if not options and channel.hands_over:
        await checkpoint_if_cancelled()
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
    for name, instead in _NO_OPTIONS.items():
        if name in options:
            raise TypeError(f"agent {slot.agent.name} was asked with {name}=...: {instead}")
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

    @property
    def awaited(self) -> bool:
        return True

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
    replies: Replies = run.found(REPLIES) or Replies.of(run)
    slot = replies.open(agent, AskSlot, correlation_id)
    asker = None if current_hand.get() is None else asking()
    try:
        if asker is not None:
            await begin_wait(run, asker, slot)
        if options or not agent.channel.hands_over:
            await send_request(run, slot, replies, value, key, options)
        else:  # the same without a further coroutine: each costs as much as a part of the way
            await checkpoint_if_cancelled()
            event = agent.channel.offer(run, key, value, replies.headers(slot, "first"))
            if event is not None:
                await agent.channel.hand_out(run, event)
        if not slot.settled:
            slot.task = current_task()
            await wait_task_rescheduled(slot.abort)
    except BaseException:
        replies.untaken(slot)
        raise
    else:
        answer: R = slot.result()
        return answer
    finally:
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
        await send_request(run, slot, replies, value, key, options)
    except BaseException:
        replies.untaken(slot)
        raise
    return promise


def forwarded(run: Run, agent: Agent[Any, Any], reply_to: Any, correlation_id: str | None, given: Any) -> Headers:
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
    identity = Replies.of(run).new_id() if correlation_id is None else check_correlation_id(correlation_id)
    return (*as_headers(given), *request_headers(agent.asked, (REPLY_TO, name.encode()), identity.encode(), "values"))
