"""A tree as frozen data: what the command line, the dashboard and tests look at."""

from __future__ import annotations

from typing import Literal

import attrs

__all__ = ["Counts", "TreeNode"]


@attrs.frozen(kw_only=True)
class Counts:
    """How many children a supervisor has, and of which kind.

    Attributes:
        specs: Declared children, ended ones included; 1 for a pool, as in OTP.
        active: Children with a task that is past its backoff.
        supervisors, workers: Children of either kind, ended ones included.
    """

    specs: int
    active: int
    supervisors: int
    workers: int


@attrs.frozen(kw_only=True)
class TreeNode:
    """One child, or the root, as it was at one moment.

    Attributes:
        name: Its name under its supervisor.
        kind: ``supervisor`` or ``worker``.
        strategy: The name of a supervisor's strategy.
        state: As :attr:`ChildHandle.state`, or :attr:`Supervisor.state` at the root.
        restarts: How often it was restarted after an incident.
        uptime: Seconds since it became ready, None if it is not running.
        last_reason: Why it last failed, in one line.
        children: In start order.
    """

    name: str
    kind: Literal["supervisor", "worker"]
    strategy: str | None = None
    state: str
    restarts: int = 0
    uptime: float | None = None
    last_reason: str | None = None
    children: tuple[TreeNode, ...] = ()

    def walk(self) -> tuple[TreeNode, ...]:
        """This node and all below it, depth first."""
        return (self, *(node for child in self.children for node in child.walk()))
