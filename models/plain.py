"""From values to plain data and JSON. The way back, which has to judge what it gets, is in `build`.

JSON has no bytes, sets, decimals, UUIDs or dates: they are base64, lists and text. What a value looks like is
decided by its own class, never by a declared type, so a field that holds a subclass keeps all its fields.
"""

from __future__ import annotations

import dataclasses
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping, Set
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

import attrs
import orjson

from .traits import TAG, extras_of, wire_names

__all__ = ["dump_json", "plain", "shallow_dict", "wire_dict"]

OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS
if orjson.dumps(time(0, 0, 0, 10_000)) != b'"00:00:00.010000"':
    # orjson 3.13.0 loses a zero in a `time` of 10,000 to 99,999 microseconds. It can be told to leave all of
    # datetime to us, not `time` alone.
    OPTIONS |= orjson.OPT_PASSTHROUGH_DATETIME

_NONE: frozenset[type] = frozenset()

_hooks: dict[type, Callable[[Any], Any]] = {}


def shallow_dict(cls: type) -> Callable[[Any], dict[str, Any]]:
    """A function, generated for `cls` (attrs or dataclass), that gives an instance's fields as a new dict."""
    fields = attrs.fields(cls) if attrs.has(cls) else dataclasses.fields(cls)
    items = ", ".join(f"{f.name!r}: o.{f.name}" for f in fields)
    function: Callable[[Any], dict[str, Any]] = eval(f"lambda o: {{{items}}}", {})
    return function


def wire_dict(cls: type) -> Callable[[Any], dict[str, Any]]:
    """The same as they are written: under their names there, without those that are left out, with the class's tag."""
    if not attrs.has(cls):
        return shallow_dict(cls)
    kept = [a for a in attrs.fields(cls) if not extras_of(a).exclude]
    items = [f"{wire_names(a)[1]!r}: o.{a.name}" for a in kept]
    key, tag = vars(cls).get(TAG) or ("", None)
    if key:
        items.insert(0, f"{key!r}: tag")
    function: Callable[[Any], dict[str, Any]] = eval(f"lambda o: {{{', '.join(items)}}}", {"tag": tag})
    return function


def _base64(value: bytes | bytearray | memoryview) -> str:
    return b64encode(value).decode("ascii")


def _hook_for(cls: type) -> Callable[[Any], Any]:
    """How one level of a value of `cls` is made plain; `TypeError` if it can't be."""
    if attrs.has(cls) or dataclasses.is_dataclass(cls):
        return wire_dict(cls)
    if issubclass(cls, bytes | bytearray | memoryview):
        return _base64
    if issubclass(cls, Decimal | UUID | PurePath):
        return str
    if issubclass(cls, Set | tuple | list | deque):
        return list
    if issubclass(cls, Mapping):
        return dict
    if issubclass(cls, Enum):
        return lambda value: value.value
    if issubclass(cls, date | time):
        return lambda value: value.isoformat()
    raise TypeError(f"{cls.__module__}.{cls.__qualname__} is not a type that can be encoded")


def _default(value: Any) -> Any:
    """orjson calls this for what it does not know."""
    cls = value.__class__
    try:
        hook = _hooks[cls]
    except KeyError:
        hook = _hooks[cls] = _hook_for(cls)
    return hook(value)


def dump_json(value: Any, /) -> bytes:
    """The value as JSON, in UTF-8. Raises `TypeError` for what has no JSON form."""
    try:
        return orjson.dumps(value, _default, OPTIONS)
    except orjson.JSONEncodeError as exc:
        if not str(exc).startswith("Dict key"):
            raise TypeError(str(exc.__cause__ or exc)) from exc
    return orjson.dumps(plain(value))  # keys that orjson has no text for, such as Decimal


def _plain_key(key: Any) -> str:
    """A mapping's key as orjson writes it."""
    key = plain(key)
    if key.__class__ is str:
        return str(key)
    return orjson.dumps(key).decode()


def plain(value: Any, native: frozenset[type] = _NONE) -> Any:
    """The value in None, bool, int, float, str, list and dict, all the way down; those of `native` classes stay.

    >>> from decimal import Decimal
    >>> plain({"total": Decimal("1.50"), "tags": {"new"}})
    {'total': '1.50', 'tags': ['new']}
    """
    cls = value.__class__
    if value is None or cls in (str, int, float, bool):
        return value
    if cls is dict:
        return {_plain_key(k): plain(v, native) for k, v in value.items()}
    if cls is list:
        return [plain(v, native) for v in value]
    if cls in native:
        return value
    if isinstance(value, Enum):
        return plain(value.value, native)
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return plain(_default(value), native)
