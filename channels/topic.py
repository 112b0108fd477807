"""`Topic`: a channel with a name at a broker, partitioned, kept in a log, shared by all workers of a group."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Self, TypeVar, Unpack, overload

import trio

from ..models import NotReady, Schema
from .arguments import (
    Changes,
    DerivedOptions,
    MessageOptions,
    Serializer,
    TopicOptions,
    changed,
    channel_options,
    check_known,
    check_options,
    compiled_pattern,
    topic_config,
    topic_title,
)
from .channel import Channel
from .errors import ImproperlyConfigured
from .future import DeliveryCallback, FutureMessage
from .hand import current_hand
from .letters import LETTERS
from .message import HeadersArg
from .offsets import end_offsets, lag
from .partitioner import partition_for
from .preparing import Preparation
from .runs import Declaration, Run, current_run
from .sending import TopicState
from .steps import Processor
from .stream import Stream
from .subscription import Subscription, TopicSubscription
from .transport import TopicSpec

__all__ = ["Topic"]

T = TypeVar("T")
U = TypeVar("U")


class Topic(Channel[T]):
    """A description of a topic at the broker. It is source of streams and goal of sends.

    Args:
        app: the declaration it belongs to.
        topics: its name at the broker; several names, or the option `pattern` in place of a name, for a description that can
            only be read from.
        value_type: what values are decoded into: a `Record`, an attrs class, a dataclass, a builtin type, `bytes`.
            Without one, they are whatever the codec gives.
        options: see `TopicOptions` and `ChannelOptions`.

    Raises:
        ImproperlyConfigured: a value is not what its option takes; or neither name nor pattern, or both.
    """

    def __init__(
        self,
        app: Declaration,
        *topics: str,
        value_type: Any = None,
        **options: Unpack[TopicOptions],
    ) -> None:
        self.app = app
        self._describe_topics(topics, value_type, options)

    def _describe_topics(self, topics: tuple[str, ...], value_type: Any, options: TopicOptions) -> None:
        """Check and keep what it is declared with; for a copy once more."""
        pattern = compiled_pattern(options.get("pattern"))
        name = topic_title(topics, pattern)
        self._shown = f"topic {name!r}"
        check_options(self._shown, options, TopicOptions)
        self._configure(name, value_type, channel_options(options))
        self._topic_options: dict[str, Any] = {"value_type": value_type, **options}
        self.topics = topics
        self.pattern = pattern
        retention = options.get("retention")
        self.partitions = options.get("partitions")
        self.retention = retention.total_seconds() if isinstance(retention, timedelta) else retention
        self.compacting = options.get("compacting")
        self.deleting = options.get("deleting")
        self.replicas = options.get("replicas")
        self.internal = options.get("internal", pattern is None and all(each.endswith(LETTERS) for each in topics))
        self.delivery_guarantee = options.get("delivery_guarantee", "at_least_once")
        self.on_decode_error = options.get("on_decode_error", "skip")
        self.dead_letter = options.get("dead_letter")
        self.root = options.get("root")
        self.config = topic_config(
            self._shown,
            options.get("config"),
            compacting=self.compacting,
            deleting=self.deleting,
            retention=self.retention,
        )
        if self.pattern is not None and self.internal:
            raise ImproperlyConfigured(f"{self._shown} internal=True: a pattern names no topic that could be created")
        self._goal = name if len(topics) == 1 else None

    # -- copies --------------------------------------------------------------------------------------------

    def clone(self, **changes: Unpack[Changes]) -> Self:
        """A description that is like this one but for `changes`; `name` stands for `topics` with one name.

        Raises:
            ImproperlyConfigured: see `Topic`.
        """
        return self._copy(*self._changed(changes))

    def _copy(self, topics: tuple[str, ...], options: Any) -> Self:
        """Without `__init__`, which a subclass may have with other parameters; its attributes go along."""
        clone = copy.copy(self)
        value_type = options.pop("value_type", None)
        clone._describe_topics(topics, value_type, options)
        return clone

    def derive(self, **changes: Unpack[Changes]) -> Topic[Any]:
        """The same as `derive_topic`, under the name that all channels have it."""
        return self._derived(dict(changes))

    @overload
    def derive_topic(self, name: str | None = None, *, value_type: type[U], prefix: str = "", suffix: str = "", **changes: Unpack[DerivedOptions]) -> Topic[U]: ...  # fmt: skip  # noqa: E501
    @overload
    def derive_topic(self, name: str | None = None, *, prefix: str = "", suffix: str = "", **changes: Unpack[DerivedOptions]) -> Topic[T]: ...  # fmt: skip  # noqa: E501
    @overload
    def derive_topic(self, name: str | None = None, *, value_type: Any, prefix: str = "", suffix: str = "", **changes: Unpack[DerivedOptions]) -> Topic[Any]: ...  # fmt: skip  # noqa: E501
    def derive_topic(
        self, name: str | None = None, *, prefix: str = "", suffix: str = "", **changes: Any
    ) -> Topic[Any]:
        """Describe another topic with the options of this one, and this one as its `root`.

        Args:
            name: of the other topic; or give `topics`, several names. By default this one's own, between prefix and suffix.
            prefix, suffix: put around the name, or around each of them.
            changes: what is otherwise there than here.

        Raises:
            ImproperlyConfigured: see `Topic`; or a prefix or suffix for a pattern.
        """
        if name is not None:
            changes["name"] = name
        return self._derived(changes, prefix, suffix)

    def _derived(self, changes: dict[str, Any], prefix: str = "", suffix: str = "") -> Topic[Any]:
        topics, options = self._changed(changes)
        if (prefix or suffix) and not topics:
            raise ImproperlyConfigured(
                f"{self._shown}: prefix={prefix!r}, suffix={suffix!r} go around names, not around a pattern"
            )
        if "root" not in changes:
            options["root"] = self
        return self._copy(tuple(f"{prefix}{name}{suffix}" for name in topics), options)

    def _changed(self, changes: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
        """The names and options that a changed copy has."""
        options = changed(self._topic_options, changes)
        topics = tuple(options.pop("topics", None) or ())
        name = options.pop("name", None)
        if name is not None:
            topics = (*topics, name)
        if topics:
            if "pattern" not in changes:
                options.pop("pattern", None)
        elif "pattern" not in changes:
            topics = self.topics
        return topics, options

    # -- at the broker -------------------------------------------------------------------------------------

    def spec(self, run: Run) -> TopicSpec:
        """What the topic would be created as in this run.

        Raises:
            ImproperlyConfigured: it is a pattern, or several.
        """
        self._one("created")
        return self.specs(run)[0]

    def specs(self, run: Run) -> list[TopicSpec]:
        """The same for each of the topics; none for a pattern."""
        partitions = self.partitions or run.options.topic_partitions
        replicas = self.replicas or run.options.topic_replication_factor
        return [
            TopicSpec(name=name, partitions=partitions, replicas=replicas, config=self.config) for name in self.topics
        ]

    @property
    def destination(self) -> str:
        """The topic that is written to.

        Raises:
            ImproperlyConfigured: this describes a pattern, or several topics.
        """
        return self._goal or self._one("written to")

    def _one(self, done: str) -> str:
        """Its name.

        Raises:
            ImproperlyConfigured: it is a pattern, or several.
        """
        if self._goal is None:
            what = "several topics" if self.topics else "a pattern"
            raise ImproperlyConfigured(
                f"{self._shown} is {what}, which cannot be {done}: describe the one that is meant"
            )
        return self._goal

    async def declare(self) -> None:
        """Create the topic at the broker; where it exists, see that it is as declared.

        Raises:
            TopicMismatch: it exists with other partitions or another configuration; the message says what mends it.
            TransportError: the broker did not create it.
            ImproperlyConfigured: it is a pattern.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        await self._to_be_created(current_run(self.app)).create(check=True)

    async def maybe_declare(self) -> None:
        """Create the topic, but only if it does not exist. One that is there is not altered, and if not `internal`, not judged.

        Raises:
            TopicMismatch: an internal topic is not as declared.
            TransportError: the broker did not create it.
            ImproperlyConfigured: it is a pattern.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        await self._to_be_created(current_run(self.app)).create(check=self.internal)

    def _to_be_created(self, run: Run) -> Preparation:
        if not self.topics:
            self._one("created")
        return self.serdes(run).preparation

    async def end_offsets(self) -> Mapping[int, int]:
        """Where the topic's log ends now: by partition, the offset of the next message that is written there.

        It is asked of the broker at each call, and needs no stream of the topic. What was sent and is not delivered yet is not
        in the log: await the delivery first.

        Raises:
            UnknownTopic: the broker does not have it, and it is not ours to create.
            TransportError: the broker does not let us look.
            ImproperlyConfigured: it is a pattern, or several topics.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)
        name = self._one("asked for where it ends")
        await self.prepare(run)
        return await end_offsets(run.transport, name)

    async def lag(self) -> Mapping[int, int]:
        """How far the app's group is behind: by partition, the offsets from the one that it committed last to the log's end.

        It counts for all workers of the app, and as of their last commit (see the setting `broker_commit_interval`); for this
        run alone, and up to what is acknowledged, there is `RunningApp.statistics`. An offset is committed when the outputs of
        its event are delivered: so where a chain of topics is looked at from its beginning on, and none has any lag, all is done.

        Raises:
            UnknownTopic, TransportError, ImproperlyConfigured, AppNotRunning, AmbiguousRun: see `end_offsets`.
        """
        run = current_run(self.app)
        name = self._one("asked for its lag")
        await self.prepare(run)
        return await lag(run.transport, name, run.app.id, run.options.consumer_auto_offset_reset)

    async def prepare(self, run: Run) -> None:
        """Before it is first read or written in a run: create it, where that is ours to do."""
        await self.serdes(run).preparation.wait_done()

    def serdes(self, run: Run) -> TopicState:
        """How its keys and values are encoded and decoded in this run."""
        state: TopicState | None = run.found(self)
        return self._first_serdes(run) if state is None else state

    def _first_serdes(self, run: Run) -> TopicState:
        """Apart from `serdes`, which is called for every message: a closure there would cost it two cells each time."""
        return run.state(self, lambda: self._make_state(run))

    def _make_state(self, run: Run) -> TopicState:
        preparation = Preparation(run, self)
        if self._goal is not None:
            run.producer.declare[self._goal] = preparation.attempt
        return TopicState(run, self, preparation)

    # -- reading -------------------------------------------------------------------------------------------

    @property
    def place(self) -> Hashable:
        return self.topics, self.pattern

    def overlaps(self, other: Channel[Any]) -> bool:
        """Whether something may be read from both; of two patterns that is taken for granted."""
        if not isinstance(other, Topic):
            return False
        if self.pattern is not None and other.pattern is not None:
            return True
        return any(map(self._reads, other.topics)) or any(map(other._reads, self.topics))

    def _reads(self, topic: str) -> bool:
        return topic in self.topics or (self.pattern is not None and self.pattern.fullmatch(topic) is not None)

    def subscribe(self, run: Run, name: str, *, shared: bool = False) -> Subscription:
        return TopicSubscription(run, self, name, shared=shared)

    def stream(self, *, processors: Iterable[Processor] = ()) -> Stream[T]:
        """A stream of the topic's messages in the partitions of this worker. Made while running, it may rebalance.

        Args:
            processors: functions, plain or async, through which each value goes, in this order.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        return super().stream(processors=processors)

    def _waits_for_reader(self, run: Run) -> bool:
        return False  # it waits at the broker, and `get` has to ask for it

    # -- sending -------------------------------------------------------------------------------------------

    def get_partition_key(self, key: Any, partition: int | None = None) -> int:
        """The partition that a key belongs to (murmur2 over its bytes, as Kafka's clients do), or `partition`.

        Raises:
            ImproperlyConfigured: the topic is declared without a number of partitions.
        """
        if partition is not None:
            return partition
        if self.partitions is None:
            raise ImproperlyConfigured(f"{self._shown} has no declared number of partitions: give partitions=")
        run = current_run(self.app)
        return partition_for(self.serdes(run).schema.encode_key(key, ())[0], self.partitions)

    # The options of sends are named here once more, since a mapping of them would cost a fifth of a send; pyright does not
    # see that they are those of the base.
    async def send(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        value: Any = None,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp: float | None = None,
        headers: HeadersArg = None,
        schema: Schema | None = None,
        key_serializer: Serializer = None,
        value_serializer: Serializer = None,
        callback: DeliveryCallback | None = None,
        force: bool = False,
    ) -> FutureMessage:
        """Hand a message to the producer, waiting for room in its buffer. Await the result for the delivery.

        Sent while an event is in hand, it belongs to that event, whose offset waits for its delivery. A value of None is
        a tombstone.

        Args:
            partition, timestamp, headers, schema, key_serializer, value_serializer, callback, force: see `SendOptions`. A
                callback is called by a task of the run.

        Raises:
            EncodeError: key or value cannot be encoded.
            TypeError, ValueError: a value that its option does not take.
            ImproperlyConfigured: this describes a pattern, or several topics.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)
        state = self.serdes(run)
        try:
            if (
                partition is None
                and timestamp is None
                and headers is None
                and schema is None
                and key_serializer is None
                and value_serializer is None
                and callback is None
            ):
                future = state.plain(key, value)
            else:
                future = state.promise(
                    key, value, partition, timestamp, headers, schema, key_serializer, value_serializer, callback
                )
        except NotReady as pending:
            future = await state.promise_when_ready(
                pending, key, value, partition, timestamp, headers, schema, key_serializer, value_serializer, callback
            )
        if run.pacer.due():
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        producer = run.producer
        if producer.has_room:
            producer.add(future, None)
        else:
            await producer.wait_room()
            producer.enqueue(future, partition=None)
        if force:
            producer.hurry()
            return future
        return _as_output(future)

    async def submit(self, run: Run, future: FutureMessage) -> None:
        """The second half of `send`, for a message that is made: hand it to the producer, waiting for room."""
        if run.pacer.due():
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        producer = run.producer
        if producer.has_room:
            producer.add(future, None)
        else:
            await producer.wait_room()
            producer.enqueue(future, partition=None)
        _as_output(future)

    def send_soon(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        value: Any = None,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp: float | None = None,
        headers: HeadersArg = None,
        schema: Schema | None = None,
        key_serializer: Serializer = None,
        value_serializer: Serializer = None,
        callback: DeliveryCallback | None = None,
        force: bool = False,
        eager_partitioning: bool | None = None,
    ) -> FutureMessage:
        """Hand a message to the producer without waiting. See `send`.

        Raises:
            BufferFull: no room in the producer's buffer.
            trio.WouldBlock: `eager_partitioning`, and the number of the topic's partitions is not known yet.
            EncodeError: key or value cannot be encoded.
            NotReady: its codec has to ask a schema registry first, for which this cannot wait.
            TypeError, ValueError: a value that its option does not take.
            ImproperlyConfigured: this describes a pattern, or several topics.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)
        future = self.serdes(run).promise_now(
            key, value, partition, timestamp, headers, schema, key_serializer, value_serializer, callback
        )
        if eager_partitioning:
            self._choose_partition(run, future)
        run.producer.enqueue(future, partition=None)
        if force:
            run.producer.hurry()
            return future
        return _as_output(future)

    def as_future_message(
        self, value: Any = None, *, key: Any = None, **options: Unpack[MessageOptions]
    ) -> FutureMessage:
        """The promise of a message that is encoded, and still to be sent by `publish_message`.

        Raises:
            EncodeError: key or value cannot be encoded.
            NotReady: its codec has to ask a schema registry first, for which this cannot wait.
            TypeError, ValueError: a value that its option does not take.
            ImproperlyConfigured: this describes a pattern, or several topics.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        check_known(f"a message to {self._shown}", options, MessageOptions)
        return self.serdes(current_run(self.app)).promise_now(key, value, **options)

    async def publish_message(self, fut: FutureMessage, wait: bool = True) -> FutureMessage:
        producer = current_run(self.app).producer
        await trio.lowlevel.checkpoint()
        await producer.wait_room()
        if fut.topic != self._goal or fut.sent:
            raise ValueError(f"{fut!r} is no unsent message of {self._shown}")
        producer.enqueue(fut, partition=None)
        _as_output(fut)
        if wait:
            await fut
        return fut

    def _choose_partition(self, run: Run, future: FutureMessage) -> None:
        """Where the producer would have to ask the broker first, the declaration may know."""
        if future.partition >= 0 or run.producer.knows(future.topic):
            return
        if self.partitions is None or not self.internal or not self.serdes(run).preparation.done:
            raise trio.WouldBlock(
                f"{self._shown}: its number of partitions is not known yet, so eager_partitioning has nothing to go by: "
                "`await send(...)` to it once before, or declare it internal=True with partitions="
            )
        future.partition = 0 if future.key is None else partition_for(future.key, self.partitions)


def _as_output(future: FutureMessage) -> FutureMessage:
    """What is sent while an event is in hand is an output of that event."""
    hand = current_hand.get()
    if hand is not None:
        hand.claim(future)
    return future
