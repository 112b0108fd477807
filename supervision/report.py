"""The log: one structured record for each thing that happens in a tree, under ``famulus.supervision``.

Every record carries ``supervisor``, ``child``, ``reason`` and, where there is one, ``incidents`` and
``delay``. Nothing is built unless its level is enabled.
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
]

_log = logging.getLogger("famulus.supervision")
_TRIO = os.path.dirname(trio.__file__)


def started(supervisor: str, child: str, incarnation: int) -> None:
    """A child is ready."""
    if _log.isEnabledFor(logging.DEBUG):
        extra = {"supervisor": supervisor, "child": child, "incarnation": incarnation, "reason": None}
        _log.debug("%s/%s #%d is running", supervisor, child, incarnation, extra=extra)


def ended(supervisor: str, child: str, reason: str) -> None:
    """A child has ended for good, by itself or because it was asked to."""
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug(
            "%s/%s %s",
            supervisor,
            child,
            reason,
            extra={"supervisor": supervisor, "child": child, "reason": reason},
        )


def crashed(supervisor: str, child: str, incarnation: int, reason: BaseException | None, while_: str) -> None:
    """A child failed, or a permanent one returned; ``while_`` tells what it was doing."""
    if _log.isEnabledFor(logging.ERROR):
        text = describe(reason)
        extra = {"supervisor": supervisor, "child": child, "incarnation": incarnation, "reason": text}
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


def start_failed(supervisor: str, child: str, reason: BaseException | None) -> None:
    """A child's first start failed; whoever started it gets the failure as well."""
    if _log.isEnabledFor(logging.WARNING):
        text = describe(reason)
        extra = {"supervisor": supervisor, "child": child, "reason": text}
        _log.warning("%s/%s failed to start: %s", supervisor, child, text, extra=extra)


def restarting(supervisor: str, child: str, delay: float, incidents: int, reason: BaseException | None) -> None:
    """An incident was counted and the child will run again."""
    if _log.isEnabledFor(logging.INFO):
        extra = {
            "supervisor": supervisor,
            "child": child,
            "reason": describe(reason),
            "incidents": incidents,
            "delay": delay,
        }
        _log.info(
            "%s/%s restarts in %.3g s (incident %d in the window)",
            supervisor,
            child,
            delay,
            incidents,
            extra=extra,
        )


def gave_up(supervisor: str, failure: BaseException, incidents: tuple[Incident, ...]) -> None:
    """A supervisor gave up."""
    if _log.isEnabledFor(logging.ERROR):
        child, reason = (incidents[-1].child, describe(incidents[-1].reason)) if incidents else (None, None)
        extra = {"supervisor": supervisor, "child": child, "reason": reason, "incidents": len(incidents)}
        _log.error("%s", failure, extra=extra)


def hook_failed(supervisor: str, child: str, failure: BaseException) -> None:
    """An ``on_exit`` hook raised."""
    if _log.isEnabledFor(logging.ERROR):
        extra = {"supervisor": supervisor, "child": child, "reason": describe(failure)}
        _log.error(
            "%s/%s: its on_exit hook failed",
            supervisor,
            child,
            exc_info=(type(failure), failure, failure.__traceback__),
            extra=extra,
        )


def stays(label: str, seconds: float, task: trio.lowlevel.Task | None) -> None:
    """A child was cancelled and has not ended."""
    if _log.isEnabledFor(logging.WARNING):
        supervisor, _, child = label.rpartition("/")
        where = _innermost(task)
        extra = {"supervisor": supervisor, "child": child, "reason": f"at {where}", "seconds": seconds}
        _log.warning(
            "%s has not ended %.0f s after its cancellation (is it shielded?); it is at %s; waiting on",
            label,
            seconds,
            where,
            extra=extra,
        )


def _innermost(task: trio.lowlevel.Task | None) -> str:
    """File and line of the innermost frame of a task that is not trio's."""
    where = "an unknown place"
    if task is not None:
        for frame, line in task.iter_await_frames():
            if not frame.f_code.co_filename.startswith(_TRIO):
                where = f"{frame.f_code.co_filename}:{line}"
    return where
