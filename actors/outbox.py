"""Where answers to other processes leave a run: as messages to the callers' reply topics."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, Protocol

import trio

from ..channels.errors import AppNotRunning, MessageTooLarge, UnknownTopic
from ..channels.event import Event
from ..channels.future import FutureMessage
from ..channels.message import Headers
from ..channels.runs import Run

__all__ = ["Outbox", "ReplyMessage"]

log = logging.getLogger("famulus.replies")


class Answered(Protocol):
    """The request that an answer is for."""

    correlation_id: bytes

    def undelivered(self, error: Exception) -> None:
        """The answer did not get there."""

    def failed(self, error: BaseException, event: Event[Any] | None) -> None:
        """There will be no answer."""


class ReplyMessage(FutureMessage):
    """An answer on its way to another process. A caller who has left, and with it the reply topic, is nobody's failure.

    Args:
        of_user: it goes to a topic that the user named.
        final: it says that there is no answer, or no more; nothing is left to be said when it is lost.
        shorter: in place of the value, where the topic does not take that for its size.
    """

    __slots__ = ("_final", "_of_user", "_outbox", "_request", "_shorter")

    def __init__(
        self,
        topic: str,
        outbox: Outbox,
        request: Answered,
        value: bytes | None,
        headers: Headers,
        *,
        of_user: bool,
        final: bool,
        shorter: bytes | None = None,
    ) -> None:
        super().__init__(topic, None, value, headers)
        self._outbox = outbox
        self._request: Answered | None = request
        self._of_user = of_user
        self._final = final
        self._shorter = shorter
        if not of_user:
            self.partition = 0

    @property
    def expendable(self) -> bool:
        return not self._of_user

    @property
    def awaited(self) -> bool:
        return not self._of_user

    def fail(self, error: Exception, *, run_ends: bool = False) -> None:
        request, self._request = self._request, None
        if run_ends or self._of_user:
            super().fail(error, run_ends=run_ends)
            return
        gone = isinstance(error, UnknownTopic)
        too_large = isinstance(error, MessageTooLarge)
        if gone and request is not None:
            self._outbox.gone(self.topic, request.correlation_id)
        if too_large and self._shorter is not None and request is not None:
            self._say_shorter(request, self._shorter)
            self.give_up(error)
        elif gone or self._final:
            self._outbox.run.counters.replies_dropped += 1
            level = logging.DEBUG if gone else logging.WARNING
            log.log(level, "a reply to %s was not delivered: %s", self.topic, error)
            self.give_up(error)
        else:
            if request is not None:
                request.undelivered(error)
                if too_large:  # as each further attempt would be: whoever asked need not wait for them
                    request.failed(error, next(iter(self.outputs_of), None))
            super().fail(error)

    def _say_shorter(self, request: Answered, value: bytes) -> None:
        reply = ReplyMessage(
            self.topic, self._outbox, request, value, self.headers, of_user=self._of_user, final=self._final
        )
        for event in self.outputs_of:
            reply.belongs_to(event)
        try:
            self._outbox.send(reply)
        except AppNotRunning as error:
            reply.give_up(error)


class Outbox:
    """Where a run's replies to other processes go. It knows which callers have left, and keeps no more of them than it may."""

    MOST = 1024
    """Callers, each with the route to its topic; the one that was answered longest ago is forgotten first."""

    GONE_FOR = 1.0
    """Seconds for which a topic that was missing is not looked for again, for the run that asked. The caller's next run may
    have the same topic."""

    SURE_FOR = 1.0
    """Seconds for which a topic that was written to is taken to be there. Writing to one that is gone takes a client long to
    find out; looking first does not."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._known: OrderedDict[str, float] = OrderedDict()  # when they were last written to
        self._gone: OrderedDict[tuple[str, bytes], float] = OrderedDict()

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

    def gone(self, topic: str, correlation_id: bytes) -> None:
        """A reply topic is not there: its caller has left."""
        self._gone[topic, _run_of(correlation_id)] = trio.current_time()
        if len(self._gone) > self.MOST:
            self._gone.popitem(last=False)

    def is_gone(self, topic: str, correlation_id: bytes) -> bool:
        """Whether that was so a moment ago."""
        if not self._gone:
            return False
        caller = topic, _run_of(correlation_id)
        since = self._gone.get(caller)
        if since is None:
            return False
        if trio.current_time() - since < self.GONE_FOR:
            return True
        del self._gone[caller]
        return False

    @staticmethod
    def of(run: Run) -> Outbox:
        """The outbox of a run."""
        outbox: Outbox | None = run.found("actors.outbox")
        return run.state("actors.outbox", lambda: Outbox(run)) if outbox is None else outbox


def _run_of(correlation_id: bytes) -> bytes:
    """What the ids of one run begin with; all of it where the caller has named the request."""
    return correlation_id.partition(b".")[0]
