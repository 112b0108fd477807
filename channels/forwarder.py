"""Forwarders: the supervised task that copies what one subscription reads into another channel."""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from ..supervision import child
from .copying import OUR_TROUBLE, Copier
from .errors import UnknownTopic
from .event import UNCHANGED, Event
from .forwarding import carry
from .hand import Hand
from .retry import Retry
from .steps import DROPPED, Step, apply_steps, changes_values, mapped_type

if TYPE_CHECKING:
    from .channel import Channel
    from .subscription import Subscription

__all__ = ["Forwarder"]

log = logging.getLogger("famulus.stream")


class Forwarder:
    """Reads `source` and sends each of its events on to `target`, with what `key` makes of its value as key.

    Bytes and headers are carried over as they are (reply addresses too), and the timestamp; a changed value is encoded anew.

    Args:
        steps: through which values go first.
        key: a function of the value, plain or async; `UNCHANGED` keeps the key.
        owner: the hand of whoever forwards: it says what becomes of an event that cannot be, and who asked.
        verb: what the user called, for reports.
    """

    def __init__(
        self,
        source: Subscription,
        target: Channel[Any],
        steps: tuple[Step, ...],
        key: Callable[[Any], Any],
        owner: Hand | None,
        *,
        verb: str,
    ) -> None:
        from .channel import Channel  # channels make streams, and streams forward into channels

        self.run = source.run
        self.source = source
        self.target = target
        self._verb = verb
        self._failures = failures = None if owner is None else owner.failures
        self._ask = None if owner is None else owner.prepare
        # What no log holds must not be done at its source before it is done here.
        self._holds = type(target).send is Channel.send
        self._closed = False
        self._scope: trio.CancelScope | None = None
        # An event whose copy cannot be delivered is a failed event of the agent that forwards.
        self._hand = Hand(failures=failures or self._deliver_again, refuse=None if owner is None else owner.refuse)
        self.renew(steps, key)

    def renew(self, steps: tuple[Step, ...], key: Callable[[Any], Any]) -> None:
        """The stream was made anew, in the same place: from now on its functions are called."""
        self._steps = steps
        self._key = key
        self._plain = not (steps or inspect.iscoroutinefunction(key))  # then perhaps most can go the short way
        self._changed = changes_values(steps)
        self._may_change = mapped_type(steps) is not None

    async def prepare(self) -> None:
        """See that the target is there: a topic that is missing is created, with as many partitions as the source has."""
        from .topic import Topic

        topic, run = self.target, self.run
        if not isinstance(topic, Topic):
            await topic.maybe_declare()
            return
        retry = Retry(f"looking at topic {topic.name}", run.options, log)
        try:
            await retry.until_done(lambda: run.transport.partition_count(topic.name))
        except UnknownTopic:
            if topic.partitions is None:
                topic = topic.clone(partitions=await self.source.partition_count())
            retry = Retry(f"creating topic {topic.name}", run.options, log)
            await retry.until_done(topic.maybe_declare)

    async def start(self) -> None:
        """Begin to forward."""
        services = self.run.services
        if services is None:
            raise RuntimeError(f"the run has no supervisor for the forwarder of {self._verb}")
        started: dict[str, Forwarder] = self.run.state("forwarders", dict)
        # A start that was cancelled is made again, and what streams that were closed have left is cleared away.
        gone = [name for name, other in started.items() if other is self or other._closed]
        for name in gone:
            del started[name]
        for name in gone:
            if name in services.children:
                await services.children[name].terminate()
                await services.delete(name)
        # Several streams may send to one channel, and those that a task makes of one topic have one name.
        basis = f"{self.source.name} {self._verb} {self.target.name}"
        if self._verb != "through":
            basis = f"{self._verb} {self.target.name}"
        names = itertools.chain([basis], (f"{basis} ({number})" for number in itertools.count(2)))
        name = next(name for name in names if name not in started and name not in services.children)
        started[name] = self
        await services.start(child(self._forward, name=name, restart="transient"))

    def close(self) -> None:
        """The target is not read any more."""
        self._closed = True
        if self._scope is not None:
            self._scope.cancel()

    def _deliver_again(self, event: Event[Any], error: BaseException) -> None:
        """Where no agent says what becomes of a failed event."""
        log.error("%s@%d could not be forwarded, it is tried again: %s", event.message.tp, event.message.offset, error)
        if event.cursor is not None:
            event.cursor.deliver_again(event.again())

    def _skip(self, event: Event[Any], error: BaseException) -> None:
        self.run.counters.events_failed += 1
        where = f"{event.message.tp}@{event.message.offset}"
        log.error("%s cannot be sent on to %s, it is skipped", where, self.target.name, exc_info=error)
        event.message.release()

    async def _forward(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        from .stream import Stream

        hand = self._hand
        hand.begin()
        hand.reached = task_status.started
        copier: Copier | None = None
        try:
            with trio.CancelScope() as self._scope:
                async for event in Stream[Any](self.source, hand=hand).events():
                    await self._forward_one(event)
                    if not self._plain:
                        continue
                    copier = copier or Copier.between(self.source, self.target, hand, self._failures or self._skip)
                    if copier is None:
                        self._plain = False
                        continue
                    hand.finish()
                    while copier.copy(self._key):
                        if copier.awaiting is None:
                            await trio.lowlevel.checkpoint()
                            continue
                        (event, key), copier.awaiting = copier.awaiting, None
                        await self._forward_one(event, key)
                        hand.finish()
        finally:
            hand.give_back()

    async def _forward_one(self, event: Event[Any], awaiting: Awaitable[Any] | None = None) -> None:
        """
        Args:
            awaiting: gives the key, where the function has been called already.
        """
        if event.attempt > 1 and self._failures is None:  # nobody else says how long to wait, or when to give up
            await trio.sleep(self._pause(event.attempt))
        try:
            made = await self._make(event) if awaiting is None else (await awaiting, event.value)
            if made is not None:
                key, value = made
                await self._send(event, key, value)
        except OUR_TROUBLE:
            raise
        except Exception as error:  # of a function, or in encoding what it gave: this event's alone
            event.acked = True
            (self._failures or self._skip)(event, error)

    def _pause(self, attempt: int) -> float:
        """Seconds before this attempt, each time longer; what comes after it waits too."""
        options = self.run.options
        return min(options.broker_retry_backoff * 2.0 ** min(attempt - 2, 60), options.broker_retry_backoff_max)

    async def _send(self, event: Event[Any], key: Any, value: Any) -> None:
        target = self.target
        if not self._holds:
            await carry(event, target, key=key, value=value, changed=self._changed, headers=event.headers)
            return
        await target.pass_on(
            value,
            event.message,
            key=event.key if key is UNCHANGED else key,
            timestamp=event.message.timestamp,
            headers=event.headers,
        )

    async def _make(self, event: Event[Any]) -> tuple[Any, Any] | None:
        """The key and value to be sent on; None where a filter has sorted it out."""
        value = event.value
        if self._steps:
            value = await apply_steps(self._steps, event)
            if value is DROPPED:
                if event.headers and self._ask is not None:
                    self._ask(event)  # nobody else will answer whoever asks
                return None
            if type(value) is not type(event.value) and not self._may_change:
                raise TypeError(
                    f"{self._verb} after a processor that makes {type(value).__name__} of {type(event.value).__name__}: annotate "
                    "what the processor returns, so that the other side knows what to decode"
                )
        key = self._key(value)
        if type(key) is not str and inspect.isawaitable(key):
            key = await key
        return key, value
