"""``tree``: the supervision trees of running workers, once or live."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import attrs
import click
import trio
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from ..app.control import WorkerGone, WorkerReport, ask_worker, find_workers
from ..supervision import TreeNode
from .invocation import Invocation
from .output import console, write_json

__all__ = ["render_tree", "tree"]

_GONE_SHOWN = 3  # lines about workers that do not answer; the others are counted

_STYLES: Mapping[str, str] = {
    "running": "green",
    "starting": "yellow",
    "backoff": "yellow",
    "stopping": "yellow",
    "failed": "bold red",
}


@click.command(
    epilog="""\b
Examples:
  famulus -A shop tree
  famulus -A shop tree --watch
  famulus -A shop tree --json | jq '.[].tree.children[].state'
""",
)
@click.option("--watch", is_flag=True, help="Draw it again and again until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks of --watch.",
)
@click.option("--pid", type=int, help="Only the worker with this process id.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list: app, pid and tree of each worker.")
@click.pass_obj
def tree(invocation: Invocation, watch: bool, interval: float, pid: int | None, as_json: bool) -> None:
    """Show the supervision trees of the app's workers on this machine.

    Each child with its strategy or kind, its state, how often it was restarted, how long it has been up, and why
    it failed last. It asks running workers of this user; start one with `worker`.
    """
    app = invocation.app()
    if watch and as_json:
        raise click.UsageError("--watch draws, --json writes once: choose one of them")
    if not watch:
        reports = _reports(app.id, pid)
        if not reports:
            raise click.ClickException(_nobody(app.id, pid))
        if as_json:
            write_json([attrs.asdict(report) for report in reports])
        else:
            console().print(_render_all(reports, app.id, pid))
        return
    with Live(console=console(), auto_refresh=False) as live:
        while True:
            live.update(_render_all(_reports(app.id, pid), app.id, pid), refresh=True)
            time.sleep(interval)


def _reports(app: str, pid: int | None) -> list[WorkerReport]:
    try:
        return trio.run(_ask_all, app, pid)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from None
        raise


async def _ask_all(app: str, pid: int | None) -> list[WorkerReport]:
    """What the workers say, by process id; those that are gone say nothing."""
    sockets = find_workers(app)
    if pid is not None:
        sockets = {found: path for found, path in sockets.items() if found == pid}
    reports: dict[int, WorkerReport] = {}
    gone: list[str] = []

    async def ask(found: int, path: Path) -> None:
        try:
            reports[found] = await ask_worker(path)
        except WorkerGone as error:
            gone.append(str(error))

    async with trio.open_nursery() as nursery:
        for found, path in sockets.items():
            nursery.start_soon(ask, found, path)
    for line in gone[:_GONE_SHOWN]:
        click.echo(line, err=True)
    if len(gone) > _GONE_SHOWN:
        click.echo(f"so with {len(gone) - _GONE_SHOWN} more", err=True)
    return [reports[found] for found in sorted(reports)]


def _nobody(app: str, pid: int | None) -> str:
    which = f"app {app}" if pid is None else f"app {app} with process id {pid}"
    return f"no worker of {which} runs on this machine under this user: start one with `worker`"


def _render_all(reports: list[WorkerReport], app: str, pid: int | None) -> RenderableType:
    if not reports:
        return Text(_nobody(app, pid), style="yellow")
    return Group(*(render_tree(report.tree, f"worker {report.pid}") for report in reports))


def render_tree(node: TreeNode, title: str) -> Tree:
    """A tree as rich draws it, under a title."""

    def add(branch: Tree, node: TreeNode) -> None:
        below = branch.add(_describe(node))
        for child in node.children:
            add(below, child)

    drawn = Tree(Text(title, style="bold"))
    add(drawn, node)
    return drawn


def _describe(node: TreeNode) -> Text:
    text = Text(node.name, style="bold" if node.kind == "supervisor" else "")
    text.append(f"  {node.strategy or node.kind}", style="dim")
    text.append(f"  {node.state}", style=_STYLES.get(node.state, ""))
    if node.uptime is not None:
        text.append(f"  up {_duration(node.uptime)}", style="dim")
    if node.restarts:
        text.append(f"  {node.restarts} restart{'s' if node.restarts > 1 else ''}", style="yellow")
    if node.last_reason:
        text.append(f"  last failure: {_printable(node.last_reason)}", style="red")
    return text


def _printable(text: str) -> str:
    """Without what would command the terminal: a reason may hold what somebody sent.

    >>> _printable("a\x1b[2Jb")
    'a?[2Jb'
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def _duration(seconds: float) -> str:
    """
    >>> _duration(4.26), _duration(75), _duration(7322), _duration(200_000)
    ('4.3 s', '1 min 15 s', '2 h 2 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
