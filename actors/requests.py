"""Requests: the answering side of calls. What an agent has in hand for an event that somebody asked."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

import trio

from ..channels.errors import AppNotRunning, UnknownTopic
from ..channels.event import Event
from ..channels.future import FutureMessage
from ..channels.message import Headers
from ..channels.runs import Run
from .errors import AgentError
from .replies import Replies, answer_serde, replies_at
from .slots import StreamSlot
from .wire import (
    CORRELATION_ID,
    REPLY_MODE,
    REPLY_TO,
    Mode,
    ReplyKind,
    encode_failure,
    failure_of,
    reply_headers,
)

__all__ = ["AgentRequest", "Outbox"]

log = logging.getLogger("famulus.replies")

_MODES: dict[bytes, Mode] = {b"parts": "parts", b"values": "values"}


class AgentRequest:
    """A request in an agent's hands; implements `channels.event.Request`.

    Attributes:
        correlation_id: as the caller gave it.
    """

    __slots__ = (
        "_address",
        "_agent",
        "_answer_type",
        "_answered",
        "_answers_itself",
        "_mode",
        "_parts",
        "_run",
        "correlation_id",
    )

    def __init__(
        self,
        run: Run,
        agent: str,
        address: bytes,
        correlation_id: bytes,
        mode: Mode,
        *,
        answers_itself: bool,
        answer_type: Any,
    ) -> None:
        self._run = run
        self._agent = agent
        self._address = address
        self.correlation_id = correlation_id
        self._mode = mode
        self._answers_itself = answers_itself
        self._answer_type = answer_type
        self._answered = False
        self._parts = 0

    @classmethod
    def find(
        cls, run: Run, agent: str, headers: Headers, *, answers_itself: bool, answer_type: Any = Any
    ) -> AgentRequest | None:
        """The request that a message is, by its headers, if somebody waits for its answer.

        Args:
            answers_itself: the agent yields answers; one that does not is answered None when it is done.
            answer_type: what it yields.
        """
        address = correlation_id = None
        mode: Mode = "first"
        for name, value in headers:
            if name == REPLY_TO:
                address = value
            elif name == CORRELATION_ID:
                correlation_id = value
            elif name == REPLY_MODE:
                mode = _MODES.get(value, "first")
        if address is None or correlation_id is None:
            return None
        return cls(run, agent, address, correlation_id, mode, answers_itself=answers_itself, answer_type=answer_type)

    def answer(self, value: Any, event: Event[Any]) -> bool:
        if self._mode == "first":
            if self._answered:
                return False
            replies = replies_at(self._address)
            if replies is not None and replies.run is self._run:  # as below, without the calls
                self._answered = True
                self._run.counters.replies_sent += 1
                replies.value(self.correlation_id, value)
                return False
            waits = self._tell("value", value, event)
            self._answered = True
            return waits
        waits = self._tell("part" if self._mode == "parts" else "value", value, event, self._parts + 1)
        self._parts += 1
        return waits

    async def wait_room(self) -> None:
        replies = self._here()
        if replies is None:
            await self._run.producer.wait_room()
        elif replies.is_here:
            slot = replies.find(self.correlation_id)
            if isinstance(slot, StreamSlot):
                await slot.wait_room()

    def acked(self, event: Event[Any]) -> None:
        if self._answered:
            return
        if self._mode == "parts":
            self._answered = True
            self._tell("end", None, event, self._parts)
        elif self._mode == "values":
            self._answered = True
        elif self._answers_itself:
            error = AgentError(self._agent, "no answer: it finished with the request and yielded nothing")
            self.failed(error, event)
        else:
            self.answer(None, event)

    def failed(self, error: BaseException, event: Event[Any] | None) -> None:
        """The agent failed on it, for good.

        Args:
            event: waits for the delivery of this.
        """
        if self._answered:
            return
        self._answered = True
        if self._mode != "values":
            self._tell("failure", failure_of(self._agent, error), event, self._parts)

    def again(self) -> AgentRequest:
        if self._mode != "parts":
            return self
        return AgentRequest(
            self._run,
            self._agent,
            self._address,
            self.correlation_id,
            self._mode,
            answers_itself=self._answers_itself,
            answer_type=self._answer_type,
        )

    def undelivered(self) -> None:
        """The answer did not get there: whoever decides about the event may answer with the failure."""
        self._answered = False

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
        if self._mode != "values" and (not run.transport.crosses_processes or outbox.is_gone(topic)):
            run.counters.replies_dropped += 1
            log.debug("nobody waits at %s", topic)
            return False
        if kind == "failure":
            data: bytes | None = encode_failure(value)
        elif kind == "end":
            data = None
        else:
            data = answer_serde(run, self._answer_type).dumps(value)
        headers = reply_headers(self.correlation_id, kind, 0 if self._mode == "values" else part)
        reply = ReplyMessage(
            topic, outbox, self, data, headers, of_user=self._mode == "values", final=kind in ("end", "failure")
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


class ReplyMessage(FutureMessage):
    """An answer on its way to another process. A caller who has left, and with it the reply topic, is nobody's failure.

    Args:
        of_user: it goes to a topic that the user named.
        final: it says that there is no answer, or no more; nothing is left to be said when it is lost.
    """

    __slots__ = ("_final", "_of_user", "_outbox", "_request")

    def __init__(
        self,
        topic: str,
        outbox: Outbox,
        request: AgentRequest,
        value: bytes | None,
        headers: Headers,
        *,
        of_user: bool,
        final: bool,
    ) -> None:
        super().__init__(topic, None, value, headers)
        self._outbox = outbox
        self._request: AgentRequest | None = request
        self._of_user = of_user
        self._final = final
        if not of_user:
            self.partition = 0

    @property
    def expendable(self) -> bool:
        return not self._of_user

    def fail(self, error: Exception, *, run_ends: bool = False) -> None:
        request, self._request = self._request, None
        if run_ends or self._of_user:
            super().fail(error, run_ends=run_ends)
            return
        gone = isinstance(error, UnknownTopic)
        if gone:
            self._outbox.gone(self.topic)
        if gone or self._final:
            self._outbox.run.counters.replies_dropped += 1
            log.debug("a reply to %s was not delivered: %s", self.topic, error)
            self.give_up(error)
            return
        if request is not None:
            request.undelivered()
        super().fail(error)


class Outbox:
    """Where a run's replies to other processes go. It knows which callers have left, and keeps no more of them than it may."""

    MOST = 1024
    """Callers, each with the route to its topic; the one that was answered longest ago is forgotten first."""

    GONE_FOR = 1.0
    """Seconds for which a topic that was missing is not looked for again. A caller with a lasting name may come back."""

    SURE_FOR = 1.0
    """Seconds for which a topic that was written to is taken to be there. Writing to one that is gone takes a client long to
    find out; looking first does not."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._known: OrderedDict[str, float] = OrderedDict()  # when they were last written to
        self._gone: OrderedDict[str, float] = OrderedDict()

    def send(self, reply: ReplyMessage) -> None:
        """
        Raises:
            AppNotRunning: the run has ended.
        """
        known, topic, now = self._known, reply.topic, trio.current_time()
        last = known.get(topic)
        known[topic] = now
        if last is None:
            if len(known) > self.MOST:
                oldest, _ = known.popitem(last=False)
                self.run.producer.forget(oldest)
        else:
            known.move_to_end(topic)
            if now - last > self.SURE_FOR:
                self.run.producer.forget(topic)
        self.run.producer.enqueue(reply, partition=None, beyond_bounds=True)

    def gone(self, topic: str) -> None:
        """A reply topic is not there: its caller has left."""
        self._gone[topic] = trio.current_time()
        if len(self._gone) > self.MOST:
            self._gone.popitem(last=False)

    def is_gone(self, topic: str) -> bool:
        """Whether that was so a moment ago."""
        since = self._gone.get(topic)
        if since is None:
            return False
        if trio.current_time() - since < self.GONE_FOR:
            return True
        del self._gone[topic]
        return False

    @staticmethod
    def of(run: Run) -> Outbox:
        """The outbox of a run."""
        outbox: Outbox | None = run.found("actors.outbox")
        return run.state("actors.outbox", lambda: Outbox(run)) if outbox is None else outbox
