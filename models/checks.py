"""Checks: whether a value in a program, not in a message, is what an annotation says. For `Record.validate`.

They differ from the hooks that decode in that nothing is read as something else: text is no datetime here, a list no
set. A subclass is what its base is, except that a bool is no int.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import threading
import types
import typing
from collections.abc import Callable, Mapping
from datetime import date, datetime
from enum import Enum
from typing import Any, get_args, get_origin

import attrs

from .classes import is_class_like, unwrap
from .errors import FieldError, field_path, key_path, short
from .hints import field_types, type_name, typed_dict_types

__all__ = ["check_hook"]

Check = Callable[[Any], list[FieldError]]

_NOT_SET: Any = object()

_checks: dict[Any, Check] = {}
_built: dict[Any, Check] = {}  # of the outermost type under way, and its parts
_pending: dict[Any, list[Check]] = {}
_lock = threading.RLock()


def check_hook(tp: Any) -> Check:
    """A function that gives what is wrong with a value that should be a `tp`; paths are relative to it."""
    tp = unwrap(tp)
    try:
        known = _checks.get(tp)
    except TypeError:  # not hashable
        return _make(tp)
    if known is not None:
        return known
    with _lock:
        if (built := _built.get(tp)) is not None:
            return built
        if (pending := _pending.get(tp)) is not None:  # a type within itself
            return lambda value: pending[0](value)
        cell = _pending[tp] = []
        try:
            check = _built[tp] = _make(tp)
            cell.append(check)
            if len(_pending) == 1:  # the outermost: only now is nothing half made
                _checks.update(_built)
        finally:
            del _pending[tp]
            if not _pending:
                _built.clear()
        return check


def _make(tp: Any) -> Check:
    origin, args = get_origin(tp) or tp, get_args(tp)
    if tp is Any or tp is object or isinstance(tp, typing.TypeVar):
        return lambda _: []
    if origin in (typing.Union, types.UnionType):
        return _union(tp, args)
    if origin is typing.Literal:
        return _when(tp, lambda value: any(value == arg and value.__class__ is arg.__class__ for arg in args))
    if tp is None:
        tp = types.NoneType
    if is_class_like(tp):
        return _class(tp, origin)
    if not isinstance(origin, type):
        return lambda _: []
    if origin in (int, float, date):
        return _when(tp, _LEAVES[origin])
    if issubclass(origin, Enum):
        return _when(tp, lambda value: isinstance(value, origin))
    if origin is tuple or (issubclass(origin, tuple) and hasattr(origin, "_field_defaults")):
        return _tuple(tp, origin, args)
    if issubclass(origin, collections.abc.Mapping):
        return _mapping(tp, origin, args)
    if issubclass(origin, collections.abc.Iterable) and not issubclass(origin, str | bytes | bytearray):
        return _items(tp, origin, args)
    return _when(tp, lambda value: isinstance(value, origin))


_LEAVES: dict[Any, Callable[[Any], bool]] = {
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    date: lambda value: isinstance(value, date) and not isinstance(value, datetime),
}


def _wrong(tp: Any, value: Any) -> list[FieldError]:
    return [FieldError("", type_name(tp), short(value))]


def _when(tp: Any, good: Callable[[Any], bool]) -> Check:
    return lambda value: [] if good(value) else _wrong(tp, value)


def _union(tp: Any, args: tuple[Any, ...]) -> Check:
    checks = [check_hook(arg) for arg in args]

    def check(value: Any) -> list[FieldError]:
        meant: list[FieldError] = []
        for one in checks:
            errors = one(value)
            if not errors:
                return []
            if all(error.path for error in errors):  # the right kind of thing, with something wrong inside
                meant = meant or errors
        return meant or _wrong(tp, value)

    return check


def _field_names(cls: Any) -> list[str]:
    if attrs.has(cls):
        return [attribute.name for attribute in attrs.fields(cls)]
    return [part.name for part in dataclasses.fields(cls)]


def _class(tp: Any, cls: Any) -> Check:
    if issubclass(cls, dict):  # a typed dict
        keys = {name: (check_hook(hint), required) for name, (hint, required) in typed_dict_types(tp).items()}

        def check_keys(value: Any) -> list[FieldError]:
            if not isinstance(value, dict):
                return _wrong(tp, value)
            missing = [name for name, (_, required) in keys.items() if required and name not in value]
            errors = [FieldError(field_path(name), "a value", "nothing", "the key is missing") for name in missing]
            for name, (one, _) in keys.items():
                if name in value:
                    errors += [error.under(field_path(name)) for error in one(value[name])]
            return errors

        return check_keys
    names = _field_names(cls)
    fields = {name: (field_path(name), check_hook(hint)) for name, hint in field_types(tp, names).items()}

    def check(value: Any) -> list[FieldError]:
        if not isinstance(value, cls):
            return _wrong(tp, value)
        errors: list[FieldError] = []
        for name, (step, one) in fields.items():
            part = getattr(value, name, _NOT_SET)
            if part is not _NOT_SET:  # while it is being made
                errors += [error.under(step) for error in one(part)]
        return errors

    return check


def _items(tp: Any, origin: type, args: tuple[Any, ...]) -> Check:
    one = check_hook(args[0]) if args else None

    def check(value: Any) -> list[FieldError]:
        if not isinstance(value, origin) or isinstance(value, str | bytes):
            return _wrong(tp, value)
        if one is None or not isinstance(value, collections.abc.Collection):  # an iterator would be used up
            return []
        return [error.under(key_path(index)) for index, part in enumerate(value) for error in one(part)]

    return check


def _mapping(tp: Any, origin: type, args: tuple[Any, ...]) -> Check:
    key, item = (check_hook(arg) for arg in args) if len(args) == 2 else (None, None)

    def check(value: Any) -> list[FieldError]:
        if not isinstance(value, origin):
            return _wrong(tp, value)
        errors: list[FieldError] = []
        if key is not None and item is not None and isinstance(value, Mapping):
            for k, v in value.items():
                errors += [FieldError(key_path(k), f"key {e.expected}", e.got, e.reason) for e in key(k)]
                errors += [error.under(key_path(k)) for error in item(v)]
        return errors

    return check


def _tuple(tp: Any, origin: Any, args: tuple[Any, ...]) -> Check:
    if hasattr(origin, "_field_defaults"):
        hints = field_types(tp, origin._fields)
        args = tuple(hints.get(name, Any) for name in origin._fields)
    elif tp is tuple or (len(args) == 2 and args[1] is ...):
        return _items(tp, tuple, args[:1])
    checks = [check_hook(arg) for arg in args]

    def check(value: Any) -> list[FieldError]:
        if not isinstance(value, origin):
            return _wrong(tp, value)
        if len(value) != len(checks):
            return [FieldError("", type_name(tp), short(value), f"expected {len(checks)} items, got {len(value)}")]
        pairs = enumerate(zip(checks, value, strict=True))
        return [error.under(key_path(index)) for index, (one, part) in pairs for error in one(part)]

    return check
