"""What a supervisor's own task does: start the declared children, serve, stop everything in reverse order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from .errors import SupervisorStopping
from .exits import retire
from .specs import Spec

if TYPE_CHECKING:  # supervisors are what it works on, and run it for those nested in them
    from .core import Supervisor

__all__ = ["serve"]


async def serve(supervisor: Supervisor, specs: tuple[Spec, ...], started: Callable[[Supervisor], object]) -> None:
    """Start the declared children, call ``started``, serve until something ends it, stop all children.

    Raises:
        SupervisorFailed: It gave up.
        Exception: The failure of a declared child's start, bare.
        BaseException: KeyboardInterrupt or SystemExit out of a child; Cancelled if it was cancelled.
    """
    cut: BaseException | None = None
    start_failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            supervisor._nursery = nursery
            try:
                start_failure = await _start_declared(supervisor, specs)
                if not supervisor._ending:
                    supervisor.state = "running"
                    started(supervisor)
                while not supervisor._ending:
                    await (supervisor._groups.step() if supervisor._groups.pending else supervisor._listen())
                await _stop_children(supervisor, drain=True)
            except BaseException as exc:
                cut = exc
                supervisor._end()
                with trio.CancelScope(shield=True):
                    try:
                        await _stop_children(supervisor, drain=False)
                    except BaseException:  # a fault of ours: nothing may hang because of it
                        for handle in supervisor._children.values():
                            if handle._run is not None:
                                handle._run.scope.cancel()
                        raise
    finally:
        failure = supervisor._ending_reason() or start_failure or cut
        supervisor.state = "stopped" if failure is None or failure is cut else "failed"
        supervisor._done.set()
        for handle in supervisor._children.values():
            handle._end_monitors()
    if failure is not None:
        raise failure


async def _start_declared(supervisor: Supervisor, specs: tuple[Spec, ...]) -> BaseException | None:
    for spec in specs:
        if supervisor._ending:
            return None
        run = supervisor._launch(supervisor._adopt(spec), by_hand=True, listener=supervisor._ring)
        while not (supervisor._ending or run.settled):
            await supervisor._listen()
        if run.ready_at is None and not supervisor._ending:
            supervisor._end()
            failure = run.failure or SupervisorStopping(f"child {spec.name!r} was stopped while starting")
            failure.add_note(f"this was the start of child {spec.name!r} of supervisor {supervisor.path!r}")
            return failure
    return None


async def _stop_children(supervisor: Supervisor, drain: bool) -> None:
    children = tuple(reversed(supervisor._children.values()))
    if supervisor.stops_together:
        for handle in children:
            if handle._run is not None:
                supervisor._ask(handle, handle._run, drain)
    for handle in children:
        run = handle._run
        if run is not None:
            supervisor._ask(handle, run, drain)
            await run.gone()
        elif handle.state == "backoff":
            retire(supervisor, handle, "stopped")
