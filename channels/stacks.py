"""Where a task stands, as text: for the watchdog, and for `agent.actor_tracebacks()`.

trio walks through coroutines, generators and async generators; what this adds is the nurseries that are open in the task,
with the tasks in them. Decision 0015 says why stackscope is not used.
"""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterator
from itertools import dropwhile
from types import FrameType

import trio

__all__ = ["stack_of"]

_TRIO = os.path.dirname(trio.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep


def stack_of(task: trio.lowlevel.Task, *, indent: str = "    ") -> str:
    """The frames of a task, one a line, the innermost last; then the tasks that it has started in nurseries of its own.

    trio's frames are left out, and ours around what the user wrote.
    """
    frames = list(_frames(task))
    theirs = list(dropwhile(lambda frame: frame[0].f_code.co_filename.startswith(_OURS), frames))
    lines = [indent + _line(frame, number) for frame, number in theirs or frames]
    if not lines:
        lines.append(f"{indent}(its task has ended)")
    for nursery in task.child_nurseries:
        for started in sorted(nursery.child_tasks, key=lambda each: each.name):
            lines.append(f"{indent}  in its nursery, {started.name}:")
            lines.append(stack_of(started, indent=f"{indent}    "))
    return "\n".join(lines)


def _frames(task: trio.lowlevel.Task) -> Iterator[tuple[FrameType, int]]:
    if task.coro.cr_frame is not None:
        for frame, number in task.iter_await_frames():
            if not frame.f_code.co_filename.startswith(_TRIO):
                yield frame, number


def _line(frame: FrameType, number: int) -> str:
    code = frame.f_code
    source = linecache.getline(code.co_filename, number).strip()
    return f"{code.co_filename}:{number} in {code.co_qualname}: {source}"
