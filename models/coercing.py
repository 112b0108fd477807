"""What `coerce=True` takes beyond the strict rules: values that can be read as the type without a loss or a guess."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

from .errors import mismatch

__all__ = ["COERCING", "coerced_hook", "parsed_hook"]

_MOST_DIGITS = 4300  # as Python has it for text
_WHOLE = re.compile(r"[+-]?[0-9]+")
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


def _to_str(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, int | float | Decimal | UUID) and not isinstance(value, bool):
        return str(value)
    raise ValueError


def _to_int(value: Any) -> Any:
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, Decimal) and value.is_finite() and value.adjusted() >= _MOST_DIGITS:
        raise ValueError  # a few characters, as in 1E+1000000000, would fill all memory
    if isinstance(value, float | Decimal) and value == int(value):
        return int(value)
    raise ValueError


def _to_float(value: Any) -> Any:
    if isinstance(value, str | Decimal):
        return float(value)
    raise ValueError


def _to_bool(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
    elif value.__class__ is int and value in (0, 1):
        return value == 1
    raise ValueError


def _to_decimal(value: Any) -> Any:
    if value.__class__ is float:
        return Decimal(repr(value))
    if isinstance(value, str):
        return Decimal(value.strip())
    raise ValueError


def _to_datetime(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, timezone.utc)  # noqa: UP017  # the name that all versions have
    if isinstance(value, str):
        return datetime.fromisoformat(value.strip())
    raise ValueError


COERCING: dict[Any, Callable[[Any], Any]] = {
    str: _to_str,
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
    Decimal: _to_decimal,
    datetime: _to_datetime,
}


def coerced_hook(cls: Any, strict: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """What `strict` takes, and what can be read as a `cls`."""
    convert = COERCING[cls]

    def coerced(value: Any, _: Any = None) -> Any:
        try:
            return strict(value, None)
        except Exception as exc:
            if value is None:
                raise
            failed = exc
        try:
            return convert(value)
        except (ValueError, ArithmeticError, OSError):
            raise failed from None

    return coerced


def parsed_hook(parse: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """A datetime that the user's own parser makes of whatever came."""

    def parsed(value: Any, _: Any = None) -> Any:
        if value.__class__ is datetime:
            return value
        try:
            made = parse(value)
        except Exception as exc:
            raise mismatch("datetime", value, str(exc) or type(exc).__name__) from exc
        if not isinstance(made, datetime):
            raise mismatch("datetime", value, f"the date_parser gave {type(made).__name__}")
        return made

    return parsed
