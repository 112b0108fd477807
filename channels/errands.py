"""What a codec is missing, fetched: codecs do no I/O (`models.NotReady`), so whoever encodes or decodes has it done here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import outcome
import trio

from ..models import NotReady
from ..models import Unavailable as CodecUnavailable
from .errors import TransportError
from .options import MessagingOptions
from .retry import Retry

__all__ = ["Errands"]

log = logging.getLogger("famulus.registry")


class Unavailable(TransportError):
    """The codec's error of the same name, as `Retry` takes it."""

    retriable = True


class Errands:
    """The blocking work that the codecs of one run ask for, in threads.

    Resource handling: a thread cannot be cancelled. The caller of `run` can, at any moment; the thread that it leaves
    behind serves whoever asks for the same thing next, and `over` waits for it. Its requests have time limits of their own.
    """

    def __init__(self, options: MessagingOptions) -> None:
        self._options = options
        self._wanted: dict[str, trio.Event] = {}
        self._threads: dict[str, _Thread] = {}

    async def run(self, pending: NotReady) -> None:
        """Have what the codec asked for fetched, however long its server is away. Then call the codec again.

        Of several callers that miss the same thing one has it fetched, and the others wait. It is logged once that
        the server is away, and once that it is back.
        """
        wanted = self._wanted.get(pending.what)
        if wanted is not None:
            await wanted.wait()
            return
        done = self._wanted[pending.what] = trio.Event()
        try:
            retry = Retry(f"getting {pending.what}", self._options, log, of="its server")
            await retry.until_done(partial(self._attempt, pending))
        finally:
            del self._wanted[pending.what]
            done.set()

    async def _attempt(self, pending: NotReady) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        thread = self._threads.get(pending.what)
        if thread is None:
            forget = partial(self._threads.pop, pending.what)
            thread = self._threads[pending.what] = _Thread(pending.work, forget)
            await thread.run()
        await thread.over.wait()
        try:
            thread.result.unwrap()
        except CodecUnavailable as error:
            raise Unavailable(str(error)) from error

    async def over(self) -> None:
        """Wait for the threads of callers that were cancelled."""
        for thread in list(self._threads.values()):
            await thread.over.wait()


class _Thread:
    """One attempt in a thread, which others than its caller can wait for."""

    def __init__(self, work: Callable[[], None], forget: Callable[[], object]) -> None:
        self.over = trio.Event()
        self.result: outcome.Outcome[None] = outcome.Value(None)
        self._work = work
        self._forget = forget
        self._token = trio.lowlevel.current_trio_token()

    async def run(self) -> None:
        """Start it, and wait unless cancelled."""
        try:
            # A limiter of its own, which never makes it wait: the thread runs, whoever is cancelled.
            await trio.to_thread.run_sync(self._in_thread, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
        except trio.Cancelled:
            raise
        except BaseException as error:  # there are no more threads to be had
            self._end(outcome.Error(error))

    def _in_thread(self) -> None:
        result = outcome.capture(self._work)
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._end, result)

    def _end(self, result: outcome.Outcome[None]) -> None:
        self.result = result
        self._forget()
        self.over.set()
