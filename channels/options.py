"""The numbers that bound and pace the messaging of a run. `app.Settings` adds the rest and reads the environment.

Everything that buffers has its bound here, under a name, with a unit (law 3).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Literal

import attrs

from ..models import CODEC_LIMITS, CodecLimits
from .errors import ImproperlyConfigured

__all__ = ["MessagingOptions", "setting"]


def _number(kind: type[int] | type[float], low: float, high: float) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    expected = "a whole number" if kind is int else "a number"
    kinds: tuple[type, ...] = (int,) if kind is int else (int, float)

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        good = isinstance(value, kinds) and not isinstance(value, bool)
        if not (good and low <= value <= high):  # NaN is not
            bounds = f"of at least {low:g}" if high == inf else f"from {low:g} to {high:g}"
            raise ImproperlyConfigured(f"setting {attribute.name}={value!r}: expected {expected} {bounds}")

    return check


def _text(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ImproperlyConfigured(f"setting {attribute.name}={value!r}: expected text that is not empty")


def _flag(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise ImproperlyConfigured(f"setting {attribute.name}={value!r}: expected True or False")


def _choice(*choices: str) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in choices:
            expected = " or ".join(repr(choice) for choice in choices)
            raise ImproperlyConfigured(f"setting {attribute.name}={value!r}: expected {expected}")

    return check


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float = inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a field of a settings class: its default, its meaning with unit, and what values it takes."""
    validator: Callable[[Any, attrs.Attribute[Any], Any], None]
    if choices:
        validator = _choice(*choices)
    elif isinstance(default, bool):
        validator = _flag
    elif isinstance(default, int | float):
        validator = _number(type(default), 0 if low is None else low, high)
    else:
        validator = _text
    checked = attrs.validators.optional(validator) if default is None else validator
    return attrs.field(default=default, validator=checked, metadata={"help": help})


@attrs.frozen(kw_only=True)
class MessagingOptions:
    """Bounds and intervals of a run's messaging, frozen at start. Times are in seconds.

    Raises:
        ImproperlyConfigured: a value is out of its bounds; the message names it and what was expected.
    """

    stream_buffer_maxsize: int = setting(
        4096, "messages that wait for one stream before its partitions are paused", low=1
    )
    stream_max_span: int = setting(
        100_000, "offsets between the lowest unacknowledged and the newest delivered message of a partition", low=1
    )
    stream_drain_timeout: float = setting(
        5.0, "seconds that events in hand may take at a rebalance before their actors are cancelled"
    )
    stream_pause_after: float = setting(
        1.0, "seconds that a partition's stream has to be full before the partition is paused at the broker"
    )
    stream_watchdog_timeout: float = setting(
        300.0, "seconds that one event may be in hand before the stream's task is named in the log; 0 turns it off"
    )
    stream_watchdog_action: Literal["warn", "restart"] = setting(
        "warn", "whether an agent that takes longer has also failed and is started again", choices=("warn", "restart")
    )
    stream_ready_timeout: float = setting(
        5.0, "seconds that start waits for each actor to reach its stream before it goes on without it"
    )
    broker_commit_interval: float = setting(3.0, "seconds between two commits", low=0.001)
    broker_commit_every: int = setting(10_000, "acknowledged messages after which a commit is made early", low=1)
    broker_commit_timeout: float = setting(10.0, "seconds that one commit may take", low=0.001)
    broker_session_timeout: float = setting(
        10.0, "seconds without a heartbeat after which the broker gives a worker's partitions away", low=0.001
    )
    broker_rebalance_timeout: float = setting(
        60.0, "seconds that a rebalance may wait for this worker to drain and commit", low=0.001
    )
    broker_retry_backoff: float = setting(
        0.1, "seconds before the first retry; doubled for each further one", low=0.001
    )
    broker_retry_backoff_max: float = setting(5.0, "longest time in seconds between two retries", low=0.001)
    consumer_auto_offset_reset: Literal["earliest", "latest"] = setting(
        "earliest", "where a group starts in a partition without a committed offset", choices=("earliest", "latest")
    )
    consumer_group_instance_id: str | None = setting(None, "static group membership: this member's own lasting name")
    producer_buffer_maxsize: int = setting(10_000, "messages that wait for the broker before send waits", low=1)
    producer_buffer_bytes: int = setting(33_554_432, "bytes that wait for the broker before send waits", low=1)
    producer_max_batch_bytes: int = setting(1_000_000, "bytes that are written to one partition at once", low=1)
    producer_linger: float = setting(0.0, "seconds to wait for more messages before a batch is written")
    producer_delivery_timeout: float = setting(
        120.0,
        "seconds after which a message that the broker has not confirmed counts as failed, though it may be written later",
        low=0.001,
    )
    producer_flush_timeout: float = setting(10.0, "seconds that a flush may take at commit and at exit", low=0.001)
    reply_to_prefix: str | None = setting(
        None, "beginning of the name of the topic that this run gets its answers in; <app id>-reply- by default"
    )
    reply_expires: float = setting(
        86_400.0, "seconds that the broker keeps answers whose caller died without deleting its topic", low=0.001
    )
    reply_create_topic: bool = setting(
        False, "whether the reply topic is made at the start of every run, and not when the first ask needs it"
    )
    reply_window: int = setting(1000, "requests of one map or join that wait for their answers at once", low=1)
    reply_buffer_maxsize: int = setting(1024, "parts of one ask_stream that wait for their caller", low=1)
    topic_partitions: int = setting(8, "partitions of a topic that is created without a number", low=1)
    topic_replication_factor: int = setting(1, "copies of a topic that is created without a number", low=1)
    topic_metadata_age: float = setting(
        60.0, "seconds after which a topic that is written to is looked at again, for partitions added since", low=0.001
    )
    topic_trim_interval: float = setting(
        30.0, "seconds between two times that what is done is deleted from the topics of group_by", low=0.001
    )
    key_serializer: str = setting("raw", "codec for keys where the topic names none")
    value_serializer: str = setting("json", "codec for values where the topic names none")
    codec_allow_pickle: bool = setting(
        False,
        "whether the codec pickle decodes; a pickle can run any program: only where all who can write are trusted",
    )
    codec_max_decompressed: int = setting(
        CODEC_LIMITS.max_decompressed,
        "bytes that a message may have once the codec gzip or zlib has decompressed it",
        low=1,
    )

    @property
    def codec_limits(self) -> CodecLimits:
        """What decoding may do in this run."""
        return CodecLimits(allow_pickle=self.codec_allow_pickle, max_decompressed=self.codec_max_decompressed)

    def __attrs_post_init__(self) -> None:
        spent = self.stream_drain_timeout + self.producer_flush_timeout + self.broker_commit_timeout
        if spent >= self.broker_rebalance_timeout:
            raise ImproperlyConfigured(
                f"setting broker_rebalance_timeout={self.broker_rebalance_timeout:g}: expected more than "
                f"stream_drain_timeout + producer_flush_timeout + broker_commit_timeout = {spent:g} seconds, "
                "since all of them happen within one rebalance"
            )
