"""Answers: how a reply finds the caller who waits for it.

A request carries two headers, the caller's reply address and a correlation id; the value stays untouched. Every run
has one address. An answer to a run of this process is handed over directly.
"""

from __future__ import annotations

import itertools
import logging
import traceback
import uuid
import weakref
from typing import Any, Final

import outcome
import trio

from ..channels.errors import AppNotRunning
from ..channels.message import CORRELATION_ID, REPLY_TO, Headers
from ..channels.runs import Run
from .errors import AgentError

__all__ = ["CORRELATION_ID", "REPLY_TO", "AgentRequest", "Replies", "ReplySlot", "failure_of"]

log = logging.getLogger("famulus.replies")


class ReplySlot:
    """One caller's wait for one answer."""

    __slots__ = ("_arrived", "_outcome", "agent", "correlation_id")

    def __init__(self, correlation_id: bytes, agent: str) -> None:
        self.correlation_id = correlation_id
        self.agent = agent
        self._outcome: outcome.Outcome[Any] | None = None
        self._arrived = trio.Event()

    def settle(self, result: outcome.Outcome[Any]) -> bool:
        """The answer. False when there was one already."""
        if self._outcome is not None:
            return False
        self._outcome = result
        self._arrived.set()
        return True

    async def wait(self) -> Any:
        """Wait for the answer.

        Raises:
            AgentError: the agent failed on the request, or gave no answer.
        """
        await self._arrived.wait()
        assert self._outcome is not None
        return self._outcome.unwrap()


class Replies:
    """The callers of one run that wait for answers."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.address: Final = f"{run.app.id}-reply-{uuid.uuid4().hex}".encode()
        self._slots: dict[bytes, ReplySlot] = {}
        self._ids = itertools.count(1)
        self._token = trio.lowlevel.current_trio_token()
        _by_address[self.address] = self

    @property
    def waiting(self) -> int:
        """Callers that have no answer yet."""
        return len(self._slots)

    def open(self, agent: str) -> ReplySlot:
        """A slot for a new request to an agent.

        Raises:
            AppNotRunning: the run is over.
        """
        if self._run.closed:
            raise AppNotRunning(f"app {self._run.app.id!r} has stopped")
        slot = ReplySlot(str(next(self._ids)).encode(), agent)
        self._slots[slot.correlation_id] = slot
        return slot

    def forget(self, slot: ReplySlot) -> None:
        """The caller has its answer, or has left."""
        self._slots.pop(slot.correlation_id, None)

    def headers(self, slot: ReplySlot) -> Headers:
        """What the request carries."""
        return ((REPLY_TO, self.address), (CORRELATION_ID, slot.correlation_id))

    def receive(self, correlation_id: bytes, result: outcome.Outcome[Any]) -> None:
        """An answer came. For a caller that left, or a second one: dropped and counted."""
        slot = self._slots.get(correlation_id)
        if slot is None or not slot.settle(result):
            self._run.counters.replies_dropped += 1

    def receive_from_anywhere(self, correlation_id: bytes, result: outcome.Outcome[Any]) -> None:
        """The same, from whatever thread or trio run the answering agent lives in."""
        try:
            here = trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            here = False
        if here:
            self.receive(correlation_id, result)
        else:
            self._token.run_sync_soon(self.receive, correlation_id, result)

    def close(self) -> None:
        """The run ends: nobody waits for ever."""
        _by_address.pop(self.address, None)
        for slot in list(self._slots.values()):
            slot.settle(outcome.Error(AgentError(slot.agent, "the app stopped before the answer came")))

    def fail(self, agent: str, error: BaseException) -> None:
        """An agent could not be started: nobody waits for it for ever."""
        for slot in list(self._slots.values()):
            if slot.agent == agent:
                slot.settle(outcome.Error(failure_of(agent, error)))

    @staticmethod
    def of(run: Run) -> Replies:
        """The replies of a run."""
        return run.state("actors.replies", lambda: Replies(run))


_by_address: weakref.WeakValueDictionary[bytes, Replies] = weakref.WeakValueDictionary()


class AgentRequest:
    """A request in an agent's hands; implements `channels.event.Request`."""

    __slots__ = ("_address", "_agent", "_answered", "_answers_itself", "_correlation_id", "_run")

    def __init__(self, run: Run, agent: str, address: bytes, correlation_id: bytes, *, answers_itself: bool) -> None:
        self._run = run
        self._agent = agent
        self._address = address
        self._correlation_id = correlation_id
        self._answers_itself = answers_itself
        self._answered = False

    @classmethod
    def find(cls, run: Run, agent: str, headers: Headers, *, answers_itself: bool) -> AgentRequest | None:
        """The request that a message is, by its headers, if somebody waits for its answer.

        Args:
            answers_itself: the agent yields answers; one that does not is answered None when it is done.
        """
        fields = dict(headers)
        address, correlation_id = fields.get(REPLY_TO), fields.get(CORRELATION_ID)
        if address is None or correlation_id is None:
            return None
        return cls(run, agent, address, correlation_id, answers_itself=answers_itself)

    def answer(self, value: Any) -> None:
        self._send(outcome.Value(value))

    def acked(self) -> None:
        if self._answered:
            return
        if self._answers_itself:
            self.failed(AgentError(self._agent, "no answer: it finished with the request and yielded nothing"))
        else:
            self.answer(None)

    def failed(self, error: BaseException) -> None:
        """The agent failed on it, for good."""
        self._send(outcome.Error(failure_of(self._agent, error)))

    def _send(self, result: outcome.Outcome[Any]) -> None:
        if self._answered:
            return
        self._answered = True
        replies = _by_address.get(self._address)
        if replies is None:
            self._run.counters.replies_dropped += 1
            log.debug("nobody in this process waits at %r", self._address)
            return
        self._run.counters.replies_sent += 1
        replies.receive_from_anywhere(self._correlation_id, result)


def failure_of(agent: str, error: BaseException) -> AgentError:
    """What the caller gets for what the agent raised."""
    if isinstance(error, AgentError) and error.agent == agent:
        return error
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    return AgentError(
        agent,
        f"{kind}: {error}",
        remote_type=kind,
        remote_message=str(error),
        remote_traceback="".join(traceback.format_exception(error)),
    )
