"""Hooks for values with named fields: records, attrs classes, dataclasses and typed dicts.

The fast hook is generated, once per class: it reads each field from the JSON object, checks plain types in
place, calls hooks for the others, and calls the constructor with positions. Unknown fields are ignored.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

import attrs

from .containers import failures
from .errors import FieldError, Mismatch, ValidationError, field_path, mismatch, short
from .hints import field_types, type_name, typed_dict_types
from .leaves import Hook
from .tags import tag_keys, tagged_hook
from .traits import ABSTRACT, STRICT, Coercer, Mode, extras_of, field_mode, is_record, options_of, wire_names

__all__ = ["Field", "class_fields", "class_hook", "field_names", "is_class_like", "is_tagged", "unwrap"]

REQUIRED: Any = object()
ABSENT: Any = object()  # a typed dict's key that may stay away


@attrs.frozen
class Field:
    """One field as a hook needs it.

    `name` is the one in what is read. `default` is REQUIRED, ABSENT, or a function that gives the default.
    """

    name: str
    type: Any
    argument: str
    positional: bool
    default: Any
    converted: bool = False
    mode: Mode = STRICT


def is_class_like(tp: Any) -> bool:
    cls = get_origin(tp) or tp
    return isinstance(cls, type) and (
        attrs.has(cls) or dataclasses.is_dataclass(cls) or typing.is_typeddict(cls) or _is_foreign_typed_dict(cls)
    )


def _is_foreign_typed_dict(cls: type) -> bool:
    return issubclass(cls, dict) and hasattr(cls, "__required_keys__") and hasattr(cls, "__total__")


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def class_fields(tp: Any) -> list[Field]:
    """The fields of a class, or of a generic alias of one, in the order of its constructor's arguments."""
    cls: Any = get_origin(tp) or tp
    if attrs.has(cls):
        members = [a for a in attrs.fields(cls) if a.init]
        hints = field_types(tp, [a.name for a in members])
        options = options_of(cls)
        return [
            Field(
                wire_names(a)[0],
                hints.get(a.name, a.type if a.type is not None else Any),
                a.alias or a.name,
                not a.kw_only,
                # A factory is left to the constructor, which takes NOTHING for "not given".
                REQUIRED
                if a.default is attrs.NOTHING
                else _constant(attrs.NOTHING if _is_factory(a.default) else a.default),
                a.converter is not None and not isinstance(a.converter, Coercer),
                field_mode(options, extras_of(a)),
            )
            for a in members
        ]
    if dataclasses.is_dataclass(cls):
        parts = [f for f in dataclasses.fields(cls) if f.init]
        hints = field_types(tp, [f.name for f in parts])
        return [Field(f.name, hints[f.name], f.name, not f.kw_only, _dataclass_default(f)) for f in parts]
    return [
        Field(name, hint, name, False, REQUIRED if required else ABSENT)
        for name, (hint, required) in typed_dict_types(tp).items()
    ]


def _is_factory(default: Any) -> bool:
    return hasattr(default, "takes_self") and hasattr(default, "factory")  # attrs.Factory is no class to a checker


def _dataclass_default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return _constant(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    return REQUIRED


def field_names(tp: Any) -> frozenset[str] | None:
    """The names a value of this type has in JSON, for telling the members of a union apart."""
    return frozenset(f.name for f in class_fields(tp)) if is_class_like(tp) else None


def unwrap(tp: Any) -> Any:
    """The type behind `Annotated`, `Final`, `NewType`, `Required` and type aliases."""
    while True:
        origin = get_origin(tp)
        if origin in (typing.Annotated, typing.Final, typing.ClassVar, typing.Required, typing.NotRequired):
            tp = get_args(tp)[0]
        elif hasattr(tp, "__supertype__"):
            tp = tp.__supertype__
        elif type(tp).__name__ == "TypeAliasType" and type(tp).__module__ in ("typing", "typing_extensions"):
            tp = tp.__value__
        else:
            return tp


def is_tagged(tp: Any, mode: Mode = STRICT) -> bool:
    """Whether values of `tp` may say which subclass they are."""
    cls: Any = get_origin(tp) or tp
    options = options_of(cls)
    return options.include_metadata or options.allow_blessed_key or (mode.polymorphic and is_record(cls))


def class_hook(tp: Any, hook_of: Callable[[Any, Mode], Hook], explain: bool, mode: Mode = STRICT) -> Hook:
    """The hook for `tp`. Raises `TypeError` for an abstract record without a tag."""
    cls: Any = get_origin(tp) or tp
    name = type_name(tp)
    abstract = vars(cls).get(ABSTRACT, False)
    if is_tagged(tp, mode):
        own = None if abstract else _own_hook(tp, hook_of, explain)

        def hook_for(found: Any) -> Hook | None:
            return None if vars(found).get(ABSTRACT) else _own_hook(found, hook_of, explain)

        return tagged_hook(cls, name, own, hook_for, tag_keys(mode.blessed or options_of(cls).allow_blessed_key))
    if abstract:
        raise TypeError(
            f"{name} is abstract: values are decoded to a subclass, to a union of subclasses, or, where they say which "
            "one they are, to a base with include_metadata=True"
        )
    return _own_hook(tp, hook_of, explain)


def _own_hook(tp: Any, hook_of: Callable[[Any, Mode], Hook], explain: bool) -> Hook:
    cls: Any = get_origin(tp) or tp
    name = type_name(tp)
    fields = class_fields(tp)
    hooks = {f.name: hook_of(f.type, f.mode) for f in fields}
    hooks |= {f.name: _lenient(hooks[f.name]) for f in fields if f.converted}
    make = dict if not (attrs.has(cls) or dataclasses.is_dataclass(cls)) else cls
    build = _explained if explain else _generated
    return build(make, name, fields, hooks)


def _lenient(hook: Hook) -> Hook:
    """A field with a converter of its own: what the type's hook refuses is the converter's business."""

    def lenient(value: Any, _: Any = None) -> Any:
        try:
            return hook(value, None)
        except Exception:
            return value

    return lenient


def _accept(make: Any, name: str, value: Any) -> Any:
    """What is no object: a value that a codec has already made, or wrong."""
    if make is not dict and isinstance(value, make):
        return value
    raise mismatch(name, value)


def _explained(make: Any, name: str, fields: list[Field], hooks: Mapping[str, Hook]) -> Hook:
    def explained(value: Any, _: Any = None) -> Any:
        if value.__class__ is not dict:
            return _accept(make, name, value)
        given: dict[str, Any] = {}
        errors: list[FieldError] = []
        for field in fields:
            step = field_path(field.name)
            if field.name not in value:
                if field.default is REQUIRED:
                    errors.append(FieldError(step, type_name(field.type), "nothing", "the field is missing"))
                continue
            part = value[field.name]
            try:
                given[field.argument] = hooks[field.name](part, None)
            except Exception as exc:
                errors += failures(exc, step, type_name(field.type), part)
        if errors:
            raise Mismatch(errors)
        try:
            return make(**given)
        except ValidationError as exc:
            raise Mismatch([attrs.evolve(e, path=e.path.removeprefix("$")) for e in exc.errors]) from exc
        except Exception as exc:  # a validator or the class's own __attrs_post_init__
            reason = str(exc.args[0]) if exc.args else type(exc).__name__
            raise Mismatch([FieldError("", name, short(value), reason)]) from exc

    return explained


def _generated(make: Any, name: str, fields: list[Field], hooks: Mapping[str, Hook]) -> Hook:
    scope: dict[str, Any] = {
        "make": make,
        "accept": lambda value: _accept(make, name, value),
        "Refused": Mismatch,
    }
    lines = ["def fast(o, _=None):", " if o.__class__ is not dict: return accept(o)"]
    arguments: list[str] = []
    optional: list[str] = []
    for i, field in enumerate(fields):
        scope[f"h{i}"] = hooks[field.name]
        check = None if field.converted or field.mode.coerce else _check(field.type, f"v{i}")
        read = [f"v{i} = o[{field.name!r}]", *([f"v{i} = h{i}(v{i}, None)"] if check is None else check)]
        if field.default is REQUIRED:
            lines += [f" {line}" for line in read]
        elif field.default is ABSENT:
            optional += [f" if {field.name!r} in o:", *(f"  {line}" for line in read)]
            optional.append(f"  r[{field.name!r}] = v{i}")
            continue
        else:
            scope[f"d{i}"] = field.default
            lines += [f" if {field.name!r} in o:", *(f"  {line}" for line in read)]
            lines += [" else:", f"  v{i} = d{i}()"]
        if make is dict:
            arguments.append(f"{field.name!r}: v{i}")
        else:
            arguments.append(f"v{i}" if field.positional else f"{field.argument}=v{i}")
    if make is dict:
        lines += [f" r = {{{', '.join(arguments)}}}", *optional, " return r"]
    else:
        # Keyword-only fields may stand between the others: positions come first in a call.
        arguments.sort(key=lambda argument: "=" in argument)
        lines.append(f" return make({', '.join(arguments)})")
    exec(compile("\n".join(lines), f"<famulus hook for {name}>", "exec"), scope)
    hook: Hook = scope["fast"]
    return hook


def _check(tp: Any, v: str) -> list[str] | None:
    """Lines that judge variable `v` in place, for plain types (a call costs more than the check), or None."""
    tp = unwrap(tp)
    if tp in (str, int, bool):
        return [f"if {v}.__class__ is not {tp.__name__}: raise Refused(())"]
    if tp is float:
        return [
            f"if {v}.__class__ is not float:",
            f" if {v}.__class__ is not int: raise Refused(())",
            f" {v} = float({v})",
        ]
    if tp is Any:
        return []
    origin, args = get_origin(tp), get_args(tp)
    if origin in (typing.Union, types.UnionType) and len(args) == 2 and types.NoneType in args:
        inner = _check(args[0] if args[1] is types.NoneType else args[1], v)
        return inner and [f"if {v} is not None:", *(f" {line}" for line in inner)]
    if origin is list and len(args) == 1 and unwrap(args[0]) in (str, int, bool):
        item = unwrap(args[0]).__name__
        return [
            f"if {v}.__class__ is not list: raise Refused(())",
            f"for e in {v}:",
            f" if e.__class__ is not {item}: raise Refused(())",
        ]
    return None
