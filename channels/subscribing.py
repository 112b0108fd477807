"""What a run is subscribed to, which of it is missing at the broker, and when that is looked for again.

A topic that is missing, from the start or since somebody deleted it, holds up nobody who reads others: it is named once,
with the command that creates it, left out of the subscription, and taken up when it is there.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from math import inf

import trio

from .errors import UnknownTopic
from .message import TP
from .options import MessagingOptions
from .readers import Item, one_pattern
from .transport import Consumer, Transport

__all__ = ["Subscriber"]

log = logging.getLogger("famulus.conductor")


class Subscriber:
    """The conductor's business with `Consumer.subscribe`; one per run.

    Attributes:
        wanted: what there are readers for.
        subscribed: what the consumer is subscribed to, with the assignment standing.
        absent: topics that the broker does not have, as far as known.
        waited_for: topics that were absent at one time of this run.
        look_at: when `settle` has something to do.
    """

    def __init__(self, transport: Transport, options: MessagingOptions) -> None:
        self._transport = transport
        self._first, self._most = options.broker_retry_backoff, options.broker_retry_backoff_max
        self._delay = self._first
        self._asked: frozenset[Item] = frozenset()
        self._leaving: frozenset[Item] = frozenset()
        self._doubtful = False
        self.wanted: frozenset[Item] = frozenset()
        self.subscribed: frozenset[Item] = frozenset()
        self.absent: frozenset[str] = frozenset()
        self.waited_for: set[str] = set()
        self.look_at = -inf

    @property
    def settled(self) -> bool:
        """Whether everything that is wanted has its assignment."""
        return not self._leaving and self.subscribed == self.wanted

    def want(self, wanted: frozenset[Item], *, leaving: frozenset[Item] = frozenset()) -> None:
        """There are other readers now. What is `leaving` is given up, even if somebody wants it again by then."""
        self.wanted = wanted
        self._leaving |= leaving
        self.look_at = -inf

    def begin_anew(self) -> None:
        """There is a new consumer, which is subscribed to nothing."""
        self._asked = self.subscribed = frozenset()
        self.look_at = -inf

    def assigned(self, partitions: Collection[TP]) -> None:
        """An assignment came: a topic of which we own nothing belongs to other members, or is gone."""
        if not {item for item in self._asked if isinstance(item, str)} <= {tp.topic for tp in partitions}:
            self._doubtful = True
            self.look_at = -inf

    async def settle(self, consumer: Consumer) -> None:
        """Bring the subscription up to date.

        A topic that lost its last reader is given up first, so what that reader had fetched and not acknowledged comes to
        the one that follows.

        Raises:
            UnknownTopic: the broker says so, and has it all the same.
            BrokerUnavailable: to be tried again.
        """
        leaving = self._leaving & self.subscribed
        if leaving:
            await self._subscribe(consumer, self.subscribed - leaving)
        self._leaving -= leaving
        self._leaving &= self.subscribed
        if self.absent or self._doubtful:
            await self._look()
        while (present := self.wanted - self.absent) != self.subscribed:
            try:
                await self._subscribe(consumer, present)
            except UnknownTopic:
                if not await self._look():
                    raise
        if self.absent:
            self.look_at = trio.current_time() + self._delay
            self._delay = min(2 * self._delay, self._most)
        else:
            self.look_at = inf
            self._delay = self._first

    async def _subscribe(self, consumer: Consumer, items: frozenset[Item]) -> None:
        names = [item for item in items if isinstance(item, str)]
        self._asked = items
        await consumer.subscribe(names, pattern=one_pattern([item for item in items if not isinstance(item, str)]))
        self.subscribed = items

    async def _look(self) -> bool:
        """See which topics are missing; name new ones. Returns whether anything has changed."""
        there = await self._transport.list_topics()
        absent = frozenset(item for item in self.wanted if isinstance(item, str)).difference(there)
        reasons: dict[str, str] = {}
        for topic in sorted(absent - self.absent):
            try:
                await self._transport.partition_count(topic)
            except UnknownTopic as error:  # which says how to create it
                reasons[topic] = str(error)
            else:
                absent -= {topic}
        if reasons:
            what = "subscribing" if self.wanted - absent else "fetching"
            log.warning("%s waits for the broker: UnknownTopic: %s", what, "; ".join(reasons.values()))
            self.waited_for.update(reasons)
            self._delay = self._first
        found = self.absent - absent
        if found:
            log.info("found %s, which was missing", ", ".join(sorted(found)))
        changed = absent != self.absent
        self.absent = absent
        self._doubtful = False
        return changed
