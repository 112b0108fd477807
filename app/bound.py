"""`BoundAgent`: an agent of one particular run, for when several runs of its App are live, and for clients."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar, Unpack

from ..actors.agent import Agent
from ..actors.agent_run import AgentRun
from ..actors.calls import ReplyPromise, ReplyTo
from ..actors.info import AgentInfo
from ..actors.many import Items, Results
from ..actors.parts import ReplyStream
from ..channels.arguments import SendOptions, SendSoonOptions
from ..channels.errors import AppNotRunning, ImproperlyConfigured
from ..channels.future import FutureMessage
from ..channels.runs import Run

__all__ = ["BoundAgent"]

T = TypeVar("T")
R = TypeVar("R")


class BoundAgent(Generic[T, R]):
    """The calls of an agent, as `Agent` has them, to its actors in one run. Made by ``running.agent(agent)``.

    Attributes:
        agent: the declaration.
    """

    def __init__(self, run: Run, agent: Agent[T, R]) -> None:
        """
        Raises:
            ImproperlyConfigured: the agent belongs to another App.
        """
        if agent.app is not run.app:
            raise ImproperlyConfigured(
                f"agent {agent.name} was declared on another App than {run.app.id!r}, which runs here"
            )
        self._run = run
        self.agent = agent

    def _current(self) -> AbstractContextManager[None]:
        """
        Raises:
            AppNotRunning: the run is over; the App may have another one by now.
        """
        if self._run.closed:
            raise AppNotRunning(f"{self!r}: that run is over")
        return self._run.current()

    async def ask(
        self,
        value: T | None = None,
        *,
        key: Any = None,
        correlation_id: str | None = None,
        **options: Unpack[SendOptions],
    ) -> R:
        """See `Agent.ask`."""
        with self._current():
            return await self.agent.ask(value, key=key, correlation_id=correlation_id, **options)

    async def ask_nowait(
        self,
        value: T | None = None,
        *,
        key: Any = None,
        correlation_id: str | None = None,
        **options: Unpack[SendOptions],
    ) -> ReplyPromise[R]:
        """See `Agent.ask_nowait`."""
        with self._current():
            return await self.agent.ask_nowait(value, key=key, correlation_id=correlation_id, **options)

    def ask_stream(
        self,
        value: T | None = None,
        *,
        key: Any = None,
        correlation_id: str | None = None,
        **options: Unpack[SendOptions],
    ) -> ReplyStream[R]:
        """See `Agent.ask_stream`."""
        with self._current():
            return self.agent.ask_stream(value, key=key, correlation_id=correlation_id, **options)

    async def cast(self, value: T | None = None, *, key: Any = None, **options: Unpack[SendOptions]) -> None:
        """See `Agent.cast`."""
        with self._current():
            await self.agent.cast(value, key=key, **options)

    async def send(
        self,
        value: Any = None,
        *,
        key: Any = None,
        reply_to: ReplyTo | None = None,
        correlation_id: str | None = None,
        **options: Unpack[SendOptions],
    ) -> FutureMessage:
        """See `Agent.send`."""
        with self._current():
            return await self.agent.send(value, key=key, reply_to=reply_to, correlation_id=correlation_id, **options)

    def send_soon(
        self,
        value: Any = None,
        *,
        key: Any = None,
        reply_to: ReplyTo | None = None,
        correlation_id: str | None = None,
        **options: Unpack[SendSoonOptions],
    ) -> FutureMessage:
        """See `Agent.send_soon`."""
        with self._current():
            return self.agent.send_soon(value, key=key, reply_to=reply_to, correlation_id=correlation_id, **options)

    def map(
        self,
        values: Iterable[T] | AsyncIterable[T],
        key: Any = None,
        *,
        window: int | None = None,
        **options: Unpack[SendOptions],
    ) -> Results[R]:
        """See `Agent.map`."""
        with self._current():
            return self.agent.map(values, key, window=window, **options)

    def kvmap(self, items: Items, *, window: int | None = None, **options: Unpack[SendOptions]) -> Results[R]:
        """See `Agent.kvmap`."""
        with self._current():
            return self.agent.kvmap(items, window=window, **options)

    async def join(
        self,
        values: Iterable[T] | AsyncIterable[T],
        key: Any = None,
        *,
        window: int | None = None,
        **options: Unpack[SendOptions],
    ) -> list[R]:
        """See `Agent.join`."""
        with self._current():
            return await self.agent.join(values, key, window=window, **options)

    async def kvjoin(self, items: Items, *, window: int | None = None, **options: Unpack[SendOptions]) -> list[R]:
        """See `Agent.kvjoin`."""
        with self._current():
            return await self.agent.kvjoin(items, window=window, **options)

    async def cancel(self) -> None:
        """See `Agent.cancel`."""
        await AgentRun.of(self._run, self.agent).cancel()

    async def restart(self) -> None:
        """See `Agent.restart`."""
        await AgentRun.of(self._run, self.agent).restart()

    def add_sink(self, sink: Any) -> None:
        """See `Agent.add_sink`."""
        AgentRun.of(self._run, self.agent).add_sink(sink)

    def info(self) -> AgentInfo:
        """See `Agent.info`."""
        return AgentRun.of(self._run, self.agent).info()

    def actor_tracebacks(self) -> dict[str, str]:
        """See `Agent.actor_tracebacks`."""
        return AgentRun.of(self._run, self.agent).actor_tracebacks()

    def __repr__(self) -> str:
        return f"<BoundAgent {self.agent.name} in {self._run!r}>"
