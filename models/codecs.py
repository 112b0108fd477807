"""Codecs: between plain data and bytes.

`register` adds one by name; topics and records name them as serializer.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import orjson

from .plain import dump_json

__all__ = ["Codec", "JSONCodec", "RawCodec"]
__all__ += ["get_codec", "names", "register"]


@runtime_checkable
class Codec(Protocol):
    """Anything that makes bytes of plain data (None, bool, int, float, str, list, dict) and plain data of
    bytes.

    It raises any `ValueError` or `TypeError` on what it cannot do; the serde around it says which type and
    where.
    """

    def dumps(self, obj: Any, /) -> bytes: ...

    def loads(self, data: bytes, /) -> Any: ...


class JSONCodec:
    """JSON by orjson. Encodes every supported type; NaN and infinity become `null`, as JSON has neither."""

    __slots__ = ()

    # The C functions themselves: a method around them would cost a call per message.
    dumps = staticmethod(dump_json)
    loads = staticmethod(orjson.loads)

    def __repr__(self) -> str:
        return "<codec json>"


class RawCodec:
    """Bytes as they are; text is UTF-8."""

    __slots__ = ()

    def dumps(self, obj: Any, /) -> bytes:
        if isinstance(obj, bytes):
            return obj
        if isinstance(obj, str):
            return obj.encode()
        if isinstance(obj, bytearray | memoryview):
            return bytes(obj)
        raise TypeError(f"the raw codec takes bytes or str, not {type(obj).__name__}")

    def loads(self, data: bytes, /) -> bytes:
        return data

    def __repr__(self) -> str:
        return "<codec raw>"


_codecs: dict[str, Codec] = {"json": JSONCodec(), "raw": RawCodec()}


def register(name: str, codec: Codec) -> None:
    """Make `codec` known as `name`. A name that is taken is replaced, for serdes built from then on.

    Raises `TypeError` when the codec lacks `dumps` or `loads`.
    """
    if not isinstance(codec, Codec):
        raise TypeError(f"codec {name!r} needs the methods dumps(obj) and loads(bytes), got {codec!r}")
    if not name or not isinstance(name, str):
        raise TypeError(f"a codec's name is a non-empty str, got {name!r}")
    _codecs[name] = codec


def names() -> tuple[str, ...]:
    """The names that `get_codec` knows, sorted."""
    return tuple(sorted(_codecs))


def get_codec(name_or_codec: str | Codec) -> Codec:
    """The codec of that name; a codec is returned as it is.

    >>> get_codec("jsno")
    Traceback (most recent call last):
    LookupError: unknown codec 'jsno': expected one of json, raw, or an object with dumps and loads
    """
    if isinstance(name_or_codec, str):
        try:
            return _codecs[name_or_codec]
        except KeyError:
            pass
    elif isinstance(name_or_codec, Codec):
        return name_or_codec
    raise LookupError(
        f"unknown codec {name_or_codec!r}: expected one of {', '.join(names())}, or an object with dumps and loads"
    )
