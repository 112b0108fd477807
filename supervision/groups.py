"""Group restarts, for one-for-all and rest-for-one: carries out plans, in the supervisor's own task.

One crash is taken up at a time. Its plan stops the siblings in reverse order; crashes of theirs meanwhile
belong to the same incident. Those to be started again wait in start order; each is started when the one
before is ready. A crash among those already started interrupts that, is an incident of its own, and its plan
is merged with what still waits.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import trio

from .exits import account, forget
from .handle import ChildHandle
from .plans import ChildView, plan
from .runner import Incarnation
from .window import Incident

if TYPE_CHECKING:  # the supervisor holds one of these, and is what it works on
    from .core import Supervisor

__all__ = ["GroupRestarts"]


class GroupRestarts:
    """What a supervisor has still to do about crashes that concern several children."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._crashes: deque[tuple[ChildHandle, Incident]] = deque()
        self._waiting: dict[str, ChildHandle] = {}  # stopped, to be started again in this order
        self._launching: Incarnation | None = None
        self._again = set[str]()  # of the siblings that are being stopped, those to be started again
        self._resume_at = -math.inf

    @property
    def pending(self) -> bool:
        """Whether :meth:`step` has something to do, or to wait for."""
        return bool(self._crashes or self._waiting)

    def crashed(self, handle: ChildHandle, incident: Incident) -> None:
        """Note a crash for the next step."""
        self._crashes.append((handle, incident))

    def takes_along(self, handle: ChildHandle, run: Incarnation) -> bool:
        """Whether a child whose run has just been stopped will be started again with its group.

        One that someone was starting by hand is not: whoever did so gets the failure, and decides.
        """
        by_hand = run.by_hand and run.ready_at is None
        return handle.name in self._again and not (by_hand or handle._held or self._supervisor._ending)

    def forget(self, handle: ChildHandle) -> None:
        """Leave a child stopped: someone has terminated it by hand, or starts it by hand."""
        if self._waiting.get(handle.name) is handle:
            del self._waiting[handle.name]
        self._crashes = deque(entry for entry in self._crashes if entry[0] is not handle)

    async def step(self) -> None:
        """Take up one crash, or start one child, or wait for what that needs."""
        if self._crashes:
            await self._stop_group(*self._crashes.popleft())
        elif self._launching is not None and not self._launching.settled:
            await self._supervisor._listen()
        elif trio.current_time() < self._resume_at:
            await self._supervisor._listen(self._resume_at)
        else:
            handle = self._waiting.pop(next(iter(self._waiting)))
            handle.restarts += 1
            self._launching = self._supervisor._launch(handle, listener=self._supervisor._ring)

    async def _stop_group(self, failed: ChildHandle, incident: Incident) -> None:
        supervisor = self._supervisor
        delay = account(supervisor, failed, incident)
        if delay is None:
            return
        children = supervisor._children
        views = [ChildView(h.name, h.spec.restart, h._held) for h in children.values()]
        decided = plan(views, failed.name, supervisor.strategy)
        affected = {name: children[name] for name in (*decided.stop, *decided.start)}
        again = self._again = set(decided.start)
        for name in decided.stop:
            run = affected[name]._run
            if run is not None:
                supervisor._ask(affected[name], run, drain=True)
                await run.gone()
                if supervisor._ending:
                    return
                if run.by_hand and run.ready_at is None:
                    again.discard(name)
        self._again = set()
        for name in decided.drop:  # those that were stopped are gone already, unless someone restarts them by hand
            handle = affected.get(name)
            if handle is not None and handle._run is None and not handle._keep:
                forget(supervisor, handle)
        # A sibling that crashed while the group was being stopped is part of this incident.
        self._crashes = deque(entry for entry in self._crashes if affected.get(entry[0].name) is not entry[0])
        names = self._waiting.keys() | again
        self._waiting = {
            handle.name: handle
            for handle in children.values()
            if handle.name in names and handle._run is None and not handle._held
        }
        for handle in self._waiting.values():
            handle.state = "backoff"
        self._resume_at = trio.current_time() + delay
