"""`group_by` and `through`: a stream goes on through another channel, which a supervised forwarder fills from it."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Awaitable, Callable
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from .errors import ImproperlyConfigured, TopicMismatch, UnknownTopic
from .event import UNCHANGED
from .forwarder import Forwarder
from .hand import Hand
from .likeness import topic_like
from .retry import Retry
from .steps import Step, mapped_type
from .subscription import Subscription
from .trimming import REPARTITION_CONFIG, Trimmer

if TYPE_CHECKING:
    from .channel import Channel
    from .topic import Topic

__all__ = ["GroupKey", "pass_through", "regroup"]

T = TypeVar("T")

log = logging.getLogger("famulus.stream")

GroupKey = Any | str | Callable[[T], Any] | Callable[[T], Awaitable[Any]]
"""A field of a record (`Order.account`) or its name, or a function of the value, plain or async.

`Any` because a type checker sees `Order.account` as a value of the field's type.
"""


def _key_name(key: Any, name: str | None) -> str:
    found = name or (key if isinstance(key, str) else getattr(key, "__name__", ""))
    if not found or found == "<lambda>":
        raise ValueError(
            f"group_by({key!r}): a key without a name of its own needs one, as in group_by(..., name='account')"
        )
    return str(found)


def _key_type(key: Any, value_type: Any) -> Any:
    """The type of the keys, where it can be known: the field's, or the function's annotated result."""
    try:
        if isinstance(key, MemberDescriptorType):
            return get_type_hints(key.__objclass__).get(key.__name__)
        if isinstance(key, str):
            return get_type_hints(value_type).get(key)
        return get_type_hints(key).get("return")
    except (TypeError, NameError):
        return None


def _key_function(key: Any) -> Callable[[Any], Any]:
    if isinstance(key, str):

        def by_name(value: Any) -> Any:
            return value[key] if isinstance(value, dict) else getattr(value, key)

        return by_name
    if callable(key):
        function: Callable[[Any], Any] = key
        return function
    if inspect.ismemberdescriptor(key):
        return key.__get__
    raise TypeError(f"group_by({key!r}): expected a field, as in Order.account, its name, or a function of the value")


def _unchanged(value: Any) -> Any:
    return UNCHANGED


def regroup(
    source: Subscription,
    hand: Hand | None,
    steps: tuple[Step, ...],
    key: Any,
    *,
    name: str | None,
    topic: Channel[Any] | str | None,
    partitions: int | None,
) -> Subscription:
    """The subscription to the intermediate topic for this key, one per source and key name.

    Args:
        hand: of the agent that regroups, whose policy decides on events that cannot be.
        steps: through which a value goes before it is regrouped.
    """
    function = _key_function(key)
    if topic is not None:
        return _derive(source, hand, steps, named(source, steps, topic), function)
    derived_name = f"{source.run.app.id}-{_source_name(source)}-{_key_name(key, name)}-repartition"
    return _derive(
        source,
        hand,
        steps,
        derived_name,
        function,
        make=lambda: _own_topic(source, steps, derived_name, key, partitions),
    )


def pass_through(
    source: Subscription, hand: Hand | None, steps: tuple[Step, ...], channel: Channel[Any] | str
) -> Subscription:
    """The subscription to the channel that all goes through."""
    return _derive(source, hand, steps, named(source, steps, channel), _unchanged)


def _source_name(source: Subscription) -> str:
    """What the source reads, as a part of a topic's name, which may have letters, digits, dot, hyphen and underscore."""
    return re.sub(r"[^\w.-]+", "_", "-".join(source.names), flags=re.ASCII)


def _own_topic(
    source: Subscription, steps: tuple[Step, ...], name: str, key: Any, partitions: int | None
) -> Topic[Any]:
    from .topic import Topic  # topics make streams, and streams regroup into topics

    value_type = mapped_type(steps) or source.value_type
    return Topic(
        source.run.app,
        name,
        schema=source.schema.regrouped(key_type=_key_type(key, value_type), value_type=value_type),
        partitions=partitions,
        internal=True,
        config=REPARTITION_CONFIG,
    )


def named(source: Subscription, steps: tuple[Step, ...], channel: Channel[Any] | str) -> Channel[Any]:
    """The channel that is meant; a name means a topic with the types of the source.

    Raises:
        ImproperlyConfigured: it cannot be written to.
    """
    from .topic import Topic

    if isinstance(channel, Topic):
        assert channel.destination  # or it raises
    if not isinstance(channel, str):
        return channel
    return topic_like(source.run, source.run.app, channel, source.schema, mapped_type(steps) or source.value_type)


def _derive(
    source: Subscription,
    hand: Hand | None,
    steps: tuple[Step, ...],
    target: Channel[Any] | str,
    key: Callable[[Any], Any],
    *,
    make: Callable[[], Topic[Any]] | None = None,
) -> Subscription:
    """The reader of what the forwarder fills: made once per source and target, and kept while the source is.

    Args:
        make: makes the topic of this name, which is ours alone.
    """
    run = source.run
    if any(part.isolated for part in source.parts):
        refusal = ImproperlyConfigured(
            f"{source.name} reads one partition, and {'through' if key is _unchanged else 'group_by'} would spread its events "
            "over those of another topic, which have no actors here: send them to that topic, and have an agent of its own "
            "with isolated_partitions=True read it"
        )
        run.refuse(refusal)
        raise refusal
    derived = source.derived.get(target)
    if derived is not None:
        assert derived.feeder is not None, "made below"
        derived.feeder.renew(steps, key)
        return derived
    if make is None:
        assert not isinstance(target, str)
        if target in [part.channel for part in source.parts] or target.name in source.names:
            raise ImproperlyConfigured(
                f"{source.name} reads {target.name}: what it sends there it would get again without end; name another channel"
            )
        channel = target
        ours = False
    else:
        if run.state(("regrouped", target), lambda: source) is not source:
            raise ImproperlyConfigured(
                f"{source.name}: another reader regroups through topic {target} already, and would get these messages too: "
                "give this one a name of its own, group_by(..., name='...')"
            )
        channel = make()
        ours = True
    derived = channel.subscribe(run, f"{source.name}/{channel.name}", shared=source.shared)
    cls = _Regrouping if ours else Forwarder
    derived.feeder = cls(source, channel, steps, key, hand, verb="group_by" if key is not _unchanged else "through")
    source.derived[target] = derived
    return derived


class _Regrouping(Forwarder):
    """Fills an intermediate topic of our own."""

    async def prepare(self) -> None:
        topic: Any = self.target
        try:
            if topic.partitions is None:
                topic.partitions = await self._fitting_partitions()
            await topic.prepare(self.run)
        except TopicMismatch as error:
            self.run.refuse(error)
            raise

    async def start(self) -> None:
        await super().start()
        await Trimmer.of(self.run).trim_too(self.target.name)

    async def _fitting_partitions(self) -> int:
        """As many as the source has.

        Raises:
            TopicMismatch: the intermediate topic was made when the source had another number.
        """
        run, topic, source = self.run, self.target.name, _source_name(self.source)
        count = await self.source.partition_count()
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

    def close(self) -> None:
        super().close()
        self.run.forget(("regrouped", self.target.name))
        self.run.forget(self.target)
        Trimmer.of(self.run).topics.discard(self.target.name)
