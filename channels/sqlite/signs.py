"""Signs of life: ours, which a task of the run's own loop gives, and those of the others who share the file."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from math import inf

import trio

from ..errors import TransportError
from .identity import Identity
from .peers import Peers

__all__ = ["Signs"]


class Signs:
    """Made by the engine, one for each.

    Attributes:
        lock: held while a sign is given, in a thread.
    """

    def __init__(self, peers: Peers, identity: Identity, pace: float) -> None:
        self.lock = threading.Lock()
        self._peers = peers
        self._identity = identity
        self._signing = trio.CapacityLimiter(1)
        self._watching = trio.CapacityLimiter(4)
        self._pace = pace  # seconds
        self._paced = trio.Event()
        self._signed_at = -inf

    async def renew(self) -> None:
        """The task that shows that this run is alive: from its own loop, so that one that is stuck does not."""
        while True:
            try:
                await trio.to_thread.run_sync(self._sign, limiter=self._signing, abandon_on_cancel=True)
                self._signed_at = trio.current_time()
            except OSError as error:
                raise TransportError(f"{self._peers!r} is gone: did somebody delete it? ({error})") from error
            self._paced = trio.Event()
            with trio.move_on_after(self._pace):
                await self._paced.wait()

    def _sign(self) -> None:
        with self.lock:
            self._identity.check()
            self._peers.renew()

    def come_within(self, session: float) -> None:
        """Somebody counts for how long we are silent: give signs of life often enough for that."""
        if session / 3 < self._pace:
            self._pace = session / 3
            self._paced.set()

    @property
    def is_missing(self) -> bool:
        """Whether we could not give signs of life ourselves, as where the disk stands still: then others cannot, either."""
        return trio.current_time() - self._signed_at > 2 * self._pace

    async def of(self, peers: Mapping[int, str]) -> dict[int, int | None]:
        """The newest signs of life of others. Not in the threads that the program's own code may have taken all of."""

        def look() -> dict[int, int | None]:
            return {member: self._peers.sign_of(peer) for member, peer in peers.items()}

        return await trio.to_thread.run_sync(look, limiter=self._watching, abandon_on_cancel=True)

    async def clear_dead(self) -> None:
        """Remove what dead processes have left."""
        await trio.to_thread.run_sync(self._peers.clear_dead, limiter=self._watching)
