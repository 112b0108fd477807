"""Waiting between attempts, and saying once what for."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from math import inf
from typing import TypeVar

import trio

from .errors import TransportError
from .options import MessagingOptions

__all__ = ["Retry"]

T = TypeVar("T")


class Retry:
    """Exponential backoff for one activity; logs the first failure and the recovery, not each attempt.

    Args:
        what: the activity, for the log: "fetching".
        patient_with: errors to wait for as well, though they pass only when somebody does something.
        patience: seconds of failures after which the next one is raised.
        of: who is waited for, for the log.
    """

    def __init__(
        self,
        what: str,
        options: MessagingOptions,
        log: logging.Logger,
        *,
        patient_with: tuple[type[TransportError], ...] = (),
        patience: float = inf,
        of: str = "the broker",
    ) -> None:
        self._of = of
        self._patience = patience
        self._until = inf
        self._patient_with = patient_with
        self._what = what
        self._first = options.broker_retry_backoff
        self._most = options.broker_retry_backoff_max
        self._next = self._first
        self._log = log
        self._reason: str | None = None

    async def wait(self, error: TransportError) -> None:
        """Wait before the next attempt, longer each time. Raises what `delay` raises."""
        await trio.sleep(self.delay(error))

    def delay(self, error: TransportError) -> float:
        """The seconds to wait before the next attempt, for whoever has something to do meanwhile.

        Raises:
            TransportError: `error` itself, when it is not one that passes by itself, or has lasted too long.
        """
        if not (error.retriable or isinstance(error, self._patient_with)):
            raise error
        now = trio.current_time()
        if self._reason is None:
            self._until = now + self._patience
        if now >= self._until:
            raise error
        reason = f"{type(error).__name__}: {error}"
        if self._reason is None or (reason != self._reason and not error.retriable):
            self._reason = reason
            self._log.warning("%s waits for %s: %s", self._what, self._of, self._reason)
        delay = min(self._next, self._until - now)
        self._next = min(2 * self._next, self._most)
        return delay

    async def until_done(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Make attempts until one succeeds.

        Raises:
            TransportError: one that does not pass by itself.
        """
        while True:
            try:
                result = await attempt()
            except TransportError as error:
                await self.wait(error)
            else:
                self.clear()
                return result

    def clear(self) -> None:
        """An attempt succeeded."""
        if self._reason is not None:
            self._log.info("%s goes on", self._what)
            self._reason = None
            self._next = self._first
