"""The broker that a command works on, with an app or without one."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import click
import trio

from ..app.app import App
from ..channels.errors import BrokerUnavailable, ImproperlyConfigured, TransportError
from ..channels.runs import Run
from ..channels.topic import Topic
from ..channels.transport import TopicSpec, Transport
from .invocation import Invocation, declared_topic
from .output import mask

__all__ = ["LIMIT", "BrokerCall"]

T = TypeVar("T")

LIMIT: Final = 60.0
"""Seconds that a command waits for the broker."""

_NONE: Final = "none"


class BrokerCall:
    """The broker that the options name, with or without an app.

    Attributes:
        app: the one that is named, or None.
        declaration: the same, or one that declares nothing.
        settings: that a run would have.
        shown: the broker's URL without passwords.
    """

    def __init__(self, invocation: Invocation) -> None:
        named = invocation.bound is not None or invocation.wanted
        self.app = invocation.app() if named else None
        self.declaration = App("famulus", broker=_NONE) if self.app is None else self.app
        self.settings = invocation.settings(self.declaration)
        if self.settings.broker == _NONE:
            raise ImproperlyConfigured(
                "which broker? expected --broker URL before the command, FAMULUS_BROKER in the environment, or an app: -A"
            )
        self._transport = invocation.transport(self.declaration)
        self.shown = mask(self.settings.broker)

    def spec(self, transport: Transport, name: str) -> TopicSpec:
        """What a topic is created as: as the app declares it, else by the settings."""
        topic = declared_topic(self.declaration, name) or Topic[Any](self.declaration, name)
        specs = topic.specs(Run(self.declaration, self.settings, transport))
        return next(spec for spec in specs if spec.name == name)

    def run(self, work: Callable[[Transport], Awaitable[T]], *, limit: float = LIMIT) -> T:
        """Do something with the open transport.

        Args:
            limit: seconds that it may take; connecting may take no more than `LIMIT`, whatever it is.

        Raises:
            click.ClickException: the broker cannot be reached, or refuses.
        """
        if not self._transport.crosses_processes:
            click.echo(
                f"note: broker {self.shown} lives inside one process, here this command's: it begins empty, and "
                "ends with the command. Give --broker URL for another one",
                err=True,
            )
        quiet = logging.NullHandler()  # the client's warnings would go to stderr; what matters of them is in the error
        logging.getLogger().addHandler(quiet)
        try:
            return trio.run(self._connected, work, limit)
        except trio.TooSlowError as error:
            raise click.ClickException(f"broker {self.shown} did not answer within {LIMIT:g} s") from error
        except (TransportError, ValueError) as error:
            if isinstance(error, ImproperlyConfigured):
                raise
            text = mask(" ".join(str(error).split()))
            if isinstance(error, BrokerUnavailable):
                text = f"broker {self.shown} cannot be reached: {text}"
            raise click.ClickException(text) from error
        finally:
            logging.getLogger().removeHandler(quiet)

    async def _connected(self, work: Callable[[Transport], Awaitable[T]], limit: float) -> T:
        with trio.fail_after(LIMIT) as scope:
            async with self._transport.open():
                scope.deadline = trio.current_time() + limit
                return await work(self._transport)
