"""Hooks for values without parts: each takes plain data and gives the value, or refuses it.

Called by `build` for each type once, by the converters for each value. Nothing is coerced: `"12"` is no int,
a bool is no int, 1.5 is no int. An int is a float, as JSON has one kind of number.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum, Flag
from typing import Any, get_args
from uuid import UUID

from .coercing import COERCING, coerced_hook, parsed_hook
from .errors import mismatch
from .hints import type_name
from .plain import plain
from .traits import STRICT, Mode

__all__ = ["Hook", "enum_hook", "exact_hook", "key_hook", "leaf_hook", "literal_hook"]

Hook = Callable[[Any, Any], Any]
"""The second argument is the type: cattrs calls hooks this way. Ours know their type and ignore it."""

INTEGER = re.compile(r"-?[0-9]+")


def exact_hook(cls: type) -> Hook:
    """Exactly `cls`, which is one that plain data has."""
    name = type_name(cls)

    def hook(value: Any, _: Any = None) -> Any:
        if value.__class__ is not cls:
            raise mismatch(name, value)
        return value

    return hook


def _float(value: Any, _: Any = None) -> Any:
    if value.__class__ is float:
        return value
    if value.__class__ is int:
        return float(value)
    raise mismatch("float", value)


def _any(value: Any, _: Any = None) -> Any:
    return value


def _from_text(cls: Any, parse: Callable[[str], Any]) -> Hook:
    """From text that `parse` accepts.

    A value that is a `cls` already passes: codecs may know more than JSON.
    """
    name = type_name(cls)

    def hook(value: Any, _: Any = None) -> Any:
        if value.__class__ is str:
            try:
                return parse(value)
            except (ValueError, ArithmeticError) as exc:
                raise mismatch(name, value, str(exc) if isinstance(exc, ValueError) else "") from exc
        if value.__class__ is cls:
            return value
        raise mismatch(name, value)

    return hook


_decimal_text = _from_text(Decimal, Decimal)


def _decimal(value: Any, _: Any = None) -> Any:
    if value.__class__ is int:
        return Decimal(value)
    if value.__class__ is float:
        raise mismatch("Decimal", value, "a JSON number with a fraction has lost digits; send it as a string")
    return _decimal_text(value, None)


_LEAVES: dict[Any, Hook] = {
    **{cls: exact_hook(cls) for cls in (str, int, bool, type(None))},
    None: exact_hook(type(None)),
    float: _float,
    Any: _any,
    object: _any,
    Decimal: _decimal,
    bytes: _from_text(bytes, lambda text: b64decode(text, validate=True)),
    UUID: _from_text(UUID, UUID),
    datetime: _from_text(datetime, datetime.fromisoformat),
    date: _from_text(date, date.fromisoformat),
    time: _from_text(time, time.fromisoformat),
}


def leaf_hook(tp: Any, mode: Mode = STRICT) -> Hook | None:
    """The hook of a builtin type without parts, or None."""
    try:
        hook = _LEAVES.get(tp)
    except TypeError:  # not hashable
        return None
    if hook is not None and mode is not STRICT:
        if tp is datetime and mode.date_parser is not None:
            return parsed_hook(mode.date_parser)
        if mode.coerce and tp in COERCING:
            return coerced_hook(tp, hook)
    return hook


def literal_hook(tp: Any) -> Hook:
    """One of the values of a `Literal`, of the same class (1 is not True)."""
    name = type_name(tp)
    known: dict[tuple[type, Any], Any] = {}
    for option in get_args(tp):
        wire = option.value if isinstance(option, Enum) else option
        known[wire.__class__, wire] = option

    def hook(value: Any, _: Any = None) -> Any:
        try:
            return known[value.__class__, value]
        except (KeyError, TypeError):
            raise mismatch(name, value) from None

    return hook


def enum_hook(cls: type[Enum], mode: Mode = STRICT) -> Hook:
    """A member of `cls`, from its value as it is when plain; `_missing_` is asked as in plain Python.

    When coercing, also from the text of a value that is none.
    """
    name = f"{cls.__name__} ({', '.join(repr(m.value) for m in cls)})"
    wires = [(plain(member.value), member) for member in cls.__members__.values()]
    simple = {(w.__class__, w): m for w, m in wires if not isinstance(w, list | dict)}
    composed = [(w, m) for w, m in wires if isinstance(w, list | dict)]
    texts = {str(w): m for (_, w), m in simple.items()} if mode.coerce else None
    asks = issubclass(cls, Flag) or "_missing_" in {n for c in cls.__mro__[:-1] if c is not Enum for n in vars(c)}

    def hook(value: Any, _: Any = None) -> Any:
        try:
            return simple[value.__class__, value]
        except (KeyError, TypeError):
            pass
        for wire, member in composed:
            if wire == value:
                return member
        if value.__class__ is cls:
            return value
        if asks and value.__class__ is not bool:
            try:
                return cls(value)
            except Exception as exc:
                raise mismatch(name, value) from exc
        if texts is not None and value.__class__ is str and value in texts:
            return texts[value]
        raise mismatch(name, value)

    return hook


def key_hook(tp: Any, hook: Hook) -> Hook:
    """For the keys of an object, which are always text in JSON: numbers and bools are read from it."""
    if tp is str or tp is Any:
        return hook
    name = type_name(tp)
    words = {"true": True, "false": False, "null": None}

    def from_text(key: Any, _: Any = None) -> Any:
        try:
            return hook(key, None)
        except Exception:
            if key.__class__ is not str:
                raise
        try:
            if key in words:
                return hook(words[key], None)
            return hook(int(key) if INTEGER.fullmatch(key) else float(key), None)
        except Exception as exc:
            raise mismatch(name, key) from exc

    return from_text
