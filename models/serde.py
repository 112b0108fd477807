"""Serdes: what a channel keeps for its keys and its values. Built once per type and codec, then two plain
callables.

Both directions know tombstones: `None` is `None`, whatever the type.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, get_origin, overload

import attrs
import orjson

from .build import EXPLAINING, FAST
from .classes import is_class_like, unwrap
from .codecs import get_codec
from .containers import failures
from .encodings import (
    CODEC_LIMITS,
    Chain,
    Codec,
    CodecLimits,
    JSONCodec,
    RawCodec,
    is_raw,
    is_value,
    is_whole,
    of_topic,
)
from .errors import DecodeError, FieldError, NotReady, short, unencodable
from .hints import type_name
from .leaves import Hook
from .plain import dump_json, plain, wire_dict
from .raw import has_raw_form, raw_dumps, raw_loads

__all__ = ["Serde", "key_serde", "value_serde"]

T = TypeVar("T")
Loads = Callable[[bytes | None], Any]
Dumps = Callable[[Any], bytes | None]

SERIALIZER = "__record_serializer__"  # class attribute of records
_NOTHING: frozenset[type] = frozenset()


@attrs.frozen(eq=False)
class Serde(Generic[T]):
    """How values of one type travel.

    `loads` takes bytes or None and raises `DecodeError`; `dumps` takes a value or None and raises
    `EncodeError`; both let a codec's `NotReady` through. Keep the two in local variables where they are called per message.
    """

    type: Any
    codec: Codec
    loads: Callable[[bytes | None], T | None] = attrs.field(repr=False)
    dumps: Callable[[T | None], bytes | None] = attrs.field(repr=False)


_serdes: dict[tuple[Any, Any, bool], Serde[Any]] = {}
_lock = threading.Lock()


@overload
def value_serde(
    type: type[T],
    serializer: str | Codec | None = None,
    *,
    default: str | Codec = "json",
    limits: CodecLimits = CODEC_LIMITS,
    topic: str | None = None,
) -> Serde[T]: ...
@overload
def value_serde(
    type: Any,
    serializer: str | Codec | None = None,
    *,
    default: str | Codec = "json",
    limits: CodecLimits = CODEC_LIMITS,
    topic: str | None = None,
) -> Serde[Any]: ...
def value_serde(
    type: Any,
    serializer: str | Codec | None = None,
    *,
    default: str | Codec = "json",
    limits: CodecLimits = CODEC_LIMITS,
    topic: str | None = None,
) -> Serde[Any]:
    """The serde of a value type.

    `type` is a Record, an attrs class, a dataclass, a TypedDict, a NamedTuple or any builtin type; None or
    Any means untyped: what the codec gives. `serializer` is a codec or its name; without one it is the
    record's own, raw for `bytes`, else `default`. Where the default is raw, types that raw has no form for
    (it has bytes, str, int and float) use JSON. Annotations are resolved here: call it when all modules are
    loaded.

    `limits` say what decoding may do: whether a pickle is loaded, how large a message may get. `topic` is for codecs that
    have to know it (`TopicCodec`).

    Raises `LookupError` for an unknown codec, `TypeError` for a type that can't be decoded.

    >>> value_serde(dict[str, int]).loads(b'{"a": "1"}')
    Traceback (most recent call last):
    famulus.models.errors.DecodeError: $['a']: expected int, got '1' (str)
    """
    return _serde(type, serializer, default, limits, topic, is_key=False)


def _serde(
    type: Any,
    serializer: str | Codec | None,
    default: str | Codec,
    limits: CodecLimits,
    topic: str | None,
    *,
    is_key: bool,
) -> Serde[Any]:
    tp = unwrap(type)
    if tp is None or tp is object:
        tp = Any
    explicit = serializer if serializer is not None else getattr(get_origin(tp) or tp, SERIALIZER, None)
    if explicit is not None:
        codec = get_codec(explicit, limits)
        if is_raw(codec) and not has_raw_form(tp):
            raise TypeError(
                f"the raw codec has no form for {type_name(tp)}: expected bytes, str, int, float or no type "
                "at all, or another serializer"
            )
    else:
        codec = get_codec("raw" if tp is bytes else default, limits)
        if is_raw(codec) and not has_raw_form(tp):
            codec = get_codec("json")
    codec = of_topic(codec, topic, tp, is_key=is_key)
    named = serializer is not None
    # Ours are values. Of another codec the id: the serde keeps it alive, so that stays its own.
    key = (tp, codec if is_value(codec) else id(codec), named)
    try:
        known = _serdes.get(key)
    except TypeError:  # a type that can't be hashed
        return _build(tp, codec, named)
    if known is None:
        built = _build(tp, codec, named)
        with _lock:
            known = _serdes.setdefault(key, built)
    return known


@overload
def key_serde(
    type: type[T],
    serializer: str | Codec | None = None,
    *,
    default: str | Codec = "raw",
    limits: CodecLimits = CODEC_LIMITS,
    topic: str | None = None,
) -> Serde[T]: ...
@overload
def key_serde(
    type: Any,
    serializer: str | Codec | None = None,
    *,
    default: str | Codec = "raw",
    limits: CodecLimits = CODEC_LIMITS,
    topic: str | None = None,
) -> Serde[Any]: ...
def key_serde(
    type: Any,
    serializer: str | Codec | None = None,
    *,
    default: str | Codec = "raw",
    limits: CodecLimits = CODEC_LIMITS,
    topic: str | None = None,
) -> Serde[Any]:
    """The serde of a key type: as for values, but raw by default.

    Then bytes and untyped keys are bytes as they are, text is UTF-8 and numbers are decimal text, as other
    Kafka clients write them; other types are JSON.

    >>> key_serde(int).dumps(42), key_serde(str).loads(b"ada")
    (b'42', 'ada')
    """
    return _serde(type, serializer, default, limits, topic, is_key=True)


def _build(tp: Any, codec: Codec, named: bool) -> Serde[Any]:
    if isinstance(codec, Chain):
        return _chained(_build(tp, codec.head, named), codec)
    if isinstance(codec, RawCodec):
        return Serde(tp, codec, raw_loads(tp), raw_dumps(tp, _own_form))
    untyped = tp is Any or getattr(codec, "complete", False)
    loader = _untyped_loads(codec) if untyped else _typed_loads(tp, codec)
    return Serde(tp, codec, loader, _dumps(tp, codec, named))


def _chained(inner: Serde[Any], codec: Chain) -> Serde[Any]:
    """The serde of the first codec, and the others around it."""
    load, dump, apply, undo = inner.loads, inner.dumps, codec.apply, codec.undo
    name = f"{codec!r} data"

    def loads(data: bytes | None) -> Any:
        if data is None:
            return None
        try:
            undone = undo(data)
        except Exception as exc:
            failed = exc
        else:
            return load(undone)
        try:
            raise _undecodable(name, data, failed) from failed
        finally:
            del failed  # else the error and this frame keep each other, and the data, until the garbage collector comes

    def dumps(value: Any) -> bytes | None:
        data = dump(value)
        if data is None:
            return None
        try:
            return apply(data)
        except NotReady:
            raise
        except Exception as exc:
            raise unencodable(repr(codec), value, exc) from exc

    return Serde(inner.type, codec, loads, dumps)


# ---- decoding


def _typed_loads(tp: Any, codec: Codec) -> Loads:
    parse, structure, name = codec.loads, FAST.hook(tp), type_name(tp)

    def loads(data: bytes | None) -> Any:
        if data is None:
            return None
        try:
            return structure(parse(data), None)
        except NotReady:
            raise
        except Exception as exc:
            failed = exc
        try:
            raise _explain(tp, name, codec, data, failed) from failed
        finally:
            del failed  # else the error and this frame keep each other, and the data, until the garbage collector comes

    return loads


def _untyped_loads(codec: Codec) -> Loads:
    parse = codec.loads

    def loads(data: bytes | None) -> Any:
        if data is None:
            return None
        try:
            return parse(data)
        except NotReady:
            raise
        except Exception as exc:
            failed = exc
        try:
            raise _undecodable(f"{_codec_name(codec)} data", data, failed) from failed
        finally:
            del failed  # else the error and this frame keep each other, and the data, until the garbage collector comes

    return loads


def structure(tp: Any, data: Any) -> Any:
    """A value of plain data. Raises `DecodeError`."""
    try:
        return FAST.hook(tp)(data, None)
    except Exception as exc:
        failed = exc
    try:
        raise _explain_parsed(tp, type_name(tp), data, failed) from failed
    finally:
        del failed  # else the error and this frame keep each other, and the data, until the garbage collector comes


def _explain(tp: Any, name: str, codec: Codec, data: bytes, failed: Exception) -> DecodeError:
    """The second look at a message that was refused: what exactly is wrong, and where."""
    try:
        parsed = codec.loads(data)
    except Exception as exc:
        return _undecodable(name, data, exc)
    return _explain_parsed(tp, name, parsed, failed)


def _explain_parsed(tp: Any, name: str, parsed: Any, failed: Exception) -> DecodeError:
    explain: Hook = EXPLAINING.hook(tp)
    try:
        explain(parsed, None)
    except Exception as exc:
        return DecodeError(*(e.under("$") for e in failures(exc, "", name, parsed)))
    return DecodeError(FieldError("$", name, short(parsed), str(failed) or type(failed).__name__))


def _undecodable(expected: str, data: object, failed: Exception) -> DecodeError:
    reason = str(failed) or type(failed).__name__
    if isinstance(failed, orjson.JSONDecodeError) and failed.doc:
        reason = f"not JSON: {failed.msg} at line {failed.lineno}, column {failed.colno}"
    elif isinstance(failed, orjson.JSONDecodeError):
        reason = f"not JSON: {failed.msg}"
    elif isinstance(failed, UnicodeDecodeError):
        reason = f"not UTF-8 at byte {failed.start}"
    return DecodeError(FieldError("$", expected, short(data), reason))


def _codec_name(codec: Codec) -> str:
    return "JSON" if isinstance(codec, JSONCodec) else repr(codec)


# ---- encoding


def _dumps(tp: Any, codec: Codec, named: bool) -> Dumps:
    cls: Any = get_origin(tp) or tp
    native = getattr(codec, "native", _NOTHING)
    encode: Callable[[Any], bytes] = dump_json if isinstance(codec, JSONCodec) else _plain_first(codec)
    name = "a value" if tp is Any else type_name(tp)
    if is_whole(codec):  # it looks at the value itself
        return _plain_dumps(name, codec.dumps)
    if tp is Any:
        return _untyped_dumps(codec.dumps if object in native else encode, named, passes=not native)
    if is_class_like(tp) and not issubclass(cls, dict):
        return _class_dumps(tp, cls, name, encode, isinstance(codec, JSONCodec))
    return _plain_dumps(name, encode)


def _plain_dumps(name: str, encode: Callable[[Any], bytes]) -> Dumps:
    def dumps(value: Any) -> bytes | None:
        if value is None:
            return None
        try:
            return encode(value)
        except NotReady:
            raise
        except Exception as exc:
            raise unencodable(name, value, exc) from exc

    return dumps


def _plain_first(codec: Codec) -> Callable[[Any], bytes]:
    """Other codecs than JSON are given plain data: they know nothing of records."""
    encode = codec.dumps
    native = getattr(codec, "native", _NOTHING)

    def dumps(value: Any) -> bytes:
        return encode(plain(value, native))

    return dumps


def _class_dumps(tp: Any, cls: type, name: str, encode: Callable[[Any], bytes], json: bool) -> Dumps:
    as_dict: Callable[[Any], Any] = wire_dict(cls) if json else lambda value: value

    def dumps(value: Any) -> bytes | None:
        if value.__class__ is cls:
            try:
                return encode(as_dict(value))
            except NotReady:
                raise
            except Exception as exc:
                raise unencodable(name, value, exc) from exc
        if value is None:
            return None
        try:
            data = encode(value)
            if not isinstance(value, cls):
                # Not a value of this type, but perhaps one in all but name, such as a dict: only if readers
                # can decode it.
                FAST.hook(tp)(plain(value), None)
        except NotReady:
            raise
        except Exception as exc:
            reason = "" if isinstance(value, cls) else f"it is no {name}"
            raise unencodable(name, value, exc, reason) from exc
        return data

    return dumps


def _untyped_dumps(encode: Callable[[Any], bytes], named: bool, passes: bool) -> Dumps:
    """`passes`: bytes are taken to be encoded already, since the codec has no form for them."""

    def dumps(value: Any) -> bytes | None:
        cls = value.__class__
        if cls is bytes and passes:
            return value  # type: ignore[no-any-return]  # the test above is one that mypy does not follow
        if value is None:
            return None
        if not named and getattr(cls, SERIALIZER, None) is not None:
            return value_serde(cls).dumps(value)  # the record's own serializer
        try:
            return encode(value)
        except NotReady:
            raise
        except Exception as exc:
            raise unencodable("a value", value, exc) from exc

    return dumps


def _own_form(value: Any) -> bytes | None:
    """A record with a serializer of its own, by that one."""
    cls = value.__class__
    return None if getattr(cls, SERIALIZER, None) is None else value_serde(cls).dumps(value)
