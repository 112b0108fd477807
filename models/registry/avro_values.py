"""Values made ready for fastavro, by a schema: records become dicts, and what does not fit is named with its path.

fastavro alone would take a wrong bool or a naive datetime silently, and judge unions by trying; so each value passes here
first, through functions that are made once per schema.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Set
from datetime import date, datetime, time
from decimal import Context, Decimal
from enum import Enum
from functools import cache
from typing import Any
from uuid import UUID

import attrs

from ..errors import key_path, short
from ..plain import plain, wire_dict

__all__ = ["Misfit", "Prepare", "preparing"]

Prepare = Callable[[Any], Any]


class Misfit(ValueError):
    """A value that the schema has no place for; `path` is where, seen from the value that was prepared."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def under(self, step: str) -> Misfit:
        return Misfit(step + self.path, self.reason)

    def __str__(self) -> str:
        return f"${self.path}: {self.reason}"


def _misfit(expected: str, value: Any, reason: str = "") -> Misfit:
    return Misfit("", f"expected {expected}, got {short(value)}{': ' if reason else ''}{reason}")


def preparing(schema: Any, named: Mapping[str, Any]) -> Prepare:
    """The function that makes values of a schema, as fastavro parsed it, ready. It raises `Misfit`."""
    return _Maker(named).make(schema)


class _Maker:
    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._records: dict[str, list[Prepare]] = {}

    def make(self, schema: Any) -> Prepare:
        if isinstance(schema, list):
            return self._union(schema)
        if isinstance(schema, str):
            return self.make(self._named[schema]) if schema in self._named else _PRIMITIVES[schema]
        kind = schema["type"]
        logical = _LOGICAL.get(f"{kind}-{schema.get('logicalType')}")
        if logical is not None:
            return logical(schema)
        if kind in ("record", "error"):
            return self._record(schema)
        if kind == "enum":
            return _enum(schema)
        if kind == "fixed":
            return _fixed(schema["size"])
        if kind == "array":
            return _array(self.make(schema["items"]))
        if kind == "map":
            return _map(self.make(schema["values"]))
        return self.make(kind)

    def _record(self, schema: Any) -> Prepare:
        name: str = schema["name"]
        if name in self._records:  # it holds itself, or stands a second time
            cell = self._records[name]
            return lambda value: cell[0](value)
        cell = self._records[name] = []
        fields = [(field["name"], self.make(field["type"]), "default" in field) for field in schema["fields"]]
        cell.append(_record(name, fields))
        return cell[0]

    def _union(self, schema: list[Any]) -> Prepare:
        branches = [_Branch(one, self._named, self.make(one)) for one in schema]
        expected = " or ".join(branch.name for branch in branches)

        def union(value: Any) -> Any:
            first: Misfit | None = None
            for branch in sorted(branches, key=lambda branch: -branch.likeness(value)):
                try:
                    return branch.name, branch.prepare(value)
                except Misfit as misfit:
                    first = first or misfit
            if first is not None and first.path:
                raise first
            raise _misfit(expected, value)

        others = [branch for branch in branches if branch.name != "null"]
        if len(branches) == 2 and len(others) == 1:
            return _optional(others[0])
        return union


class _Branch:
    """A member of a union, by the name that fastavro knows it by."""

    def __init__(self, schema: Any, named: Mapping[str, Any], prepare: Prepare) -> None:
        full: Any = named.get(schema, schema) if isinstance(schema, str) else schema
        shape: dict[str, Any] = full if isinstance(full, dict) else {"type": full}
        kind: str = shape["type"]
        self.name: str = shape["name"] if kind in ("record", "error", "enum", "fixed") else kind
        self.prepare = prepare
        self._short_name = self.name.rpartition(".")[2]
        self._fields = frozenset(f["name"] for f in shape["fields"]) if kind in ("record", "error") else None
        self._classes = _CLASSES.get(f"{kind}-{shape.get('logicalType')}") or _CLASSES.get(kind, ())

    def likeness(self, value: Any) -> int:
        """How much a value is one of this: the branches are tried in this order."""
        cls = value.__class__
        if self._fields is None:
            return 1000 if cls in self._classes else 0
        if cls.__name__ == self._short_name:
            return 1001
        return len(self._fields.intersection(value)) if isinstance(value, Mapping) else 0


_CLASSES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "int": (int,),
    "long": (int,),
    "float": (float,),
    "double": (float,),
    "bytes": (bytes, bytearray),
    "string": (str,),
    "array": (list, tuple, set, frozenset, deque),
    "string-uuid": (UUID,),
    "int-date": (date,),
    "int-time-millis": (time,),
    "long-time-micros": (time,),
    "bytes-decimal": (Decimal,),
    "fixed-decimal": (Decimal,),
    "long-timestamp-millis": (datetime,),
    "long-timestamp-micros": (datetime,),
    "long-local-timestamp-millis": (datetime,),
    "long-local-timestamp-micros": (datetime,),
}


def _optional(branch: _Branch) -> Prepare:
    name, prepare = branch.name, branch.prepare
    return lambda value: None if value is None else (name, prepare(value))


@cache
def _as_dict(cls: type) -> Callable[[Any], Mapping[str, Any]] | None:
    """How a value of a class becomes its fields as they are written; None if it has none."""
    if issubclass(cls, Mapping):
        return lambda value: value
    return wire_dict(cls) if attrs.has(cls) or dataclasses.is_dataclass(cls) else None


def _record(name: str, fields: list[tuple[str, Prepare, bool]]) -> Prepare:
    known = frozenset(field for field, _, _ in fields)

    def record(value: Any) -> Any:
        as_dict = _as_dict(value.__class__)
        if as_dict is None:
            raise _misfit(name, value)
        given = as_dict(value)
        ready = {}
        for field, prepare, has_default in fields:
            if field in given:
                try:
                    ready[field] = prepare(given[field])
                except Misfit as misfit:
                    raise misfit.under(f".{field}") from None
            elif not has_default:
                raise Misfit(f".{field}", f"the schema's {name} has this field, and {short(value)} has not")
        if len(ready) != len(given) and (extra := given.keys() - known):
            raise Misfit(f".{min(extra)}", f"the schema's {name} has no such field")
        return ready

    return record


def _array(item: Prepare) -> Prepare:
    def array(value: Any) -> Any:
        if not isinstance(value, list | tuple | deque | Set):
            raise _misfit("array", value)
        try:
            return [item(part) for part in value]
        except Misfit:
            for index, part in enumerate(value):
                try:
                    item(part)
                except Misfit as misfit:
                    raise misfit.under(key_path(index)) from None
            raise

    return array


def _map(item: Prepare) -> Prepare:
    def mapping(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _misfit("map", value)
        ready = {}
        for key, part in value.items():
            text = key if key.__class__ is str else str(plain(key))
            try:
                ready[text] = item(part)
            except Misfit as misfit:
                raise misfit.under(key_path(key)) from None
        return ready

    return mapping


def _enum(schema: Any) -> Prepare:
    symbols = frozenset(schema["symbols"])
    expected = f"{schema['name']} ({', '.join(schema['symbols'])})"

    def enum(value: Any) -> Any:
        symbol = value.value if isinstance(value, Enum) else value
        if symbol.__class__ is not str or symbol not in symbols:
            raise _misfit(expected, value)
        return symbol

    return enum


def _fixed(size: int) -> Prepare:
    def fixed(value: Any) -> Any:
        ready = _bytes(value)
        if len(ready) != size:
            raise _misfit(f"{size} bytes", value)
        return ready

    return fixed


def _null(value: Any) -> Any:
    if value is not None:
        raise _misfit("null", value)


def _boolean(value: Any) -> Any:
    if value.__class__ is not bool:
        raise _misfit("boolean", value)
    return value


def _integer(name: str, bits: int) -> Prepare:
    end = 1 << (bits - 1)

    def integer(value: Any) -> Any:
        if value.__class__ is not int:
            value = value.value if isinstance(value, Enum) else value
            if not isinstance(value, int) or isinstance(value, bool):
                raise _misfit(name, value)
        if not -end <= value < end:
            raise _misfit(name, value, f"it has {bits} bits")
        return value

    return integer


def _number(value: Any) -> Any:
    if value.__class__ is not float and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise _misfit("number", value)
    return float(value)


def _bytes(value: Any) -> Any:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise _misfit("bytes", value)
    return bytes(value)


def _string(value: Any) -> Any:
    if value.__class__ is str:
        return value
    if isinstance(value, int | float | None | dict | list):
        raise _misfit("string", value)
    try:
        text = plain(value)  # dates, UUIDs, Decimals, members of an Enum
    except TypeError:
        text = None
    if text.__class__ is not str:
        raise _misfit("string", value)
    return text


_PRIMITIVES: dict[str, Prepare] = {
    "null": _null,
    "boolean": _boolean,
    "int": _integer("int", 32),
    "long": _integer("long", 64),
    "float": _number,
    "double": _number,
    "bytes": _bytes,
    "string": _string,
}


def _of(cls: type, expected: str) -> Callable[[Any], Prepare]:
    def prepare(value: Any) -> Any:
        if value.__class__ is not cls:
            raise _misfit(expected, value)
        return value

    return lambda schema: prepare


def _instant(schema: Any) -> Prepare:
    def instant(value: Any) -> Any:
        if not isinstance(value, datetime):
            raise _misfit("datetime", value)
        if value.utcoffset() is None:
            raise _misfit("datetime", value, "it has no time zone, and the schema's type is a moment")
        return value

    return instant


def _decimal(schema: Any) -> Prepare:
    precision, scale = schema["precision"], schema.get("scale", 0)
    unit, context = Decimal(1).scaleb(-scale), Context(prec=max(precision, 1))
    expected = f"Decimal of {precision} digits, {scale} after the point"

    def decimal(value: Any) -> Any:
        if value.__class__ is int:
            value = Decimal(value)
        if not isinstance(value, Decimal) or not value.is_finite():
            raise _misfit(expected, value)
        try:
            ready = value.quantize(unit, context=context)
        except ArithmeticError:
            raise _misfit(expected, value) from None
        if ready != value:
            raise _misfit(expected, value)
        return ready

    return decimal


_LOGICAL: dict[str, Callable[[Any], Prepare]] = {
    "string-uuid": lambda schema: _string,
    "int-date": _of(date, "date"),
    "int-time-millis": _of(time, "time"),
    "long-time-micros": _of(time, "time"),
    "long-timestamp-millis": _instant,
    "long-timestamp-micros": _instant,
    "long-local-timestamp-millis": _of(datetime, "datetime"),
    "long-local-timestamp-micros": _of(datetime, "datetime"),
    "bytes-decimal": _decimal,
    "fixed-decimal": _decimal,
}
