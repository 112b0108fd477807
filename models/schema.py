"""`Schema`: how the keys and values of a topic travel, as one object that topics can share and users can subclass.

What `channels` relies on, in this order: `bound` once per run; then, where `custom_loads` is False, `decoders`, two plain
functions of bytes, for every message; else `decode_key` and `decode_value`, which are given the headers too. Likewise
`encoders` where `custom_dumps` is False, else `encode_key` and `encode_value`, which may change the headers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

from .codecs import get_codec
from .encodings import CODEC_LIMITS, Codec, CodecLimits, UnsafeCodec, refusal_of
from .errors import DecodeError, FieldError
from .hints import type_name
from .serde import Serde, key_serde, value_serde

__all__ = ["Decoder", "Encoder", "Headers", "Schema"]

Headers = tuple[tuple[str, bytes], ...]
Decoder = Callable[[bytes | None], Any]
Encoder = Callable[[Any], bytes | None]


class Schema:
    """Types and codecs of keys and values: `app.topic("orders", schema=Schema(value_type=Order))`.

    To choose by the message, subclass it and override what you need: each method is given the message's headers, and
    those that encode may return others. They are called for keys and values that are there; None stays None. Each
    topic uses a copy of its own in each run, so a method may keep what it learns on `self`.

    >>> class ByContentType(Schema):
    ...     def loads_value(self, data, headers):
    ...         kind = dict(headers).get("content-type", b"json").decode()
    ...         return self.value_serde(kind).loads(data)
    ...     def dumps_value(self, value, headers):
    ...         return self.value_serde("json").dumps(value), (*headers, ("content-type", b"json"))
    >>> schema = ByContentType(value_type=list[int])
    >>> schema.dumps_value([1], ())
    (b'[1]', (('content-type', b'json'),))

    Args:
        key_type, value_type: as for `value_serde`: a Record, an attrs class, a dataclass, a builtin type. None: keys are
            bytes, values what the codec gives.
        key_serializer, value_serializer: codecs or their names; by default the class's own, then the run's settings of
            the same names.
        allow_empty: whether a message may have no value (a tombstone, which is None); otherwise that is a `DecodeError`.
    """

    def __init__(
        self,
        *,
        key_type: Any = None,
        value_type: Any = None,
        key_serializer: str | Codec | None = None,
        value_serializer: str | Codec | None = None,
        allow_empty: bool = True,
    ) -> None:
        self.key_type = key_type
        self.value_type = value_type
        self.key_serializer = key_serializer
        self.value_serializer = value_serializer
        self.allow_empty = allow_empty
        self._defaults: tuple[str | Codec, str | Codec] = ("raw", "json")
        self._limits = CODEC_LIMITS
        self._topic: str | None = None
        self._origin: Schema | None = None  # what this is a run's copy of

    # -- to be overridden ----------------------------------------------------------------------------------

    def loads_key(self, data: bytes, headers: Headers) -> Any:
        """The key of its bytes. What it raises makes the message one that cannot be decoded."""
        return self.key_serde().loads(data)

    def loads_value(self, data: bytes, headers: Headers) -> Any:
        """The value of its bytes. What it raises makes the message one that cannot be decoded."""
        return self.value_serde().loads(data)

    def dumps_key(self, key: Any, headers: Headers) -> tuple[bytes | None, Headers]:
        """The bytes of a key, and the headers to send: those given, or more. Called before `dumps_value`."""
        return self.key_serde().dumps(key), headers

    def dumps_value(self, value: Any, headers: Headers) -> tuple[bytes | None, Headers]:
        """The bytes of a value, and the headers to send: those given, or more."""
        return self.value_serde().dumps(value), headers

    # -- for subclasses ------------------------------------------------------------------------------------

    def key_serde(self, serializer: str | Codec | None = None) -> Serde[Any]:
        """How keys travel in this run, or would with another serializer. Raises `LookupError` for an unknown one."""
        chosen = self.key_serializer if serializer is None else serializer
        return key_serde(self.key_type, chosen, default=self._defaults[0], limits=self._limits, topic=self._topic)

    def value_serde(self, serializer: str | Codec | None = None) -> Serde[Any]:
        """How values travel in this run, or would with another serializer. Raises `LookupError` for an unknown one."""
        chosen = self.value_serializer if serializer is None else serializer
        return value_serde(self.value_type, chosen, default=self._defaults[1], limits=self._limits, topic=self._topic)

    # -- for channels --------------------------------------------------------------------------------------

    def but(
        self,
        *,
        key_type: Any = None,
        value_type: Any = None,
        key_serializer: str | Codec | None = None,
        value_serializer: str | Codec | None = None,
    ) -> Self:
        """A copy with what is given here in the place of its own; None leaves it as it is."""
        other = copy.copy(self)
        other._origin = None
        other.key_type = self.key_type if key_type is None else key_type
        other.value_type = self.value_type if value_type is None else value_type
        other.key_serializer = self.key_serializer if key_serializer is None else key_serializer
        other.value_serializer = self.value_serializer if value_serializer is None else value_serializer
        return other

    def bound(
        self,
        *,
        key_serializer: str | Codec = "raw",
        value_serializer: str | Codec = "json",
        limits: CodecLimits = CODEC_LIMITS,
        topic: str | None = None,
    ) -> Self:
        """A copy that uses these where it names none, and decodes within these limits: what a run uses for a topic.

        Raises:
            LookupError: an unknown serializer.
            TypeError: a type that cannot be decoded.
        """
        bound = copy.copy(self)
        bound._origin = self._origin or self
        bound._defaults = (get_codec(key_serializer), get_codec(value_serializer))
        bound._limits = limits
        bound._topic = topic
        if not (bound.custom_loads or bound.custom_dumps):
            bound.key_serde()
            bound.value_serde()
        return bound

    @property
    def custom_loads(self) -> bool:
        """Whether decoding is overridden, so that it may want the headers."""
        cls = type(self)
        return cls.loads_key is not Schema.loads_key or cls.loads_value is not Schema.loads_value

    @property
    def custom_dumps(self) -> bool:
        """Whether encoding is overridden, so that it may want and change the headers."""
        cls = type(self)
        return cls.dumps_key is not Schema.dumps_key or cls.dumps_value is not Schema.dumps_value

    def decoders(self) -> tuple[Decoder, Decoder]:
        """The functions for the bytes of keys and of values; where decoding is overridden, without headers."""
        if self.custom_loads:
            return lambda data: self.decode_key(data, ()), lambda data: self.decode_value(data, ())
        value = self.value_serde().loads
        return self.key_serde().loads, value if self.allow_empty else self._never_empty(value)

    def encoders(self) -> tuple[Encoder, Encoder]:
        """The functions that make bytes of keys and of values; where encoding is overridden, without headers."""
        if self.custom_dumps:
            return lambda key: self.encode_key(key, ())[0], lambda value: self.encode_value(value, ())[0]
        return self.key_serde().dumps, self.value_serde().dumps

    def decode_key(self, data: bytes | None, headers: Headers) -> Any:
        """The key of a message, by `loads_key`."""
        return None if data is None else self.loads_key(data, headers)

    def decode_value(self, data: bytes | None, headers: Headers) -> Any:
        """The value of a message, by `loads_value`."""
        if data is None:
            if not self.allow_empty:
                raise self._empty()
            return None
        return self.loads_value(data, headers)

    def encode_key(self, key: Any, headers: Headers) -> tuple[bytes | None, Headers]:
        """Bytes and headers of a message's key, by `dumps_key`."""
        return (None, headers) if key is None else self.dumps_key(key, headers)

    def encode_value(self, value: Any, headers: Headers) -> tuple[bytes | None, Headers]:
        """Bytes and headers of a message's value, by `dumps_value`."""
        return (None, headers) if value is None else self.dumps_value(value, headers)

    @property
    def key_form(self) -> object:
        """The same object where keys have the same bytes."""
        custom = type(self).loads_key is not Schema.loads_key or type(self).dumps_key is not Schema.dumps_key
        return self._origin or self if custom else self.key_serde()

    @property
    def value_form(self) -> object:
        """The same object where values have the same bytes."""
        return self._origin or self if self._custom_values() else self.value_serde()

    @property
    def value_reading(self) -> object:
        """The same object where what one writes the other reads: as `value_form`, whatever the topic."""
        if self._custom_values():
            return self.value_form
        return value_serde(self.value_type, self.value_serializer, default=self._defaults[1], limits=self._limits)

    def _custom_values(self) -> bool:
        return type(self).loads_value is not Schema.loads_value or type(self).dumps_value is not Schema.dumps_value

    def regrouped(self, *, key_type: Any, value_type: Any) -> Schema:
        """For the same values under other keys."""
        if self._custom_values():
            return _Regrouped(self.but(value_type=value_type) if value_type is not self.value_type else self, key_type)
        return Schema(
            key_type=key_type,
            value_type=value_type,
            value_serializer=self.value_serializer,
            allow_empty=self.allow_empty,
        )

    def check_readable(self) -> None:
        """Before anything is read: refuse a codec that would refuse every message.

        Raises:
            UnsafeCodec: decoding with it is not allowed in this run.
        """
        if self.custom_loads:
            return  # it may use others
        for serde in (self.key_serde(), self.value_serde()):
            reason = refusal_of(serde.codec)
            if reason:
                raise UnsafeCodec(reason)

    def _never_empty(self, load: Decoder) -> Decoder:
        def loads(data: bytes | None) -> Any:
            if data is None:
                raise self._empty()
            return load(data)

        return loads

    def _empty(self) -> DecodeError:
        expected = "a value" if self.value_type is None else type_name(self.value_type)
        return DecodeError(FieldError("$", expected, "nothing", "the schema has allow_empty=False"))

    def __repr__(self) -> str:
        named = {name: getattr(self, name) for name in ("key_type", "value_type", "key_serializer", "value_serializer")}
        shown = [
            f"{name}={repr(value) if name.endswith('serializer') else type_name(value)}"
            for name, value in named.items()
            if value is not None
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


class _Regrouped(Schema):
    """Values by another schema, keys plain."""

    def __init__(self, values: Schema, key_type: Any) -> None:
        super().__init__(key_type=key_type, value_type=values.value_type, allow_empty=values.allow_empty)
        self._values = values

    def bound(
        self,
        *,
        key_serializer: str | Codec = "raw",
        value_serializer: str | Codec = "json",
        limits: CodecLimits = CODEC_LIMITS,
        topic: str | None = None,
    ) -> Self:
        bound = super().bound(
            key_serializer=key_serializer, value_serializer=value_serializer, limits=limits, topic=topic
        )
        bound._values = self._values.bound(
            key_serializer=key_serializer, value_serializer=value_serializer, limits=limits, topic=topic
        )
        return bound

    @property
    def value_form(self) -> object:
        return self._values.value_form

    def loads_value(self, data: bytes, headers: Headers) -> Any:
        return self._values.loads_value(data, headers)

    def dumps_value(self, value: Any, headers: Headers) -> tuple[bytes | None, Headers]:
        return self._values.dumps_value(value, headers)
