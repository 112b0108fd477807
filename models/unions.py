"""The hook of a union: which member a value is meant for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from .errors import Mismatch, mismatch
from .leaves import Hook
from .tags import find, tag_of, unknown_tag

__all__ = ["Choice", "union_hook"]


@attrs.frozen
class Choice:
    """A member of a union: its hook, the names of its fields if it has such, the keys its tag may stand under."""

    type: Any
    hook: Hook
    names: frozenset[str] | None
    tag: tuple[str, ...] = ()


def union_hook(members: Sequence[Choice], lenient: Sequence[Hook], name: str) -> Hook:
    """The member that the value fits.

    Of exactly its class first; then the one that a tag names; then, of several with fields, those that share the most
    field names with it; then in the order of declaration. What fits none as it is goes to the `lenient` ones in order.
    """
    exact = {m.type: m.hook for m in members if m.type in (str, int, bool, float, type(None))}
    rest = [m for m in members if m.type not in exact]
    tagged = [m for m in rest if m.tag]
    if float in exact and int not in exact:
        exact[int] = exact[float]

    def by_tag(value: dict[str, Any]) -> Hook | None:
        unknown = None
        for member in tagged:
            tag = tag_of(value, member.tag)
            if tag is not None:
                if find(tag[1], getattr(member.type, "__origin__", member.type)) is not None:
                    return member.hook
                unknown = tag
        if unknown is not None:
            raise unknown_tag(name, *unknown)
        return None

    def strictly(value: Any, _: Any = None) -> Any:
        known = exact.get(value.__class__)
        if known is not None:
            return known(value, None)
        choices, shared = rest, 0
        if value.__class__ is dict:
            if tagged and (known := by_tag(value)) is not None:
                return known(value, None)
            choices = sorted(rest, key=lambda m: -len(value.keys() & m.names) if m.names is not None else 0)
            names = choices[0].names if choices else None
            shared = len(value.keys() & names) if names is not None else 0
        first: Exception | None = None
        for choice in choices:
            try:
                return choice.hook(value, None)
            except Exception as exc:
                first = first or exc
        # One candidate, or one that plainly was meant: its own errors say more than "none of these".
        meant = shared or len(rest) == 1
        if meant and isinstance(first, Mismatch) and any(error.path for error in first.errors):
            raise first
        raise mismatch(name, value)

    if not lenient:
        return strictly

    def leniently(value: Any, _: Any = None) -> Any:
        try:
            return strictly(value)
        except Exception:
            for hook in lenient:
                try:
                    return hook(value, None)
                except Exception:
                    continue
            raise

    return leniently
