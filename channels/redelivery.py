"""What comes to a stream once more, before anything new: after a cancellation at once, after a failure when its time has come."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Any

import trio

from .event import Event
from .message import Message

__all__ = ["Redelivery", "Thrown", "is_stale"]


class Thrown:
    """An exception in the place of an event, by `throw`."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Redelivery(deque["Event[Any] | Thrown"]):
    """Events to be delivered again, in the order of their log, and what was thrown; some of them rest until their time.

    True while it holds something, which is all that a stream looks at where nothing has failed.
    """

    __slots__ = ("_rests", "_soonest")

    def __init__(self) -> None:
        super().__init__()
        self._rests: dict[Event[Any], float] = {}
        self._soonest = inf  # nothing that rests is due before

    def place(self, event: Event[Any], *, after: float) -> None:
        """Before what is newer in its partition; in so many seconds."""
        if after > 0:
            until = self._rests[event] = trio.current_time() + after
            self._soonest = min(self._soonest, until)
        message = event.message
        for place, other in enumerate(self):
            if isinstance(other, Event) and other.message.tp == message.tp and other.message.offset > message.offset:
                self.insert(place, event)
                break
        else:
            self.append(event)

    def next(self, *, shared: bool, hurry: bool) -> Event[Any] | Thrown | None:
        """The next one that is still ours, not done meanwhile, and due; None where there is none now.

        Args:
            shared: others read the same, so order is lost anyway: what rests holds nothing up.
            hurry: do not wait for anybody's time.
        """
        rests = self._rests
        now = inf if hurry or not rests else trio.current_time()
        if shared and now < self._soonest and len(rests) == len(self):
            return None
        place = 0
        while place < len(self):
            event = self[place]
            if isinstance(event, Event):
                over = event.acked or is_stale(event.message)
                if not over and rests and rests.get(event, -inf) > now:
                    if not shared:
                        return None
                    place += 1
                    continue
                rests.pop(event, None)
                if over:
                    del self[place]
                    continue
            del self[place]
            return event
        self._soonest = min(rests.values(), default=inf)
        return None

    def due(self, *, shared: bool) -> float:
        """When `next` may have something, on trio's clock."""
        if shared:
            return self._soonest
        first = self[0] if self else None
        return self._rests.get(first, -inf) if isinstance(first, Event) else -inf

    @property
    def resting(self) -> bool:
        """Whether something waits for its time."""
        return bool(self._rests)

    def hasten(self) -> None:
        """Nothing rests any longer."""
        self._rests.clear()
        self._soonest = inf

    def clear(self) -> None:
        super().clear()
        self.hasten()


def is_stale(message: Message) -> bool:
    """Whether its partition was given up since it was fetched; then it belongs to somebody else."""
    tracker = message.tracker
    return tracker is not None and tracker.live != message.generation and message.offset >= tracker.until
