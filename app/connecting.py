"""A run's connection to its broker: made at the start, however long that takes, and held until the run stops."""

from __future__ import annotations

import logging
from math import inf

import trio

from ..channels.errors import BrokerUnavailable, TransportError
from ..channels.retry import Retry
from ..channels.runs import Declaration, Run
from ..channels.transport import Transport, TransportOptions, load_transport
from ..supervision import ChildSpec, Supervisor, SupervisorSpec, child, trap_stop
from .settings import Settings

__all__ = ["Connection", "make_transport"]

log = logging.getLogger("famulus.app")


class Connection:
    """The child that holds the transport open, and the start of what stands beside it."""

    def __init__(self, run: Run, settings: Settings) -> None:
        self._run = run
        self._settings = settings
        self._connecting = trio.CancelScope()
        self._has_connected = False
        self._unreachable: TransportError | None = None

    def spec(self) -> ChildSpec:
        """The child."""
        return child(self._hold, name="transport", shutdown=self._settings.shutdown_timeout + 1)

    async def start(self, root: Supervisor, messaging: SupervisorSpec) -> None:
        """Start the supervisor that the child is in.

        Raises:
            BrokerUnavailable: the broker could not be reached for `broker_start_timeout` seconds.
        """
        with self._connecting:
            await root.start(messaging)
        if self._unreachable is not None:
            raise self._unreachable

    async def _hold(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Connect, trying again while the broker is away, and stay connected until asked to stop."""
        stop = trap_stop()
        patience = inf if self._has_connected else self._settings.broker_start_timeout
        retry = Retry("connecting", self._settings, log, patience=patience)
        connected = False
        while not connected:
            try:
                async with self._run.transport.open():
                    connected = self._has_connected = True
                    retry.clear()
                    task_status.started()
                    await stop.wait()
            except TransportError as error:
                if connected:  # a connection that broke is a crash: the supervisor makes another
                    raise
                try:
                    await retry.wait(error)
                except BrokerUnavailable:  # it is no crash of ours, and not reported as one
                    self._unreachable = error
                    self._connecting.cancel()
                    await trio.sleep_forever()


def make_transport(app: Declaration, settings: Settings) -> Transport:
    """The transport that the settings name, unopened.

    Raises:
        ImproperlyConfigured: there is none for that URL.
    """
    return load_transport(
        settings.broker,
        TransportOptions(
            client_id=settings.client_id or app.id,
            default_partitions=settings.topic_partitions,
            commit_timeout=settings.broker_commit_timeout,
            shutdown_timeout=settings.shutdown_timeout,
            datadir=settings.datadir or TransportOptions().datadir,
        ),
    )
