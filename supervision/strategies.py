"""The strategies: frozen data that says which siblings share a child's fate and when the supervisor gives
up.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import attrs

from .backoff import Backoff

__all__ = [
    "Affects",
    "AutoShutdown",
    "CrashingSupervisor",
    "OneForAllSupervisor",
    "OneForOneSupervisor",
    "RestForOneSupervisor",
    "StrategyLike",
    "SupervisorStrategy",
    "as_strategy",
]

Affects = Literal["one", "all", "rest"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]


@attrs.frozen(kw_only=True)
class SupervisorStrategy:
    """What a supervisor does about its children's incidents; use one of the subclasses.

    Args:
        max_restarts: More incidents than this within ``within`` seconds and the supervisor gives up; ``inf``:
            never.
        within: Length of the sliding window in seconds.
        backoff: The waits before restarts.
        auto_shutdown: Whether the supervisor stops by itself when a significant child ended by itself
            (``any_significant``), or the last one did (``all_significant``).

    Raises:
        ValueError: A value is out of its range, or a child that crashes whenever it runs could never reach
            ``max_restarts`` because of the backoff, so that the limit would be none.
    """

    affects: ClassVar[Affects]

    max_restarts: float = 20
    within: float = 600.0
    backoff: Backoff = attrs.field(factory=Backoff)
    auto_shutdown: AutoShutdown = "never"

    def __attrs_post_init__(self) -> None:
        name = type(self).__name__
        if not hasattr(self, "affects"):
            raise TypeError("SupervisorStrategy is abstract: use OneForOneSupervisor or another of its subclasses")
        if not (self.max_restarts == math.inf or (self.max_restarts >= 0 and self.max_restarts % 1 == 0)):
            raise ValueError(f"{name}(max_restarts={self.max_restarts!r}): expected a whole number from 0, or inf")
        if not self.within > 0:
            raise ValueError(f"{name}(within={self.within!r}): expected seconds, more than 0")
        if self.auto_shutdown not in ("never", "any_significant", "all_significant"):
            raise ValueError(
                f"{name}(auto_shutdown={self.auto_shutdown!r}): expected never, any_significant or all_significant"
            )
        if self.max_restarts == math.inf:
            return
        needed = int(self.max_restarts) + 1
        span = self.backoff.span(needed)
        if span > self.within:
            most = self.backoff.fits(self.within)
            raise ValueError(
                f"{name}(max_restarts={self.max_restarts:g}, within={self.within:g}) can never give up: with "
                f"{self.backoff} a child that crashes whenever it runs has at most "
                f"{most:g} incidents within {self.within:g} s, and giving up takes {needed}. "
                f"What fits: max_restarts={most - 1:g} or less, within={math.ceil(span)} or more, "
                f"a shorter backoff, or max_restarts=inf to never give up."
            )


@attrs.frozen(kw_only=True)
class OneForOneSupervisor(SupervisorStrategy):
    """Restarts the child that failed and no other."""

    affects: ClassVar[Affects] = "one"


@attrs.frozen(kw_only=True)
class OneForAllSupervisor(SupervisorStrategy):
    """Restarts all children when one failed: stops them in reverse order, starts them in order."""

    affects: ClassVar[Affects] = "all"


@attrs.frozen(kw_only=True)
class RestForOneSupervisor(SupervisorStrategy):
    """Restarts the child that failed and those started after it."""

    affects: ClassVar[Affects] = "rest"


@attrs.frozen(kw_only=True)
class CrashingSupervisor(SupervisorStrategy):
    """Restarts nothing: any crash of a child, a temporary one's too, makes the supervisor fail at once."""

    affects: ClassVar[Affects] = "one"
    max_restarts: float = attrs.field(default=0, validator=attrs.validators.in_((0,)))


StrategyLike = SupervisorStrategy | type[SupervisorStrategy]


def as_strategy(strategy: StrategyLike) -> SupervisorStrategy:
    """The instance for a strategy given as class or instance.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(strategy, type) and issubclass(strategy, SupervisorStrategy):
        return strategy()
    if isinstance(strategy, SupervisorStrategy):
        return strategy
    raise TypeError(f"expected a SupervisorStrategy, class or instance, got {strategy!r}")
