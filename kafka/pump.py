"""What runs the callbacks of the bridge's asyncio loop, at a fraction of what trio-asyncio's own way takes.

That one sends each callback through a memory channel of trio's and runs one each time that trio comes to its task; each wait
makes a cancel scope, and a socket that has something to read takes three turns of trio's. An ask through the broker is some 46
callbacks of its caller's loop, so this was much of its cost. Here callbacks wait in a deque, one scope stands for many
waits, and they run where they become ready: in the task that has read the socket, or in that of whoever calls `run_here`.
What is not urgent can be put off: the request for the next records goes out behind what is done with the last ones.

Written for trio-asyncio 0.16; `quicken` leaves the loop of a release that does it otherwise as it is.
"""

from __future__ import annotations

import heapq
from asyncio import AbstractEventLoop, Handle, TimerHandle
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar
from typing import Any, TypeVar, TypeVarTuple

import sniffio
import trio
from trio.lowlevel import Abort, RaiseCancelT, Task, current_task, reschedule, wait_task_rescheduled

__all__ = ["Pump", "quicken"]

T = TypeVar("T")
Args = TypeVarTuple("Args")

_AT_ONCE = 100  # callbacks that run before trio's other tasks have their turn
_PATIENCE = 4  # turns of trio's other tasks that come before what was put off
_MANY_TIMERS = 1000  # from here on, those that were cancelled are looked for
_REPLACED = ("call_soon", "_queue_handle", "_io_task", "_main_loop_one", "_q_send")
_USED = ("_timers", "_stopped", "_stop_wait", "_nursery", "_check_closed")
_OF_HANDLES = ("_scope", "_raise", "_started")


def quicken(
    loop: AbstractEventLoop,
    current: ContextVar[Any],
    is_trio: type[Handle] | None,
    crashed: Callable[[BaseException], None],
) -> Pump | None:
    """Have the callbacks of a loop that has just been opened run by a pump; None where it does not look like it should."""
    inside: Any = loop
    if is_trio is None or not all(hasattr(is_trio, name) for name in _OF_HANDLES):
        return None
    if not all(hasattr(loop, name) for name in (*_REPLACED, *_USED)):
        return None
    pump = Pump(loop, current, is_trio, crashed)
    inside.call_soon = pump.call_soon
    inside._queue_handle = pump.queue
    inside._io_task = pump.watch
    inside._main_loop_one = pump.run
    if not loop.get_debug():  # it looks into the code of each callback, as asyncio does in debug mode only
        inside._check_callback = _unchecked
    waited_for, inside._q_send = inside._q_send, pump
    waited_for.send_nowait(Handle(_nothing, (), loop))  # the loop's own way goes on to its last callback
    return pump


def _unchecked(callback: object, method: str) -> None:
    """In the place of a look into a callback's code."""


def _nothing() -> None:
    """For a callback that is only to be run."""


def _stop(reason: BaseException) -> None:
    """For the end of the loop, where it was not met by the loop's own task."""
    raise reason


def _is_end(error: BaseException) -> bool:
    """Whether it is trio-asyncio's own way to stop the loop; a program may have exits of its own."""
    return type(error).__module__.partition(".")[0] == "trio_asyncio"


class Pump:
    """Runs the callbacks of one loop. It takes the place of some methods of the loop, and of its memory channel.

    Args:
        current: of trio-asyncio: the loop whose code runs in a task of trio's.
        is_trio: the class of handles which start a task of trio's.
        crashed: is told of what asyncio lets through, such as an interrupt that came while a callback ran. It was the end of the
            loop; then whoever waited for its tasks did so for ever, trio-asyncio itself included.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        current: ContextVar[Any],
        is_trio: type[Handle],
        crashed: Callable[[BaseException], None],
    ) -> None:
        inside: Any = loop  # it has no types
        self._loop = inside
        self._current = current
        self._is_trio = is_trio
        self._crashed = crashed
        self._ready: deque[Any] = deque()
        self._timers: list[Any] = inside._timers
        self._most_timers = _MANY_TIMERS
        self._scope = trio.CancelScope()
        self._sleeper: Task | None = None
        self._held = False  # whether somebody runs callbacks, or will before trio goes on
        self._put_off: deque[Handle] = deque()
        self._patience = 0

    # -- in the place of the loop's own ------------------------------------------------------------------------

    def call_soon(self, callback: Callable[..., object], *args: object, context: Context | None = None) -> Handle:
        self._loop._check_closed()
        handle = Handle(callback, args, self._loop, context)
        self._ready.append(handle)
        if not self._held:
            self._wake()
        return handle

    def queue(self, handle: Handle) -> Handle:
        """Take a handle of any kind."""
        self._loop._check_closed()
        if isinstance(handle, TimerHandle):
            self._add_timer(handle)
        else:
            self.send_nowait(handle)
        return handle

    def send_nowait(self, handle: Handle) -> None:
        """Take a handle from another thread, or of a signal, when trio runs what these have left."""
        self._ready.append(handle)
        if not self._held:
            self._wake()

    @trio.lowlevel.enable_ki_protection
    async def run(self, no_wait: bool = False) -> None:
        """Run callbacks until the loop is stopped.

        Args:
            no_wait: only those that are ready.

        Raises:
            trio.WouldBlock: none is, with `no_wait`.
        """
        if no_wait:
            if not self._collect():
                raise trio.WouldBlock
            await self._start(self._round())
            return
        while not self._loop._stopped.is_set():
            with trio.CancelScope() as self._scope:  # ends at the time of a timer
                while not self._scope.cancel_called:
                    if self._collect():
                        await self._start(self._round())
                    if self._collect():
                        await trio.lowlevel.cancel_shielded_checkpoint()
                        continue
                    if self._put_off:
                        if self._patience:
                            self._patience -= 1
                            await trio.lowlevel.cancel_shielded_checkpoint()
                        else:
                            self._take_up()
                        continue
                    if self._timers:
                        self._rise_by(self._timers[0]._when)
                    self._sleeper = current_task()
                    await wait_task_rescheduled(self._abort)

    @trio.lowlevel.enable_ki_protection
    async def watch(self, fd: int, handle: Any, wait: Callable[[int], Awaitable[None]]) -> None:
        """Run a handle whenever its socket is ready, and then what that has made ready."""
        self._current.set(self._loop)
        with handle._scope:
            try:
                while not handle._cancelled:
                    try:
                        await wait(fd)
                    except OSError:
                        if handle._cancelled:  # and its socket closed
                            break
                        raise
                    if not handle._cancelled:
                        try:
                            self._run_held(handle._run)
                        except (SystemExit, KeyboardInterrupt) as error:
                            self._crashed(error)
            except Exception as error:
                handle._raise(error)

    # -- for the bridge ----------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    def run_here(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """Call a function of asyncio's, which does not wait, in the current task of trio's, and then what it makes ready.

        So a request is on its way before trio's other tasks have their turn.
        """
        token = self._current.set(self._loop)
        try:
            result = self._run_held(function, *args)
            if self._put_off:
                self._run_held(self._take_up)
            return result
        finally:
            self._current.reset(token)

    def put_off(self, function: Callable[[], object]) -> None:
        """Have it called soon, and after what is more urgent: behind the next `run_here`, or a few turns of trio's from now."""
        self._put_off.append(Handle(function, (), self._loop))
        self._patience = _PATIENCE
        if not self._held:
            self._wake()

    # -- inside ------------------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """What was put off is ready now."""
        self._ready += self._put_off
        self._put_off.clear()

    @trio.lowlevel.enable_ki_protection
    def _run_held(self, function: Callable[[*Args], T], *args: *Args) -> T:
        if self._held:
            return function(*args)
        self._held = True
        try:
            result = function(*args)
            if self._loop._stop_wait is None:  # else the end of the loop may be among them, which is for its own task
                try:
                    handle = self._round()
                except SystemExit as end:  # that began in this round
                    handle = Handle(_stop, (end,), self._loop)
                if handle is not None:
                    self._ready.appendleft(handle)
            return result
        finally:
            self._held = False
            if self._ready or self._put_off:
                self._wake()

    @trio.lowlevel.enable_ki_protection
    def _round(self) -> Any:
        """Run what is ready. Ends early at a handle that starts a task of trio's, and returns it."""
        ready, is_trio = self._ready, self._is_trio
        held, self._held = self._held, True
        before, sniffio.thread_local.name = sniffio.thread_local.name, "asyncio"
        try:
            for _ in range(_AT_ONCE):
                if not ready:
                    break
                handle = ready.popleft()
                if isinstance(handle, is_trio):
                    return handle
                if not handle._cancelled:
                    handle._run()
        except (SystemExit, KeyboardInterrupt) as error:
            if _is_end(error):
                raise
            self._crashed(error)
        finally:
            sniffio.thread_local.name = before
            self._held = held
        return None

    async def _start(self, handle: Any) -> None:
        if handle is not None:
            handle._context.run(self._loop._nursery.start_soon, handle._run, name=handle._callback)
            await handle._started.wait()

    def _collect(self) -> bool:
        """Whether anything is ready, timers that are due among it."""
        timers = self._timers
        if timers:
            now = self._loop.time()
            while timers and (timers[0]._cancelled or timers[0]._when <= now):
                timer = heapq.heappop(timers)
                if not timer._cancelled:
                    self._ready.append(timer)
        return bool(self._ready)

    def _add_timer(self, handle: TimerHandle) -> None:
        timers = self._timers
        if len(timers) >= self._most_timers:  # most are cancelled long before their time
            timers[:] = [timer for timer in timers if not timer._cancelled]
            heapq.heapify(timers)
            self._most_timers = max(_MANY_TIMERS, 2 * len(timers))
        heapq.heappush(timers, handle)
        if timers[0] is handle:
            self._rise_by(handle.when())

    def _rise_by(self, when: float) -> None:
        """Sleep no longer than that. An earlier end stays, though its timer may be cancelled: it costs one look."""
        if when < self._scope.deadline:
            self._scope.deadline = when

    @trio.lowlevel.enable_ki_protection
    def _wake(self) -> None:
        task, self._sleeper = self._sleeper, None
        if task is not None:
            reschedule(task)

    def _abort(self, _raise: RaiseCancelT) -> Abort:
        self._sleeper = None
        return Abort.SUCCEEDED

    def __repr__(self) -> str:
        return f"<Pump of {self._loop!r}: {len(self._ready)} callbacks, {len(self._timers)} timers>"
