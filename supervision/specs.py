"""Child specs: declarations of what to run and how to treat it. Nothing runs here."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

import attrs

from .strategies import OneForOneSupervisor, StrategyLike, SupervisorStrategy, as_strategy

if TYPE_CHECKING:  # the hook's type only: handles come after specs
    from .handle import ChildHandle

__all__ = [
    "ChildSpec",
    "OnExit",
    "PoolSpec",
    "Restart",
    "Spec",
    "StopOrder",
    "SupervisorSpec",
    "check_siblings",
    "child",
    "pool",
    "supervisor",
]

Restart = Literal["permanent", "transient", "temporary"]
StopOrder = Literal["reverse", "together"]
OnExit = Callable[["ChildHandle", BaseException | None], object]


@attrs.frozen(kw_only=True)
class _Treatment:
    """What all specs have in common.

    Attributes:
        name: Unique among the children of one supervisor.
        restart: ``permanent`` runs again after every exit, ``transient`` after a crash only, ``temporary``
            never.
        shutdown: Seconds that a child which called ``trap_stop()`` gets to end by itself; ``inf`` waits for
            ever, None cancels it at once.
        significant: Its exit counts for the supervisor's ``auto_shutdown``.
        on_exit: Called as ``on_exit(handle, reason)`` when an incarnation has ended, before any restart, in
            the child's context; it must not block. ``reason`` is None for a return and for an ordered stop,
            and ``handle.state`` still tells what the child was: ``stopping`` if it was asked to stop.
    """

    name: str
    restart: Restart = "permanent"
    shutdown: float | None = 5.0
    significant: bool = False
    on_exit: OnExit | None = None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"child name {self.name!r}: expected a text that is not empty")
        if self.restart not in ("permanent", "transient", "temporary"):
            raise ValueError(
                f"child {self.name!r}: restart={self.restart!r}: expected permanent, transient or temporary"
            )
        if self.shutdown is not None and not self.shutdown >= 0:
            raise ValueError(f"child {self.name!r}: shutdown={self.shutdown!r}: expected seconds from 0, inf or None")
        if self.significant and self.restart == "permanent":
            raise ValueError(
                f"child {self.name!r} is significant and permanent, but a permanent child never ends by "
                f"itself: make it transient or temporary"
            )


@attrs.frozen(kw_only=True)
class ChildSpec(_Treatment):
    """A worker: ``await fn(*args)`` in a task of its own. Made by :func:`child`."""

    fn: Callable[..., Awaitable[object]]
    args: tuple[Any, ...] = ()
    wants_status: bool = False


@attrs.frozen(kw_only=True)
class SupervisorSpec(_Treatment):
    """A supervisor as a child, over children of its own. Made by :func:`supervisor`."""

    strategy: SupervisorStrategy
    children: tuple[Spec, ...] = ()
    shutdown: float | None = math.inf
    stop: StopOrder = "reverse"

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.stop not in ("reverse", "together"):
            raise ValueError(f"supervisor {self.name!r}: stop={self.stop!r}: expected reverse or together")


@attrs.frozen(kw_only=True)
class PoolSpec(SupervisorSpec):
    """A supervisor of alike children, which are added while it runs. Made by :func:`pool`."""

    template: ChildSpec
    stop: StopOrder = "together"

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.strategy.affects != "one":
            raise ValueError(
                f"pool {self.name!r}: {type(self.strategy).__name__} restarts siblings, and the children of a pool have "
                f"nothing to do with each other: use OneForOneSupervisor or CrashingSupervisor"
            )
        if self.strategy.auto_shutdown != "never":
            raise ValueError(
                f"pool {self.name!r}: auto_shutdown={self.strategy.auto_shutdown!r} means nothing for alike children, "
                f"none of which is significant (OTP refuses it too)"
            )


Spec = ChildSpec | SupervisorSpec


def child(
    fn: Callable[..., Awaitable[object]],
    *args: Any,
    name: str | None = None,
    restart: Restart = "permanent",
    shutdown: float | None = 5.0,
    significant: bool = False,
    on_exit: OnExit | None = None,
) -> ChildSpec:
    """Declare a worker child that runs ``await fn(*args)``.

    If ``fn`` has a parameter ``task_status``, the child is ready when it calls
    ``task_status.started(value)``, as with ``trio.Nursery.start``; returning or raising before that is a
    failed start. Any other child is ready as soon as its task runs. The name defaults to the function's.

    Raises:
        ValueError: A value is out of its range, or the child is significant and permanent.
        TypeError: ``fn`` cannot be called.
    """
    if not callable(fn):
        hint = " (pass the function and its arguments, not a call of it)" if inspect.iscoroutine(fn) else ""
        raise TypeError(f"child: expected an async function, got {fn!r}{hint}")
    return ChildSpec(
        fn=fn,
        args=args,
        wants_status=_wants_status(fn),
        name=_name_of(fn) if name is None else name,
        restart=restart,
        shutdown=shutdown,
        significant=significant,
        on_exit=on_exit,
    )


def supervisor(
    strategy: StrategyLike = OneForOneSupervisor,
    *children: Spec,
    name: str,
    restart: Restart = "permanent",
    shutdown: float | None = math.inf,
    significant: bool = False,
    on_exit: OnExit | None = None,
    stop: StopOrder = "reverse",
) -> SupervisorSpec:
    """Declare a supervisor as a child; it is ready when all of its children are.

    Args:
        stop: How its children end when it is stopped: ``reverse``, one after the other, or ``together``, for children that
            do not depend on each other: all are asked at once, so a drain takes as long as the slowest child.

    Raises:
        ValueError: A value is out of its range, or two children have one name, or a child is significant
            though the strategy never shuts down by itself.
    """
    instance = as_strategy(strategy)
    check_siblings(children, instance, name)
    return SupervisorSpec(
        strategy=instance,
        children=children,
        name=name,
        restart=restart,
        shutdown=shutdown,
        significant=significant,
        on_exit=on_exit,
        stop=stop,
    )


def pool(
    template: ChildSpec | Callable[..., Awaitable[object]],
    *,
    name: str,
    strategy: StrategyLike = OneForOneSupervisor,
    restart: Restart = "permanent",
    shutdown: float | None = math.inf,
    significant: bool = False,
    on_exit: OnExit | None = None,
) -> PoolSpec:
    """Declare a supervisor of any number of alike children, as OTP's ``simple_one_for_one``. It begins without any.

        sessions = await root.start(pool(child(session, database, restart="temporary"), name="sessions"))
        await sessions.supervisor.start_child(connection)  # runs session(database, connection)

    Children are added one at a time with :meth:`Supervisor.start_child`, are named after the template with a number,
    restart each for itself, are forgotten when they have ended and will not run again, and stop all at once.

    Args:
        template: What each child is: a child spec, or just its async function.
        strategy: One-for-one, or crashing; the incidents of all children count together.
        restart: How the pool's own supervisor is treated, and so with the arguments after it, as for :func:`supervisor`; how a
            child is treated stands in the template. A pool that is restarted begins empty.

    Raises:
        ValueError: A value is out of its range, or the strategy restarts siblings or has an ``auto_shutdown``, or the template
            is significant.
        TypeError: The template is neither.
    """
    spec = template if isinstance(template, ChildSpec) else child(template)
    instance = as_strategy(strategy)
    check_siblings((spec,), instance, name)
    return PoolSpec(
        template=spec,
        strategy=instance,
        name=name,
        restart=restart,
        shutdown=shutdown,
        significant=significant,
        on_exit=on_exit,
    )


def check_siblings(children: tuple[Spec, ...], strategy: SupervisorStrategy, supervisor: str) -> None:
    """Refuse children that cannot stand beside each other under this strategy.

    Raises:
        ValueError: See :func:`supervisor`.
    """
    names = set[str]()
    for spec in children:
        if spec.name in names:
            raise ValueError(f"supervisor {supervisor!r}: two children are named {spec.name!r}")
        names.add(spec.name)
        if spec.significant and strategy.auto_shutdown == "never":
            raise ValueError(
                f"supervisor {supervisor!r}: child {spec.name!r} is significant, which means nothing under "
                f"auto_shutdown='never': use any_significant or all_significant"
            )


def _name_of(fn: Callable[..., object]) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__name__", None) or type(fn).__name__


def _wants_status(fn: Callable[..., object]) -> bool:
    code = getattr(fn, "__code__", None)
    if code is not None and not hasattr(fn, "__wrapped__"):  # a plain function, without inspect's 10 µs
        return "task_status" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    try:
        return "task_status" in inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a callable without a signature, e.g. one written in C
        return False
