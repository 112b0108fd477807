"""From a type to its hook, once. Ours judge strictly; cattrs serves the types that only it knows.

`FAST` and `EXPLAINING` are the two builders: `serde` runs the first on every message and the second only on
messages that the first refused, to say where and why.
"""

from __future__ import annotations

import collections
import collections.abc
import threading
import types
import typing
from enum import Enum
from typing import Any, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import StructureHandlerNotFoundError

from .classes import class_hook, field_names, is_class_like, is_tagged, unwrap
from .containers import fixed_hook, items_hook, mapping_hook, named_tuple_hook
from .hints import field_types, type_name
from .leaves import Hook, enum_hook, key_hook, leaf_hook, literal_hook
from .tags import tag_keys
from .traits import STRICT, Mode, options_of
from .unions import Choice, union_hook

__all__ = ["EXPLAINING", "FAST", "Builder"]

_LISTS = (
    list,
    collections.abc.MutableSequence,
    collections.abc.Sequence,
    collections.abc.Collection,
    collections.abc.Iterable,
)
_ITEMS: dict[Any, Any] = {
    **dict.fromkeys(_LISTS, list),
    set: set,
    collections.abc.MutableSet: set,
    frozenset: frozenset,
    collections.abc.Set: frozenset,
    collections.deque: collections.deque,
}
_MAPPINGS: dict[Any, Any] = dict.fromkeys((dict, collections.abc.Mapping, collections.abc.MutableMapping), dict)
_MAPPINGS[collections.OrderedDict] = collections.OrderedDict


class Builder:
    """Makes and keeps the hooks of one mode."""

    __slots__ = ("_built", "_converter", "_hooks", "_lock", "_pending", "explain")

    def __init__(self, explain: bool) -> None:
        self.explain = explain
        self._hooks: dict[tuple[Any, Mode], Hook] = {}
        self._built: dict[tuple[Any, Mode], Hook] = {}  # of the outermost type under way, and its parts
        self._pending: dict[tuple[Any, Mode], list[Hook]] = {}
        self._lock = threading.RLock()
        self._converter = cattrs.Converter(detailed_validation=explain)
        self._converter.register_structure_hook_factory(self._is_ours, lambda tp: self.hook(tp))
        for cls in (str, int, float, bytes):  # cattrs looks these up before it asks factories
            self._converter.register_structure_hook(cls, self.hook(cls))

    def hook(self, tp: Any, mode: Mode = STRICT) -> Hook:
        """The hook of `tp`. Raises `TypeError` for a type without one, or with an unknown name in it."""
        tp = unwrap(tp)
        key = (tp, mode)
        try:
            if (known := self._hooks.get(key)) is not None:
                return known
        except TypeError:  # metadata or a literal that can't be hashed
            return self._ours(tp, mode) or self._foreign(tp)
        with self._lock:
            if (known := self._built.get(key)) is not None:
                return known
            if key in self._pending:  # a type within itself: give a hook that finds the real one when called
                return self._forward(key)
            self._pending[key] = cell = []
            try:
                hook = self._built[key] = self._ours(tp, mode) or self._foreign(tp)
                cell.append(hook)
                if len(self._pending) == 1:  # the outermost: only now is nothing half made
                    self._hooks |= self._built
            finally:
                del self._pending[key]
                if not self._pending:
                    self._built.clear()
            return hook

    def _forward(self, key: tuple[Any, Mode]) -> Hook:
        cell = self._pending[key]

        def forward(value: Any, _: Any = None) -> Any:
            return cell[0](value, None)

        return forward

    def _is_ours(self, tp: Any) -> bool:
        tp = unwrap(tp)
        origin = get_origin(tp) or tp
        return (
            leaf_hook(tp) is not None
            or origin in (typing.Union, types.UnionType, typing.Literal, tuple)
            or (isinstance(origin, collections.abc.Hashable) and (origin in _ITEMS or origin in _MAPPINGS))
            or is_class_like(tp)
            or (isinstance(origin, type) and issubclass(origin, Enum | tuple | str | int | float))
        )

    def _ours(self, tp: Any, mode: Mode) -> Hook | None:
        leaf = leaf_hook(tp, mode)
        if leaf is not None:
            return leaf
        origin, args = get_origin(tp) or tp, get_args(tp)
        if origin in (typing.Union, types.UnionType):
            return self._union(tp, args, mode)
        if origin is typing.Literal:
            return literal_hook(tp)
        if origin is tuple:
            return self._tuple(tp, args, mode)
        if is_class_like(tp):
            return class_hook(tp, self.hook, self.explain, mode)
        if not isinstance(origin, type):
            return None
        if origin in _ITEMS:
            item = args[0] if args else Any
            return items_hook(_ITEMS[origin], self.hook(item, mode), type_name(tp), type_name(item), self.explain)
        if origin in _MAPPINGS:
            key, item = args or (Any, Any)
            return mapping_hook(
                _MAPPINGS[origin],
                None if unwrap(key) in (str, Any) else key_hook(unwrap(key), self.hook(key, mode)),
                None if unwrap(item) is Any else self.hook(item, mode),
                type_name(tp),
                type_name(item),
                self.explain,
            )
        return self._derived(tp, origin, mode)

    def _derived(self, tp: Any, origin: Any, mode: Mode) -> Hook | None:
        """A user's own class of a builtin kind."""
        if issubclass(origin, Enum):
            return enum_hook(origin, mode)
        if issubclass(origin, tuple) and hasattr(origin, "_field_defaults"):
            names: tuple[str, ...] = getattr(origin, "_fields")  # noqa: B009 - no checker knows the class
            hints = field_types(tp, names)
            hooks = {name: self.hook(hints.get(name, Any), mode) for name in names}
            return named_tuple_hook(origin, hooks, type_name(tp))
        for base in (str, int, float):
            if issubclass(origin, base):
                return _derived(origin, self.hook(base, mode))
        return None

    def _tuple(self, tp: Any, args: tuple[Any, ...], mode: Mode) -> Hook:
        if not args and tp is not tuple and tp != tuple[()]:
            args = (Any, ...)
        if tp is tuple or (len(args) == 2 and args[1] is ...):
            item = args[0] if args else Any
            return items_hook(tuple, self.hook(item, mode), type_name(tp), type_name(item), self.explain)
        return fixed_hook(tuple, [self.hook(a, mode) for a in args], type_name(tp))

    def _union(self, tp: Any, args: tuple[Any, ...], mode: Mode) -> Hook:
        # A union or optional alias inside a union is one union to us.
        members = [m for a in map(unwrap, args) for m in (get_args(a) if get_origin(a) in _UNIONS else (a,))]
        if len(members) == 2 and types.NoneType in members:
            inner = self.hook(members[0] if members[1] is types.NoneType else members[1], mode)
            return _optional(inner)
        strict = attrs.evolve(mode, coerce=False)  # what fits as it is, before what can be read as something else
        choices = [Choice(m, self.hook(m, strict), field_names(m), self._tag(m, mode)) for m in members]
        lenient = [self.hook(m, mode) for m in members] if mode.coerce else []
        return union_hook(choices, lenient, type_name(tp))

    def _tag(self, tp: Any, mode: Mode) -> tuple[str, ...]:
        if not (is_class_like(tp) and is_tagged(tp, mode)):
            return ()
        return tag_keys(mode.blessed or options_of(get_origin(tp) or tp).allow_blessed_key)

    def _foreign(self, tp: Any) -> Hook:
        if isinstance(tp, typing.TypeVar):
            return self.hook(Any)
        try:
            hook: Hook = self._converter.get_structure_hook(tp)
        except (StructureHandlerNotFoundError, TypeError) as exc:
            raise TypeError(
                f"{type_name(tp)} is not a type that values can be decoded to: expected a Record, an attrs "
                "class, a dataclass, TypedDict, NamedTuple, Enum, Literal, union, list, tuple, set, dict, "
                "str, int, float, bool, bytes, datetime, date, time, Decimal, UUID or None"
            ) from exc

        def foreign(value: Any, _: Any = None) -> Any:
            return hook(value, tp)

        return foreign


_UNIONS = (typing.Union, types.UnionType)


def _optional(inner: Hook) -> Hook:
    def optional(value: Any, _: Any = None) -> Any:
        return None if value is None else inner(value, None)

    return optional


def _derived(cls: Any, hook: Hook) -> Hook:
    """A user's own class of text or number: of a value that its base takes."""

    def derived(value: Any, _: Any = None) -> Any:
        return value if value.__class__ is cls else cls(hook(value, None))

    return derived


FAST = Builder(explain=False)
EXPLAINING = Builder(explain=True)
