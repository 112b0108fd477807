"""What a client has read ahead, for the one trio task that takes it: damaged partitions, news, a broker that is away."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import trio

from ..channels.message import TP, Message
from .damage import Damage
from .errors import CALL_FAILURES, DAMAGED, translated
from .reading import ReadingInside

if TYPE_CHECKING:
    import asyncio

__all__ = ["ReadAhead"]

log = logging.getLogger("famulus.kafka")

_LOOK = 1.0  # seconds between two looks at the connection while nothing comes


class ReadAhead:
    """
    Args:
        inside: of the client.
        name: for the log, as "reading as group 'shop'".
        position: where a partition is read next.

    Attributes:
        damage: the partitions that cannot be read at the moment.
    """

    def __init__(self, inside: ReadingInside, name: str, position: Callable[[TP], int]) -> None:
        self._inside = inside
        self._name = name
        self._position = position
        self._connected = True
        self._news = trio.Event()
        self._waiter: asyncio.Future[None] | None = None
        self._look: asyncio.TimerHandle | None = None
        self._only_look = False  # whether there was no other news
        self.damage = Damage(log)

    async def begin(self) -> None:
        """A checkpoint for what goes on to take or to wait: a full one only where it may not have to wait."""
        if self._inside.has_some:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()

    def take(self, tp: TP, most: int, generation: int) -> list[Message]:
        """Up to `most` messages; moves the partition's position, over markers too. Without a checkpoint.

        Raises:
            TransportError: the partition cannot be read, and not because its log is damaged.
        """
        damage = self.damage
        if damage and not damage.may_be_tried(tp):
            return []
        try:
            messages = self._inside.take(tp, most, generation)
        except DAMAGED as error:
            position = self._position(tp)
            damage.found(tp, position, translated(error, f"reading {tp}@{position}"))
            return []
        except CALL_FAILURES as error:
            raise translated(error, f"reading {tp}@{self._position(tp)}") from error
        if damage and messages:
            damage.passed(tp)
        return messages

    def tell(self) -> None:
        """End the wait that is under way, or the next one if that was not for the same news."""
        self._only_look = False
        self._news.set()

    async def wait(self, *, watched: bool = True, until: float = inf) -> None:
        """Wait until records have arrived, something else is to be looked at, or `tell` is called.

        Args:
            watched: whether somebody waits for records, who is to know when the broker is away.
            until: the time at which something else is to be looked at; it may be a second later.
        """
        if self._waiter is None or self._waiter.done():
            self._waiter = self._inside.news()
            self._waiter.add_done_callback(self._on_news)
        if self._news.is_set():
            self._news = trio.Event()
        self._only_look = False
        while True:
            if self._look is None:  # it goes on over many waits: a deadline for each would cost more than the wait
                self._look = self._inside.call_later(_LOOK, self._on_look)
            await self._news.wait()
            if watched:
                self._report_connection()
            if not self._only_look:
                break
            self._only_look = False
            self._news = trio.Event()
            if self._inside.resets or trio.current_time() >= until or (self.damage and self.damage.due):
                break
        # Woken because all is over: then the cancellation that comes with it says more than a closed consumer.
        await trio.lowlevel.checkpoint_if_cancelled()

    def _report_connection(self) -> None:
        """The client reconnects by itself; say once that it has to, and once that it has."""
        connected = self._inside.connected
        if connected != self._connected:
            self._connected = connected
            if connected:
                log.info("%s goes on", self._name)
            else:
                log.warning("%s waits for the broker: there is no connection", self._name)

    def _on_news(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.cancelled():
            waiter.exception()  # `check_errors` has it too
        self.tell()

    def _on_look(self) -> None:
        self._look = None
        if not self._news.is_set():
            self._only_look = True
            self._news.set()
