"""Avro schemas from Python types: what `registry.avro()` registers for a topic of records."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, get_args, get_origin
from uuid import UUID

import attrs

from ..classes import is_class_like, unwrap
from ..hints import field_types, type_name, typed_dict_types
from ..plain import plain
from ..traits import TAG, extras_of, wire_names

__all__ = ["AvroType", "avro_schema"]

NO_DEFAULT: Any = object()
_EMPTY: dict[Any, Any] = {list: [], tuple: [], set: [], frozenset: [], deque: [], dict: {}}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_LEAVES: dict[Any, Any] = {
    None: "null",
    types.NoneType: "null",
    bool: "boolean",
    int: "long",
    float: "double",
    str: "string",
    bytes: "bytes",
    Decimal: "string",  # of all digits; a scale needs `AvroType.decimal`
    datetime: {"type": "long", "logicalType": "timestamp-micros"},
    date: {"type": "int", "logicalType": "date"},
    time: {"type": "long", "logicalType": "time-micros"},
    UUID: {"type": "string", "logicalType": "uuid"},
}


class AvroType:
    """The Avro schema of a field, where the one that is derived from its type would not do.

    >>> from typing import Annotated
    >>> from decimal import Decimal
    >>> Money = Annotated[Decimal, AvroType.decimal(precision=12, scale=2)]
    >>> avro_schema(Money)
    {'type': 'bytes', 'logicalType': 'decimal', 'precision': 12, 'scale': 2}
    """

    __slots__ = ("schema",)

    def __init__(self, schema: Any) -> None:
        self.schema = schema

    @classmethod
    def decimal(cls, *, precision: int, scale: int = 0) -> AvroType:
        """A number of at most `precision` digits, `scale` of them after the point."""
        if not 0 <= scale <= precision or precision < 1:
            raise ValueError(
                f"AvroType.decimal(precision={precision}, scale={scale}): expected 0 <= scale <= precision"
            )
        return cls({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale})

    def __repr__(self) -> str:
        return f"AvroType({self.schema!r})"


def avro_schema(tp: Any, *, namespace: str = "") -> Any:
    """The Avro schema of a type, as plain data.

    Records, attrs classes, dataclasses and typed dicts are Avro records of the class's name; defaults are kept, so that
    later versions can read what earlier ones wrote. A datetime is `timestamp-micros`, a Decimal a string unless it is
    annotated with `AvroType.decimal`, an Enum of names an Avro enum.

    Raises `TypeError` that names the field for a type without an Avro form.

    >>> avro_schema(dict[str, int | None])
    {'type': 'map', 'values': ['long', 'null']}
    """
    return _Deriver(namespace).schema(tp, "$")


class _Deriver:
    """One schema under way: named types are defined where they first stand, and named from then on."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._named: dict[str, Any] = {}
        self._defined: set[str] = set()

    def schema(self, tp: Any, path: str, default: Any = NO_DEFAULT) -> Any:
        given = _annotated(tp)
        if given is not None:
            return given
        tp = unwrap(tp)
        leaf = _LEAVES.get(tp) if isinstance(tp, type | None) else None
        if leaf is not None:
            return dict(leaf) if isinstance(leaf, dict) else leaf
        origin, args = get_origin(tp) or tp, get_args(tp)
        if origin in (typing.Union, types.UnionType):
            return self._union(args, path, default)
        if origin is typing.Literal:
            return self._literal(args, tp, path)
        if is_class_like(tp):
            return self._record(tp, path)
        if not isinstance(origin, type) or tp is object:
            raise _no_form(tp, path)
        if issubclass(origin, Enum):
            return self._enum(origin, tp, path)
        if issubclass(origin, tuple):
            if not args or any(arg != args[0] and arg is not ... for arg in args):
                raise _no_form(tp, path)
            return {"type": "array", "items": self.schema(args[0], f"{path}[]")}
        for base in (str, int, float, bytes):
            if issubclass(origin, base):
                return _LEAVES[base]
        if issubclass(origin, Mapping) and len(args) == 2:
            return {"type": "map", "values": self.schema(args[1], f"{path}{{}}")}
        if issubclass(origin, Sequence | Set | deque) and len(args) == 1:
            return {"type": "array", "items": self.schema(args[0], f"{path}[]")}
        raise _no_form(tp, path)

    def _union(self, args: tuple[Any, ...], path: str, default: Any) -> Any:
        branches: list[Any] = []
        for arg in args:
            branch = self.schema(arg, path)
            for one in branch if isinstance(branch, list) else [branch]:
                if one not in branches:
                    branches.append(one)
        kinds = [_kind(branch) for branch in branches]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise TypeError(f"{path}: an Avro union cannot hold two types that are both {kind}")
        if default is not NO_DEFAULT:  # a default is one of the first branch
            branches.sort(key=lambda branch: not _fits(branch, default))
        return branches

    def _literal(self, options: tuple[Any, ...], tp: Any, path: str) -> Any:
        wires = [plain(option) for option in options]
        for cls, name in ((str, "string"), (int, "long")):
            if all(wire.__class__ is cls for wire in wires):
                return name
        raise _no_form(tp, path)

    def _enum(self, cls: type[Enum], tp: Any, path: str) -> Any:
        wires = [plain(member.value) for member in cls]
        if all(wire.__class__ is int for wire in wires):
            return "long"
        if not all(wire.__class__ is str for wire in wires):
            raise _no_form(tp, path)
        if not all(_NAME.fullmatch(wire) for wire in wires):
            return "string"
        return self._define(cls, cls.__name__, path, lambda: {"type": "enum", "symbols": wires})

    def _record(self, tp: Any, path: str) -> Any:
        name = re.sub(r"\W+", "_", type_name(tp)).strip("_")
        return self._define(tp, name, path, lambda: {"type": "record", "fields": self._fields(tp, path)})

    def _define(self, tp: Any, name: str, path: str, make: Callable[[], dict[str, Any]]) -> Any:
        full = f"{self._namespace}.{name}" if self._namespace else name
        other = self._named.setdefault(full, tp)
        if other != tp:
            raise TypeError(f"{path}: {type_name(tp)} and another type are both named {name}: rename one")
        if full in self._defined:
            return full
        self._defined.add(full)
        made = make()
        namespace = {"namespace": self._namespace} if self._namespace else {}
        return {"type": made.pop("type"), "name": name, **namespace, **made}

    def _fields(self, tp: Any, path: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        tag, _ = vars(get_origin(tp) or tp).get(TAG) or ("", None)
        if tag:
            entries.append({"name": tag, "type": {"type": "map", "values": "string"}})
        for name, field_type, default in _written(tp, path):
            at = f"{path}.{name}"
            if not _NAME.fullmatch(name):
                raise TypeError(f"{at}: Avro has no fields of this name")
            schema = self.schema(field_type, at, default)
            entry: dict[str, Any] = {"name": name, "type": schema}
            if default is not NO_DEFAULT and _fits(schema[0] if isinstance(schema, list) else schema, default):
                entry["default"] = default
            entries.append(entry)
        return entries


def _written(tp: Any, path: str) -> list[tuple[str, Any, Any]]:
    """What is written of a class: the name there, the type and the default of each field."""
    cls: Any = get_origin(tp) or tp
    if attrs.has(cls):
        kept = [a for a in attrs.fields(cls) if not extras_of(a).exclude]
        types = field_types(tp, [a.name for a in kept])
        return [(wire_names(a)[1], types.get(a.name, Any), _default(a.default, attrs.NOTHING)) for a in kept]
    if dataclasses.is_dataclass(cls):
        members = dataclasses.fields(cls)
        types = field_types(tp, [f.name for f in members])
        missing = dataclasses.MISSING
        return [
            (
                f.name,
                types[f.name],
                _default(f.default, missing, None if f.default_factory is missing else f.default_factory),
            )
            for f in members
        ]
    for name, (_, required) in typed_dict_types(tp).items():
        if not required:
            raise TypeError(f"{path}.{name}: Avro has no fields that may be missing: make it required, and `| None`")
    return [(name, hint, NO_DEFAULT) for name, (hint, _) in typed_dict_types(tp).items()]


def _annotated(tp: Any) -> Any:
    """The schema that is given with a type, if there is one."""
    if get_origin(tp) is typing.Annotated:
        for extra in get_args(tp)[1:]:
            if isinstance(extra, AvroType):
                return extra.schema
    return None


def _no_form(tp: Any, path: str) -> TypeError:
    return TypeError(
        f"{path}: {type_name(tp)} has no Avro form: give the field one, Annotated[..., AvroType(...)], "
        "or the codec a schema, avro(schema=...)"
    )


def _default(value: Any, missing: Any, factory: Any = None) -> Any:
    """A default as plain data, where it is simple and the same each time."""
    factory = factory or getattr(value, "factory", None)
    if factory is not None:
        return _EMPTY.get(factory, NO_DEFAULT)
    if value is missing:
        return NO_DEFAULT
    if isinstance(value, Enum):
        value = value.value
    return value if value is None or type(value) in (bool, int, float, str) else NO_DEFAULT


def _kind(schema: Any) -> str:
    """What may stand once in a union: named types by name, others by type."""
    if isinstance(schema, str):
        return schema
    return str(schema.get("name") or schema["type"])


_DEFAULTS: dict[str, type | tuple[type, ...]] = {
    "null": types.NoneType,
    "boolean": bool,
    "long": int,
    "double": (int, float),
    "string": str,
    "array": list,
    "map": dict,
}


def _fits(schema: Any, default: Any) -> bool:
    """Whether a default, as plain data, is one of this schema."""
    if isinstance(schema, dict) and schema["type"] == "enum":
        return default in schema["symbols"]
    if isinstance(schema, dict) and "logicalType" in schema:
        return False
    kind = schema["type"] if isinstance(schema, dict) else schema
    if isinstance(default, bool) and kind != "boolean":
        return False
    return isinstance(default, _DEFAULTS.get(kind, ()))
