"""A topic in one run: how a message for it is made of key, value and options. `Topic` calls this for each send."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..models import NotReady, Schema
from .arguments import Serializer
from .errors import ImproperlyConfigured
from .future import DeliveryCallback, FutureMessage
from .message import Headers, HeadersArg, as_headers, as_partition, as_timestamp
from .preparing import Preparation
from .runs import Run

if TYPE_CHECKING:
    from .topic import Topic

__all__ = ["TopicState", "bound_schema"]

F = TypeVar("F", bound=FutureMessage)


class TopicState:
    """What a run keeps for a topic.

    Attributes:
        schema: the topic's, with the settings of the run.
        dump_key, dump_value: encode without headers.
        key_form, value_form: what it comes to, looked up once: bytes of two topics are the same where these are.
        value_reading: how it decodes: where these are the same, one topic reads the other's bytes.
        preparation: what is done before the topic is used.
    """

    __slots__ = (
        "_goal",
        "_run",
        "_topic",
        "_uniform",
        "dump_key",
        "dump_value",
        "key_form",
        "preparation",
        "schema",
        "value_form",
        "value_reading",
    )

    def __init__(self, run: Run, topic: Topic[Any], preparation: Preparation) -> None:
        self._run = run
        self._topic = topic
        self._goal = topic.topics[0] if len(topic.topics) == 1 else None
        self.preparation = preparation
        self.schema = bound_schema(topic.schema, run, self._goal)
        self.dump_key, self.dump_value = self.schema.encoders()
        self.key_form: Final = self.schema.key_form
        self.value_form: Final = self.schema.value_form
        self.value_reading: Final = self.schema.value_reading
        self._uniform = not self.schema.custom_dumps  # or else headers come into it

    def plain(self, key: Any, value: Any) -> FutureMessage:
        """`promise` without options; most messages have none."""
        if not self._uniform:
            return self.promise(key, value)
        return FutureMessage(
            self._goal or self._topic.destination,
            None if key is None else self.dump_key(key),
            None if value is None else self.dump_value(value),
            (),
            time(),
        )

    def request(self, key: Any, value: Any, headers: Headers, make: Callable[..., F]) -> F:
        """`plain` with headers that need no look, as a message of the caller's making."""
        if self._uniform:
            raw_key = None if key is None else self.dump_key(key)
            raw_value = None if value is None else self.dump_value(value)
        else:
            raw_key, headers = self.schema.encode_key(key, headers)
            raw_value, headers = self.schema.encode_value(value, headers)
        return make(self._goal or self._topic.destination, raw_key, raw_value, headers, time())

    def promise(
        self,
        key: Any,
        value: Any,
        partition: int | None = None,
        timestamp: float | None = None,
        headers: HeadersArg = None,
        schema: Schema | None = None,
        key_serializer: Serializer = None,
        value_serializer: Serializer = None,
        callback: DeliveryCallback | None = None,
    ) -> FutureMessage:
        """An encoded message, see `MessageOptions`.

        Raises:
            EncodeError: key or value cannot be encoded.
            ImproperlyConfigured: the topic cannot be written to, or the schema is none.
            LookupError: an unknown serializer.
            TypeError, ValueError: a value that its option does not take.
        """
        pairs = as_headers(headers) if headers else ()
        if self._uniform and schema is None and key_serializer is None and value_serializer is None:
            key = None if key is None else self.dump_key(key)
            value = None if value is None else self.dump_value(value)
        else:
            used = self.schema if schema is None else self._other(schema)
            if key_serializer is not None or value_serializer is not None:
                used = used.but(key_serializer=key_serializer, value_serializer=value_serializer)
            key, pairs = used.encode_key(key, pairs)
            value, pairs = used.encode_value(value, pairs)
        future = FutureMessage(
            self._goal or self._topic.destination,
            key,
            value,
            pairs,
            time() if timestamp is None else as_timestamp(timestamp),
            callback=callback,
        )
        if partition is not None:
            future.partition = as_partition(partition)
        return future

    async def promise_when_ready(self, pending: NotReady, *message: Any) -> FutureMessage:
        """`promise`, after what the codecs have to fetch first."""
        while True:
            await self._run.errands.run(pending)
            try:
                return self.promise(*message)
            except NotReady as another:
                pending = another

    def promise_now(self, *message: Any, **options: Any) -> FutureMessage:
        """`promise` for those who cannot wait for what the codecs have to fetch.

        Raises:
            NotReady: that is needed; it says what to await.
        """
        try:
            return self.promise(*message, **options)
        except NotReady as pending:
            raise NotReady(
                f"topic {self._topic.name!r} needs {pending.what}, and this call cannot wait for it: `await send(...)` to the "
                "topic once before, which gets it for all that follow",
                pending.work,
            ) from None

    def _other(self, schema: Any) -> Schema:
        if not isinstance(schema, Schema):
            raise ImproperlyConfigured(f"a message to {self._topic.name} schema={schema!r}: expected a famulus.Schema")
        return bound_schema(schema, self._run, self._goal)

    def encoded(
        self, key: Any, value: Any, headers: Headers, raw_key: bytes | None, raw_value: bytes | None
    ) -> tuple[bytes | None, bytes | None, Headers]:
        """Key, value and headers as they are sent; raw bytes go as they are."""
        if not self.schema.custom_dumps:
            return (
                self.dump_key(key) if raw_key is None else raw_key,
                self.dump_value(value) if raw_value is None else raw_value,
                headers,
            )
        if raw_key is None:
            raw_key, headers = self.schema.encode_key(key, headers)
        if raw_value is None:
            raw_value, headers = self.schema.encode_value(value, headers)
        return raw_key, raw_value, headers


def bound_schema(schema: Schema, run: Run, topic: str | None = None) -> Schema:
    """A schema with the settings of a run, for a topic where there is one."""
    options = run.options
    return schema.bound(
        key_serializer=options.key_serializer,
        value_serializer=options.value_serializer,
        limits=options.codec_limits,
        topic=topic,
    )
