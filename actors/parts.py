"""`ask_stream`: all parts of an answer, as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import trio

from ..channels.arguments import SendOptions
from ..channels.runs import Run
from .calls import send_request
from .replies import Replies
from .slots import StreamSlot
from .waiting import asking, begin_wait

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["ReplyStream"]

R = TypeVar("R")


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
            await send_request(self._run, self._slot, self._replies, self._value, self._key, given, "parts")
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
