"""`run_worker`: an App run as a process's main business, ended in order by a signal or by `app.stop()`.

The command ``worker`` calls it under `trio.run`; so may any program that wants the same signals. It
configures no logging and prints nothing: `cli/` does.

Signals are taken by plain handlers, not by `trio.open_signal_receiver`: handlers run between two bytecodes of
the main thread, so a second signal ends the process also while an agent computes and the loop stands still.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import trio

from ..supervision import Spec, TreeNode, child
from .app import App
from .control import serve_control
from .placing import TreeLike
from .running import RunningApp, open_run

__all__ = ["run_worker"]

log = logging.getLogger("famulus.worker")

_FLUSH_LIMIT = 0.5  # seconds that a process which must end at once gives its streams
_TRIO_CORE = os.path.join(os.path.dirname(trio.__file__), "_core") + os.sep


async def run_worker(app: App, /, *, tree: TreeLike | None = None, **settings: Any) -> None:
    """Run an App until SIGINT, SIGTERM or `app.stop()`; return when it has drained.

    The first signal asks for a stop: agents finish the event in hand, acknowledgements are committed, the
    producer's buffer is sent. While the App is still starting it is cancelled instead, and what was taken is
    not acknowledged. A second signal ends the process at once, with exit code 128 + its number. SIGUSR1 logs
    the supervision tree, and where each task waits. Call it in the main thread.

    While it runs, `famulus tree` can look into it; see `control`.

    Args:
        tree: see `open_app`.
        settings: override the App's and the environment's; see `Settings`.

    Error handling: failures leave as from `open_app`. The handlers that were there before are restored.

    Raises:
        ImproperlyConfigured: a wrong setting; nothing has started then.
    """
    running: RunningApp | None = None
    starting = trio.CancelScope()

    def stop(number: signal.Signals) -> None:
        if running is None:
            log.info("%s while starting: stopping", number.name)
            starting.cancel()
        else:
            log.info("%s: stopping in order; a second signal ends the process at once", number.name)
            running.stop()

    def report() -> None:
        tree = "is still starting" if running is None else f"tree:\n{_render(running.tree())}"
        log.warning("SIGUSR1: app %s %s\ntasks:\n%s", app.id, tree, _render_tasks())

    with _signals(stop, report):
        with starting:
            async with open_run(app, tree=tree, before=_control, **settings) as running:
                log.info("ready: app %s, %s", app.id, _count(len(app.agents), "agent"))
                await running.wait_stop()
                log.info("draining: agents finish the event in hand, then comes the last commit")
        log.info("stopped")


def _control(running: RunningApp) -> Spec:
    return child(serve_control, running.id, running.tree, name="control", restart="transient", shutdown=1.0)


@contextlib.contextmanager
def _signals(stop: Callable[[signal.Signals], None], report: Callable[[], None]) -> Iterator[None]:
    """Have `stop` and `report` called in the trio loop, and a second request to stop end the process."""
    token = trio.lowlevel.current_trio_token()
    asked = False

    def on_stop(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            _end_process(signal.Signals(number))
        asked = True
        token.run_sync_soon(stop, signal.Signals(number))

    def on_report(number: int, frame: object) -> None:
        token.run_sync_soon(report)

    handlers = {signal.SIGINT: on_stop, signal.SIGTERM: on_stop, signal.SIGUSR1: on_report}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _end_process(number: signal.Signals) -> NoReturn:
    """End the process now, whatever its tasks and threads do."""
    # In a thread: this one may have been interrupted while it held a stream's lock, or nobody reads the pipe.
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(_FLUSH_LIMIT)
    os.write(2, f"{number.name}, the second signal: ending at once, the work in hand is not acknowledged\n".encode())
    os._exit(128 + number)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


# What SIGUSR1 shows.


def _render(tree: TreeNode) -> str:
    lines: list[str] = []

    def walk(node: TreeNode, depth: int) -> None:
        facts = [node.strategy or node.kind, node.state]
        if node.uptime is not None:
            facts.append(f"up {node.uptime:.1f} s")
        if node.restarts:
            facts.append(_count(node.restarts, "restart"))
        if node.last_reason:
            facts.append(f"last failure: {node.last_reason}")
        lines.append(f"{'  ' * depth}{node.name}: {', '.join(facts)}")
        for below in node.children:
            walk(below, depth + 1)

    walk(tree, 1)
    return "\n".join(lines)


def _render_tasks() -> str:
    """The tasks of this trio run, each with the frames in which it waits, innermost last."""
    lines: list[str] = []

    def walk(task: trio.lowlevel.Task, depth: int) -> None:
        indent = "  " * depth
        lines.append(f"{indent}{task.name}")
        for frame, line in task.iter_await_frames():
            if not frame.f_code.co_filename.startswith(_TRIO_CORE):
                lines.append(f"{indent}    {frame.f_code.co_filename}:{line} in {frame.f_code.co_name}")
        for nursery in task.child_nurseries:
            for below in sorted(nursery.child_tasks, key=lambda task: task.name):
                walk(below, depth + 1)

    root = trio.lowlevel.current_root_task()
    if root is not None:
        walk(root, 1)
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
