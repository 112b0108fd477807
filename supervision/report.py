"""The log: one structured record for each thing that happens in a tree, under ``famulus.supervision``.

Every record carries ``event`` (``started``, ``exited``, ``start_failed``, ``restarting``, ``gave_up``, ``hook_failed``,
``stays``), ``supervisor`` (its path), ``child`` (its name), ``reason`` (one line, or None) and ``incidents`` (how many its
supervisor's window held at the last one, this one included where it counts); some carry ``incarnation``, ``delay``, ``state``
or ``seconds`` as well. Nothing is built unless its level is enabled.
"""

from __future__ import annotations

import logging
import os

import trio

from .errors import SupervisorFailed
from .window import Incident, describe

__all__ = [
    "crashed",
    "ended",
    "gave_up",
    "hook_failed",
    "restarting",
    "start_failed",
    "started",
    "stays",
    "tells_starts",
]

_log = logging.getLogger("famulus.supervision")
_TRIO = os.path.dirname(trio.__file__)


def tells_starts() -> bool:
    """Whether :func:`started` would tell anything."""
    return _log.isEnabledFor(logging.DEBUG)


def started(supervisor: str, child: str, incarnation: int, incidents: int) -> None:
    """A child is ready; call this only if it :func:`tells_starts`."""
    extra = _extra("started", supervisor, child, None, incidents, incarnation=incarnation)
    _log.debug("%s/%s #%d is running", supervisor, child, incarnation, extra=extra)


def ended(supervisor: str, child: str, incarnation: int, state: str, incidents: int, reason: str | None = None) -> None:
    """A run of a child has ended as it may: it returned, was stopped, or asked to exit."""
    if _log.isEnabledFor(logging.DEBUG):
        text = state if reason is None else reason
        extra = _extra("exited", supervisor, child, text, incidents, incarnation=incarnation, state=state)
        _log.debug("%s/%s #%d %s", supervisor, child, incarnation, text, extra=extra)


def crashed(
    supervisor: str, child: str, incarnation: int, reason: BaseException | None, while_: str, incidents: int
) -> None:
    """A child failed, or a permanent one returned; ``while_`` tells what it was doing."""
    if not _log.isEnabledFor(logging.WARNING if reason is None else logging.ERROR):
        return
    text = describe(reason)
    extra = _extra("exited", supervisor, child, text, incidents, incarnation=incarnation, state=while_)
    if reason is None:
        _log.warning("%s/%s #%d returned, though it is permanent", supervisor, child, incarnation, extra=extra)
    else:
        _log.error(
            "%s/%s #%d crashed while %s: %s",
            supervisor,
            child,
            incarnation,
            while_,
            text,
            # A supervisor that gave up has logged it, and its children's failures before it.
            exc_info=None if isinstance(reason, SupervisorFailed) else (type(reason), reason, reason.__traceback__),
            extra=extra,
        )


def start_failed(supervisor: str, child: str, reason: BaseException | None, incidents: int) -> None:
    """A child's first start failed; whoever started it gets the failure as well."""
    if _log.isEnabledFor(logging.WARNING):
        text = describe(reason)
        extra = _extra("start_failed", supervisor, child, text, incidents)
        _log.warning("%s/%s failed to start: %s", supervisor, child, text, extra=extra)


def restarting(
    supervisor: str, child: str, incarnation: int, delay: float, incidents: int, reason: BaseException | None
) -> None:
    """An incident was counted and the child, with its group if it has one, will run again."""
    if _log.isEnabledFor(logging.INFO):
        text = describe(reason)
        extra = _extra("restarting", supervisor, child, text, incidents, incarnation=incarnation, delay=delay)
        _log.info(
            "%s/%s restarts in %.3g s (incident %d in the window)", supervisor, child, delay, incidents, extra=extra
        )


def gave_up(supervisor: str, failure: BaseException, incidents: tuple[Incident, ...]) -> None:
    """A supervisor gave up, which its parent will see as a crash of it: an escalation."""
    if _log.isEnabledFor(logging.ERROR):
        child, reason = (incidents[-1].child, describe(incidents[-1].reason)) if incidents else (None, None)
        _log.error("%s", failure, extra=_extra("gave_up", supervisor, child, reason, len(incidents)))


def hook_failed(
    supervisor: str, child: str, failure: BaseException, incidents: int, hook: str = "on_exit hook"
) -> None:
    """A function of a child that only listens raised."""
    if _log.isEnabledFor(logging.ERROR):
        _log.error(
            "%s/%s: its %s failed",
            supervisor,
            child,
            hook,
            exc_info=(type(failure), failure, failure.__traceback__),
            extra=_extra("hook_failed", supervisor, child, describe(failure), incidents),
        )


def stays(supervisor: str, child: str, seconds: float, task: trio.lowlevel.Task | None, incidents: int) -> None:
    """A child was cancelled and has not ended."""
    if _log.isEnabledFor(logging.WARNING):
        where = _innermost(task)
        _log.warning(
            "%s/%s has not ended %.0f s after its cancellation (is it shielded?); it is at %s; waiting on",
            supervisor,
            child,
            seconds,
            where,
            extra=_extra("stays", supervisor, child, f"at {where}", incidents, seconds=seconds),
        )


def _extra(
    event: str, supervisor: str, child: str | None, reason: str | None, incidents: int, **more: object
) -> dict[str, object]:
    return {
        "event": event,
        "supervisor": supervisor,
        "child": child,
        "reason": reason,
        "incidents": incidents,
        **more,
    }


def _innermost(task: trio.lowlevel.Task | None) -> str:
    """File and line of the innermost frame of a task that is not trio's."""
    where = "an unknown place"
    if task is not None:
        for frame, line in task.iter_await_frames():
            if not frame.f_code.co_filename.startswith(_TRIO):
                where = f"{frame.f_code.co_filename}:{line}"
    return where
