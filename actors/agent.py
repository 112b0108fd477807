"""`Agent`: the declaration of a stream processor, and the calls that others make to it.

An agent is data until a run starts its actors (`actors.actor`). Its calls resolve to the run of its App.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, Unpack, get_args, get_origin, get_type_hints

import attrs

from ..channels.arguments import SendOptions
from ..channels.channel import Channel
from ..channels.errors import ImproperlyConfigured
from ..channels.future import FutureMessage
from ..channels.message import as_headers
from ..channels.runs import Declaration, current_run
from ..channels.stream import Stream
from ..supervision import OneForOneSupervisor, SupervisorStrategy
from .failure import FAILURE_POLICIES, OnFailure
from .replies import Replies

__all__ = ["Agent", "AgentFunction", "AgentOptions", "OnError", "Sink", "agent_name", "stream_value_type"]

T = TypeVar("T")
R = TypeVar("R")

AgentFunction = Callable[[Stream[T]], AsyncIterator[R]] | Callable[[Stream[T]], Awaitable[None]]
"""An async generator function over a stream, whose yields are answers; or an async function that answers nothing."""

OnError = Callable[["Agent[Any, Any]", BaseException], Awaitable[None] | None]
Sink = "Agent[Any, Any] | Channel[Any] | Callable[[Any], Any]"
"""Where answers go as well: another agent, a channel or topic, or a function, plain or async."""


@attrs.frozen(kw_only=True)
class AgentOptions:
    """How an agent's actors are run.

    Attributes:
        concurrency: actors per worker. They share the stream: the idle one takes the next event, so order is lost.
        on_failure: what happens to the event of an actor that raises: "ack" skips it, "retry" delivers it again, up
            to `max_attempts` times, then and with "dead_letter" it goes to `<topic>.dead-letter`.
        supervisor_strategy: over the actors.
        on_error: called with the agent and what it raised.
        sinks: where answers go as well.
        drain: seconds that the event in hand may take when the agent is stopped.
    """

    concurrency: int = 1
    on_failure: OnFailure = "ack"
    max_attempts: int = 5
    supervisor_strategy: SupervisorStrategy | type[SupervisorStrategy] = OneForOneSupervisor
    on_error: OnError | None = None
    sinks: Sequence[Any] = ()
    drain: float = 5.0

    def __attrs_post_init__(self) -> None:
        if self.concurrency < 1:
            raise ImproperlyConfigured(f"agent concurrency={self.concurrency!r}: expected a whole number of at least 1")
        if self.max_attempts < 1:
            raise ImproperlyConfigured(
                f"agent max_attempts={self.max_attempts!r}: expected a whole number of at least 1"
            )
        if self.on_failure not in FAILURE_POLICIES:
            expected = " or ".join(repr(policy) for policy in FAILURE_POLICIES)
            raise ImproperlyConfigured(f"agent on_failure={self.on_failure!r}: expected {expected}")


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
        self.answers = inspect.isasyncgenfunction(inspect.unwrap(fun))
        if not (self.answers or inspect.iscoroutinefunction(inspect.unwrap(fun))):
            raise ImproperlyConfigured(
                f"agent {name}: expected an async function or async generator function over a stream, got {fun!r}"
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

    def __repr__(self) -> str:
        return f"<Agent {self.name} on {self.channel.name}>"


def agent_name(fun: Callable[..., Any]) -> str:
    """An agent's name: its module and function. In a script, the script's own name stands for `__main__`."""
    module = fun.__module__
    if module == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        module = Path(file).stem if file else "main"
    return f"{module}.{fun.__qualname__.replace('<locals>.', '')}"


def stream_value_type(fun: Callable[..., Any]) -> Any:
    """The `T` of a function's `Stream[T]` parameter, or None where it is not annotated."""
    try:
        hints = get_type_hints(fun)
    except NameError:
        return None
    hints.pop("return", None)
    for hint in hints.values():
        if get_origin(hint) is Stream:
            found = get_args(hint)[0]
            return None if found is Any else found
    return None
