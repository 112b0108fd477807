"""The decisions: what an exit means, and whom a restart takes along. Pure; the supervisor carries them
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs

from .specs import Restart
from .strategies import SupervisorStrategy

__all__ = ["ChildView", "Plan", "Verdict", "exit_verdict", "plan"]

Verdict = Literal["restart", "finished", "drop"]


def exit_verdict(restart: Restart, *, normal: bool) -> Verdict:
    """What the exit of a child that nobody asked to stop leads to.

    ``restart``: it is an incident, and the child runs again. ``finished``: it stays as a stopped child.
    ``drop``: it is forgotten.
    """
    if restart == "temporary":
        return "drop"
    if restart == "transient" and normal:
        return "finished"
    return "restart"


@attrs.frozen
class ChildView:
    """What the plan must know of a child: ``held`` is one that was terminated by hand and stays stopped."""

    name: str
    restart: Restart = "permanent"
    held: bool = False


@attrs.frozen
class Plan:
    """What to do, in this order: ``stop`` one after the other, ``drop``, wait out the backoff, ``start`` in
    order.

    ``stop`` names the siblings only (the failed child has ended), some of which may have ended before.
    """

    stop: tuple[str, ...]
    drop: tuple[str, ...]
    start: tuple[str, ...]


def plan(children: Sequence[ChildView], failed: str, strategy: SupervisorStrategy) -> Plan:
    """Whom the restart of ``failed`` takes along, given the children in start order.

    Temporary children that are taken along are dropped; a transient one is started again even if it had
    finished; one that is held stays stopped (OTP would start it: here ``terminate`` means stay stopped).

    Raises:
        ValueError: ``failed`` is not among the children.
    """
    at = next((i for i, child in enumerate(children) if child.name == failed), None)
    if at is None:
        raise ValueError(f"plan: no child is named {failed!r}")
    match strategy.affects:
        case "one":
            affected = children[at : at + 1]
        case "all":
            affected = children
        case "rest":
            affected = children[at:]
    return Plan(
        stop=tuple(c.name for c in reversed(affected) if c.name != failed and not c.held),
        drop=tuple(c.name for c in affected if c.restart == "temporary"),
        start=tuple(c.name for c in affected if c.restart != "temporary" and not c.held),
    )
