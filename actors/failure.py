"""What happens to the event of an agent that failed on it: `on_failure` "ack", "retry" or "dead_letter".

Each policy takes over one hold on the event's message, and gives it up only when the event needs no more care.
"""

from __future__ import annotations

import logging
import time
import traceback
from typing import Any, Literal, get_args

from ..channels.errors import TransportError
from ..channels.event import Event
from ..channels.future import FutureMessage
from ..channels.message import Headers
from ..channels.runs import Run
from ..channels.topic import Topic
from ..models import value_serde
from .replies import AgentRequest

__all__ = ["FAILURE_POLICIES", "Failures", "OnFailure"]

log = logging.getLogger("famulus.agent")

OnFailure = Literal["ack", "retry", "dead_letter"]
FAILURE_POLICIES: tuple[str, ...] = get_args(OnFailure)


class Failures:
    """The failure policy of one agent in one run. Called with each failed event.

    Args:
        max_attempts: with "retry": deliveries of one event, after which it goes to the dead-letter topic.
    """

    def __init__(self, run: Run, agent: str, policy: OnFailure, max_attempts: int) -> None:
        self._run = run
        self._agent = agent
        self._policy = policy
        self._max_attempts = max_attempts

    def __call__(self, event: Event[Any], error: BaseException) -> None:
        """An output of the event was not delivered."""
        self._decide(event, error, with_traceback=True)

    def crashed(self, event: Event[Any], error: BaseException) -> None:
        """Its actor raised; the actor's supervisor logs the traceback."""
        self._decide(event, error, with_traceback=False)

    def _decide(self, event: Event[Any], error: BaseException, *, with_traceback: bool) -> None:
        self._run.counters.events_failed += 1
        event.failure = error
        where = f"{event.message.tp}@{event.message.offset}"
        again = self._again(event)
        log.error(
            "agent %s failed on %s, attempt %d: %s; %s",
            self._agent,
            where,
            event.attempt,
            error,
            "it will be delivered again"
            if again
            else "sent to the dead letters"
            if self._policy != "ack"
            else "skipped",
            exc_info=error if with_traceback else None,
        )
        if again and event.cursor is not None:
            self._run.counters.events_retried += 1
            event.cursor.deliver_again(event.again())
            return
        request = event.request or AgentRequest.find(self._run, self._agent, event.headers, answers_itself=True)
        if isinstance(request, AgentRequest):
            request.failed(error)
        if self._policy == "ack":
            event.message.release()
        else:
            self._bury(event, error)

    def _again(self, event: Event[Any]) -> bool:
        """Whether to deliver it again. What the user acknowledges and did not is never skipped."""
        if event.cursor is None:
            return False
        if self._policy == "retry":
            return event.attempt < self._max_attempts
        return self._policy == "ack" and not event.cursor.acks

    def _bury(self, event: Event[Any], error: BaseException) -> None:
        """Send it to `<topic>.dead-letter`; the offset waits for the delivery."""
        message = event.message
        topic: Topic[bytes] = self._topic(f"{message.topic}.dead-letter")
        topic.serdes(self._run)
        payload = message.value
        if message.offset < 0:
            try:
                payload = value_serde(None).dumps(event.value)
            except ValueError:
                payload = repr(event.value).encode()
        headers = (*message.headers, *_explain(event, error, self._agent))

        def buried(future: FutureMessage) -> None:
            try:
                future.result()
            except TransportError as reason:  # the run has ended: the producer gives it up for nothing else
                log.error("the dead letter for %s@%d was not delivered: %s", message.tp, message.offset, reason)
            else:
                self._run.counters.dead_letters += 1
                message.release()

        letter = FutureMessage(topic.name, message.key, payload, headers, time.time(), callback=buried)
        letter.persistent = True
        self._run.producer.enqueue(letter, partition=None, beyond_bounds=True)

    def _topic(self, name: str) -> Topic[bytes]:
        return self._run.state(
            ("dead-letter", name), lambda: Topic(self._run.app, name, value_type=bytes, internal=True)
        )


def _explain(event: Event[Any], error: BaseException, agent: str) -> Headers:
    message = event.message
    facts = {
        "topic": message.topic,
        "partition": str(message.partition),
        "offset": str(message.offset),
        "agent": agent,
        "attempts": str(event.attempt),
        "error-type": f"{type(error).__module__}.{type(error).__qualname__}",
        "error-message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    return tuple(
        (f"famulus-dead-letter-{name}", text.encode(errors="backslashreplace")) for name, text in facts.items()
    )
