"""One call of the program: what the options before the command say. Commands get it as click's `obj`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ..app.app import App
from ..app.connecting import make_transport
from ..app.settings import Settings, parse_setting
from ..channels.errors import ImproperlyConfigured
from ..channels.topic import Topic
from ..channels.transport import Transport
from .loading import find_app

__all__ = ["Invocation", "declared_topic", "parse_pairs", "read_overrides"]


@attrs.frozen(kw_only=True)
class Invocation:
    """What the program was called with.

    Attributes:
        bound: the App whose `main()` this is.
        wanted: what ``-A`` or FAMULUS_APP names.
        overrides: settings given on the command line.
        debug: whether to show tracebacks of wrong input.
    """

    bound: App | None
    wanted: str | None
    overrides: Mapping[str, Any]
    debug: bool

    def overriding(self, **settings: Any) -> Invocation:
        """The same call with these settings too."""
        return attrs.evolve(self, overrides={**self.overrides, **settings})

    def app(self) -> App:
        """The App to work with, imported if need be.

        Raises:
            ImproperlyConfigured: none was named, or the one named cannot be had.
        """
        if self.bound is not None:
            return self.bound
        if not self.wanted:
            raise ImproperlyConfigured(
                "which app? expected -A module[:attribute] before the command, or FAMULUS_APP in the environment"
            )
        return find_app(self.wanted)

    def settings(self, app: App) -> Settings:
        """The settings that a run started by this call has.

        Raises:
            ImproperlyConfigured: one of them is wrong, wherever it was given.
        """
        return app.settings(**self.overrides)

    def transport(self, app: App) -> Transport:
        """The broker's transport, unopened.

        Raises:
            ImproperlyConfigured: no installed transport takes the broker's URL.
        """
        return make_transport(app, self.settings(app))


def read_overrides(broker: str | None, pairs: Sequence[str]) -> dict[str, Any]:
    """The settings in ``--broker URL`` and ``--set NAME=VALUE``.

    Raises:
        ImproperlyConfigured: a value is not of its setting's type. Unknown names are found later.
    """
    fields = attrs.fields_dict(Settings)
    overrides: dict[str, Any] = {}
    for name, text in parse_pairs("--set", pairs):
        overrides[name] = parse_setting(f"--set {name}", text, fields[name].default) if name in fields else text
    return overrides if broker is None else {**overrides, "broker": broker}


def declared_topic(app: App, name: str) -> Topic[Any] | None:
    """How an app declares a topic: by itself, or else among several."""
    return app.topics.get(name) or next((topic for topic in app.topics.values() if name in topic.topics), None)


def parse_pairs(option: str, pairs: Sequence[str]) -> list[tuple[str, str]]:
    """Split ``NAME=VALUE``.

    >>> parse_pairs("--set", ["version=2", "client_id=a=b"])
    [('version', '2'), ('client_id', 'a=b')]

    Raises:
        ImproperlyConfigured: there is no name, or no "=".
    """
    split = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ImproperlyConfigured(f"{option} {pair}: expected NAME=VALUE")
        split.append((name, value))
    return split
