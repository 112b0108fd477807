"""Types as the user wrote them: names for messages, and annotations resolved late, when the first serde is
built.

With `from __future__ import annotations` every annotation is text. A name in it is looked up in what the
class saw when it was made (for a record inside a function), among records made beside it, and in its module.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar, get_args, get_origin
from weakref import WeakValueDictionary

__all__ = ["field_types", "remember", "seen_names", "type_name", "typed_dict_types"]

SCOPE = "__record_scope__"  # class attribute: local names that the annotations mention

_records: WeakValueDictionary[str, type] = WeakValueDictionary()


def type_name(tp: Any) -> str:
    """A type as a reader would write it.

    >>> type_name(int | None), type_name(dict[str, list[int]]), type_name(None)
    ('int or None', 'dict[str, list[int]]', 'None')
    """
    if tp is None or tp is types.NoneType:
        return "None"
    origin, args = get_origin(tp), get_args(tp)
    if origin is typing.Annotated:
        return type_name(args[0])
    if origin is typing.Literal:
        return " or ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    if args:
        return f"{type_name(origin)}[{', '.join('...' if a is ... else type_name(a) for a in args)}]"
    return getattr(tp, "__name__", None) or str(tp).removeprefix("typing.")


def remember(cls: type) -> None:
    """Let records that are made beside `cls`, inside a function, refer to it before it exists."""
    _records[f"{cls.__module__}.{cls.__qualname__}"] = cls


def seen_names(annotations: Mapping[str, Any], frame: types.FrameType | None) -> dict[str, Any]:
    """The local names in `frame` (and class bodies around it) that the annotations mention as text."""
    wanted = set(re.findall(r"[^\W\d]\w*", str(annotations)))
    found: dict[str, Any] = {}
    while frame is not None and frame.f_locals is not frame.f_globals:
        local = frame.f_locals
        for name in wanted.intersection(local):
            found.setdefault(name, local[name])
        if "__qualname__" not in local:  # a function; a class body is looked out of
            break
        frame = frame.f_back
    return found


class _Scope(dict[str, Any]):
    """Local names for evaluating annotations of `owner`; asked before its module's globals."""

    def __init__(self, owner: type) -> None:
        super().__init__(vars(owner).get(SCOPE, {}))
        self[owner.__name__] = owner
        self.place = f"{owner.__module__}.{owner.__qualname__}"

    def __missing__(self, name: str) -> Any:
        place = self.place
        while "<locals>" in place:
            place = place.rpartition(".")[0]
            if place.endswith("<locals>") and (found := _records.get(f"{place}.{name}")) is not None:
                return found
        raise KeyError(name)


def _resolve(owner: type, field: str, annotation: Any) -> Any:
    holder = types.SimpleNamespace(
        __annotations__={field: annotation}, __type_params__=getattr(owner, "__type_params__", ())
    )
    module = sys.modules.get(owner.__module__)
    try:
        return typing.get_type_hints(holder, vars(module) if module else {}, _Scope(owner), True)[field]
    except NameError as exc:
        raise TypeError(
            f"{owner.__qualname__}.{field}: cannot resolve the annotation {annotation!r}: {exc}. "
            f"The name must be importable in module {owner.__module__!r} when the first value is coded "
            "(not only under TYPE_CHECKING), or be a local name that was defined before the record"
        ) from exc
    except (SyntaxError, TypeError) as exc:
        raise TypeError(f"{owner.__qualname__}.{field}: cannot resolve the annotation {annotation!r}: {exc}") from exc


def _bindings(tp: Any) -> dict[Any, Any]:
    """What each type variable stands for, in a generic alias or a class that inherits from one."""
    found: dict[Any, Any] = {}
    origin = get_origin(tp)
    if origin is not None:
        found.update(zip(getattr(origin, "__parameters__", ()), get_args(tp), strict=False))
    for base in vars(origin or tp).get("__orig_bases__", ()):
        if get_origin(base) not in (None, Generic):
            for name, bound in _bindings(base).items():
                found.setdefault(name, _substitute(bound, found))
        elif isinstance(base, type):
            found.update({k: v for k, v in _bindings(base).items() if k not in found})
    return found


def _substitute(tp: Any, bindings: Mapping[Any, Any]) -> Any:
    if isinstance(tp, TypeVar):
        return bindings.get(tp, Any)
    parameters = getattr(tp, "__parameters__", ())
    if get_origin(tp) is not None and parameters:
        return tp[tuple(bindings.get(p, Any) for p in parameters)]
    return tp


def field_types(tp: Any, names: Iterable[str]) -> dict[str, Any]:
    """The resolved types of the named fields of a class, or of a generic alias of one.

    A name without an annotation is left out. Raises `TypeError` that names the field when a name in an
    annotation is unknown.
    """
    cls: type = get_origin(tp) or tp
    bindings = _bindings(tp)
    wanted = set(names)
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, annotation in inspect.get_annotations(base).items():
            if name in wanted:
                found[name] = _substitute(_resolve(base, name, annotation), bindings)
    return found


def typed_dict_types(tp: Any) -> dict[str, tuple[Any, bool]]:
    """The keys of a typed dict, or of a generic alias of one: each one's type, and whether it is required."""
    cls: Any = get_origin(tp) or tp
    bindings = _bindings(tp)
    try:
        hints = typing.get_type_hints(cls, localns=_Scope(cls), include_extras=True)
    except NameError as exc:
        raise TypeError(f"{cls.__qualname__}: cannot resolve an annotation: {exc}") from exc
    found = {}
    for name, hint in hints.items():
        required = name in cls.__required_keys__
        # Under `from __future__ import annotations` the class itself could not see these.
        while (origin := get_origin(hint)) in (typing.Required, typing.NotRequired):
            required = origin is typing.Required
            hint = get_args(hint)[0]
        found[name] = (_substitute(hint, bindings), required)
    return found
