"""``settings``: what a run would be run with, and where each value comes from."""

from __future__ import annotations

import os
from typing import Any

import attrs
import click

from ..app.app import App
from ..app.settings import DEFAULT_BROKER_VARIABLE
from .invocation import Invocation
from .output import mask, write_json, write_table

__all__ = ["settings"]


@click.command(
    epilog="""\b
Examples:
  famulus -A shop settings
  FAMULUS_BROKER=kafka://one:9092 famulus -A shop settings --json
""",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON list: name, value, from, help.")
@click.pass_obj
def settings(invocation: Invocation, as_json: bool) -> None:
    """List the app's settings: value, where it comes from, meaning.

    The highest wins: the command line (--broker, --set NAME=VALUE), the environment (FAMULUS_NAME), the App's
    declaration, the default.
    """
    app = invocation.app()
    values = attrs.asdict(invocation.settings(app))
    fields = attrs.fields_dict(type(invocation.settings(app)))
    found = [
        {
            "name": name,
            "value": mask(value) if isinstance(value, str) else value,
            "from": _origin(name, invocation, app),
            "help": fields[name].metadata.get("help", ""),
        }
        for name, value in sorted(values.items())
    ]
    if as_json:
        write_json(found)
    else:
        write_table(["name", "value", "from", "help"], [[_text(cell) for cell in entry.values()] for entry in found])


def _origin(name: str, invocation: Invocation, app: App) -> str:
    variable = f"FAMULUS_{name.upper()}"
    if name in invocation.overrides:
        return "command line"
    if variable in os.environ:
        return variable
    if name in app.declared_settings:
        return "App"
    return DEFAULT_BROKER_VARIABLE if name == "broker" and DEFAULT_BROKER_VARIABLE in os.environ else "default"


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
