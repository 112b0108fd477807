"""The one place where `app/` reaches up: `App.main()` hands the App to the command line.

Imports stand inside functions, so that a program that never calls them loads no click and no rich.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from .app import App

__all__ = ["main"]


def main(app: App) -> NoReturn:
    """Be the program `famulus` bound to `app`, with the arguments of the process. Ends in `SystemExit`."""
    from ..cli import main as run_program

    run_program(app)
