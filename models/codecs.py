"""Codecs by name: between plain data and bytes.

Topics and records name one as serializer; `register` adds one, and so does an entry point of the group
`famulus.codecs`. A name may be a chain, `"json|gzip"`: from left to right when encoding. The codecs themselves are in
`encodings`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from .encodings import (
    CODEC_LIMITS,
    BinaryCodec,
    Chain,
    Codec,
    CodecLimits,
    CompressCodec,
    JSONCodec,
    MsgpackCodec,
    PickleCodec,
    RawCodec,
    TopicCodec,
    UnsafeCodec,
    WholeCodec,
    YAMLCodec,
)

__all__ = ["CODEC_LIMITS", "Codec", "CodecLimits", "TopicCodec", "UnsafeCodec", "WholeCodec"]
__all__ += [
    "BinaryCodec",
    "Chain",
    "CompressCodec",
    "JSONCodec",
    "MsgpackCodec",
    "PickleCodec",
    "RawCodec",
    "YAMLCodec",
]
__all__ += ["chain", "dumps", "get_codec", "loads", "names", "register"]

GROUP = "famulus.codecs"

_codecs: dict[str, Codec] = {
    "binary": BinaryCodec(),
    "gzip": CompressCodec("gzip"),
    "json": JSONCodec(),
    "msgpack": MsgpackCodec(),
    "pickle": PickleCodec(),
    "raw": RawCodec(),
    "yaml": YAMLCodec(),
    "zlib": CompressCodec("zlib"),
}


def register(name: str, codec: Codec) -> None:
    """Make `codec` known as `name`. A name that is taken is replaced, for serdes built from then on.

    Raises `TypeError` when the codec lacks `dumps` or `loads`, or the name cannot stand in a chain.
    """
    if not isinstance(codec, Codec):
        raise TypeError(f"codec {name!r} needs the methods dumps(obj) and loads(bytes), got {codec!r}")
    if not name or not isinstance(name, str):
        raise TypeError(f"a codec's name is a non-empty str, got {name!r}")
    if "|" in name or name != name.strip():
        raise TypeError(f"a codec's name has no '|' in it and no space around it, got {name!r}")
    _codecs[name] = codec


def names() -> tuple[str, ...]:
    """The names that `get_codec` knows, sorted."""
    return tuple(sorted({*_codecs, *(entry.name for entry in entry_points(group=GROUP))}))


def get_codec(name_or_codec: str | Codec, limits: CodecLimits = CODEC_LIMITS) -> Codec:
    """The codec of that name, or the chain of those names; a codec is returned as it is.

    `limits` say what decoding may do: they go to every codec that has a method `limited(limits)`.

    >>> get_codec("json|gzip").loads(get_codec("json|gzip").dumps([1]))
    [1]
    >>> get_codec("jsno")
    Traceback (most recent call last):
    LookupError: unknown codec 'jsno': expected one of binary, gzip, json, msgpack, pickle, raw, yaml, zlib, a chain of \
them as in 'json|gzip', or an object with dumps and loads
    """
    if isinstance(name_or_codec, str):
        parts = [_named(part.strip(), name_or_codec) for part in name_or_codec.split("|")]
        codec = chain(*parts)
    elif isinstance(name_or_codec, Codec):
        codec = name_or_codec
    else:
        raise _unknown(name_or_codec)
    limited = getattr(codec, "limited", None)
    return codec if limited is None else limited(limits)


def chain(*parts: Codec) -> Codec:
    """One codec of several: the first one takes values, each further one the bytes of the one before.

    A chain that begins with a transform (gzip, zlib, binary) takes what the raw codec takes.
    """
    flat = [one for part in parts for one in ((part.head, *part.transforms) if isinstance(part, Chain) else (part,))]
    if not flat:
        raise TypeError("a chain has at least one codec")
    if isinstance(flat[0], BinaryCodec | CompressCodec):
        flat.insert(0, RawCodec())
    return flat[0] if len(flat) == 1 else Chain(flat[0], tuple(flat[1:]))


def dumps(codec: str | Codec, obj: Any) -> bytes:
    """The bytes of plain data. Raises what the codec raises."""
    return get_codec(codec).dumps(obj)


def loads(codec: str | Codec, data: bytes, *, allow_pickle: bool = False) -> Any:
    """Plain data of bytes. Raises what the codec raises."""
    return get_codec(codec, CodecLimits(allow_pickle=allow_pickle)).loads(data)


def _named(name: str, whole: str) -> Codec:
    codec = _codecs.get(name) or _from_entry_point(name)
    if codec is None:
        raise _unknown(whole if name == whole else f"{name} (in {whole})")
    return codec


def _from_entry_point(name: str) -> Codec | None:
    for entry in entry_points(group=GROUP, name=name):
        found = entry.load()
        codec = found() if isinstance(found, type) else found
        if not isinstance(codec, Codec):
            raise LookupError(
                f"codec {name!r}: entry point {entry.value!r} is no codec: expected an object with dumps and loads, "
                "or a class of such objects that is called without arguments"
            )
        return _codecs.setdefault(name, codec)
    return None


def _unknown(name: object) -> LookupError:
    return LookupError(
        f"unknown codec {name!r}: expected one of {', '.join(names())}, a chain of them as in 'json|gzip', or an object "
        "with dumps and loads"
    )
