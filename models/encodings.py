"""The codecs that come with Famulus, each an immutable value. `codecs` gives them their names.

Those that can harm when they decode are bounded by `CodecLimits`: a run makes them of its settings.
"""

from __future__ import annotations

import gzip
import zlib
from base64 import b64decode, b64encode
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import attrs
import orjson

from .plain import dump_json

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
__all__ += ["is_raw", "is_value", "is_whole", "of_topic", "refusal_of"]


@runtime_checkable
class Codec(Protocol):
    """Anything that makes bytes of plain data (None, bool, int, float, str, list, dict) and plain data of bytes.

    It raises any `ValueError` or `TypeError` on what it cannot do; the serde around it says which type and where.
    It may have more: `native`, a frozenset of further classes whose values it is given as they are, such as bytes (with
    `object` in it, untyped values of any class); `limited(limits)`, which gives the codec to use under some `CodecLimits`;
    or be a `TopicCodec`.
    """

    def dumps(self, obj: Any, /) -> bytes: ...

    def loads(self, data: bytes, /) -> Any: ...


@runtime_checkable
class TopicCodec(Codec, Protocol):
    """A codec that has to know whose keys or values it makes, such as one that keeps a schema for them at a registry."""

    def for_topic(self, topic: str | None, type: Any, /, *, is_key: bool) -> WholeCodec:
        """The codec for the keys or values of one topic, of this type (`Any`: untyped); the same one each time.

        `topic` is None where there is no topic; such a codec decodes.
        """
        ...


class WholeCodec(Codec, Protocol):
    """A codec that knows the type: its `dumps` is given values as they are, records too. It can be hashed.

    Its `loads` may give datetimes, dates, times, Decimals, UUIDs and bytes within its dicts and lists.

    Attributes:
        complete: what `loads` gives is of the type already, and is taken as it is.
    """

    @property
    def complete(self) -> bool: ...


class UnsafeCodec(ValueError):
    """Data was not decoded, since that could do more than give a value."""


@attrs.frozen(kw_only=True)
class CodecLimits:
    """What decoding may do.

    Attributes:
        allow_pickle: whether pickles are loaded. Loading one runs whatever its writer put into it.
        max_decompressed: bytes that one message may have after each decompression.
    """

    allow_pickle: bool = False
    max_decompressed: int = 67_108_864


CODEC_LIMITS = CodecLimits()


@attrs.frozen(repr=False)
class JSONCodec:
    """JSON by orjson. Encodes every supported type; NaN and infinity become `null`, as JSON has neither."""

    # The C functions themselves: a method around them would cost a call per message.
    dumps = staticmethod(dump_json)
    loads = staticmethod(orjson.loads)

    def __repr__(self) -> str:
        return "<codec json>"


@attrs.frozen(repr=False)
class RawCodec:
    """Bytes as they are; text is UTF-8."""

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


@attrs.frozen(repr=False)
class BinaryCodec:
    """Bytes as base64: a transform, for what must pass through something that takes text only."""

    def dumps(self, obj: bytes, /) -> bytes:
        return b64encode(obj)

    def loads(self, data: bytes, /) -> bytes:
        return b64decode(data, validate=True)

    def __repr__(self) -> str:
        return "<codec binary>"


_PICKLES = (
    "a pickle can run any program when it is loaded, so none is unless you allow it. Where all who can write here are "
    "trusted: setting codec_allow_pickle=True for a run, loads(..., allow_pickle=True) for one call. Otherwise have it "
    "written as json or msgpack"
)


@attrs.frozen(repr=False)
class PickleCodec:
    """Python's pickle in base64. Encoding is free to all; decoding is refused unless it was allowed.

    Records and other typed values are pickled as plain data, so their classes need not be importable by the reader.
    """

    allowed: bool = False

    native: ClassVar[frozenset[type]] = frozenset({object})

    def limited(self, limits: CodecLimits) -> PickleCodec:
        return PickleCodec(limits.allow_pickle)

    def dumps(self, obj: Any, /) -> bytes:
        import pickle

        return b64encode(pickle.dumps(obj, protocol=4))

    def loads(self, data: bytes, /) -> Any:
        if not self.allowed:
            raise UnsafeCodec(_PICKLES)
        import pickle

        return pickle.loads(b64decode(data, validate=True))

    def __repr__(self) -> str:
        return "<codec pickle, decoding allowed>" if self.allowed else "<codec pickle>"


@cache
def _installed(module: str, extra: str) -> Any:
    """The library of an extra, imported when it is first needed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as exc:
        raise LookupError(
            f"the codec {extra} needs a library that is not installed: pip install 'famulus[{extra}]'"
        ) from exc


@attrs.frozen(repr=False)
class MsgpackCodec:
    """MessagePack by msgpack, with bytes as bytes. The extra `msgpack`."""

    native: ClassVar[frozenset[type]] = frozenset({bytes})

    def limited(self, limits: CodecLimits) -> Self:
        _installed("msgpack", "msgpack")  # tell it now, not with the first message
        return self

    def dumps(self, obj: Any, /) -> bytes:
        packed: bytes = _installed("msgpack", "msgpack").packb(obj, use_bin_type=True)
        return packed

    def loads(self, data: bytes, /) -> Any:
        return _installed("msgpack", "msgpack").unpackb(data, raw=False, timestamp=3)

    def __repr__(self) -> str:
        return "<codec msgpack>"


@cache
def _yaml_loader() -> Any:
    """PyYAML's safe loader without aliases: a few lines of them can stand for more data than any memory holds."""
    yaml = _installed("yaml", "yaml")

    def compose_node(self: Any, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise UnsafeCodec("it has an alias (*name), and a few of those can stand for data without end")
        return yaml.SafeLoader.compose_node(self, parent, index)

    return type("Loader", (yaml.SafeLoader,), {"compose_node": compose_node})


@cache
def _yaml_dumper() -> Any:
    """PyYAML's safe dumper, but for text with a line break other than a newline: it would be read as another one."""
    yaml = _installed("yaml", "yaml")

    def represent(dumper: Any, text: str) -> Any:
        style = '"' if _BREAKS.intersection(text) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    dumper = type("Dumper", (yaml.SafeDumper,), {})
    yaml.add_representer(str, represent, Dumper=dumper)
    return dumper


_BREAKS = frozenset("\r\x85\u2028\u2029")


@attrs.frozen(repr=False)
class YAMLCodec:
    """YAML by PyYAML. The extra `yaml`.

    Only the safe part is used: no tag makes an object. Aliases are refused.
    """

    native: ClassVar[frozenset[type]] = frozenset({bytes})

    def limited(self, limits: CodecLimits) -> Self:
        _installed("yaml", "yaml")
        return self

    def dumps(self, obj: Any, /) -> bytes:
        yaml = _installed("yaml", "yaml")
        text: str = yaml.dump(obj, Dumper=_yaml_dumper(), allow_unicode=True, sort_keys=False)
        return text.encode()

    def loads(self, data: bytes, /) -> Any:
        return _installed("yaml", "yaml").load(data, Loader=_yaml_loader())

    def __repr__(self) -> str:
        return "<codec yaml>"


_STEP = 16_384  # bytes


@attrs.frozen(repr=False)
class CompressCodec:
    """Bytes compressed: a transform. What is larger than `most` bytes when decompressed is refused."""

    kind: Literal["gzip", "zlib"]
    most: int = CODEC_LIMITS.max_decompressed

    def limited(self, limits: CodecLimits) -> CompressCodec:
        return CompressCodec(self.kind, limits.max_decompressed)

    def dumps(self, obj: bytes, /) -> bytes:
        return gzip.compress(obj, mtime=0) if self.kind == "gzip" else zlib.compress(obj)

    def loads(self, data: bytes, /) -> bytes:
        parts: list[bytes] = []
        left = self.most
        rest = memoryview(data)
        while True:  # a gzip file may have several members
            stream = zlib.decompressobj(31 if self.kind == "gzip" else 15)
            while not stream.eof:
                if not rest:
                    raise ValueError(f"not {self.kind}: the data ends early")
                # In small steps: after the end of each member zlib copies what follows in the step.
                part = stream.decompress(rest[:_STEP], left + 1)
                rest = rest[_STEP:] if not stream.eof else rest[min(_STEP, len(rest)) - len(stream.unused_data) :]
                parts.append(part)
                left -= len(part)
                if left < 0:
                    raise UnsafeCodec(
                        f"it is more than {self.most} bytes when decompressed; setting codec_max_decompressed is the limit"
                    )
            if self.kind == "zlib" and rest:
                raise ValueError(f"not zlib: {len(rest)} bytes follow its end")
            if not rest or (rest[0] == 0 and not bytes(rest).strip(b"\0")):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def __repr__(self) -> str:
        return f"<codec {self.kind}>"


@attrs.frozen(repr=False)
class Chain:
    """A codec for values and transforms of its bytes, in the order of encoding. `codecs.chain` makes it."""

    head: Codec
    transforms: tuple[Codec, ...]

    def limited(self, limits: CodecLimits) -> Chain:
        return Chain(_limited(self.head, limits), tuple(_limited(part, limits) for part in self.transforms))

    def apply(self, data: bytes) -> bytes:
        """The transforms alone."""
        for part in self.transforms:
            data = part.dumps(data)
        return data

    def undo(self, data: bytes) -> bytes:
        """The way back to what the first codec wrote."""
        for part in reversed(self.transforms):
            data = part.loads(data)
        return data

    def dumps(self, obj: Any, /) -> bytes:
        return self.apply(self.head.dumps(obj))

    def loads(self, data: bytes, /) -> Any:
        return self.head.loads(self.undo(data))

    def __repr__(self) -> str:
        parts = (repr(part).removeprefix("<codec ").removesuffix(">") for part in (self.head, *self.transforms))
        return f"<codec {'|'.join(parts)}>"


def _limited(codec: Codec, limits: CodecLimits) -> Codec:
    limited = getattr(codec, "limited", None)
    return codec if limited is None else limited(limits)


def refusal_of(codec: Codec) -> str:
    """Why a codec would refuse to decode anything at all; empty if it does not."""
    if isinstance(codec, Chain):
        return next(filter(None, map(refusal_of, (codec.head, *codec.transforms))), "")
    return _PICKLES if isinstance(codec, PickleCodec) and not codec.allowed else ""


def is_raw(codec: Codec) -> bool:
    """Whether values go to the raw codec, at once or at the head of a chain."""
    return isinstance(codec.head if isinstance(codec, Chain) else codec, RawCodec)


_VALUES = (JSONCodec, RawCodec, BinaryCodec, PickleCodec, MsgpackCodec, YAMLCodec, CompressCodec)


def is_value(codec: Codec) -> bool:
    """Whether a codec is ours: equal ones do the same, and they can be hashed."""
    if isinstance(codec, Chain):
        return all(map(is_value, (codec.head, *codec.transforms)))
    return type(codec) in _VALUES or is_whole(codec)


def is_whole(codec: Codec) -> bool:
    """Whether a codec is a `WholeCodec`."""
    return hasattr(codec, "complete")


def of_topic(codec: Codec, topic: str | None, tp: Any, *, is_key: bool) -> Codec:
    """The codec for the keys or values of one topic; most are for all."""
    if type(codec) in _VALUES:
        return codec
    if isinstance(codec, Chain):
        return Chain(of_topic(codec.head, topic, tp, is_key=is_key), codec.transforms)
    return codec.for_topic(topic, tp, is_key=is_key) if isinstance(codec, TopicCodec) else codec
