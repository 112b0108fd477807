"""What supervision raises, and how a raw exception of a child becomes the reason of its exit."""

from __future__ import annotations

from .strategies import CrashingSupervisor, SupervisorStrategy
from .window import Incident

__all__ = [
    "ChildActive",
    "DuplicateChild",
    "LeakedCancellation",
    "StartFailed",
    "StrayNursery",
    "SupervisionError",
    "SupervisorFailed",
    "SupervisorStopping",
    "UnknownChild",
    "is_fatal",
]


class SupervisionError(Exception):
    """Base of what this package raises."""


class SupervisorFailed(SupervisionError):
    """A supervisor gave up: too many incidents. ``__cause__`` is the last failure, None if that was a return.

    Attributes:
        name: The supervisor's path in the tree, such as ``root/agents``.
        incidents: What happened in the window, oldest first.
    """

    def __init__(self, name: str, strategy: SupervisorStrategy, incidents: tuple[Incident, ...]) -> None:
        super().__init__(name, strategy, incidents)
        self.name = name
        self.strategy = strategy
        self.incidents = incidents
        self.__cause__ = incidents[-1].reason if incidents else None

    def __str__(self) -> str:
        if isinstance(self.strategy, CrashingSupervisor):
            head = f"supervisor {self.name!r} gave up at the first incident, as CrashingSupervisor does"
        else:
            head = (
                f"supervisor {self.name!r} gave up: {len(self.incidents)} incidents within "
                f"{self.strategy.within:g} s, and max_restarts is {self.strategy.max_restarts:g}"
            )
        last = self.incidents[-1].time if self.incidents else 0.0
        history = "".join(f"\n  {i.time - last:+.3f} s  {i}" for i in self.incidents)
        return (
            f"{head}{history}\n"
            f"Look at the last failure first: it is this exception's cause, with its traceback. "
            f"Each one was logged by famulus.supervision when it happened."
        )


class StartFailed(SupervisionError, RuntimeError):
    """A child returned before it called ``task_status.started()``."""


class SupervisorStopping(SupervisionError, RuntimeError):
    """The supervisor is stopping or has stopped: it takes and starts no more children."""


class DuplicateChild(SupervisionError, ValueError):
    """A child of this name exists; ``delete`` it first if it has ended."""


class UnknownChild(SupervisionError, LookupError):
    """The supervisor has no child of this name."""


class ChildActive(SupervisionError, RuntimeError):
    """The child is running: ``terminate`` it first."""


class LeakedCancellation(SupervisionError, RuntimeError):
    """``trio.Cancelled`` left a child that nobody had cancelled; it is the crash of that child.

    The usual source is an async generator that yields inside its own cancel scope or nursery (PEP 789).
    """


class StrayNursery(SupervisionError, RuntimeError):
    """A child ended with a nursery still open, in a generator that yields inside it (PEP 789)."""


def is_fatal(reason: BaseException) -> bool:
    """Whether a reason is, or holds, KeyboardInterrupt or SystemExit: never restarted, always to the top."""
    if isinstance(reason, BaseExceptionGroup):
        return reason.subgroup((KeyboardInterrupt, SystemExit)) is not None
    return isinstance(reason, (KeyboardInterrupt, SystemExit))
