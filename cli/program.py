"""The program `famulus`: its options, its commands, and how wrong input is told.

Everything a user can get wrong arrives here as `ImproperlyConfigured` and leaves as one line and exit code 2.
"""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from ..app.app import App
from ..channels.errors import ImproperlyConfigured
from .agents import agents
from .dead_letters import dead_letters
from .invocation import Invocation, read_overrides
from .output import mask
from .send import send
from .settings import settings
from .topics import topics
from .tree import tree
from .version import version
from .worker import worker

__all__ = ["Program", "WrongInput", "main", "make_program"]


class WrongInput(click.ClickException):
    """What the user gave cannot work: one line on stderr, exit code 2."""

    exit_code = 2


class Program(click.Group):
    """The group of commands. It turns exceptions into what a terminal should see.

    Args:
        bound: the App whose `main()` this is; without one there is the option ``-A``.
    """

    def __init__(self, bound: App | None = None, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.bound = bound

    def invoke(self, ctx: click.Context) -> Any:
        try:
            self._begin(ctx)
            return super().invoke(ctx)
        except ImproperlyConfigured as error:
            if ctx.params.get("debug"):
                click.echo(mask(traceback.format_exc()), err=True, nl=False)
            raise WrongInput(mask(" ".join(str(error).split()))) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)  # 128 + SIGINT, as shells have it

    def _begin(self, ctx: click.Context) -> None:
        """Carry out the options before the command's name."""
        given = ctx.params
        workdir: Path | None = given.get("workdir")
        if workdir is not None:
            os.chdir(workdir)
        ctx.obj = Invocation(
            bound=self.bound,
            wanted=given.get("app"),
            overrides=read_overrides(given.get("broker"), given.get("set", ())),
            debug=bool(given.get("debug")),
        )


_APP = click.Option(
    ["-A", "--app"],
    metavar="MODULE[:ATTRIBUTE]",
    envvar="FAMULUS_APP",
    show_envvar=True,
    help="The app: `-A shop` is `app` in shop.py, `-A shop.main:orders` is `orders` in shop/main.py.",
)


def _show_version(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"famulus {version('famulus')} (trio {version('trio')}, Python {platform.python_version()})")
        ctx.exit()


def _options() -> list[click.Parameter]:
    return [
        click.Option(["--broker"], metavar="URL", help="The broker; overrides FAMULUS_BROKER and the App."),
        click.Option(
            ["--set"],
            multiple=True,
            metavar="NAME=VALUE",
            help="A setting for this run; may be given again. The command `settings` lists them.",
        ),
        click.Option(
            ["-W", "--workdir"],
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Change to this directory first.",
        ),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of every error."),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version and exit.",
        ),
    ]


_HELP = """Actors, streams and supervision on trio: run an app, look at it, send to it.

Options before the command say which app and with what settings; each command has its own --help.
"""

_EPILOG = """\b
Examples:
  famulus -A shop worker -l info
  famulus -A shop agents
  famulus -A shop --broker kafka://localhost:9092 send @tally '{"account": "ada"}'
  FAMULUS_APP=shop famulus settings
"""

_BOUND_EPILOG = """\b
Examples:
  python shop.py worker -l info
  python shop.py --set topic_partitions=4 worker
  python shop.py agents
"""


def make_program(app: App | None = None) -> Program:
    """The program, bound to an App or with the option ``-A``."""
    program = Program(
        app,
        name="famulus",
        help=_HELP if app is None else f"The app {app.id}: run it, look at it, send to it.",
        epilog=_EPILOG if app is None else _BOUND_EPILOG,
        params=[*([_APP] if app is None else []), *_options()],
        context_settings={"help_option_names": ["-h", "--help"]},
        invoke_without_command=True,
        callback=_help_without_command,
    )
    for command in (worker, agents, tree, send, topics, dead_letters, settings):
        program.add_command(command)
    return program


@click.pass_context
def _help_without_command(ctx: click.Context, /, **options: object) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(app: App | None = None, args: Sequence[str] | None = None) -> NoReturn:
    """Be the program `famulus`, with the arguments of the process by default. Ends in `SystemExit`."""
    make_program(app).main(args=args)
