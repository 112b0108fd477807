"""Tags: how a value says which subclass it is. A tag names a namespace, and only a subclass of the type that was asked
for is found under it, among the classes that this program has defined. Nothing is ever imported.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import FieldError, Mismatch, field_path, mismatch, short
from .leaves import Hook

__all__ = ["FAUST_KEY", "KEY", "find", "place_of", "register_namespace", "tag_keys", "tag_of", "tagged_hook"]

KEY = "__famulus"
FAUST_KEY = "__faust"

_known: dict[str, list[weakref.ref[type]]] = {}


def place_of(cls: type) -> str:
    """Where a class was defined: its namespace, if it says no other.

    In a program that was started as a script, the script's own name stands for `__main__`, as its importers know it.
    """
    module = cls.__module__
    if module == "__main__":
        main = sys.modules.get(module)
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec is not None else Path(file).stem if file else module
    return f"{module}.{cls.__qualname__}"


def register_namespace(cls: type, namespace: str) -> None:
    """Let tags find `cls`. A class defined again in the same place takes the name over.

    Raises `TypeError` when a class from another place has the name.
    """
    alive = [ref for ref in _known.get(namespace, ()) if ref() is not None]
    for ref in alive:
        other = ref()
        if other is not None and place_of(other) != place_of(cls):
            raise TypeError(
                f"record {cls.__name__}: namespace {namespace!r} is taken by {place_of(other)}; give it another one"
            )
    _known[namespace] = [weakref.ref(cls), *alive]


def find(namespace: str, declared: type) -> type | None:
    """The class of that name that is `declared` or a subclass of it; the newest, if it was defined again."""
    for ref in _known.get(namespace, ()):
        cls = ref()
        if cls is not None and issubclass(cls, declared):
            return cls
    return None


def tag_keys(blessed: bool) -> tuple[str, ...]:
    """The keys that a tag may stand under."""
    return (KEY, FAUST_KEY) if blessed else (KEY,)


def tag_of(value: dict[str, Any], keys: Sequence[str]) -> tuple[str, str] | None:
    """The key and the namespace of a value's tag, or None. Raises `Mismatch` for a tag that is none."""
    for key in keys:
        tag = value.get(key)
        if tag is not None:
            namespace: Any = tag.get("ns") if tag.__class__ is dict else None
            if namespace.__class__ is not str:
                raise Mismatch([FieldError(field_path(key), "a tag like {'ns': name}", short(tag))])
            return key, namespace
    return None


def unknown_tag(name: str, key: str, namespace: str) -> Mismatch:
    """The refusal of a tag that names no class that may stand here."""
    path = f"{field_path(key)}.ns"
    reason = "no such subclass is defined here; import its module, or give the class namespace='...'"
    return Mismatch([FieldError(path, f"the namespace of {name}", short(namespace), reason)])


def tagged_hook(
    cls: type, name: str, own: Hook | None, hook_for: Callable[[type], Hook | None], keys: Sequence[str]
) -> Hook:
    """For `cls` and whatever subclass the tag names. `own` and what `hook_for` gives are None for abstract classes."""
    hooks: dict[type, Hook | None] = {cls: own}

    def tagged(value: Any, _: Any = None) -> Any:
        if value.__class__ is not dict:
            if isinstance(value, cls):
                return value
            raise mismatch(name, value)
        tag = tag_of(value, keys)
        found = cls if tag is None else find(tag[1], cls)
        if found is not None and found not in hooks:
            hooks[found] = hook_for(found)
        hook = None if found is None else hooks[found]
        if hook is not None:
            return hook(value, None)
        if tag is not None:
            raise unknown_tag(name, *tag)
        raise Mismatch(
            [FieldError(field_path(keys[0]), f"the tag of a subclass of {name}", "nothing", "it is abstract")]
        )

    return tagged
