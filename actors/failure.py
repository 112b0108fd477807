"""What happens to the event of an agent that failed on it: `on_failure` "ack", "retry" or "dead_letter".

Each policy takes over one hold on the event's message, and gives it up only when the event needs no more care.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..channels.dead_letters import bury, error_facts, error_text
from ..channels.event import Event
from ..channels.letters import is_dead_letter
from ..channels.runs import Run
from ..models import value_serde
from ..supervision import Backoff
from .requests import AgentRequest

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["FAILURE_POLICIES", "Failures", "OnFailure"]

log = logging.getLogger("famulus.agent")

OnFailure = Literal["ack", "retry", "dead_letter"]
_DECIDED = RuntimeError("decided")
"""In the place of the failure itself, whose traceback refers to the event and to what is around it."""

FAILURE_POLICIES: tuple[str, ...] = get_args(OnFailure)


class Failures:
    """The failure policy of one agent in one run. Called with each failed event.

    Args:
        max_attempts: with "retry": deliveries of one event, after which it goes to the dead-letter topic.
        backoff: how long an event waits that is delivered again though its actor has not crashed.

    Attributes:
        failed, retried, dead_lettered: how many events of this agent; a retried one each time.
    """

    def __init__(
        self, run: Run, agent: Agent[Any, Any], policy: OnFailure, max_attempts: int, *, backoff: Backoff
    ) -> None:
        self._run = run
        self._agent = agent
        self._policy = policy
        self._max_attempts = max_attempts
        self._backoff = backoff
        self.failed = self.retried = self.dead_lettered = 0

    def __call__(self, event: Event[Any], error: BaseException) -> None:
        """An output of the event was not delivered."""
        self._decide(event, error, crashed=False)

    def crashed(self, event: Event[Any], error: BaseException) -> None:
        """Its actor raised; the actor's supervisor logs the traceback, and has it wait."""
        self._decide(event, error, crashed=True)

    def _decide(self, event: Event[Any], error: BaseException, *, crashed: bool) -> None:
        self._run.counters.events_failed += 1
        self.failed += 1
        event.failure = _DECIDED
        where = f"{event.message.tp}@{event.message.offset}"
        again = self._again(event)
        log.error(
            "agent %s failed on %s, attempt %d: %s; %s",
            self._agent.name,
            where,
            event.attempt,
            error_text(error) or type(error).__name__,
            "it will be delivered again" if again else self._end(event),
            exc_info=None if crashed else error,
        )
        if again and event.cursor is not None:
            self._run.counters.events_retried += 1
            self.retried += 1
            pause = 0.0 if crashed else self._backoff.delay(event.attempt - 1, random.random())
            event.cursor.deliver_again(event.again(), after=pause)
            return
        request = event.request or AgentRequest.find(self._run, self._agent, event.headers)
        if isinstance(request, AgentRequest):
            request.failed(error, event)
        if self._policy == "ack":
            event.message.release()
        else:
            self._bury(event, error)

    def _end(self, event: Event[Any]) -> str:
        """What becomes of an event that is not delivered again."""
        if self._policy == "ack":
            return "skipped"
        if is_dead_letter(event.message):
            return "skipped, since it is a dead letter, which stays where it is"
        return "sent to the dead letters"

    def _again(self, event: Event[Any]) -> bool:
        """Whether to deliver it again. What the user acknowledges and did not is never skipped."""
        if event.cursor is None:
            return False
        if self._policy == "retry":
            return event.attempt < self._max_attempts
        return self._policy == "ack" and not event.cursor.acks

    def _bury(self, event: Event[Any], error: BaseException) -> None:
        """Send it to the dead letters; the offset waits for the delivery."""
        message = event.message
        if not is_dead_letter(message):
            self.dead_lettered += 1
        payload = message.value
        if message.offset < 0:
            payload = _plain(event.value)
        facts = {
            **error_facts(message, error),
            "agent": self._agent.name,
            "attempts": str(event.attempt),
        }
        bury(self._run, message, facts, value=payload, topic=self._agent.channel.dead_letter)


def _plain(value: Any) -> bytes | None:
    """What stands for a value that no log has, whatever it is: as JSON, else as its `repr`."""
    try:
        return value_serde(None).dumps(value)
    except Exception:
        try:
            return repr(value).encode(errors="backslashreplace")
        except Exception as trouble:
            return f"<{type(value).__qualname__}: its __repr__ raised {type(trouble).__name__}>".encode()
