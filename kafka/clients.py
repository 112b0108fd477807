"""Starting and stopping aiokafka's clients, bounded: both may hang when the broker is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio
from aiokafka.errors import KafkaConnectionError

from ..channels.errors import BrokerUnavailable
from .bridge import Bridge
from .corrections import close_what_is_dropped, close_what_is_replaced, create_no_topics
from .diagnosis import diagnose, keep_passwords_from_log
from .errors import CALL_FAILURES, translated
from .settings import KafkaSettings

__all__ = ["start_client"]


class _Client(Protocol):
    def start(self) -> Awaitable[object]: ...


C = TypeVar("C", bound=_Client)


async def start_client(
    bridge: Bridge,
    make: Callable[[], C],
    stop: Callable[[C], Awaitable[object]],
    *,
    settings: KafkaSettings,
    doing: str,
) -> C:
    """Make a client and start it; if that fails, takes `connect_timeout` or is cancelled, stop it again.

    Raises:
        BrokerUnavailable: no broker answers; the message has the reason.
        ConnectionMisconfigured: it answers, and will never take us with these settings.
    """
    left = False

    keep_passwords_from_log()

    async def start() -> C:
        client = make()
        close_what_is_dropped(client)
        close_what_is_replaced(client)
        create_no_topics(client)
        try:
            # The one call that is cancelled: nobody has this client yet, and nobody will.
            await asyncio.wait_for(client.start(), settings.connect_timeout)
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
        found = await bridge.call(diagnose, settings) if isinstance(error, KafkaConnectionError) else None
        if isinstance(found, BrokerUnavailable):
            raise BrokerUnavailable(f"{doing}: {found}; it is tried again") from error
        if found is not None:
            raise found from error
        raise translated(error, doing) from error
