"""What an agent is declared with, checked where it is given."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import attrs

from ..channels.errors import ImproperlyConfigured
from ..supervision import Backoff, CrashingSupervisor, OneForOneSupervisor, SupervisorStrategy
from ..supervision.strategies import as_strategy
from .failure import FAILURE_POLICIES, OnFailure

if TYPE_CHECKING:  # who is told of errors gets the agent, which has options
    from .agent import Agent

__all__ = ["AgentOptions", "OnError"]

OnError = Callable[["Agent[Any, Any]", BaseException], Awaitable[None] | None]

_LONGEST = 30.0  # seconds that a backoff given in seconds grows to


@attrs.frozen(kw_only=True)
class AgentOptions:
    """How an agent's actors are run.

    Attributes:
        concurrency: actors per worker. They share the stream: the idle one takes the next event, so order is lost.
        isolated_partitions: one actor for each partition that is assigned to this worker, instead: in order within it, and
            a slow partition does not hold the others. Of several topics, the partitions of one number go together.
        on_failure: what happens to the event of an actor that raises: "ack" skips it, "retry" delivers it again, up
            to `max_attempts` times, then and with "dead_letter" it goes to `<topic>.dead-letter`.
        max_attempts: deliveries of one event, with "retry".
        supervisor_strategy: over the actors, class or instance.
        backoff: how long an actor that has raised waits before it is started again, and so the event that it is to have
            again: seconds for the first time, doubled with each further one up to 30 s, or a `Backoff`. By default the
            strategy's, which is 0.1 s at first. An event whose output was not delivered waits as long, by its attempt.
        on_error: called with the agent and what it raised; it may be async.
        sinks: where answers go as well: agents, channels, topics, functions of one value, plain or async.
        drain: seconds that the event in hand may take when the agent is stopped.
    """

    concurrency: int = 1
    isolated_partitions: bool = False
    on_failure: OnFailure = "ack"
    max_attempts: int = 5
    supervisor_strategy: SupervisorStrategy | type[SupervisorStrategy] = OneForOneSupervisor
    backoff: Backoff | float | timedelta | None = None
    on_error: OnError | None = None
    sinks: Sequence[Any] = ()
    drain: float = 5.0

    def __attrs_post_init__(self) -> None:
        for name in ("concurrency", "max_attempts"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ImproperlyConfigured(f"agent {name}={value!r}: expected a whole number of at least 1")
        if self.isolated_partitions and self.concurrency != 1:
            raise ImproperlyConfigured(
                f"agent isolated_partitions=True with concurrency={self.concurrency}: each partition has one actor of its "
                "own, which is what keeps its order; leave one of the two out"
            )
        if self.on_failure not in FAILURE_POLICIES:
            expected = " or ".join(repr(policy) for policy in FAILURE_POLICIES)
            raise ImproperlyConfigured(f"agent on_failure={self.on_failure!r}: expected {expected}")
        if self.on_error is not None and not _takes_two(self.on_error):
            raise ImproperlyConfigured(
                f"agent on_error={self.on_error!r}: expected a function of the agent and the error, plain or async"
            )
        _ = self.strategy  # or it raises

    @property
    def strategy(self) -> SupervisorStrategy:
        """The strategy over the actors, with its backoff.

        Raises:
            ImproperlyConfigured: the two do not go together.
        """
        try:
            strategy = as_strategy(self.supervisor_strategy)
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"agent supervisor_strategy={self.supervisor_strategy!r}: {error}") from None
        if self.backoff is None:
            return strategy
        backoff = _backoff(self.backoff)
        if isinstance(strategy, CrashingSupervisor):
            raise ImproperlyConfigured(
                f"agent backoff={self.backoff!r} with CrashingSupervisor, which starts nothing again: leave one of them out"
            )
        if strategy.backoff not in (Backoff(), backoff):
            raise ImproperlyConfigured(
                f"agent backoff={self.backoff!r}, but its supervisor_strategy has another, {strategy.backoff!r}: give one"
            )
        try:
            return attrs.evolve(strategy, backoff=backoff)
        except ValueError as error:
            raise ImproperlyConfigured(f"agent backoff={self.backoff!r}: {error}") from None


def _takes_two(fun: Any) -> bool:
    if not callable(fun):
        return False
    try:
        inspect.signature(fun).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # written in C: it does not tell
        pass
    return True


def _backoff(given: Backoff | float | timedelta) -> Backoff:
    if isinstance(given, Backoff):
        return given
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ImproperlyConfigured(
            f"agent backoff={given!r}: expected seconds before the first restart, 0 or more, or a Backoff"
        )
    return Backoff(min=float(seconds), max=max(_LONGEST, float(seconds)))
