"""`group_by`: a stream goes on through an intermediate topic that is keyed anew.

A supervised forwarder reads the source and writes the intermediate topic; the stream reads that. Bytes and headers
are carried over as they are (reply addresses too), only the key is new.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import trio

from ..supervision import child
from .errors import FamulusError, ImproperlyConfigured, TopicMismatch, UnknownTopic
from .event import Event, FailurePolicy
from .hand import Hand
from .retry import Retry
from .subscription import Subscription, TopicSubscription
from .trimming import REPARTITION_CONFIG, Trimmer

if TYPE_CHECKING:
    from .topic import Topic

__all__ = ["GroupKey", "regroup"]

T = TypeVar("T")

log = logging.getLogger("famulus.stream")

_TRIMMING = "trimming"

GroupKey = Any | Callable[[T], Any] | Callable[[T], Awaitable[Any]]
"""A field of a record (`Order.account`), or a function of the value, plain or async.

`Any` because a type checker sees `Order.account` as a value of the field's type.
"""


def _key_name(key: Any, name: str | None) -> str:
    found = name or getattr(key, "__name__", "")
    if not found or found == "<lambda>":
        raise ValueError(
            f"group_by({key!r}): a key without a name of its own needs one, as in group_by(..., name='account')"
        )
    return str(found)


def _key_type(key: Any) -> Any:
    """The type of the keys, where it can be known: the field's, or the function's annotated result."""
    if isinstance(key, MemberDescriptorType):
        return get_type_hints(key.__objclass__).get(key.__name__)
    try:
        return get_type_hints(key).get("return")
    except (TypeError, NameError):
        return None


def _key_function(key: Any) -> Callable[[Any], Any]:
    if callable(key):
        function: Callable[[Any], Any] = key
        return function
    if inspect.ismemberdescriptor(key):
        return key.__get__
    raise TypeError(f"group_by({key!r}): expected a field, as in Order.account, or a function of the value")


def regroup(
    source: Subscription,
    key: Any,
    *,
    name: str | None,
    partitions: int | None,
    failures: FailurePolicy | None,
    read: Callable[[Subscription, Hand], AsyncIterator[Event[Any]]],
) -> Subscription:
    """The subscription to the intermediate topic for this key, one per source and key name.

    Args:
        failures: what becomes of an event that cannot be regrouped.
        read: makes the forwarder's iterator over the source's events.
    """
    from .topic import Topic  # topics make streams, and streams regroup into topics

    run = source.run
    topic_name = f"{run.app.id}-{source.channel.name}-{_key_name(key, name)}-repartition"
    derived = source.derived.get(topic_name)
    if derived is not None:
        return derived
    if run.state(("regrouped", topic_name), lambda: source) is not source:
        raise ImproperlyConfigured(
            f"{source.name}: another reader regroups through topic {topic_name} already, and would get these messages too: "
            "give this one a name of its own, group_by(..., name='...')"
        )
    topic: Topic[Any] = Topic(
        run.app,
        topic_name,
        key_type=_key_type(key),
        value_type=source.channel.value_type,
        value_serializer=source.channel.value_serializer,
        partitions=partitions,
        internal=True,
        config=REPARTITION_CONFIG,
    )
    function = _key_function(key)
    derived = _Regrouped(source, topic, function, failures, read)
    source.derived[topic_name] = derived
    return derived


class _Regrouped(TopicSubscription):
    """The reader of an intermediate topic, which also sees to its forwarder."""

    def __init__(
        self,
        source: Subscription,
        topic: Topic[Any],
        key: Callable[[Any], Any],
        failures: FailurePolicy | None,
        read: Callable[[Subscription, Hand], AsyncIterator[Event[Any]]],
    ) -> None:
        super().__init__(source.run, topic, f"{source.name}/{topic.name}", shared=source.shared)
        self._source = source
        self._key = key
        self._failures = failures
        self._read = read
        # An event whose copy cannot be delivered is a failed event of the agent that regroups.
        self._forwarding = Hand(failures=failures or self._deliver_again)

    @property
    def _forwarder(self) -> str:
        return f"group_by {self.channel.name}"

    async def _begin(self) -> None:
        try:
            if self.channel.partitions is None:
                self.channel.partitions = await self._fitting_partitions()
            await super()._begin()
        except TopicMismatch as error:
            self.run.refuse(error)
            raise
        services = self.run.services
        if services is None:
            raise RuntimeError("the run has no supervisor for the forwarder of group_by")
        if self._forwarder in services.children:  # of an earlier stream, which has ended
            await services.children[self._forwarder].terminate()
            await services.delete(self._forwarder)
        await services.start(child(self._forward, name=self._forwarder, restart="transient"))
        trimmer = Trimmer.of(self.run)
        trimmer.topics.add(self.channel.name)
        if _TRIMMING not in services.children:
            await services.start(child(trimmer.run, name=_TRIMMING, restart="transient"))

    async def _fitting_partitions(self) -> int:
        """As many as the source has.

        Raises:
            TopicMismatch: the intermediate topic was made when the source had another number.
        """
        run, topic, source = self.run, self.channel.name, self._source.channel.name
        count = await self._source.partition_count()
        retry = Retry(f"looking at topic {topic}", run.options, log)
        try:
            found = await retry.until_done(lambda: run.transport.partition_count(topic))
        except UnknownTopic:
            return count
        if found == count:
            return count
        raise TopicMismatch(
            f"{source!r} has {count} partitions now, and {topic!r}, through which it is grouped, was made with {found}: go on "
            f"with those, group_by(..., partitions={found}); or, when all that is in it is processed and all workers have "
            f"stopped, delete it, `{run.transport.command_to('delete', topic)}`, and start again: it is made anew"
        )

    def _detach(self, leave: bool) -> None:
        super()._detach(leave)
        self.run.forget(("regrouped", self.channel.name))
        Trimmer.of(self.run).topics.discard(self.channel.name)

    def _deliver_again(self, event: Event[Any], error: BaseException) -> None:
        """Where no agent says what becomes of a failed event."""
        log.error("%s@%d could not be regrouped, it is tried again: %s", event.message.tp, event.message.offset, error)
        if event.cursor is not None:
            event.cursor.deliver_again(event.again())

    def _skip(self, event: Event[Any], error: BaseException) -> None:
        self.run.counters.events_failed += 1
        where = f"{event.message.tp}@{event.message.offset}"
        log.error("%s has no key for %s, it is skipped", where, self.channel.name, exc_info=error)
        event.message.release()

    async def _forward(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Copy each event of the source to the intermediate topic under its new key."""
        hand = self._forwarding
        hand.begin()
        hand.reached = task_status.started
        try:
            async for event in self._read(self._source, hand):
                try:
                    key = self._key(event.value)
                    if type(key) is not str and inspect.isawaitable(key):
                        key = await key
                    raw = None if event.message.offset < 0 else event.message.value
                    await self.channel.forward(self.run, key, event.value, raw=raw, headers=event.headers)
                except FamulusError:
                    raise
                except Exception as error:  # of the key function, or in encoding what it gave: this event's alone
                    event.acked = True
                    (self._failures or self._skip)(event, error)
        finally:
            hand.give_back()
