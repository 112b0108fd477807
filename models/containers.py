"""Hooks for values with parts of one kind: lists, tuples, sets, mappings and named tuples.

Each factory gives one of two hooks: the fast one stops at the first bad part and need not say where; the one
that explains (`explain=True`) looks at all parts and refuses with the path of every bad one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from .errors import FieldError, Mismatch, key_path, mismatch, short
from .leaves import Hook

__all__ = ["failures", "fixed_hook", "items_hook", "mapping_hook", "named_tuple_hook"]


def failures(exc: Exception, step: str, expected: str, value: Any) -> list[FieldError]:
    """What a part's hook raised, as errors seen from the whole."""
    if isinstance(exc, Mismatch):
        return [error.under(step) for error in exc.errors]
    nested = getattr(exc, "group_exceptions", None)  # from cattrs, for types that are only known to it
    if nested is not None:
        found: list[FieldError] = []
        noted, plain = nested()
        for inner, note in noted:
            at = f".{note.name}" if hasattr(note, "name") else key_path(note.index)
            found += [e.under(step) for e in failures(inner, at, str(note.type), None)]
        for inner in plain:
            found += failures(inner, step, expected, value)
        return found
    return [FieldError(step, expected, short(value), str(exc) or type(exc).__name__)]


def items_hook(make: Callable[[Any], Any], item: Hook, name: str, item_name: str, explain: bool) -> Hook:
    """From a list: `make` (list, set, tuple ...) of what `item` gives for each."""

    def fast(value: Any, _: Any = None) -> Any:
        if value.__class__ is not list:
            value = _sequence(value, name)
        return make([item(part, None) for part in value])

    def fast_list(value: Any, _: Any = None) -> Any:
        if value.__class__ is not list:
            value = _sequence(value, name)
        return [item(part, None) for part in value]

    def explained(value: Any, _: Any = None) -> Any:
        parts, errors = [], []
        for index, part in enumerate(_sequence(value, name)):
            try:
                parts.append(item(part, None))
            except Exception as exc:
                errors += failures(exc, key_path(index), item_name, part)
        if errors:
            raise Mismatch(errors)
        return make(parts)

    if explain:
        return explained
    return fast_list if make is list else fast


def _sequence(value: Any, name: str) -> Any:
    """A list, or what a codec that knows more than JSON may give for one."""
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    raise mismatch(name, value)


def fixed_hook(make: Callable[[Any], Any], hooks: Iterable[Hook], name: str) -> Hook:
    """From a list of fixed length, each place with a hook of its own. For both modes: these are short."""
    hooks = tuple(hooks)

    def hook(value: Any, _: Any = None) -> Any:
        value = _sequence(value, name)
        if len(value) != len(hooks):
            raise mismatch(name, value, f"expected {len(hooks)} items, got {len(value)}")
        parts, errors = [], []
        for index, (part_hook, part) in enumerate(zip(hooks, value, strict=True)):
            try:
                parts.append(part_hook(part, None))
            except Exception as exc:
                errors += failures(exc, key_path(index), "a value", part)
        if errors:
            raise Mismatch(errors)
        return make(parts)

    return hook


def named_tuple_hook(cls: Any, hooks: dict[str, Hook], name: str) -> Hook:
    """From a list, as JSON has no other place for a named tuple; the last fields may use their defaults."""
    fields, defaults = tuple(hooks), cls._field_defaults
    needed = len(fields) - len(defaults)

    def hook(value: Any, _: Any = None) -> Any:
        value = _sequence(value, name)
        if not needed <= len(value) <= len(fields):
            raise mismatch(name, value, f"expected {len(fields)} items, got {len(value)}")
        parts, errors = [], []
        for field, part in zip(fields, value, strict=False):
            try:
                parts.append(hooks[field](part, None))
            except Exception as exc:
                errors += failures(exc, f".{field}", "a value", part)
        if errors:
            raise Mismatch(errors)
        return cls(*parts)

    return hook


def mapping_hook(
    make: Callable[[Any], Any], key: Hook | None, item: Hook | None, name: str, item_name: str, explain: bool
) -> Hook:
    """From an object; `key` is None for text, `item` for anything, as is."""

    def fast(value: Any, _: Any = None) -> Any:
        if value.__class__ is not dict:
            raise mismatch(name, value)
        if key is not None:
            value = {key(k, None): v for k, v in value.items()}
        if item is not None:
            value = {k: item(v, None) for k, v in value.items()}
        return value if make is dict else make(value)

    def explained(value: Any, _: Any = None) -> Any:
        if value.__class__ is not dict:
            raise mismatch(name, value)
        parts, errors = {}, []
        for k, v in value.items():
            try:
                good_key = k if key is None else key(k, None)
            except Exception as exc:
                errors += [
                    FieldError(e.path, f"key {e.expected}", e.got, e.reason)
                    for e in failures(exc, key_path(k), name, k)
                ]
                continue
            try:
                parts[good_key] = v if item is None else item(v, None)
            except Exception as exc:
                errors += failures(exc, key_path(k), item_name, v)
        if errors:
            raise Mismatch(errors)
        return make(parts)

    return explained if explain else fast
