"""`Agent`: the declaration of a stream processor, and the calls that others make to it.

An agent is data until a run starts its actors (`actors.actor`). Its calls resolve to the run of its App.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from ..channels.arguments import SendOptions
from ..channels.channel import Channel
from ..channels.errors import AppNotRunning, ImproperlyConfigured
from ..channels.future import FutureMessage
from ..channels.message import as_headers
from ..channels.runs import Declaration, current_run
from ..channels.stream import Stream
from ..channels.topic import Topic
from .functions import answers
from .info import AgentInfo
from .options import AgentOptions, OnError
from .replies import Replies
from .sinks import check_sink, check_sinks

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

    Made by `app.agent()`. Attributes: `app`, `name`, `fun`, `channel`, `options`, `help`.
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
    ) -> None:
        self.app = app
        self.fun = fun
        self.name = name
        self.channel = channel
        self.options = options
        self.help = help
        self.answers = answers(fun, name)
        self.sinks: tuple[Any, ...] = check_sinks(options.sinks, name)
        if self.sinks and not self.answers:
            raise ImproperlyConfigured(
                f"agent {name} yields nothing that could go to its sinks: make it an async generator, or leave sink= out"
            )
        if options.isolated_partitions and not isinstance(channel, Topic):
            raise ImproperlyConfigured(
                f"agent {name}: isolated_partitions=True needs a topic to read, and {channel!r} has no partitions"
            )

    async def send(
        self,
        value: Any = None,
        *,
        key: Any = None,
        **options: Unpack[SendOptions],
    ) -> FutureMessage:
        """Send a value to the agent's channel. See `Channel.send`."""
        return await self.channel.send(value, key=key, **options)

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
        **options: Unpack[SendOptions],
    ) -> R:
        """Send a value and wait for the agent's answer, its first yield for this event.

        Deadlines are the caller's: ``with trio.fail_after(1):``. A caller that is cancelled leaves nothing behind.

        Raises:
            AgentError: the agent failed on the request, or finished with it and gave no answer.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        replies = Replies.of(current_run(self.app))
        slot = replies.open(self.name)
        try:
            given = options.get("headers")
            options["headers"] = (*as_headers(given), *replies.headers(slot)) if given else replies.headers(slot)
            await self.channel.send(value, key=key, **options)
            answer: R = await slot.wait()
            return answer
        finally:
            replies.forget(slot)

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
        checked = self.as_sink(check_sink(sink, self.name))
        try:
            here = self._here
        except AppNotRunning:
            self.sinks = (*self.sinks, checked)
        else:
            here.add_sink(checked)

    def as_sink(self, sink: Any) -> Any:
        """What a sink that is given stands for.

        Raises:
            ImproperlyConfigured: the agent yields nothing.
        """
        if not self.answers:
            raise ImproperlyConfigured(
                f"agent {self.name} yields nothing that could go to its sinks: make it an async generator"
            )
        if isinstance(sink, str):
            topic: Topic[Any] = Topic(self.app, sink)
            return topic
        return sink

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
