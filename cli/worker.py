"""``worker``: run the app until a signal ends it."""

from __future__ import annotations

import gc
import logging
import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import trio
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..app.app import App
from ..app.settings import Settings
from ..app.worker import run_worker
from ..channels.errors import ImproperlyConfigured
from ..supervision import TreeError, TreeSpec, tree_from_toml
from .failures import explain_failure, find_exit_request, says_all, summarize_failure
from .invocation import Invocation
from .logs import LEVELS, LogFormat, set_up_logging
from .output import console, mask
from .version import version

__all__ = ["worker"]

log = logging.getLogger("famulus.worker")

_COLLECT_AFTER = 10_000  # objects that are made and not freed, before the youngest of them are looked at


@click.command(
    epilog="""\b
Examples:
  famulus -A shop worker                       app in shop.py
  famulus -A shop.main:orders worker -l debug  orders in shop/main.py
  famulus -A shop --broker kafka://one:9092 --set stream_buffer_maxsize=100 worker
  famulus -A shop worker --instance-id shop-1 --fail-fast
  famulus -A shop worker --tree deploy/tree.toml
  python shop.py worker -l info                a script that ends in app.main()
""",
)
@click.option(
    "-l",
    "--loglevel",
    type=click.Choice(list(LEVELS), case_sensitive=False),
    default="info",
    show_default=True,
    help="What to log, and what is worse.",
)
@click.option(
    "-f",
    "--logfile",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append the log to this file, not to stderr.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "rich", "plain", "json"]),
    default="auto",
    show_default=True,
    help="auto is rich on a terminal, else plain; json is one object a line.",
)
@click.option(
    "--instance-id",
    metavar="NAME",
    help="Static group membership: this worker's own lasting name, as `shop-1`. Restarted under it within the session "
    "timeout, it gets its partitions back without a rebalance. Of two with one name the older ends.",
)
@click.option(
    "--fail-fast",
    is_flag=True,
    help="Exit with 1 if no broker can be reached at the start; without it the worker waits for one.",
)
@click.option(
    "--tree",
    "tree_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="FAMULUS_TREE",
    show_envvar=True,
    help="A TOML file that says which supervisor runs what: its table [tool.famulus.tree], or else all of it. Without this "
    "option the App's own tree counts, and without one the table in ./pyproject.toml.",
)
@click.option("--no-color", is_flag=True, help="No colours on a terminal. NO_COLOR=1 does the same.")
@click.option("--no-banner", is_flag=True, help="Start without the box of facts.")
@click.pass_obj
def worker(
    invocation: Invocation,
    loglevel: str,
    logfile: Path | None,
    log_format: LogFormat,
    instance_id: str | None,
    fail_fast: bool,
    tree_file: Path | None,
    no_color: bool,
    no_banner: bool,
) -> None:
    """Run the app: its agents, tasks and timers, until a signal comes.

    SIGINT (Ctrl-C) and SIGTERM let every agent finish the event in its hand, commit, and exit with 0. A
    second one ends the process at once. A failure that supervision cannot mend exits with 1 and its
    traceback. SIGUSR1 logs what all tasks are doing.

    The banner and the log go to stderr; stdout is the app's own.
    """
    if instance_id is not None:
        invocation = invocation.overriding(consumer_group_instance_id=instance_id)
    if fail_fast:
        invocation = invocation.overriding(broker_start_timeout=0.0)
    app = invocation.app()
    settings = invocation.settings(app)
    invocation.transport(app)  # a broker that cannot be is said before anything is shown
    tree_file, tree = read_tree(tree_file, app)
    set_up_logging(loglevel, logfile=logfile, format=log_format, color=not no_color)
    if not no_banner:
        console(stderr=True, color=not no_color).print(banner(app, settings, loglevel, tree_file if tree else None))
    # Asked what it does while it begins or ends, it shall not die of the question.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with _rare_garbage_collection():
            trio.run(partial(run_worker, app, tree=tree, **invocation.overrides))
    except (ImproperlyConfigured, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as failure:
        if invocation.debug:
            log.critical("app %s failed", app.id, exc_info=failure)
        elif not says_all(failure):
            log.critical("app %s failed\n%s", app.id, explain_failure(failure))
        exit_request = find_exit_request(failure)
        if exit_request is not None:
            raise exit_request from failure
        raise click.ClickException(f"the worker ends: {mask(summarize_failure(failure))}") from failure


@contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Have Python's collector look at fewer objects, and less often.

    What a worker has in its buffers is tens of thousands of objects that it would look at time and again, and none of them
    is garbage of its kind: by Python's defaults it took a sixth of the time of a stream that is regrouped.
    """
    before = gc.get_threshold()
    gc.freeze()  # what is there by now stays
    if 0 < before[0] < _COLLECT_AFTER:
        gc.set_threshold(_COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def read_tree(file: Path | None, app: App) -> tuple[Path | None, TreeSpec | None]:
    """The tree in this file, else in ./pyproject.toml where the App declares none; and the file that it is from.

    Raises:
        ImproperlyConfigured: there is no tree in it, or a wrong one; the message names the key.
    """
    source = Path("pyproject.toml") if file is None else file
    if file is None and (app.declared_tree is not None or not source.is_file()):
        return None, None
    try:
        text = source.read_text(encoding="utf-8")
        tree = tree_from_toml(text, source=str(source))
        if tree is None and file is not None:
            tree = tree_from_toml(text, table="", source=str(source))
    except (TreeError, OSError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(f"the tree in {source}: {error}") from error
    return source, tree


def banner(app: App, settings: Settings, loglevel: str, tree_file: Path | None) -> Panel:
    """What runs here, as a box."""
    facts = {
        "app": app.id,
        "broker": mask(settings.broker),
        "agents": ", ".join(sorted(app.agents)) or "none",
        "pid": str(os.getpid()),
        "python": f"{platform.python_version()}, trio {version('trio')}",
        "loglevel": loglevel,
    }
    if settings.broker.partition("?")[0] == "sqlite://":
        facts["datadir"] = str(settings.datadir)
    if tree_file is not None:
        facts["tree"] = str(tree_file)
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    return Panel(table, title=f"famulus {version('famulus')}", title_align="left", expand=False)
