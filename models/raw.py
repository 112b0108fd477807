"""What the raw codec makes of a type: bytes as they are, text in UTF-8, numbers as decimal text, as other clients write
keys. Called by `serde`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .encodings import RawCodec
from .errors import DecodeError, EncodeError, FieldError, NotReady, short, unencodable
from .hints import type_name
from .plain import dump_json

__all__ = ["has_raw_form", "raw_dumps", "raw_loads"]


def has_raw_form(tp: Any) -> bool:
    """Whether raw has a form for the type."""
    try:
        return tp in _RAW
    except TypeError:  # not hashable
        return False


def _untyped(value: Any) -> bytes:
    cls = value.__class__
    if cls in (bytes, str, int, float):
        return _RAW[cls][1](value)
    return bytes(value) if cls in (bytearray, memoryview) else dump_json(value)


def _utf8(value: str) -> bytes:
    return value.encode()


def _number(value: Any) -> bytes:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("it is no number")
    return str(int(value) if isinstance(value, int) else float(value)).encode("ascii")


def _bytes(value: Any) -> bytes:
    return value if value.__class__ is bytes else RawCodec().dumps(value)


def _same(data: bytes) -> bytes:
    return data


_RAW: dict[Any, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    Any: (_same, _untyped),
    bytes: (_same, _bytes),
    str: (bytes.decode, _utf8),
    int: (int, _number),
    float: (float, _number),
}


def raw_loads(tp: Any) -> Callable[[bytes | None], Any]:
    """Bytes to a value of a type that has a raw form."""
    read, name = _RAW[tp][0], type_name(tp)
    if read is _same:
        return lambda data: data

    def loads(data: bytes | None) -> Any:
        if data is None:
            return None
        try:
            return read(data)
        except Exception as exc:
            failed = exc
        reason = f"not UTF-8 at byte {failed.start}" if isinstance(failed, UnicodeDecodeError) else ""
        raise DecodeError(FieldError("$", name, short(data), reason)) from failed

    return loads


def raw_dumps(tp: Any, own_form: Callable[[Any], bytes | None]) -> Callable[[Any], bytes | None]:
    """A value to bytes. Without a type, `own_form` is asked what the value's class says."""
    write, name = _RAW[tp][1], "a value" if tp is Any else type_name(tp)
    untyped = tp is Any

    def dumps(value: Any) -> bytes | None:
        if value is None:
            return None
        try:
            if untyped and value.__class__ is not bytes and (own := own_form(value)) is not None:
                return own
            return write(value)
        except EncodeError:
            raise
        except NotReady:
            raise
        except Exception as exc:
            raise unencodable(name, value, exc) from exc

    return dumps
