"""`open_client`: an App's topics and agents to send to and to ask, without running any of it here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import trio

from ..actors.agent import Agent
from ..actors.replies import Replies
from ..actors.reply_topic import ReplyReader
from ..channels.counters import Statistics
from ..channels.errors import ImproperlyConfigured
from ..channels.runs import Run
from ..channels.subscription import close_readers
from ..supervision import (
    CrashingSupervisor,
    OneForOneSupervisor,
    TreeNode,
    child,
    open_supervisor,
    supervisor,
)
from .app import App
from .bound import BoundAgent
from .connecting import Connection, make_transport
from .settings import Settings

__all__ = ["ClientStart", "RunningClient", "open_client"]

T = TypeVar("T")
R = TypeVar("R")


class RunningClient:
    """A client's run of an App, made by `open_client`: it sends, asks and awaits answers.

    Attributes:
        app: the declaration.
        settings: frozen at start.
    """

    def __init__(self, app: App, settings: Settings, run: Run) -> None:
        self.app = app
        self.settings = settings
        self._run = run

    @property
    def id(self) -> str:
        """The App's id."""
        return self.app.id

    def agent(self, agent: Agent[T, R]) -> BoundAgent[T, R]:
        """That agent as this client calls it, where several runs of its App are live here."""
        return BoundAgent(self._run, agent)

    def current(self) -> AbstractContextManager[None]:
        """Within ``with client.current():`` the App's declared objects mean this client."""
        return self._run.current()

    def statistics(self) -> Statistics:
        """The counts of this run so far."""
        return self._run.counters.snapshot({})

    def tree(self) -> TreeNode:
        """The supervision tree as frozen data."""
        return self._run.tree()

    async def flush(self) -> None:
        """Wait until all that was sent is delivered, or has failed."""
        await self._run.producer.flush()

    def __repr__(self) -> str:
        return f"<RunningClient {self.app.id}>"


@asynccontextmanager
async def open_client(app: App, /, **settings: Any) -> AsyncIterator[RunningClient]:
    """Be a client of an App around the body of an ``async with`` block.

    Within it, the App's topics can be sent to and its agents asked, as in the App's own program: ``await tally.ask(...)``.
    Nothing of the App runs here: no agents, tasks, timers or services; no consumer group is joined and no topic of the App is
    read. The body begins when answers can come. At the end what was sent is delivered, the client's reply topic deleted, and
    the connection closed.

    Args:
        app: the declaration that the workers run, or one like it: ids, names of agents and types have to be the same.
        settings: override the App's and the environment's; see `Settings`.

    Error handling: as from `open_app`. An agent that reads a local channel is inside its worker: asking it raises `AgentError`.

    Raises:
        ImproperlyConfigured: a wrong setting, or the broker ``memory://``, which others do not see.
    """
    if not isinstance(app, App):
        raise ImproperlyConfigured(f"open_client({app!r}): expected the App whose agents are called")
    frozen = app.settings(**settings)
    if frozen.broker.rstrip("/") == "memory:":
        raise ImproperlyConfigured(
            "broker='memory://' is private to a run, so a client would be alone: give it the workers' broker, or "
            "memory://NAME to both where they are in one process"
        )
    run = Run(app, frozen, make_transport(app, frozen))
    Replies.of_client(run)
    with run.entered():
        try:
            async with open_supervisor(CrashingSupervisor, name=app.id) as root:
                run.root = root
                try:
                    await _start(run, frozen)
                except Exception as error:
                    raise ExceptionGroup(f"the client of app {app.id!r} did not start", [error]) from None
                yield RunningClient(app, frozen, run)
        finally:
            close_readers(run)
            run.producer.close()
            Replies.of(run).close()
            with trio.CancelScope(shield=True):
                await run.errands.over()


async def _start(run: Run, settings: Settings) -> None:
    """What a client needs: the connection, the producer and the answers."""
    assert run.root is not None, "set first"
    connection = Connection(run, settings)
    flush = settings.producer_flush_timeout
    messaging = supervisor(
        OneForOneSupervisor,
        connection.spec(),
        child(run.producer.callbacks.run, name="callbacks", shutdown=flush),
        child(run.producer.run, name="producer", shutdown=flush),
        name="messaging",
    )
    await connection.start(run.root, messaging)
    if run.transport.crosses_processes:
        reader = child(ReplyReader(run).run, name="replies", shutdown=settings.shutdown_timeout)
        await run.root.start(supervisor(OneForOneSupervisor, reader, name="services"))
        replies = Replies.of(run)
        replies.wanted.set()
        await replies.ready.wait()


class ClientStart(AbstractAsyncContextManager[RunningClient]):
    """What `App.start_client` gives: `open_client`, with a word for those who would await it."""

    def __init__(self, app: App, settings: dict[str, Any]) -> None:
        self._opening = open_client(app, **settings)

    async def __aenter__(self) -> RunningClient:
        return await self._opening.__aenter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        return await self._opening.__aexit__(exc_type, exc, tb)

    def __await__(self) -> Generator[Any, Any, NoReturn]:
        raise TypeError(
            "a client has tasks of its own, which have to end somewhere: write `async with app.start_client():` in place "
            "of `await app.start_client()`, around what needs it"
        )
        yield
