"""The streams that several actors of one agent make: they are one reader of those too, as of the agent's own stream."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

__all__ = ["Crew", "Shareable"]


class Shareable(Protocol):
    """A subscription that several hands may read."""

    @property
    def closed(self) -> bool: ...

    def hand_over(self, hand: Any, /) -> None:
        """This hand reads it no more: others get what it has not finished."""

    def __hash__(self) -> int: ...


S = TypeVar("S", bound=Shareable)


class Crew:
    """Who of the actors reads what, of the streams that they make. The k-th over a channel is the same for all."""

    def __init__(self) -> None:
        self._shared: dict[tuple[Hashable, int], Any] = {}
        self._readers: dict[Any, set[object]] = {}

    def join(self, channel: Hashable, number: int, hand: object, subscribe: Callable[[], S]) -> S:
        """The subscription to this channel that `hand` makes as its k-th one, of which others may have made it before."""
        source: S | None = self._shared.get((channel, number))
        if source is None or source.closed:
            source = self._shared[channel, number] = subscribe()
            self._readers[source] = set()
        self._readers[source].add(hand)
        return source

    def leave(self, source: Shareable, hand: object, *, for_good: bool) -> bool:
        """This hand has left. Returns whether it was the last one.

        Args:
            for_good: it does not come back to what it has not finished.
        """
        readers = self._readers.get(source, set())
        readers.discard(hand)
        if readers:
            if for_good:
                source.hand_over(hand)
            return False
        self._readers.pop(source, None)
        self._shared = {key: other for key, other in self._shared.items() if other is not source}
        return True
