"""Why a worker failed, told for a person: what happened how often, then the traceback of the real cause."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from ..channels.errors import BrokerUnavailable, ImproperlyConfigured, MemberReplaced
from ..supervision import SupervisorFailed

__all__ = ["explain_failure", "find_exit_request", "says_all", "summarize_failure"]


def explain_failure(failure: BaseException) -> str:
    """The histories of the supervisors that gave up first, each with the traceback of its last failure.

    Supervisors above that failed because of them, and the groups around, say nothing new and are left out.
    """
    parts: list[str] = []
    for root in _roots(failure):
        cause = root
        if isinstance(root, SupervisorFailed):
            parts.append(str(root))
            if root.__cause__ is None:
                continue
            cause = root.__cause__
        parts.append("".join(traceback.format_exception(cause)).rstrip())
    return "\n".join(parts)


def summarize_failure(failure: BaseException) -> str:
    """The same in one line."""
    return "; ".join(_line(root) for root in _roots(failure))


def says_all(failure: BaseException) -> bool:
    """Whether the summary says all there is to say: the world or a setting did it, and no line of code is to be looked at."""
    causes = [root.__cause__ if isinstance(root, SupervisorFailed) else root for root in _roots(failure)]
    return all(isinstance(cause, BrokerUnavailable | ImproperlyConfigured | MemberReplaced) for cause in causes)


def find_exit_request(failure: BaseException) -> BaseException | None:
    """The first SystemExit or KeyboardInterrupt among failures: it keeps its meaning once they are logged."""
    exits = (root for root in _roots(failure) if isinstance(root, SystemExit | KeyboardInterrupt))
    return next(exits, None)


def _line(root: BaseException) -> str:
    if not isinstance(root, SupervisorFailed):
        text = " ".join(str(root).split())
        return f"{type(root).__name__}: {text}" if text else type(root).__name__
    why = "a child returned" if root.__cause__ is None else _line(root.__cause__)
    return f"{why} (supervisor {root.name} gave up)"


def _roots(failure: BaseException) -> Iterator[BaseException]:
    """Through groups and through supervisors that failed because one below them did."""
    if isinstance(failure, BaseExceptionGroup):
        for member in failure.exceptions:
            yield from _roots(member)
    elif isinstance(failure, SupervisorFailed) and isinstance(failure.__cause__, SupervisorFailed):
        yield from _roots(failure.__cause__)
    else:
        yield failure
