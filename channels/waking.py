"""What a task that waits is woken with, where tasks are woken for each message.

`trio.lowlevel.reschedule` takes an `outcome.Outcome`. The one that it makes by itself is frozen and refuses a second use, which
costs several times as much as all that is needed here: a place for the value.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Final, TypeVar

from outcome import Outcome

__all__ = ["NOTHING", "Given"]

V = TypeVar("V")
Y = TypeVar("Y")


class Given(Outcome[V]):
    """A value to go on with. It may be used again."""

    __slots__ = ("value",)

    def __init__(self, value: V) -> None:
        self.value = value

    def unwrap(self) -> V:
        return self.value

    def send(self, gen: Generator[Y, V, object]) -> Y:
        return gen.send(self.value)

    async def asend(self, agen: AsyncGenerator[Y, V]) -> Y:
        return await agen.asend(self.value)

    def __repr__(self) -> str:
        return f"Given({self.value!r})"


NOTHING: Final = Given(None)
"""For who only has to go on."""
