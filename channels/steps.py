"""Steps: what happens to an event's value between its channel and whoever iterates over the stream.

A step is a function of the value and its event that gives the new value, `DROPPED`, or an awaitable of one of these.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Final, get_type_hints

from .event import Event
from .message import REQUEST_HEADERS, Headers

if TYPE_CHECKING:
    from .forwarding import Carrier
    from .subscription import Subscription

__all__ = [
    "DROPPED",
    "Echo",
    "Filter",
    "Map",
    "Processor",
    "Step",
    "StepsOfParts",
    "any_type_of",
    "apply_steps",
    "changes_values",
    "mapped_type",
]

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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Map) and other.fun == self.fun

    def __hash__(self) -> int:
        return hash((Map, self.fun))


class Filter:
    """Sorts out values for which a function says no; it may be async."""

    __slots__ = ("fun",)

    def __init__(self, fun: Processor) -> None:
        if not callable(fun):
            raise TypeError(f"filter({fun!r}): expected a function of the value, plain or async")
        self.fun: Final = fun

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and other.fun == self.fun

    def __hash__(self) -> int:
        return hash((Filter, self.fun))

    def __call__(self, value: Any, event: Event[Any]) -> Any:
        kept = self.fun(value)
        if inspect.isawaitable(kept):
            return self._wait(value, kept)
        return value if kept else DROPPED

    @staticmethod
    async def _wait(value: Any, kept: Awaitable[Any]) -> Any:
        return value if await kept else DROPPED


class Echo:
    """Repeats each value to other channels, and passes it on.

    Args:
        changed: processors before this have made values of their own, so the message's bytes will not do.
    """

    __slots__ = ("_carriers", "_changed", "channels")

    def __init__(self, channels: Sequence[Any], *, changed: bool) -> None:
        self.channels: Final = tuple(channels)
        self._changed = changed
        self._carriers: dict[object, list[Carrier | None]] = {}  # by the reader that events come from

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Echo) and other.channels == self.channels

    def __hash__(self) -> int:
        return hash((Echo, self.channels))

    def __call__(self, value: Any, event: Event[Any]) -> Any:
        headers = event.headers
        if headers:  # a copy is no question: whoever asked is answered by the agent that was asked
            headers = tuple(pair for pair in headers if pair[0] not in REQUEST_HEADERS)
        reader = None if event.cursor is None else event.cursor.subscription
        carriers = self._carriers.get(reader)
        if carriers is None:
            carriers = self._carriers[reader] = self._make_carriers(reader, event)
        for place, carrier in enumerate(carriers):
            if carrier is None or not carrier.carry(event, value=value, changed=self._changed, headers=headers):
                return self._wait(value, event, headers, place)
        return value

    def _make_carriers(self, reader: Subscription | None, event: Event[Any]) -> list[Carrier | None]:
        from .forwarding import Carrier, target_of

        return [Carrier.between(reader, target_of(event, channel)) for channel in self.channels]

    async def _wait(self, value: Any, event: Event[Any], headers: Headers, place: int) -> Any:
        """Go on at the channel in this place, which cannot be sent to at once."""
        from .forwarding import carry

        for channel in self.channels[place:]:
            await carry(event, channel, value=value, changed=self._changed, headers=headers)
        return value


class StepsOfParts:
    """Of a combined stream: the steps of that one which an event came from.

    Args:
        parts: the steps of each subscription that is read.
        type: of the values that come out of them; None where that is not known.
    """

    __slots__ = ("parts", "type")

    def __init__(self, parts: Mapping[Any, tuple[Step, ...]], type: Any) -> None:
        self.parts: Final = parts
        self.type: Final = type

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StepsOfParts) and other.parts == self.parts

    def __hash__(self) -> int:
        return hash((StepsOfParts, *self.parts))

    def __call__(self, value: Any, event: Event[Any]) -> Any:
        reader = None if event.cursor is None else event.cursor.subscription
        steps = self.parts.get(reader, ())
        return apply_steps(steps, event) if steps else value


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
    last = next((step for step in reversed(steps) if isinstance(step, Map | StepsOfParts)), None)
    if last is None:
        return None
    if isinstance(last, StepsOfParts):
        return last.type
    fun = last.fun
    if isinstance(fun, type):
        return fun
    try:
        return get_type_hints(fun).get("return")
    except (TypeError, NameError):
        return None


def changes_values(steps: Sequence[Step]) -> bool:
    """Whether a processor among the steps may give another value, or may have changed the one that it was given."""
    return any(
        isinstance(step, Map)
        or (isinstance(step, StepsOfParts) and any(changes_values(inner) for inner in step.parts.values()))
        for step in steps
    )


def any_type_of(types: Sequence[Any]) -> Any:
    """The type of values that are of one of these types; None where one of them is not known."""
    different = list(dict.fromkeys(types))
    if None in different or not different:
        return None
    try:
        return reduce(or_, different)
    except TypeError:
        return None
