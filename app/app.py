"""`App`: the declaration of a program. It holds no loop, does no I/O, and may be run many times."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import attrs

from ..actors.agent import Agent
from ..actors.replies import Replies
from ..channels.errors import ImproperlyConfigured
from ..channels.runs import Declaration, current_run, live_runs
from ..channels.topic import Topic
from ..supervision import Leaf, Restart, StrategyLike, TreeNode, TreeSpec, tree
from ..supervision.specs import StopOrder
from .declare import Declarations, Declared, ServiceDeclaration, TaskDeclaration, TimerDeclaration, name_taken
from .placing import TreeLike, as_tree, with_groups
from .settings import Settings, resolve_settings

if TYPE_CHECKING:
    from .client import ClientStart

__all__ = ["App"]

log = logging.getLogger("famulus.app")


class App(Declarations):
    """A declared program: agents, topics, channels, tasks, timers and settings, under an id.

    Run it with `async with open_app(app)` in a trio program, or as a worker: `app.main()`, or ``famulus -A module worker``.

    Args:
        id: of the app: its consumer group, and the beginning of its internal topics' names.
        broker: URL; by default ``sqlite://``, a file in the directory ID-data (see the setting `datadir`).
        tree: which supervisor runs what: `tree(...)`, or the same as a table of plain values. What it does not name has its
            default place.
        settings: see `Settings`. The environment and the command line override them.

    Raises:
        ImproperlyConfigured: an empty id, an unknown setting, a value that its setting does not take, or a wrong tree.
    """

    def __init__(self, id: str, *, broker: str | None = None, tree: TreeLike | None = None, **settings: Any) -> None:
        if not isinstance(id, str) or not id:
            raise ImproperlyConfigured(f"App id={id!r}: expected text that is not empty")
        self._name = id
        self._declared = settings if broker is None else {"broker": broker, **settings}
        resolved = resolve_settings(self._declared, {}, {})
        self._id = id if resolved.version == 1 else f"{id}-v{resolved.version}"
        self.agents: dict[str, Agent[Any, Any]] = {}
        self.topics: dict[str, Topic[Any]] = {}
        self.tasks: list[TaskDeclaration] = []
        self.timers: list[TimerDeclaration] = []
        self.services: list[ServiceDeclaration] = []
        self._tree = as_tree(tree, where="tree")
        self._groups: list[TreeSpec] = []

    @property
    def id(self) -> str:
        """The id, with the app's version from 2 on."""
        return self._id

    @property
    def declared_settings(self) -> Mapping[str, Any]:
        """The settings that the declaration gives; the environment and a run's own override them."""
        return MappingProxyType(self._declared)

    @property
    def _declaration(self) -> Declaration:
        return self

    def settings(self, **overrides: Any) -> Settings:
        """The settings that a run started now would have.

        Raises:
            ImproperlyConfigured: an unknown name, or a value that its setting does not take.
        """
        settings = resolve_settings(self._declared, overrides)
        return settings if settings.datadir else attrs.evolve(settings, datadir=f"{self._name}-data")

    @property
    def declared_tree(self) -> TreeSpec | None:
        """The tree that was declared, with what `supervisor` added."""
        return with_groups(self._tree, self._groups)

    def supervisor(
        self,
        name: str,
        *children: str | Leaf | TreeSpec,
        strategy: StrategyLike | None = None,
        restart: Restart = "permanent",
        stop: StopOrder = "reverse",
    ) -> None:
        """Put agents, tasks, timers and services under a supervisor of their own, in this order.

        Args:
            name: of the supervisor.
            children: names, `leaf(...)` for options, or `tree(...)` for supervisors below it.
            strategy: one-for-one by default.
            restart: what becomes of it when it gives up, where the declared tree's own strategy restarts anything;
                without one, the app ends.
            stop: the order in which its children stop; see `famulus.supervision.supervisor`.

        Raises:
            ImproperlyConfigured: a value is not what it takes, or a name has a place already.
        """
        try:
            group = tree(*children, name=name, strategy=strategy, restart=restart, stop=stop)
        except (ValueError, TypeError) as error:
            raise ImproperlyConfigured(str(error)) from error
        with_groups(self._tree, [*self._groups, group])
        self._groups.append(group)

    def _check_new(self, name: str) -> None:
        if name in self.agents:
            raise ImproperlyConfigured(name_taken(self.id, name))

    def _adopt(self, declared: Declared) -> None:
        if isinstance(declared, Agent):
            self._check_new(declared.name)
            self.agents[declared.name] = declared
            if any(not Replies.of(run).is_client for run in live_runs(self)):
                log.warning(
                    "agent %s was declared on app %r while that runs, and starts with its next run; one that is to start now is "
                    "declared on what open_app gives, @running.agent(...)",
                    declared.name,
                    self.id,
                )
        elif isinstance(declared, Topic):
            self.topics.setdefault(declared.name, declared)
        elif isinstance(declared, TaskDeclaration):
            self.tasks.append(declared)
        elif isinstance(declared, ServiceDeclaration):
            self.services.append(declared)
        else:
            self.timers.append(declared)

    def stop(self) -> None:
        """Ask the current run to stop; a worker then drains and exits 0.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        current_run(self).stop_requested.set()

    def tree(self) -> TreeNode:
        """The supervision tree of the current run, as frozen data.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        return current_run(self).tree()

    def start_client(self, **settings: Any) -> ClientStart:
        """Call the App's agents without running them: ``async with app.start_client() as client:``. See `open_client`.

        What a client runs ends with the block, so this is not awaited, as it is in Faust.

        Args:
            settings: override the App's and the environment's; see `Settings`.
        """
        from .client import ClientStart

        return ClientStart(self, settings)

    def main(self) -> NoReturn:
        """Be the command-line program `famulus` for this app: ``python shop.py worker -l info``. Does not return."""
        from .entry import main

        main(self)

    def __repr__(self) -> str:
        return f"<App {self.id} agents={len(self.agents)}>"
