"""`Agent`: the declaration of a stream processor, and the calls that others make to it.

An agent is data until a run starts its actors (`actors.actor`). Its calls resolve to the run of its App.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, Unpack

from ..channels.arguments import SendOptions, SendSoonOptions
from ..channels.channel import Channel
from ..channels.errors import AppNotRunning, ImproperlyConfigured
from ..channels.future import FutureMessage
from ..channels.message import ASKED
from ..channels.runs import Declaration, current_run
from ..channels.stream import Stream
from ..channels.topic import Topic
from . import calls
from .calls import ReplyPromise, ReplyTo, forwarded
from .functions import answer_type, answers
from .info import AgentInfo
from .many import Items, Results, keyed
from .options import AgentOptions, OnError
from .parts import ReplyStream
from .sinks import as_sink, check_sinks

if TYPE_CHECKING:  # runs know agents
    from .agent_run import AgentRun

__all__ = ["Agent", "AgentFunction", "AgentOptions", "OnError", "Sink"]

T = TypeVar("T")
R = TypeVar("R")

AgentFunction = Callable[[Stream[T]], AsyncIterator[R]] | Callable[[Stream[T]], Awaitable[None]]
"""An async generator function over a stream, whose yields are answers; or an async function that answers nothing."""

Sink = "Agent[Any, Any] | Channel[Any] | Callable[[Any], Any]"
"""Where answers go as well: another agent, a channel or topic, or a function, plain or async."""


class Agent(Generic[T, R]):
    """A named group of actors that process a channel. `T` is what it takes, `R` what it answers.

    Made by `app.agent()`. Attributes: `app`, `name`, `fun`, `channel`, `options`, `help`, `answer_type`.
    """

    def __init__(
        self,
        app: Declaration,
        fun: AgentFunction[T, R],
        *,
        name: str,
        channel: Channel[T],
        options: AgentOptions,
        help: str = "",
        scope: Mapping[str, Any] | None = None,
    ) -> None:
        self.app = app
        self.fun = fun
        self.name = name
        self.wire_name = name.encode()  # in requests
        self.asked: Final = (ASKED, self.wire_name)
        self.channel = channel
        self.options = options
        self.help = help
        self.answers = answers(fun, name)
        self.answer_type = answer_type(fun, scope or {})
        self.sinks: tuple[Any, ...] = check_sinks(options.sinks, name)
        if self.sinks and not self.answers:
            raise ImproperlyConfigured(
                f"agent {name} yields nothing that could go to its sinks: make it an async generator, or leave sink= out"
            )
        if options.isolated_partitions and not isinstance(channel, Topic):
            raise ImproperlyConfigured(
                f"agent {name}: isolated_partitions=True needs a topic to read, and {channel!r} has no partitions: read "
                "app.topic(...), or leave isolated_partitions out; concurrency=n gives a channel several actors"
            )

    async def send(
        self,
        value: Any = None,
        *,
        key: Any = None,
        reply_to: ReplyTo | None = None,
        correlation_id: str | None = None,
        **options: Unpack[SendOptions],
    ) -> FutureMessage:
        """Send a value to the agent's channel. See `Channel.send`.

        Args:
            reply_to: a topic, its name, or an agent that reads one: what the agent answers is sent there, each answer as a
                value of the agent's answer type, with the correlation id in its headers. Failures are not.
            correlation_id: for the headers of the answers, made by default.

        Raises:
            ImproperlyConfigured: `reply_to` is no topic.
        """
        if reply_to is not None:
            options["headers"] = forwarded(
                current_run(self.app), self, reply_to, correlation_id, options.get("headers")
            )
        return await self.channel.send(value, key=key, **options)

    def send_soon(
        self,
        value: Any = None,
        *,
        key: Any = None,
        reply_to: ReplyTo | None = None,
        correlation_id: str | None = None,
        **options: Unpack[SendSoonOptions],
    ) -> FutureMessage:
        """`send` without waiting. See `Channel.send_soon`.

        Raises:
            BufferFull: there is no room.
            ImproperlyConfigured: `reply_to` is no topic.
        """
        if reply_to is not None:
            options["headers"] = forwarded(
                current_run(self.app), self, reply_to, correlation_id, options.get("headers")
            )
        return self.channel.send_soon(value, key=key, **options)

    async def cast(
        self,
        value: T | None = None,
        *,
        key: Any = None,
        **options: Unpack[SendOptions],
    ) -> None:
        """Send a value and expect no answer."""
        await self.channel.send(value, key=key, **options)

    async def ask(
        self,
        value: T | None = None,
        *,
        key: Any = None,
        correlation_id: str | None = None,
        **options: Unpack[SendOptions],
    ) -> R:
        """Send a value and wait for the agent's answer, its first yield for this event.

        Deadlines are the caller's: ``with trio.fail_after(1):``. A caller that is cancelled leaves nothing behind.

        Args:
            correlation_id: name the request, to ask again under the same name: the first answer to come counts, later ones
                are dropped. The agent finds it in the header ``famulus-correlation-id``. Made by default.
            options: see `SendOptions`.

        Raises:
            AgentError: the agent failed on the request, or finished with it and gave no answer, or the run has ended.
            AskDeadlock: the agent waits for the one who asks.
            ValueError: a request with this `correlation_id` is being waited for already.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        return await calls.ask(current_run(self.app), self, value, key, correlation_id, options)

    async def ask_nowait(
        self,
        value: T | None = None,
        *,
        key: Any = None,
        correlation_id: str | None = None,
        **options: Unpack[SendOptions],
    ) -> ReplyPromise[R]:
        """Send a value, and return a promise of the answer: ``await promise`` waits for it. See `ask`."""
        return await calls.ask_nowait(current_run(self.app), self, value, key, correlation_id, options)

    def ask_stream(
        self,
        value: T | None = None,
        *,
        key: Any = None,
        correlation_id: str | None = None,
        **options: Unpack[SendOptions],
    ) -> ReplyStream[R]:
        """Send a value and iterate over all that the agent yields for this event.

        A failure of the agent raises `AgentError` after the parts that came before. When its event is delivered again, the
        k-th yield is taken for the k-th part, and comes once. An agent in this run waits while `reply_buffer_maxsize` parts
        wait for the caller; where one in another process is so far ahead, the caller gets an `AgentError`. See `ask`.

        Resource handling: the request is sent when the first part is waited for. Leave early through ``async with`` or
        ``contextlib.aclosing``.
        """
        return ReplyStream(current_run(self.app), self, value, key, correlation_id, options)

    def map(
        self,
        values: Iterable[T] | AsyncIterable[T],
        key: Any = None,
        *,
        window: int | None = None,
        **options: Unpack[SendOptions],
    ) -> Results[R]:
        """Ask with each of the values, and iterate over the answers as they come; their `index` says whose they are.

        Args:
            values: any iterable, sync or async. They are taken as the answers are, so there may be endlessly many. While it
                waits for an async one, no answers are given out.
            key: of all of them.
            window: requests that wait for their answer at once; setting `reply_window` by default.

        Raises, in the iteration:
            AgentError: the agent failed on a request; whoever goes on iterating gets the other answers.
        """
        return self.kvmap(keyed(values, key), window=window, **options)

    def kvmap(self, items: Items, *, window: int | None = None, **options: Unpack[SendOptions]) -> Results[R]:
        """`map` over pairs of key and value."""
        return Results(current_run(self.app), self, items, window, options)

    async def join(
        self,
        values: Iterable[T] | AsyncIterable[T],
        key: Any = None,
        *,
        window: int | None = None,
        **options: Unpack[SendOptions],
    ) -> list[R]:
        """Ask with each of the values, and wait for all answers, in the order of the values. See `map`.

        Raises:
            AgentError: the agent failed on a request; the other answers are dropped.
        """
        return await self.map(values, key, window=window, **options).in_order()

    async def kvjoin(self, items: Items, *, window: int | None = None, **options: Unpack[SendOptions]) -> list[R]:
        """`join` over pairs of key and value."""
        return await self.kvmap(items, window=window, **options).in_order()

    # -- its actors in the current run -------------------------------------------------------------------------

    async def cancel(self) -> None:
        """Stop its actors in the current run, for good: each finishes the event in hand, or is cancelled after 5 s.

        What they have not finished is not acknowledged. Of topics that nobody else in the run reads, other workers take over
        the partitions and begin with that; of others the offset goes on with those who read them, and the agent's own share
        is not made up for. Who waits for an answer here gets an `AgentError`. Called by one of its own actors it does not
        wait; cancelling the call ends the wait only.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        await self._here.cancel()

    async def restart(self) -> None:
        """Stop its actors in the current run, as `cancel` does, and start them again; return when they are started.

        An event that an actor could not finish comes to it again before anything else, and no attempt is counted. It is no
        crash: the supervisor counts nothing. Called by one of its own actors it does not wait; cancelling the call ends the
        wait only.

        Raises:
            AgentError: it was cancelled in this run.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        await self._here.restart()

    def add_sink(self, sink: Any) -> None:
        """Have its answers go there as well, from the next one on: in the current run, or where none is, in all to come.

        Raises:
            ImproperlyConfigured: it is no agent, channel, topic, topic's name, or function of one value, plain or async; or the
                agent yields nothing.
            AmbiguousRun: see `current_run`.
        """
        checked = as_sink(sink, self)
        try:
            here = self._here
        except AppNotRunning:
            self.sinks = (*self.sinks, checked)
        else:
            here.add_sink(checked)

    def info(self) -> AgentInfo:
        """How it and its actors are in the current run, as frozen data.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        return self._here.info()

    def actor_tracebacks(self) -> dict[str, str]:
        """Where each of its living actors stands in the current run: the actor's name, and its frames as text.

        With the tasks in its nurseries, the innermost frame last; trio's frames are left out.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        return self._here.actor_tracebacks()

    @property
    def _here(self) -> AgentRun:
        from .agent_run import AgentRun  # which makes actors of agents

        return AgentRun.of(current_run(self.app), self)

    def __repr__(self) -> str:
        return f"<Agent {self.name} on {self.channel.name}>"
