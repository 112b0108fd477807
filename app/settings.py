"""`Settings`: everything that can be set about a run, as frozen data, with where each value came from being plain.

Precedence, highest first: what is given to `open_app` or on the command line, the environment (`FAMULUS_` and the
setting's name in capitals), what the `App` was declared with, the defaults here. The default broker alone can be another:
FAMULUS_DEFAULT_BROKER names it for apps that set none, which is how tests keep them in memory.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from math import inf
from typing import Any, Final

import attrs

from ..channels.errors import ImproperlyConfigured
from ..channels.options import MessagingOptions, setting

__all__ = ["DEFAULT_BROKER_VARIABLE", "Settings", "parse_setting", "resolve_settings"]

DEFAULT_BROKER_VARIABLE: Final = "FAMULUS_DEFAULT_BROKER"

_PREFIX = "FAMULUS_"
_YES = frozenset({"true", "yes", "on", "1"})
_NO = frozenset({"false", "no", "off", "0"})


@attrs.frozen(kw_only=True)
class Settings(MessagingOptions):
    """The settings of a run. Times are in seconds; see `MessagingOptions` for those of messaging.

    Raises:
        ImproperlyConfigured: a value is not what its setting takes; the message names it and what was expected.
    """

    broker: str = setting(
        "sqlite://", "URL of the broker: sqlite:// (a file in datadir), memory://, kafka://host:port, or another's"
    )
    client_id: str | None = setting(None, "name under which the broker knows this worker; the app's id by default")
    datadir: str | None = setting(
        None,
        "directory of the files that an embedded broker keeps, as sqlite:// does; by default ID-data, ID being the app's "
        "without its version",
    )
    version: int = setting(1, "of the app; a higher one starts afresh under topics and a group of its own", low=1)
    broker_start_timeout: float = setting(
        inf, "seconds that start waits for a broker that cannot be reached, before the run fails; 0: not at all"
    )
    shutdown_timeout: float = setting(10.0, "seconds that closing the broker's connections may take", low=0.001)
    agent_drain_timeout: float = setting(5.0, "seconds that an agent's event in hand may take at shutdown")
    task_drain_timeout: float = setting(5.0, "seconds that a task which traps its stop may take at shutdown")


def resolve_settings(
    declared: Mapping[str, Any],
    overrides: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Freeze the settings of a run.

    Args:
        declared: what the App was declared with.
        overrides: what was given for this run.
        environment: the process's by default.

    Raises:
        ImproperlyConfigured: an unknown name, or a value that its setting does not take.
    """
    environment = os.environ if environment is None else environment
    fields = attrs.fields_dict(Settings)
    default_broker = environment.get(DEFAULT_BROKER_VARIABLE)
    values: dict[str, Any] = {} if default_broker is None else {"broker": default_broker}
    for source in (declared, _from_environment(fields, environment), overrides):
        for name, value in source.items():
            if name not in fields:
                raise ImproperlyConfigured(f"there is no setting {name!r}{_suggest(name, fields)}")
            values[name] = value
    return Settings(**values)


def _suggest(name: str, fields: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, fields, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(fields))}"


def _from_environment(fields: Mapping[str, attrs.Attribute[Any]], environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in fields.items():
        variable = _PREFIX + name.upper()
        text = environment.get(variable)
        if text is not None:
            values[name] = parse_setting(f"environment variable {variable}", text, field.default)
    return values


def parse_setting(source: str, text: str, default: Any) -> Any:
    """Read a value from text, as the type of the setting's default.

    Args:
        source: where the text was found, for the message.

    Raises:
        ImproperlyConfigured: it is no number, and a number is needed; or neither yes nor no, where that is.
    """
    kind = type(default)
    if kind is bool:
        word = text.strip().lower()
        if word not in _YES | _NO:
            raise ImproperlyConfigured(f"{source}={text!r}: expected true or false")
        return word in _YES
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ImproperlyConfigured(f"{source}={text!r}: expected {expected}") from None
