"""How agents, topics, channels, tasks and timers are declared: on an App, or on a running one.

`App` and `RunningApp` share these methods; they differ in what becomes of a declaration (`_adopt`).
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Protocol, TypeVar, Unpack, overload

import attrs

from ..actors.agent import Agent, AgentOptions, OnError
from ..actors.failure import OnFailure
from ..actors.functions import agent_name, answers, needs_scope, stream_value_type
from ..actors.sinks import check_sinks
from ..channels.arguments import AnyTopicOptions, ChannelOptions, TopicOptions, check_known
from ..channels.channel import Channel
from ..channels.errors import ImproperlyConfigured
from ..channels.runs import Declaration
from ..channels.sources import StreamSource, stream_over
from ..channels.steps import Processor
from ..channels.stream import Stream
from ..channels.topic import Topic
from ..supervision import Backoff, OneForOneSupervisor, Restart, SupervisorStrategy

__all__ = ["AgentDecorator", "Declarations", "Declared", "ServiceDeclaration", "TaskDeclaration", "TimerDeclaration"]
__all__ += ["name_taken"]

T = TypeVar("T")
R = TypeVar("R")
TaskFunction = Callable[[], Awaitable[object]]
F = TypeVar("F", bound=Callable[[], Awaitable[object]])
S = TypeVar("S", bound=Callable[..., Awaitable[object]])


@attrs.frozen
class TaskDeclaration:
    """A function to run once when the app is up."""

    name: str
    fun: TaskFunction


@attrs.frozen
class TimerDeclaration:
    """A function to run every `interval` seconds."""

    name: str
    fun: TaskFunction
    interval: float


@attrs.frozen
class ServiceDeclaration:
    """A function that runs as long as the app, from before the first agent until after the last one."""

    name: str
    fun: Callable[..., Awaitable[object]]
    restart: Restart


Declared = Agent[Any, Any] | Topic[Any] | TaskDeclaration | TimerDeclaration | ServiceDeclaration
"""What may be declared on an App."""


def name_taken(app: str, agent: str) -> str:
    """What to say of a second agent of one name."""
    return (
        f"app {app!r} has an agent {agent!r} already: give this one another, name=...; where each instance of a class "
        "declares its own, a name made of what tells them apart"
    )


class AgentDecorator(Protocol):
    """What `app.agent(...)` returns: it makes an `Agent[T, R]` of a function over a `Stream[T]`."""

    @overload
    def __call__(self, fun: Callable[[Stream[T]], AsyncIterator[R]], /) -> Agent[T, R]: ...
    @overload
    def __call__(self, fun: Callable[[Stream[T]], Awaitable[None]], /) -> Agent[T, None]: ...


class Declarations(ABC):
    """The declaring half of an App."""

    @property
    @abstractmethod
    def _declaration(self) -> Declaration:
        """The App that declared objects belong to."""

    @abstractmethod
    def _check_new(self, name: str) -> None:
        """
        Raises:
            ImproperlyConfigured: there is an agent of this name.
        """

    @abstractmethod
    def _adopt(self, declared: Declared) -> None:
        """Keep a declaration, and where the app runs, start it."""

    @overload
    def topic(self, *topics: str, value_type: type[T], **options: Unpack[TopicOptions]) -> Topic[T]: ...
    @overload
    def topic(self, *topics: str, value_type: Any = None, **options: Unpack[TopicOptions]) -> Topic[Any]: ...
    def topic(self, *topics: str, value_type: Any = None, **options: Unpack[TopicOptions]) -> Topic[Any]:
        """Describe a topic at the broker, or several to be read together. See `Topic` for the arguments.

        Raises:
            ImproperlyConfigured: an argument is not what it takes.
        """
        topic: Topic[Any] = Topic(self._declaration, *topics, value_type=value_type, **options)
        self._adopt(topic)
        return topic

    @overload
    def channel(
        self, name: str | None = None, *, value_type: type[T], **options: Unpack[ChannelOptions]
    ) -> Channel[T]: ...
    @overload
    def channel(
        self, name: str | None = None, *, value_type: Any = None, **options: Unpack[ChannelOptions]
    ) -> Channel[Any]: ...
    def channel(
        self, name: str | None = None, *, value_type: Any = None, **options: Unpack[ChannelOptions]
    ) -> Channel[Any]:
        """Make a local channel: within a run, through memory, with `maxsize` events of backpressure.

        Raises:
            ImproperlyConfigured: an argument is not what it takes.
        """
        return Channel(self._declaration, name, value_type=value_type, **options)

    @overload
    def stream(self, source: Channel[T], /, *, processors: Iterable[Processor] = ()) -> Stream[T]: ...
    @overload
    def stream(
        self, source: Iterable[T] | AsyncIterable[T], /, *, processors: Iterable[Processor] = ()
    ) -> Stream[T]: ...
    @overload
    def stream(self, *sources: StreamSource, processors: Iterable[Processor] = ()) -> Stream[Any]: ...
    def stream(self, *sources: StreamSource, processors: Iterable[Processor] = ()) -> Stream[Any]:
        """A stream over a channel, a topic, any iterable or async iterable; over several, each value as it comes.

        Args:
            sources: an iterable's items have no key, and are gone when they are taken: no log has them.
            processors: functions, plain or async, through which each value goes, in this order.

        Raises:
            AppNotRunning, AmbiguousRun: streams are made while the app runs.
            TypeError: a source cannot be iterated.
        """
        return stream_over(self._declaration, sources, processors)

    def agent(
        self,
        channel: Channel[Any] | str | None = None,
        *,
        name: str | None = None,
        concurrency: int = 1,
        isolated_partitions: bool = False,
        sink: Iterable[Any] = (),
        on_error: OnError | None = None,
        on_failure: OnFailure = "ack",
        max_attempts: int = 5,
        backoff: Backoff | float | timedelta | None = None,
        supervisor_strategy: SupervisorStrategy | type[SupervisorStrategy] | None = None,
        help: str | None = None,
        **topic_options: Unpack[AnyTopicOptions],
    ) -> AgentDecorator:
        """Declare a stream processor: a decorator for an async function, or async generator function, over a stream.

        Args:
            channel: what it reads: a channel, a topic, or a topic's name. By default an internal topic named
                ``<app id>-<module>.<agent>``, whose value type is the `T` of the function's `Stream[T]`.
            name: its module and function by default.
            concurrency, isolated_partitions, on_error, on_failure, max_attempts, backoff, supervisor_strategy: see
                `AgentOptions`.
            sink: where answers go as well, several: agents, channels, topics or their names, functions of one value, plain
                or async.
            help: shown by ``famulus agents``; its docstring by default.
            topic_options: for the topic, where no channel is given; see `Topic`.

        Raises:
            ImproperlyConfigured: an argument is not what it takes, or the name is taken.
            TypeError: there is no such argument.
        """
        if callable(channel) and not isinstance(channel, Channel):
            raise ImproperlyConfigured(
                f"@app.agent was used without parentheses on {getattr(channel, '__name__', channel)!r}: "
                "write @app.agent() or @app.agent(topic)"
            )
        if channel is not None and not isinstance(channel, Channel | str):
            raise ImproperlyConfigured(
                f"@app.agent({channel!r}): expected a channel, a topic, or the name of a topic; several topics that are read "
                "together are app.topic('a', 'b')"
            )
        if name is not None and (not isinstance(name, str) or not name):
            raise ImproperlyConfigured(f"agent name={name!r}: expected text, or None for its module and function")
        check_known(
            "agent" if name is None else f"agent {name}",
            topic_options,
            AnyTopicOptions,
            inspect.signature(self.agent).parameters,
        )
        options = AgentOptions(
            concurrency=concurrency,
            isolated_partitions=isolated_partitions,
            on_failure=on_failure,
            max_attempts=max_attempts,
            backoff=backoff,
            supervisor_strategy=OneForOneSupervisor if supervisor_strategy is None else supervisor_strategy,
            on_error=on_error,
        )

        def decorate(fun: Any) -> Any:
            full_name = name or agent_name(fun)
            if isinstance(channel, Channel) and topic_options:
                raise ImproperlyConfigured(
                    f"agent {full_name}: {', '.join(sorted(topic_options))} describe a topic, but a channel was given: "
                    "give them to app.topic(...)"
                )
            answers(fun, full_name)  # before there is a topic for it
            self._check_new(full_name)
            scope = sys._getframe(1).f_locals if needs_scope(fun) else {}
            sinks = [self.topic(each) if isinstance(each, str) else each for each in check_sinks(sink, full_name)]
            agent: Agent[Any, Any] = Agent(
                self._declaration,
                fun,
                name=full_name,
                channel=self._agent_channel(channel, full_name, fun, topic_options, scope),
                options=attrs.evolve(options, sinks=tuple(sinks)),
                help=help if help is not None else (inspect.getdoc(fun) or "").strip(),
                scope=scope,
            )
            self._adopt(agent)
            return agent

        return decorate

    def _agent_channel(
        self,
        channel: Channel[Any] | str | None,
        name: str,
        fun: Callable[..., Any],
        topic_options: Mapping[str, Any],
        scope: Mapping[str, Any],
    ) -> Channel[Any]:
        """The channel that an agent reads: the one given, the topic named, or one named after the agent."""
        if isinstance(channel, Channel):
            return channel
        options: Any = dict(topic_options)
        schema = options.get("schema")
        if "value_type" not in options and (schema is None or schema.value_type is None):
            options["value_type"] = stream_value_type(fun, agent=name, scope=scope)
        if channel is not None:
            return self.topic(channel, **options)
        if options.get("pattern") is not None:
            return self.topic(**options)
        options.setdefault("internal", True)
        return self.topic(f"{self._declaration.id}-{name}", **options)

    @overload
    def task(self, fun: F, /) -> F: ...
    @overload
    def task(self, /) -> Callable[[F], F]: ...
    def task(self, fun: TaskFunction | None = None, /) -> Any:
        """Run an async function once when the app is up; with or without parentheses.

        A task that returns is done; one that raises is started again, with backoff (`transient`).
        """

        def declare(fun: TaskFunction) -> TaskFunction:
            self._adopt(TaskDeclaration(agent_name(fun), fun))
            return fun

        return declare if fun is None else declare(fun)

    @overload
    def service(self, fun: S, /) -> S: ...
    @overload
    def service(
        self, fun: None = None, /, *, name: str | None = None, restart: Restart = "permanent"
    ) -> Callable[[S], S]: ...
    def service(self, fun: Any = None, /, *, name: str | None = None, restart: Restart = "permanent") -> Any:
        """Run an async function as long as the app runs; with or without parentheses.

        It is up before the agents are started, and is stopped after them. If it has a parameter `task_status`, they wait until
        it has called ``task_status.started()``. Like any child it may call `trap_stop()` to be asked before it is cancelled.

        Args:
            name: its module and function by default.
            restart: ``permanent`` starts it again whenever it ends, ``transient`` when it failed, ``temporary`` never.

        Raises:
            ImproperlyConfigured: an argument is not what it takes.
        """

        if restart not in ("permanent", "transient", "temporary"):
            raise ImproperlyConfigured(f"service restart={restart!r}: expected permanent, transient or temporary")

        def declare(fun: Any) -> Any:
            self._adopt(ServiceDeclaration(name or agent_name(fun), fun, restart))
            return fun

        return declare if fun is None else declare(fun)

    def timer(self, interval: float | timedelta) -> Callable[[F], F]:
        """Run an async function every `interval` seconds, the first time one interval after the app is up.

        Its times are multiples of the interval, however long it takes; a time that it was still busy at is left out. One
        that raises is started again, with backoff (`permanent`).

        Raises:
            ImproperlyConfigured: the interval is not more than 0.
        """
        seconds = interval.total_seconds() if isinstance(interval, timedelta) else interval
        if not seconds > 0:
            raise ImproperlyConfigured(f"timer interval={interval!r}: expected seconds, more than 0")

        def declare(fun: F) -> F:
            self._adopt(TimerDeclaration(agent_name(fun), fun, seconds))
            return fun

        return declare
