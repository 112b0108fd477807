"""How a member watches the others of its group, and throws out who is dead, silent or too slow to let go."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import trio

from . import groups
from .engine import Engine
from .groups import View
from .jobs import Transaction
from .peers import CHANGE
from .silence import Silence

__all__ = ["Watch"]

log = logging.getLogger("famulus.sqlite")


class Watch:
    """One member's.

    Args:
        pace: seconds between two looks.
    """

    def __init__(self, engine: Engine, group: str, pace: float) -> None:
        self._engine = engine
        self._group = group
        self._pace = pace
        self._silence = Silence(pace)
        self._looked_at = -1.0
        self._round = (-1, 0.0)  # of the rebalance under way, and when it was first seen

    async def look(self, now: View) -> None:
        """Look at the others of the group, which is in this state, unless that was done just before."""
        time = trio.current_time()
        if time - self._looked_at < self._pace / 2:
            return
        self._looked_at = time
        if not now.preparing:
            self._round = (-1, 0.0)
        elif self._round[0] != now.round:
            self._round = (now.round, time)
        elif time - self._round[1] > now.longest:
            self._round = (-1, 0.0)
            late = partial(groups.throw_out_late, group=self._group, round_=now.round)
            await self._write(lambda tx: late(tx.db))
            return
        if not now.peers:
            return
        peers = {member: peer for member, peer, _ in now.peers}
        signs = await self._engine.signs.of(peers)
        stuck = self._engine.signs.is_missing
        silent = dict.fromkeys(signs, 0.0) if stuck else self._silence.heard(signs, trio.current_time())
        for member, peer, session in now.peers:
            if signs[member] is None:
                await self._throw_out(member, peer, signs[member], "its process has ended")
            elif silent[member] > session:
                await self._throw_out(member, peer, signs[member], f"nothing was heard of it for {session:g} s")

    async def _throw_out(self, member: int, peer: str, sign: int | None, why: str) -> None:
        def unless_it_lives(tx: Transaction) -> None:
            if self._engine.peers.sign_of(peer) == sign:  # this write may have waited for long
                groups.throw_out(tx.db, member, why)

        log.info("group %s: member %d is out: %s", self._group, member, why)
        await self._write(unless_it_lives)

    async def _write(self, do: Callable[[Transaction], object]) -> None:
        """Change the group, and tell its members."""

        def job(tx: Transaction) -> None:
            do(tx)
            tx.pokes.add(CHANGE)

        await self._engine.write(job)
