"""Requests: the answering side of calls. What an agent has in hand for an event that somebody asked."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from ..channels.errors import AppNotRunning
from ..channels.event import Event
from ..channels.message import Headers
from ..channels.runs import Run
from .errors import AgentError
from .outbox import Outbox, ReplyMessage
from .replies import Replies, answer_serde, replies_at
from .slots import StreamSlot
from .wire import (
    ASKED,
    CORRELATION_ID,
    REPLY_MODE,
    REPLY_TO,
    Mode,
    ReplyKind,
    encode_failure,
    failure_of,
    reply_headers,
)

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["AgentRequest"]

log = logging.getLogger("famulus.replies")

_ANSWERED: Final = 1
_SKIPPED: Final = 2  # the agent has given another answer, which was not wanted
_INHERITED: Final = 4  # it was answered at an earlier attempt
_LOST: Final = 8  # the answer did not get there, and nothing else that is yielded for this event is it

_MODES: dict[bytes, Mode] = {b"parts": "parts", b"values": "values"}


class AgentRequest:
    """A request in an agent's hands; implements `channels.event.Request`.

    Attributes:
        correlation_id: as the caller gave it.
    """

    __slots__ = (
        "_address",
        "_agent",
        "_answered",
        "_heir",
        "_mode",
        "_parts",
        "_run",
        "correlation_id",
    )

    def __init__(self, run: Run, agent: Agent[Any, Any], address: bytes, correlation_id: bytes, mode: Mode) -> None:
        self._run = run
        self._agent = agent
        self._address = address
        self.correlation_id = correlation_id
        self._mode: Mode = mode
        self._answered = 0
        self._heir: AgentRequest | None = None  # at a further attempt
        self._parts = 0

    @classmethod
    def find(cls, run: Run, agent: Agent[Any, Any], headers: Headers) -> AgentRequest | None:
        """The request that a message is to an agent, by its headers: if somebody waits for its answer, and for this agent's."""
        if len(headers) == 3:  # as `request_headers` makes them for most, without the loop
            (first, asked), (second, address), (third, correlation_id) = headers
            if first == ASKED and second == REPLY_TO and third == CORRELATION_ID and asked == agent.wire_name:
                return cls(run, agent, address, correlation_id, "first")
        return cls._found(run, agent, headers)

    @classmethod
    def _found(cls, run: Run, agent: Agent[Any, Any], headers: Headers) -> AgentRequest | None:
        asked = address = correlation_id = None
        mode: Mode = "first"
        for name, value in headers:
            if name == ASKED:
                asked = value
            elif name == REPLY_TO:
                address = value
            elif name == CORRELATION_ID:
                correlation_id = value
            elif name == REPLY_MODE:
                mode = _MODES.get(value, "first")
        if address is None or correlation_id is None:
            return None
        if asked is not None and asked != agent.wire_name and _is_for_another(run, agent, asked):
            return None
        return cls(run, agent, address, correlation_id, mode)

    def answer(self, value: Any, event: Event[Any]) -> bool:
        if self._mode == "first":
            if self._answered:
                self._answered |= _SKIPPED
                return False
            replies = replies_at(self._address)
            if replies is not None and replies.run is self._run:  # as below, without the calls
                self._answered = _ANSWERED
                self._run.counters.replies_sent += 1
                replies.value(self.correlation_id, value)
                return False
            waits = self._tell("value", value, event)
            self._answered = _ANSWERED
            return waits
        if self._answered:  # it was told that this is all
            self._answered |= _SKIPPED
            return False
        waits = self._tell("part" if self._mode == "parts" else "value", value, event, self._parts + 1)
        self._parts += 1
        return waits

    async def wait_room(self) -> None:
        replies = self._here()
        if replies is None:
            await self._run.producer.wait_caught_up()
        elif replies.is_here:
            slot = replies.find(self.correlation_id)
            if isinstance(slot, StreamSlot):
                await slot.wait_room()

    def acked(self, event: Event[Any]) -> None:
        if self._answered:
            return
        if self._mode == "parts":
            self._answered = _ANSWERED
            self._tell("end", None, event, self._parts)
        elif self._mode == "values":
            self._answered = _ANSWERED
        elif self._agent.answers:
            error = AgentError(self._agent.name, "no answer: it finished with the request and yielded nothing")
            self.failed(error, event)
        else:
            self.answer(None, event)

    def failed(self, error: BaseException, event: Event[Any] | None) -> None:
        """The agent failed on it, for good.

        Args:
            event: waits for the delivery of this.
        """
        if self._answered and not self._answered & _LOST:
            return
        self._answered = _ANSWERED
        if self._mode != "values":
            self._tell("failure", failure_of(self._agent.name, error), event, self._parts)

    def again(self) -> AgentRequest:
        heir = self._heir = AgentRequest(self._run, self._agent, self._address, self.correlation_id, self._mode)
        if self._answered and not self._answered & _LOST:
            heir._answered = _ANSWERED | _INHERITED
        return heir

    def undelivered(self, error: Exception) -> None:
        """The answer did not get there: whoever decides about the event may answer with the failure.

        An attempt that is under way by now answers; if it came by its answer already, that is gone too.
        """
        heir = self._heir
        if heir is None:
            self._answered |= _LOST
            if self._answered & _INHERITED:
                self.failed(error, None)
        elif heir._answered & _INHERITED:
            if heir._heir is not None or heir._answered & _SKIPPED:
                heir.undelivered(error)
            else:
                heir._answered = 0

    # -- on their way ------------------------------------------------------------------------------------------

    def _here(self) -> Replies | None:
        """The caller's run, where that is one of this process. What goes to a topic of the user's goes there from anywhere."""
        return None if self._mode == "values" else replies_at(self._address)

    def _tell(self, kind: ReplyKind, value: Any, event: Event[Any] | None, part: int = 0) -> bool:
        """Hand it over, or send it. Whether to wait for room afterwards.

        Raises:
            EncodeError: it has to travel, and cannot be encoded.
        """
        replies = self._here()
        if replies is None:
            return self._send(kind, value, event, part)
        self._run.counters.replies_sent += 1
        identity = self.correlation_id
        if kind == "value":
            if replies.run is self._run:
                replies.value(identity, value)
            else:
                replies.call(replies.value, identity, value)
        elif kind == "failure":
            replies.call(replies.failure, identity, value)
        elif kind == "end":
            replies.call(replies.end, identity, part)
        else:
            replies.call(replies.part, identity, part, value)
            if replies.is_here:
                slot = replies.find(identity)
                return isinstance(slot, StreamSlot) and slot.crowded
        return False

    def _send(self, kind: ReplyKind, value: Any, event: Event[Any] | None, part: int) -> bool:
        run = self._run
        outbox = Outbox.of(run)
        topic = self._address.decode(errors="replace")
        if self._mode != "values" and (
            not run.transport.crosses_processes or outbox.is_gone(topic, self.correlation_id)
        ):
            run.counters.replies_dropped += 1
            log.debug("nobody waits at %s", topic)
            return False
        shorter = None
        if kind == "failure":
            data: bytes | None = encode_failure(value)
            shorter = encode_failure(value, short=True)
        elif kind == "end":
            data = None
        else:
            data = answer_serde(run, self._agent.answer_type).dumps(value)
        headers = reply_headers(self.correlation_id, kind, 0 if self._mode == "values" else part)
        reply = ReplyMessage(
            topic,
            outbox,
            self,
            data,
            headers,
            of_user=self._mode == "values",
            final=kind in ("end", "failure"),
            shorter=shorter,
        )
        try:
            outbox.send(reply)
        except AppNotRunning:
            run.counters.replies_dropped += 1
            return False
        run.counters.replies_sent += 1
        if event is not None:
            reply.belongs_to(event)
        return not run.producer.has_room


def _is_for_another(run: Run, agent: Agent[Any, Any], asked: bytes) -> bool:
    """Whether it reads what another agent of this run reads too, and that one is asked.

    Names that are not known here tell nothing: a caller in another program may have the agent under another name.
    """
    other: Agent[Any, Any] | None = run.found(("asked", asked))
    return other is not None and other.channel.overlaps(agent.channel)
