"""`Topic`: a channel with a name at a broker, partitioned, kept in a log, shared by all workers of a group."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import attrs
import trio

from ..models import Serde, key_serde, value_serde
from .channel import Channel
from .errors import BrokerUnavailable, ImproperlyConfigured
from .future import DeliveryCallback, FutureMessage
from .hand import current_hand
from .message import HeadersArg, as_headers
from .partitioner import partition_for
from .provisioning import create_unless_there, provide_topic
from .retry import Retry
from .runs import Declaration, Run, current_run
from .steps import Processor
from .stream import Stream
from .subscription import Subscription, TopicSubscription
from .transport import TopicSpec

__all__ = ["Topic"]

T = TypeVar("T")

log = logging.getLogger("famulus.topic")


_END_OF_TIME = 253_402_300_800.0  # the year 10,000


@attrs.define
class _TopicState:
    """A topic in one run: its codecs, built once, and whether it has been created."""

    key: Serde[Any]
    value: Serde[Any]
    prepared: bool = False
    preparing: trio.Lock = attrs.field(factory=trio.Lock)


class Topic(Channel[T]):
    """A description of a topic at the broker. It is source of streams and goal of sends.

    Args:
        app: the declaration it belongs to.
        name: at the broker.
        key_type, value_type: what keys and values are decoded into: a `Record`, an attrs class, a dataclass, a builtin type,
            `bytes`. Without one, keys are bytes and values whatever the codec gives.
        key_serializer, value_serializer: codecs, "json" or "raw"; settings of the same names by default.
        partitions: for its creation; setting `topic_partitions` by default.
        retention: seconds, or a timedelta, that the broker keeps messages.
        compacting, deleting: the broker keeps the newest message of each key; drops old ones.
        replicas: copies, for its creation.
        acks: acknowledge events automatically; False leaves `event.ack()` to you.
        internal: the topic is ours: created when missing, and refused where the broker has it with other `partitions`
            or another configuration than declared here. Others are never created or altered, unless the broker is
            embedded in this process or `maybe_declare` is called.
        maxsize: messages that wait for one reader before its partitions are paused.
        config: the broker's own settings for its creation, as ``{"cleanup.policy": "compact"}``.
    """

    def __init__(
        self,
        app: Declaration,
        name: str,
        *,
        key_type: Any = None,
        value_type: Any = None,
        key_serializer: str | None = None,
        value_serializer: str | None = None,
        partitions: int | None = None,
        retention: float | timedelta | None = None,
        compacting: bool | None = None,
        deleting: bool | None = None,
        replicas: int | None = None,
        acks: bool = True,
        internal: bool = False,
        maxsize: int | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        if not name:
            raise ImproperlyConfigured("a topic needs a name")
        if partitions is not None and partitions < 1:
            raise ImproperlyConfigured(
                f"topic {name!r} partitions={partitions!r}: expected a whole number of at least 1"
            )
        super().__init__(
            app,
            name,
            key_type=key_type,
            value_type=value_type,
            key_serializer=key_serializer,
            value_serializer=value_serializer,
            maxsize=maxsize,
            acks=acks,
        )
        self.partitions = partitions
        self.retention = retention.total_seconds() if isinstance(retention, timedelta) else retention
        self.compacting = compacting
        self.deleting = deleting
        self.replicas = replicas
        self.internal = internal
        self.config = dict(config or {})

    # -- at the broker -------------------------------------------------------------------------------------

    def spec(self, run: Run) -> TopicSpec:
        """What the topic would be created as in this run."""
        config = dict(self.config)
        policies = [name for name, on in (("compact", self.compacting), ("delete", self.deleting)) if on]
        if policies:
            config.setdefault("cleanup.policy", ",".join(policies))
        if self.retention is not None:
            config.setdefault("retention.ms", str(round(self.retention * 1000)))
        return TopicSpec(
            name=self.name,
            partitions=self.partitions or run.options.topic_partitions,
            replicas=self.replicas or run.options.topic_replication_factor,
            config=config,
        )

    async def maybe_declare(self) -> None:
        """Create the topic, but only if it does not exist.

        Raises:
            AppNotRunning, AmbiguousRun: see `current_run`.
            TransportError: the broker did not create it.
        """
        await self._create(current_run(self.app))

    async def _create(self, run: Run) -> None:
        if self.internal:
            created = await provide_topic(run.transport, self.spec(run), partitions=self.partitions)
        else:
            created = await create_unless_there(run.transport, self.spec(run))
        if created:
            log.info("created topic %s", self.name)

    async def prepare(self, run: Run) -> None:
        """Before it is first read or written in a run: create it, where that is ours to do."""
        state = self.serdes(run)
        async with state.preparing:
            if not state.prepared:
                if self.internal or run.transport.owns_topics:
                    retry = Retry(f"creating topic {self.name}", run.options, log)
                    await retry.until_done(lambda: self._create(run))
                state.prepared = True

    async def _prepare_now(self, run: Run) -> None:
        """`prepare` for the producer's one task, in one attempt: what it sends to other topics must not wait.

        Raises:
            TransportError: not created; or somebody else is at it.
        """
        state = self.serdes(run)
        if state.prepared:
            return
        if state.preparing.locked():
            raise BrokerUnavailable(f"topic {self.name} is being created")
        async with state.preparing:
            if self.internal or run.transport.owns_topics:
                await self._create(run)
            state.prepared = True

    def serdes(self, run: Run) -> _TopicState:
        """How its keys and values are encoded and decoded in this run."""
        state: _TopicState | None = run.found(self)
        return self._first_serdes(run) if state is None else state

    def _first_serdes(self, run: Run) -> _TopicState:
        """Apart from `serdes`, which is called for every message: a closure there would cost it two cells each time."""
        return run.state(self, lambda: self._make_state(run))

    def _make_state(self, run: Run) -> _TopicState:
        options = run.options
        run.producer.declare[self.name] = lambda: self._prepare_now(run)
        return _TopicState(
            key_serde(self.key_type, self.key_serializer, default=options.key_serializer),
            value_serde(self.value_type, self.value_serializer, default=options.value_serializer),
        )

    # -- reading -------------------------------------------------------------------------------------------

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

    # -- sending -------------------------------------------------------------------------------------------

    def partition_key(self, key: Any, partition: int | None = None) -> int:
        """The partition that a key belongs to (murmur2 over its bytes, as Kafka's clients do), or `partition`.

        Raises:
            ImproperlyConfigured: the topic is declared without a number of partitions.
        """
        if partition is not None:
            return partition
        if self.partitions is None:
            raise ImproperlyConfigured(f"topic {self.name!r} has no declared number of partitions: give partitions=")
        run = current_run(self.app)
        return partition_for(self.serdes(run).key.dumps(key), self.partitions)

    async def send(
        self,
        value: Any = None,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp: float | None = None,
        headers: HeadersArg = None,
        key_serializer: str | None = None,
        value_serializer: str | None = None,
        callback: DeliveryCallback | None = None,
    ) -> FutureMessage:
        """Hand a message to the producer, waiting for room in its buffer. Await the result for the delivery.

        Sent while an event is in hand, it belongs to that event, whose offset waits for its delivery. A value of None is
        a tombstone.

        Args:
            partition: where to write it; chosen by the key by default.
            timestamp: seconds since the epoch, before the year 10,000; the time of sending by default.
            callback: called with the settled promise by the producer's task; what it returns is awaited.

        Raises:
            EncodeError: key or value cannot be encoded.
            ValueError: the timestamp is no time.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)
        future = self._promise(run, key, value, timestamp, headers, key_serializer, value_serializer, callback)
        if run.pacer.due():
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        producer = run.producer
        if producer.has_room:
            producer.add(future, partition)
        else:
            await producer.wait_room()
            producer.enqueue(future, partition=partition)
        return _as_output(future)

    def send_soon(
        self,
        value: Any = None,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp: float | None = None,
        headers: HeadersArg = None,
        key_serializer: str | None = None,
        value_serializer: str | None = None,
        callback: DeliveryCallback | None = None,
    ) -> FutureMessage:
        """Hand a message to the producer without waiting. See `send`.

        Raises:
            BufferFull: no room in the producer's buffer.
            EncodeError: key or value cannot be encoded.
            ValueError: the timestamp is no time.
            AppNotRunning, AmbiguousRun: see `current_run`.
        """
        run = current_run(self.app)
        future = self._promise(run, key, value, timestamp, headers, key_serializer, value_serializer, callback)
        run.producer.enqueue(future, partition=partition)
        return _as_output(future)

    def _promise(
        self,
        run: Run,
        key: Any,
        value: Any,
        timestamp: float | None,
        headers: HeadersArg,
        key_serializer: str | None,
        value_serializer: str | None,
        callback: DeliveryCallback | None,
    ) -> FutureMessage:
        if timestamp is not None and not 0 <= timestamp < _END_OF_TIME:
            raise ValueError(f"timestamp={timestamp!r}: expected seconds since the epoch")
        state = self.serdes(run)
        key_codec, value_codec = state.key, state.value
        if key_serializer is not None:
            key_codec = key_serde(self.key_type, key_serializer)
        if value_serializer is not None:
            value_codec = value_serde(self.value_type, value_serializer)
        return FutureMessage(
            self.name,
            None if key is None else key_codec.dumps(key),
            None if value is None else value_codec.dumps(value),
            as_headers(headers) if headers else (),
            time.time() if timestamp is None else timestamp,
            callback=callback,
        )


def _as_output(future: FutureMessage) -> FutureMessage:
    """What is sent while an event is in hand is an output of that event."""
    hand = current_hand.get()
    if hand is not None:
        hand.claim(future)
    return future
