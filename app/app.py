"""`App`: the declaration of a program. It holds no loop, does no I/O, and may be run many times."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from ..actors.agent import Agent
from ..channels.errors import ImproperlyConfigured
from ..channels.runs import Declaration, current_run
from ..channels.topic import Topic
from ..supervision import TreeNode
from .declare import Declarations, TaskDeclaration, TimerDeclaration
from .settings import Settings, resolve_settings

__all__ = ["App"]


class App(Declarations):
    """A declared program: agents, topics, channels, tasks, timers and settings, under an id.

    Run it with `async with open_app(app)` in a trio program, or as a worker: `app.main()`, or ``famulus -A module worker``.

    Args:
        id: of the app: its consumer group, and the beginning of its internal topics' names.
        broker: URL; ``memory://`` by default.
        settings: see `Settings`. The environment and the command line override them.

    Raises:
        ImproperlyConfigured: an empty id, an unknown setting, or a value that its setting does not take.
    """

    def __init__(self, id: str, *, broker: str | None = None, **settings: Any) -> None:
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
        return resolve_settings(self._declared, overrides)

    def _adopt(self, declared: Agent[Any, Any] | Topic[Any] | TaskDeclaration | TimerDeclaration) -> None:
        if isinstance(declared, Agent):
            if declared.name in self.agents:
                raise ImproperlyConfigured(f"app {self.id!r} has an agent {declared.name!r} already: give name=")
            self.agents[declared.name] = declared
        elif isinstance(declared, Topic):
            self.topics.setdefault(declared.name, declared)
        elif isinstance(declared, TaskDeclaration):
            self.tasks.append(declared)
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

    def main(self) -> NoReturn:
        """Be the command-line program `famulus` for this app: ``python shop.py worker -l info``. Does not return."""
        from .entry import main

        main(self)

    def __repr__(self) -> str:
        return f"<App {self.id} agents={len(self.agents)}>"
