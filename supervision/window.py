"""The sliding window of incidents: pure, the caller brings the time.

The law: as long as :meth:`IncidentWindow.record` answers False, no stretch of ``within`` seconds (both ends
included, as in OTP's ``in_period``) holds more than ``max_restarts`` incidents since the last
:meth:`IncidentWindow.clear`.
"""

from __future__ import annotations

import math
from collections import deque

import attrs

__all__ = ["Incident", "IncidentWindow", "describe"]

_KEPT_WITHOUT_LIMIT = 20  # a supervisor that never gives up still shows this many


@attrs.frozen
class Incident:
    """One reason to restart: a crash of a child, or the return of a permanent one.

    Attributes:
        time: When, on trio's clock, in seconds.
        child: The name of the child.
        incarnation: Which run of it ended, from 1.
        reason: The exception, or None for a return.
    """

    time: float
    child: str
    incarnation: int
    reason: BaseException | None

    def __str__(self) -> str:
        return f"{self.child} #{self.incarnation}: {describe(self.reason)}"


def describe(reason: BaseException | None) -> str:
    """One line for a reason: the exception's type and the first line of its message."""
    if reason is None:
        return "returned"
    try:
        text = str(reason).partition("\n")[0]
    except Exception:  # of the exception's own making; whoever reports it must not fail
        text = "its message cannot be shown"
    return f"{type(reason).__name__}: {text}" if text else type(reason).__name__


class IncidentWindow:
    """Counts incidents in a sliding window of ``within`` seconds; more than ``max_restarts`` are too many."""

    __slots__ = ("_incidents", "_max_restarts", "_within")

    def __init__(self, max_restarts: float, within: float) -> None:
        self._max_restarts = max_restarts
        self._within = within
        self._incidents: deque[Incident] = deque(maxlen=_KEPT_WITHOUT_LIMIT if max_restarts == math.inf else None)

    def record(self, incident: Incident) -> bool:
        """Take in an incident, not older than the last; True if the window now holds too many."""
        incidents = self._incidents
        incidents.append(incident)
        oldest = incident.time - self._within
        while incidents[0].time < oldest:
            incidents.popleft()
        return len(incidents) > self._max_restarts

    def clear(self) -> None:
        """Forget all incidents: there was progress."""
        self._incidents.clear()

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The incidents in the window as of the last one, oldest first."""
        return tuple(self._incidents)

    def __len__(self) -> int:
        return len(self._incidents)
