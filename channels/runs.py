"""The rule for runs: which run of an App a declared object means.

An App is a declaration; everything that changes belongs to a run. A declared object resolves to the run of its own
App that the current task belongs to (a context variable), else to the only live run of that App in this trio run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import get_ident
from typing import Any, Protocol, TypeVar

import trio

from ..supervision import Supervisor, TreeNode
from .conductor import Conductor
from .counters import Counters
from .errands import Errands
from .errors import AmbiguousRun, AppNotRunning
from .options import MessagingOptions
from .pace import Pacer
from .producer import Producer
from .transport import Transport

__all__ = ["Declaration", "Run", "current_run", "live_runs"]

S = TypeVar("S")


class Declaration(Protocol):
    """What channels need to know of an App: its id, and that it can be told from others."""

    @property
    def id(self) -> str: ...

    def __hash__(self) -> int: ...


class Run:
    """Everything of one run that changes: buffers, ledgers, counters, and the state of each declared object.

    Attributes:
        app: the declaration that this is a run of.
        options: settings, frozen at start.
        errands: the blocking work that codecs ask for; see `models.NotReady`.
        root: the run's supervision tree (set when it is up).
        services: the supervisor under which streams start their helpers (likewise).
        stop_requested: set when the run should end.
        refusal: why the run cannot start, where a stream found that out; see `refuse`.
        on_refusal: called when there is one.
        thread: that it lives in.
    """

    def __init__(self, app: Declaration, options: MessagingOptions, transport: Transport) -> None:
        self.app = app
        self.options = options
        self.transport = transport
        self.counters = Counters()
        self.producer = Producer(transport, options, self.counters)
        self.conductor = Conductor(transport, self.producer, options, self.counters, group=app.id)
        self.errands = Errands(options)
        self.pacer = Pacer()
        self.root: Supervisor | None = None
        self.services: Supervisor | None = None
        self.stop_requested = trio.Event()
        self.refusal: Exception | None = None
        self.on_refusal: Callable[[], object] | None = None
        self.closed = False
        self.thread = get_ident()
        self._states: dict[Hashable, Any] = {}

    def found(self, declared: Hashable) -> Any:
        """What `state` has made for a declared object, or None; for hot code, which makes no closure for nothing."""
        return self._states.get(declared)

    def forget(self, declared: Hashable) -> None:
        """Drop what `state` has made."""
        self._states.pop(declared, None)

    def state(self, declared: Hashable, make: Callable[[], S]) -> S:
        """What this run keeps for a declared object, made at first use."""
        try:
            state: S = self._states[declared]
        except KeyError:
            state = self._states[declared] = make()
        return state

    def states(self) -> list[tuple[Hashable, Any]]:
        """All that `state` has made."""
        return list(self._states.items())

    def refuse(self, error: Exception) -> None:
        """A stream cannot work as declared: while the run starts, it does not start then."""
        self.refusal = self.refusal or error
        if self.on_refusal is not None:
            self.on_refusal()

    def tree(self) -> TreeNode:
        """The supervision tree as frozen data.

        Raises:
            AppNotRunning: the tree is not up yet.
        """
        if self.root is None:
            raise AppNotRunning(f"app {self.app.id!r} is still starting")
        return self.root.tree()

    def is_current(self) -> bool:
        """Whether the current task belongs to this run of the App."""
        return _of_task.get().get(self.app) is self

    @contextmanager
    def current(self) -> Iterator[None]:
        """Within the block, declared objects of the App mean this run."""
        token = _of_task.set({**_of_task.get(), self.app: self})
        try:
            yield
        finally:
            _of_task.reset(token)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make this the run of its App for the current task and the tasks that it starts, and a live one."""
        token = trio.lowlevel.current_trio_token()
        live = _live.setdefault(token, {}).setdefault(self.app, [])
        before = _of_task.get()
        live.append(self)
        _of_task.set({**before, self.app: self})
        try:
            yield
        finally:
            self.closed = True
            live.remove(self)
            if not live:
                del _live[token][self.app]
                if not _live[token]:
                    del _live[token]
            # Restored to what it was for our App; another App that was opened meanwhile keeps its entry.
            now = dict(_of_task.get())
            if now.get(self.app) is self:
                del now[self.app]
                if self.app in before:
                    now[self.app] = before[self.app]
            _of_task.set(now)

    def __repr__(self) -> str:
        return f"<Run of {self.app.id} {'closed' if self.closed else 'live'}>"


_of_task: ContextVar[Mapping[Declaration, Run]] = ContextVar("famulus_runs", default={})  # noqa: B039  # never mutated
_live: dict[trio.lowlevel.TrioToken, dict[Declaration, list[Run]]] = {}


def live_runs(app: Declaration) -> list[Run]:
    """Those in this trio run; none outside of trio."""
    try:
        token = trio.lowlevel.current_trio_token()
    except RuntimeError:
        return []
    return list(_live.get(token, {}).get(app, ()))


def current_run(app: Declaration) -> Run:
    """The run of `app` that the current task means.

    Raises:
        AppNotRunning: there is none, or this is no trio task.
        AmbiguousRun: several are live, and the current task belongs to none of them.
    """
    run = _of_task.get().get(app)
    if run is not None and not run.closed:
        if run.thread != get_ident():  # which had the context of a task of the run
            raise AppNotRunning(
                f"app {app.id!r} runs in another thread: call it there, through trio.from_thread.run(...), or "
                "trio.from_thread.run_sync(...) for what is no async function"
            )
        return run
    try:
        token = trio.lowlevel.current_trio_token()
    except RuntimeError:
        raise AppNotRunning(
            f"app {app.id!r} was used outside trio: from another thread call it through trio.from_thread.run(...), "
            "from a plain function start it with trio.run"
        ) from None
    live = _live.get(token, {}).get(app, [])
    if len(live) == 1:
        return live[0]
    if live:
        raise AmbiguousRun(
            f"app {app.id!r} runs {len(live)} times here and this task belongs to none of them: say which, as in "
            "`running.agent(my_agent).ask(...)`, or `with running.current(): ...` for anything else"
        )
    raise AppNotRunning(
        f"app {app.id!r} is a declaration that is not running: use it inside `async with open_app(app):`, "
        "or start its worker"
    )
