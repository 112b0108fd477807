"""Starting and stopping aiokafka's clients, bounded: both may hang when the broker is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio

from .bridge import Bridge
from .errors import CALL_FAILURES, translated

__all__ = ["start_client"]


class _Client(Protocol):
    def start(self) -> Awaitable[object]: ...


C = TypeVar("C", bound=_Client)


async def start_client(
    bridge: Bridge, make: Callable[[], C], stop: Callable[[C], Awaitable[object]], *, seconds: float, doing: str
) -> C:
    """Make a client and start it; if that fails, takes too long or is cancelled, stop it again.

    Raises:
        BrokerUnavailable: no broker answers.
        TransportError: it answers, and refuses us.
    """
    left = False

    async def start() -> C:
        client = make()
        try:
            # The one call that is cancelled: nobody has this client yet, and nobody will.
            await asyncio.wait_for(client.start(), seconds)
        except BaseException:
            await stop(client)
            raise
        if left:
            await stop(client)
        return client

    try:
        return await bridge.call(start)
    except trio.Cancelled:
        left = True
        raise
    except CALL_FAILURES as error:
        raise translated(error, doing) from error
