"""Steps: what happens to an event's value between its channel and whoever iterates over the stream.

A step is a function of the value and its event that gives the new value, `DROPPED`, or an awaitable of one of these.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, get_type_hints

from .event import Event
from .message import REQUEST_HEADERS

__all__ = ["DROPPED", "Echo", "Filter", "Map", "Processor", "Step", "apply_steps", "mapped_type"]

Processor = Callable[[Any], Any] | Callable[[Any], Awaitable[Any]]
"""Takes a value and returns a value, plain or async."""

Step = Callable[[Any, Event[Any]], Any]

DROPPED: Final = object()
"""In the place of a value that a filter has sorted out."""


class Map:
    """Gives another value for each."""

    __slots__ = ("fun",)

    def __init__(self, fun: Processor) -> None:
        if not callable(fun):
            raise TypeError(f"processor {fun!r}: expected a function of the value, plain or async")
        self.fun: Final = fun

    def __call__(self, value: Any, event: Event[Any]) -> Any:
        return self.fun(value)


class Filter:
    """Sorts out values for which a function says no; it may be async."""

    __slots__ = ("_fun",)

    def __init__(self, fun: Processor) -> None:
        if not callable(fun):
            raise TypeError(f"filter({fun!r}): expected a function of the value, plain or async")
        self._fun: Final = fun

    def __call__(self, value: Any, event: Event[Any]) -> Any:
        kept = self._fun(value)
        if inspect.isawaitable(kept):
            return self._wait(value, kept)
        return value if kept else DROPPED

    @staticmethod
    async def _wait(value: Any, kept: Awaitable[Any]) -> Any:
        return value if await kept else DROPPED


class Echo:
    """Repeats each value to other channels, and passes it on."""

    __slots__ = ("_channels",)

    def __init__(self, channels: Sequence[Any]) -> None:
        self._channels: Final = tuple(channels)

    async def __call__(self, value: Any, event: Event[Any]) -> Any:
        from .forwarding import carry

        # A copy is no question: whoever asked is answered by the agent that was asked.
        headers = tuple(pair for pair in event.headers if pair[0] not in REQUEST_HEADERS)
        for channel in self._channels:
            await carry(event, channel, value=value, headers=headers)
        return value


async def apply_steps(steps: Sequence[Step], event: Event[Any]) -> Any:
    """The value that comes out of the steps, or `DROPPED`."""
    value = event.value
    for step in steps:
        value = step(value, event)
        if hasattr(type(value), "__await__"):
            value = await value
        if value is DROPPED:
            break
    return value


def mapped_type(steps: Sequence[Step]) -> Any:
    """The type that the last processor among the steps is annotated to give; None where it does not say or there is none."""
    last = next((step for step in reversed(steps) if isinstance(step, Map)), None)
    if last is None:
        return None
    fun = last.fun
    if isinstance(fun, type):
        return fun
    try:
        return get_type_hints(fun).get("return")
    except (TypeError, NameError):
        return None
