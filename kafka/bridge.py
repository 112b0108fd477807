"""The bridge between trio and asyncio: the only module that imports trio_asyncio. The transport opens one per run.

The law of this file: an asyncio task of a client is never cancelled in the middle of a call. A trio task that is
cancelled only ends its wait, and the call goes on to its end by itself. What still runs when the bridge closes is
cancelled then, after the clients had their bounded time to stop.

Both sides live in one thread, so plain attributes and calls that do not wait may be shared. What waits crosses
here: `Bridge.call` from trio into asyncio, `Crossing` the other way.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, TypeVarTuple

import trio

with warnings.catch_warnings():
    # It names asyncio's child watchers when imported, which Python 3.12 deprecates; we start no processes.
    warnings.simplefilter("ignore", DeprecationWarning)
    import trio_asyncio

    try:
        from trio_asyncio._handles import AsyncHandle
    except ImportError:  # a release that has it elsewhere: its loop is left as it is
        AsyncHandle = None

from .pump import Pump, quicken

__all__ = ["Bridge", "Call", "Crossing"]

log = logging.getLogger("famulus.kafka")

T = TypeVar("T")
Q = TypeVar("Q")
Args = TypeVarTuple("Args")

_ROUNDS = 5  # times that what is left at the end gets cancelled, a second apart: some code swallows the first


class Call(Generic[T]):
    """A coroutine that runs in an asyncio task of the bridge, whoever waits for it."""

    def __init__(self, task: asyncio.Task[T]) -> None:
        self._task = task
        self._done = trio.Event()
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # seen: asyncio shall not complain when the caller has left
        self._done.set()

    @property
    def done(self) -> bool:
        return self._task.done()

    async def wait(self) -> T:
        """Wait for the outcome; the coroutine's exception is raised here. Cancelling ends the wait only.

        Raises:
            trio.ClosedResourceError: the bridge was closed before the call had an outcome.
        """
        await self._done.wait()
        if self._task.cancelled():
            raise trio.ClosedResourceError("the connection to the broker was closed")
        return self._task.result()


class Bridge:
    """One asyncio loop inside a trio run, open while `open` is."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pump: Pump | None = None
        self._ready = trio.Event()
        self._close = trio.Event()
        self._crash: BaseException | None = None
        self._at_end: list[Callable[[], None]] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Bridge]:
        """Run the loop. The body's own exception leaves as it is, not in a group."""
        error: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run, name="asyncio loop")
            try:
                await self._ready.wait()
                yield self
            except (trio.Cancelled, GeneratorExit):
                raise
            except BaseException as raised:
                if isinstance(raised, BaseExceptionGroup) and not isinstance(raised, Exception):
                    raise  # it may hold `Cancelled`
                error = raised
            finally:
                self._close.set()
        if error is not None:
            raise error

    async def _run(self) -> None:
        # Shielded: when the run is cancelled, the clients still need their loop to say goodbye.
        with trio.CancelScope(shield=True):
            async with trio_asyncio.open_loop() as loop:
                loop.set_exception_handler(_report)
                current: ContextVar[Any] = trio_asyncio.current_loop
                self._pump = quicken(loop, current, AsyncHandle, self._crashed)
                self._loop = loop
                self._ready.set()
                try:
                    await self._close.wait()
                    await self._end_tasks(loop)
                finally:
                    self._loop = None
                    for function in self._at_end:
                        function()
            if self._crash is not None:
                raise self._crash

    def _crashed(self, error: BaseException) -> None:
        """A callback asked for the end of the program. The clients have their goodbye, then it is raised here."""
        self._crash = self._crash or error
        self._close.set()

    async def _end_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(_ROUNDS):
            tasks = asyncio.all_tasks(loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            await Call(loop.create_task(_settle(tasks))).wait()
        else:
            log.error("tasks of the Kafka client do not end: %s", asyncio.all_tasks(loop))
        await Call(loop.create_task(_close_sockets(loop))).wait()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The asyncio loop.

        Raises:
            trio.ClosedResourceError: not open.
        """
        if self._loop is None:
            raise trio.ClosedResourceError("the connection to the broker is not open")
        return self._loop

    def start(self, function: Callable[[*Args], Coroutine[Any, Any, T]], *args: *Args) -> Call[T]:
        """Start a coroutine function as an asyncio task. May be called by any trio task of the run."""
        loop = self.loop
        return Call(loop.create_task(function(*args), name=getattr(function, "__qualname__", None)))

    def at_end(self, function: Callable[[], None]) -> None:
        """Have it called once no task of asyncio's runs any more, however that came: what waits for one is to be told."""
        self._at_end.append(function)

    async def call(self, function: Callable[[*Args], Coroutine[Any, Any, T]], *args: *Args) -> T:
        """Start it and wait for the outcome; see `Call.wait`."""
        return await self.start(function, *args).wait()

    @trio.lowlevel.enable_ki_protection
    def run(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """Call a function of asyncio's that does not wait, as if by the loop; what it makes ready runs at once too.

        May be called by any trio task of the run, which goes on without a turn of the others.
        """
        loop = self.loop
        if self._pump is not None:
            return self._pump.run_here(function, *args)
        current: ContextVar[Any] = trio_asyncio.current_loop
        token = current.set(loop)
        try:
            return function(*args)
        finally:
            current.reset(token)

    def put_off(self, function: Callable[[], object]) -> None:
        """Call a function of asyncio's that does not wait, soon, and after what is more urgent: see `Pump.put_off`."""
        if self._pump is not None and self._loop is not None:
            self._pump.put_off(function)
        else:
            function()

    async def try_call(
        self, seconds: float, function: Callable[[*Args], Coroutine[Any, Any, object]], *args: *Args
    ) -> bool:
        """Call for at most so long, whatever is cancelled around; say whether it came to its end without an error."""
        with trio.move_on_after(seconds, shield=True):
            try:
                await self.call(function, *args)
            except Exception as error:
                log.debug("%s failed: %r", function, error)
                return False
            return True
        return False

    def __repr__(self) -> str:
        return f"<Bridge {'open' if self._loop is not None else 'closed'}>"


class Crossing(Generic[Q]):
    """Questions of asyncio code to one trio task, answered one after the other, until `end`."""

    def __init__(self) -> None:
        self._questions: deque[tuple[Q, asyncio.Future[None]]] = deque()
        self._news = trio.Event()
        self._ended = False
        self._dismissed = False

    async def ask(self, question: Q) -> None:
        """In asyncio: hand it over, and wait until it is answered.

        Raises:
            asyncio.CancelledError: it was dismissed.
        """
        if self._dismissed:
            raise asyncio.CancelledError
        answered = asyncio.get_running_loop().create_future()
        self._questions.append((question, answered))
        self._news.set()
        await answered

    async def answer_next(self, answer: Callable[[Q], Awaitable[None]]) -> bool:
        """In trio: wait for a question, run `answer`, let the asker go on, also if it raises. False after `end`."""
        while not (self._questions or self._ended):
            self._news = trio.Event()
            await self._news.wait()
        if self._ended:
            return False
        question, answered = self._questions.popleft()
        try:
            await answer(question)
        finally:
            if not answered.done():
                answered.set_result(None)
        return True

    def end(self) -> None:
        """Answer nothing more; who asks waits for `dismiss`. May be called from both sides."""
        self._ended = True
        self._news.set()

    def dismiss(self) -> None:
        """Cancel everyone who still asks, or will."""
        self._ended = self._dismissed = True
        while self._questions:
            _, answered = self._questions.popleft()
            answered.cancel()


async def _settle(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks, timeout=1)


async def _close_sockets(loop: asyncio.AbstractEventLoop) -> None:
    """A transport that is closed gives its socket back in a later round of the loop, one with TLS when the peer answers."""
    inside: Any = loop  # asyncio has no public list of its transports
    for transport in list(getattr(inside, "_transports", {}).values()):
        transport.abort()
    await asyncio.sleep(0)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio has to report and nobody awaits."""
    log.error("in the Kafka client: %s", context.get("message"), exc_info=context.get("exception"))
