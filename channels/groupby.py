"""`group_by`: a stream goes on through an intermediate topic that is keyed anew.

A supervised forwarder reads the source and writes the intermediate topic; the stream reads that. Bytes and headers
are carried over as they are (reply addresses too), only the key is new.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import trio

from ..supervision import child
from .errors import ImproperlyConfigured
from .event import Event
from .hand import Hand
from .subscription import Subscription, TopicSubscription

if TYPE_CHECKING:
    from .topic import Topic

__all__ = ["GroupKey", "regroup"]

T = TypeVar("T")

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
    read: Callable[[Subscription, Hand], AsyncIterator[Event[Any]]],
) -> Subscription:
    """The subscription to the intermediate topic for this key, one per source and key name.

    Args:
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
    )
    function = _key_function(key)
    derived = _Regrouped(source, topic, function, read)
    source.derived[topic_name] = derived
    return derived


class _Regrouped(TopicSubscription):
    """The reader of an intermediate topic, which also sees to its forwarder."""

    def __init__(
        self,
        source: Subscription,
        topic: Topic[Any],
        key: Callable[[Any], Any],
        read: Callable[[Subscription, Hand], AsyncIterator[Event[Any]]],
    ) -> None:
        super().__init__(source.run, topic, f"{source.name}/{topic.name}", shared=source.shared)
        self._source = source
        self._key = key
        self._read = read
        self._forwarding = Hand()

    async def _begin(self) -> None:
        if self.channel.partitions is None:
            self.channel.partitions = await self._source.partition_count()
        await super()._begin()
        if self.run.services is None:
            raise RuntimeError("the run has no supervisor for the forwarder of group_by")
        await self.run.services.start(child(self._forward, name=f"group_by {self.channel.name}", restart="transient"))

    async def _forward(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Copy each event of the source to the intermediate topic under its new key."""
        hand = self._forwarding
        hand.reached = task_status.started
        try:
            async for event in self._read(self._source, hand):
                key = self._key(event.value)
                if type(key) is not str and inspect.isawaitable(key):
                    key = await key
                raw = None if event.message.offset < 0 else event.message.value
                await self.channel.forward(self.run, key, event.value, raw=raw, headers=event.headers)
        finally:
            hand.give_back()
