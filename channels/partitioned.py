"""A reader that has a stream of its own for each partition number, for agents with isolated partitions.

The partitions of one number, of all topics that it reads, share an inbox: the same keys are in them, where the topics are
partitioned alike. What comes for a partition whose stream is not there yet waits in its inbox.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .cursor import Cursor
from .inbox import BatchInbox
from .message import TP, Message
from .runs import Run
from .subscription import Subscription, check_readable, interest_in, partitions_of, topic_cursor

if TYPE_CHECKING:
    from .hand import Hand
    from .topic import Topic

__all__ = ["PartitionSubscription", "PartitionedSubscription"]


class PartitionedInbox:
    """The inboxes of one reader, one for each partition number; implements `readers.Split`."""

    def __init__(self, make: Callable[[int], BatchInbox], on_assigned: Callable[[frozenset[int]], None]) -> None:
        self._make = make
        self._on_assigned = on_assigned
        self._parts: dict[int, BatchInbox] = {}
        self._closed = False
        self._before = 0

    def part(self, partition: int) -> BatchInbox:
        """The inbox of this partition number, made at first use."""
        inbox = self._parts.get(partition)
        if inbox is None:
            inbox = self._parts[partition] = self._make(partition)
            if self._closed:
                inbox.close()
        return inbox

    @property
    def parts(self) -> Collection[BatchInbox]:
        return self._parts.values()

    def forget(self, partition: int) -> None:
        """This partition number is no longer ours; if it comes back, it begins anew."""
        inbox = self._parts.pop(partition, None)
        if inbox is not None:
            inbox.close()
            self._before += inbox.delivered

    @property
    def delivered(self) -> int:
        """Messages that have come in all."""
        return self._before + sum(inbox.delivered for inbox in self._parts.values())

    def assigned(self, partitions: Iterable[TP]) -> None:
        """These are ours now, of those that it reads."""
        self._on_assigned(frozenset(tp.partition for tp in partitions))

    def close(self) -> list[Message]:
        self._closed = True
        return [message for inbox in self._parts.values() for message in inbox.close()]


class PartitionedSubscription(Subscription):
    """A reader of a topic, or of several, of which each partition number is read by itself.

    Args:
        on_assigned: called with the partition numbers that are ours, at each assignment.
    """

    channel: Topic[Any]

    def __init__(
        self, run: Run, channel: Topic[Any], name: str, *, on_assigned: Callable[[frozenset[int]], None]
    ) -> None:
        super().__init__(run, channel, name)
        self._inboxes = PartitionedInbox(self._make_inbox, on_assigned)
        self._interest = interest_in(channel)
        self._streams: dict[int, PartitionSubscription] = {}
        self._attached = False

    def _make_inbox(self, partition: int) -> BatchInbox:
        run = self.run
        return BatchInbox(
            f"{self.name}[p{partition}]",
            self.channel.bound(run),
            shared=False,
            on_room=run.conductor.wake,
            alone=True,
        )

    async def _begin(self) -> None:
        check_readable(self.run, self.channel, self.channel.serdes(self.run).schema)
        await self.channel.prepare(self.run)
        if not self._attached:
            self._attached = True
            self.run.conductor.add_split(self._interest, self._inboxes)

    def partition(self, number: int) -> PartitionSubscription:
        """What reads this partition number; the same one until it is let go."""
        found = self._streams.get(number)
        if found is None:
            found = self._streams[number] = PartitionSubscription(self, number, self._inboxes.part(number))
        return found

    def let_go(self, number: int) -> None:
        """This partition number is no longer ours, and its stream has ended."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.close()
        self._inboxes.forget(number)

    def throw(self, error: BaseException) -> None:
        streams = list(self._streams.values())
        if streams:
            next((stream for stream in streams if stream.waiting), streams[0]).throw(error)
        else:
            super().throw(error)

    async def partition_count(self) -> int:
        return await partitions_of(self.run, self._interest)

    @property
    def inboxes(self) -> Sequence[BatchInbox]:
        return [*self._inboxes.parts]

    @property
    def cursors(self) -> Sequence[Cursor]:
        return [cursor for stream in self._streams.values() for cursor in stream.cursors]

    @property
    def delivered(self) -> int:
        return self._inboxes.delivered

    def _make_cursor(self, hand: Hand) -> Cursor:
        raise RuntimeError(f"{self!r} is read partition by partition")

    def _detach(self, leave: bool) -> None:
        others = self._released = self.run.conductor.remove_split(self._inboxes, leave=leave)
        for stream in self._streams.values():
            stream.released = others
            stream.close(leave=leave)


class PartitionSubscription(Subscription):
    """The reader of one partition number."""

    channel: Topic[Any]
    isolated = True

    def __init__(self, whole: PartitionedSubscription, number: int, inbox: BatchInbox) -> None:
        self.released: frozenset[str] = frozenset()  # topics that others go on reading, once it is closed
        self._whole = whole
        self._inbox = inbox
        super().__init__(whole.run, whole.channel, f"{whole.name}[p{number}]")

    def _register(self) -> None:
        """It is a part of what is registered."""

    async def start(self) -> None:
        await self._whole.start()

    async def partition_count(self) -> int:
        return await self._whole.partition_count()

    @property
    def inboxes(self) -> Sequence[BatchInbox]:
        return (self._inbox,)

    def _make_cursor(self, hand: Hand) -> Cursor:
        cursor = topic_cursor(self.run, self.channel, self._inbox)
        self.run.conductor.watch(cursor)
        return cursor

    def _detach(self, leave: bool) -> None:
        self._released = self.released
        for cursor in self._cursors:
            cursor.close(release=self.released)
            self.run.conductor.unwatch(cursor)
