"""Several streams as one: `s1 & s2`. Each keeps its own place and its own processors."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

import trio

from ..models import Schema
from .cursor import BadMessage, Cursor
from .event import Event
from .likeness import alike
from .redelivery import Thrown
from .steps import Step, StepsOfParts, any_type_of, changes_values, mapped_type
from .subscription import Subscription

if TYPE_CHECKING:
    from .hand import Hand

__all__ = ["CombinedCursor", "CombinedSubscription", "combine"]


def combine(streams: Sequence[tuple[Subscription, tuple[Step, ...]]]) -> tuple[Subscription, tuple[Step, ...]]:
    """What reads all of these, and the steps that bring each of them to its own.

    Raises:
        ValueError: two of them are the same place of the same reader, where an event goes to one of them only.
    """
    parts: dict[Subscription, tuple[Step, ...]] = {}
    for subscription, steps in streams:
        for part in subscription.parts:
            if part in parts:
                raise ValueError(
                    f"{part.name}: a stream cannot be combined with itself, since each of its events comes once; for a second "
                    "look at all of them make another, channel.stream()"
                )
            parts[part] = steps
    reader = CombinedSubscription.of(tuple(parts))
    if not any(parts.values()):
        return reader, ()
    types = [
        mapped_type(steps) if changes_values(steps) else mapped_type(steps) or part.value_type
        for part, steps in parts.items()
    ]
    return reader, (StepsOfParts(parts, any_type_of(types)),)


class CombinedSubscription(Subscription):
    """A reader of what several subscriptions give, in turns. As its channel stands that of the first."""

    def __init__(self, parts: tuple[Subscription, ...]) -> None:
        first = parts[0]
        super().__init__(first.run, first.channel, " & ".join(part.name for part in parts), shared=first.shared)
        self._parts = parts
        self.names = tuple(name for part in parts for name in part.names)

    def _register(self) -> None:
        """It reads through its parts."""

    @property
    def parts(self) -> tuple[Subscription, ...]:
        return self._parts

    @property
    def schema(self) -> Schema:
        """That of all parts, or a plain one for whatever they have in common."""
        schemas = [part.schema for part in self._parts]
        first = schemas[0]
        if all(alike(first, schema) for schema in schemas):
            return first
        return Schema(
            key_type=_common([schema.key_type for schema in schemas]),
            value_type=any_type_of([schema.value_type for schema in schemas]),
            key_serializer=_common([schema.key_serializer for schema in schemas]),
            value_serializer=_common([schema.value_serializer for schema in schemas]),
        )

    @classmethod
    def of(cls, parts: tuple[Subscription, ...]) -> CombinedSubscription:
        """The one of these parts, which is kept while they are."""
        found = parts[0].combinations.get(parts)
        if found is None:
            found = cls(parts)
            for part in parts:
                part.combinations[parts] = found
        assert isinstance(found, CombinedSubscription), "made above"
        return found

    async def _begin(self) -> None:
        for part in self._parts:
            await part.start()

    def _make_cursor(self, hand: Hand) -> Cursor:
        cursor = CombinedCursor([hand.cursor(part) for part in self._parts])
        self.run.conductor.watch(cursor)
        return cursor

    async def partition_count(self) -> int:
        return max([await part.partition_count() for part in self._parts])

    def _detach(self, leave: bool) -> None:
        for part in self._parts:
            part.combinations.pop(self._parts, None)
        own = [inbox for part in self._parts for inbox in part.inboxes]
        read_on = self.run.conductor.topics_read(apart_from=own) if leave else frozenset()
        for cursor in self._cursors:
            cursor.close(release=read_on)
            if leave:
                self.run.conductor.unwatch(cursor)


def _common(values: Sequence[Any]) -> Any:
    """What they all are, or None."""
    return values[0] if all(value == values[0] for value in values) else None


class CombinedCursor(Cursor):
    """Takes from several cursors in turns, so that a busy one starves none."""

    __slots__ = ("_ended", "_last", "_parts", "_turn")

    def __init__(self, parts: Sequence[Cursor]) -> None:
        super().__init__()
        self._parts = tuple(parts)
        self._ended: set[Cursor] = set()
        self._turn = 0
        self._last: Cursor | None = None
        for part in parts:
            part.on_wake = self._wake

    def bind(self, hand: Hand) -> None:
        super().bind(hand)
        for part in self._parts:
            part.bind(hand)

    def set_acks(self, acks: bool) -> None:
        super().set_acks(acks)
        for part in self._parts:
            part.set_acks(acks)

    def take_nowait(self) -> Event[Any] | BadMessage | Thrown | None:
        if self.redeliver and not self.stopping and (again := self._redelivery()) is not None:
            return again
        parts = self._parts
        for turn in range(len(parts)):
            place = (self._turn + turn) % len(parts)
            taken = parts[place].take_nowait()
            if taken is not None:
                self._turn = place + 1
                self._last = parts[place]
                return taken
        return None

    def give_again(self, events: Sequence[Event[Any]]) -> None:
        for event in reversed(events):
            assert event.cursor is not None, "it came from one of the parts"
            event.cursor.give_again([event])

    def take_back(self) -> None:
        if self._last is not None:
            self._last.take_back()

    async def _take(self) -> None:
        waiting = [part for part in self._parts if part not in self._ended]
        if not waiting:
            raise trio.EndOfChannel
        errors: list[Exception] = []
        async with trio.open_nursery() as nursery:

            async def wait(part: Cursor) -> None:
                try:
                    await part.wait()
                except trio.EndOfChannel:
                    self._ended.add(part)
                except Exception as error:
                    errors.append(error)
                nursery.cancel_scope.cancel()

            for part in waiting:
                nursery.start_soon(wait, part)
        if errors:
            for error in reversed(errors[1:]):
                self.throw(error)
            raise errors[0]

    def stop(self, *, drain: bool) -> None:
        for part in self._parts:
            part.stop(drain=drain)
        super().stop(drain=drain)

    def resume(self) -> None:
        super().resume()
        self._ended.clear()
        for part in self._parts:
            part.resume()

    def close(self, *, release: Container[str]) -> None:
        """The parts are closed by their own subscriptions; what it has in hand of them goes with it."""
        self.stopping = True
        self.abandon_all(release)
        self.redeliver.clear()
