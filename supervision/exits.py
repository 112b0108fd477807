"""What the exit of a child leads to: a restart, a group restart, the end of the supervisor, or nothing more.

The rules are in :mod:`.plans` and :mod:`.window`; this carries them out, in the task that is about to end. One-for-one
restarts happen right here, so that the crash of one child costs the same beside one sibling and beside 10,000.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import trio

from . import report
from .errors import StartFailed, SupervisorFailed, is_fatal
from .plans import exit_verdict
from .runner import without_cancelled
from .strategies import CrashingSupervisor
from .window import Incident, describe

if TYPE_CHECKING:  # supervisors are what it works on
    from .core import Supervisor
    from .handle import ChildHandle, ChildState
    from .runner import Incarnation

__all__ = ["account", "child_exited", "forget", "retire"]


def child_exited(supervisor: Supervisor, handle: ChildHandle, run: Incarnation, reason: BaseException | None) -> None:
    """Decide what follows; called for each incarnation exactly once, and must not raise."""
    asked = run.stopping or not run.began
    if reason is not None:
        reason = without_cancelled(reason, handle.label)
    elif not asked and run.ready_at is None:
        reason = StartFailed(f"child {handle.label!r} returned before it called task_status.started()")
    hook = handle.spec.on_exit
    if hook is not None and run.began:
        try:
            hook(handle, reason)
        except BaseException as failure:
            handle.hook_failures += 1
            report.hook_failed(supervisor.path, handle.name, failure, len(supervisor._window))
            if is_fatal(failure):
                reason = failure
    if reason is not None:
        handle.last_reason = reason
    handle._run = None
    handle._nested = None
    run.failure = reason
    incarnation = handle.incarnation
    _decide(supervisor, handle, run, reason, asked)
    if handle._monitors:
        handle._tell_monitors(incarnation, reason, asked)


def _decide(
    supervisor: Supervisor, handle: ChildHandle, run: Incarnation, reason: BaseException | None, asked: bool
) -> None:
    if reason is not None and is_fatal(reason):
        text = describe(reason)  # the program is to end: nothing of ours to be alarmed about
        report.ended(supervisor.path, handle.name, handle.incarnation, "failed", len(supervisor._window), text)
        retire(supervisor, handle, "failed")
        supervisor._fatal.append(reason)
        supervisor._end(failing=True)
    elif asked or supervisor._ending:
        _report_exit(supervisor, handle, "stopped", reason, run)
        if supervisor._groups.takes_along(handle, run):
            handle.state = "backoff"
        else:
            retire(supervisor, handle, "stopped")
    elif run.by_hand and run.ready_at is None:
        report.start_failed(supervisor.path, handle.name, reason, len(supervisor._window))
        retire(supervisor, handle, "failed")
    else:
        verdict = exit_verdict(handle.spec.restart, normal=reason is None)
        if verdict == "restart" or (reason is not None and isinstance(supervisor.strategy, CrashingSupervisor)):
            _incident(supervisor, handle, run, reason)
            return
        state: ChildState = "finished" if reason is None else "failed"
        _report_exit(supervisor, handle, state, reason, run)
        retire(supervisor, handle, state)
        _auto_shutdown(supervisor, handle)


def _report_exit(
    supervisor: Supervisor, handle: ChildHandle, state: ChildState, reason: BaseException | None, run: Incarnation
) -> None:
    count = len(supervisor._window)
    if reason is None:
        report.ended(supervisor.path, handle.name, handle.incarnation, state, count)
    else:
        report.crashed(supervisor.path, handle.name, handle.incarnation, reason, _doing(run), count)


def _doing(run: Incarnation) -> str:
    if run.stopping:
        return "stopping"
    return "running" if run.ready_at is not None else "starting"


def retire(supervisor: Supervisor, handle: ChildHandle, state: ChildState) -> None:
    """Note that a child has ended until someone starts it again; one that nobody could start again is forgotten."""
    handle.state = state
    if handle.spec.significant:
        supervisor._significant.discard(handle.name)
    if (supervisor._template is not None or handle.spec.restart == "temporary") and not handle._keep:
        forget(supervisor, handle)


def forget(supervisor: Supervisor, handle: ChildHandle) -> None:
    """Take a child out of its supervisor, for good."""
    if supervisor._children.get(handle.name) is handle:
        del supervisor._children[handle.name]
        if supervisor._groups.pending:
            supervisor._groups.forget(handle)
        handle._end_monitors()


def _auto_shutdown(supervisor: Supervisor, handle: ChildHandle) -> None:
    kind = supervisor.strategy.auto_shutdown
    if handle.spec.significant and (
        kind == "any_significant" or (kind == "all_significant" and not supervisor._significant)
    ):
        supervisor._end()


def _incident(supervisor: Supervisor, handle: ChildHandle, run: Incarnation, reason: BaseException | None) -> None:
    now = trio.current_time()
    if handle.progressed:
        supervisor._window.clear()
        handle._attempt = 0
    elif run.ready_at is not None and now - run.ready_at >= supervisor.strategy.backoff.reset_after:
        handle._attempt = 0
    incident = Incident(now, handle.name, handle.incarnation, reason)
    handle.last_incident = incident
    handle.state = "backoff"
    report.crashed(supervisor.path, handle.name, handle.incarnation, reason, _doing(run), len(supervisor._window))
    if supervisor.strategy.affects != "one":  # siblings must be stopped first: the supervisor's task does that
        supervisor._groups.crashed(handle, incident)
        supervisor._ring()
        return
    delay = account(supervisor, handle, incident)
    if delay is not None:  # this is plan() for one-for-one, without looking at 10,000 siblings
        handle.restarts += 1
        supervisor._launch(handle, delay)


def account(supervisor: Supervisor, handle: ChildHandle, incident: Incident) -> float | None:
    """Count an incident: the backoff before the restart in seconds, or None if it was one too many."""
    window = supervisor._window
    if window.record(incident):
        failure = supervisor._failure = SupervisorFailed(supervisor.path, supervisor.strategy, window.incidents)
        retire(supervisor, handle, "failed")
        report.gave_up(supervisor.path, failure, failure.incidents)
        supervisor._end(failing=True)
        return None
    delay = supervisor.strategy.backoff.delay(handle._attempt, random.random())
    handle._attempt += 1
    report.restarting(supervisor.path, handle.name, handle.incarnation, delay, len(window), incident.reason)
    return delay
