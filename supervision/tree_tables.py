"""Declared trees as tables of plain values, and so as TOML: see :mod:`.trees`. Pure.

A table has the keys of ``SUPERVISOR``, or ``ROOT`` if it is the root's. ``children`` lists what the supervisor starts, in that
order: names, tables ``{name = ..., restart = ...}``, and names of supervisors whose own tables stand under ``supervisors``;
those that the list does not name start after it, in the order of their tables.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from .backoff import Backoff
from .strategies import (
    CrashingSupervisor,
    OneForAllSupervisor,
    OneForOneSupervisor,
    RestForOneSupervisor,
    SupervisorStrategy,
)
from .trees import Leaf, TreeError, TreeSpec, near_miss

__all__ = ["tree_from_dict", "tree_from_toml", "tree_to_dict"]

STRATEGIES: dict[str, type[SupervisorStrategy]] = {
    "one-for-one": OneForOneSupervisor,
    "one-for-all": OneForAllSupervisor,
    "rest-for-one": RestForOneSupervisor,
    "crashing": CrashingSupervisor,
}


@attrs.frozen
class Kind:
    """What a key takes: a check, and the words for it."""

    accepts: Callable[[object], bool]
    expected: str


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _seconds(value: object) -> bool:
    return _number(value) and value >= 0  # type: ignore[operator]  # it is a number


def _one_of(*words: str) -> Kind:
    return Kind(lambda value: value in words, f"one of {', '.join(words)}")


_FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
_SECONDS = Kind(_seconds, "seconds from 0, or inf")
_NUMBER = Kind(_number, "a number")
_RESTART = _one_of("permanent", "transient", "temporary")

BACKOFF = dict.fromkeys((field.name for field in attrs.fields(Backoff)), _NUMBER)
LEAF = {
    "name": Kind(lambda value: isinstance(value, str) and value != "", "a text that is not empty"),
    "restart": _RESTART,
    "shutdown": _SECONDS,
    "significant": _FLAG,
}
STRATEGY = {
    "max_restarts": Kind(
        lambda value: _seconds(value) and (value == math.inf or value % 1 == 0),  # type: ignore[operator]  # a number
        "a whole number from 0, or inf",
    ),
    "within": Kind(lambda value: _seconds(value) and value != 0, "seconds, more than 0"),
    "auto_shutdown": _one_of("never", "any_significant", "all_significant"),
    "backoff": Kind(lambda value: isinstance(value, Mapping), f"a table with any of {', '.join(BACKOFF)}"),
}
ROOT = {
    "strategy": _one_of(*STRATEGIES),
    **STRATEGY,
    "children": Kind(
        lambda value: isinstance(value, Sequence) and not isinstance(value, str), "a list of names and tables"
    ),
    "supervisors": Kind(lambda value: isinstance(value, Mapping), "a table of tables, one for each supervisor"),
}
SUPERVISOR = {
    **ROOT,
    "restart": _RESTART,
    "shutdown": _SECONDS,
    "significant": _FLAG,
    "stop": _one_of("reverse", "together"),
}


def tree_from_dict(data: Mapping[str, Any], *, where: str = "tree") -> TreeSpec:
    """The tree that a table declares.

    Args:
        where: The table's own place, for messages, such as ``tool.famulus.tree``.

    Raises:
        TreeError: A key or value cannot be; its ``path`` names it.
    """
    return _read(data, where, None, {})


def tree_from_toml(text: str, *, table: str = "tool.famulus.tree", source: str = "pyproject.toml") -> TreeSpec | None:
    """The tree in a TOML document; None if it has no such table.

    Args:
        table: The table's dotted name; empty if the whole document is the tree.
        source: The document's name, for messages.

    Raises:
        TreeError: The document is no TOML, or a key or value of the tree cannot be.
    """
    try:
        data: object = tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        raise TreeError(source, f"no TOML: {failure}") from failure
    for key in table.split(".") if table else ():
        if not isinstance(data, Mapping) or key not in data:
            return None
        data = data[key]
    return tree_from_dict(_table(data, table), where=table or source)


def tree_to_dict(spec: TreeSpec) -> dict[str, Any]:
    """The table of a tree, without what is the default; :func:`tree_from_dict` makes an equal tree of it.

    Raises:
        TypeError: A strategy is of a class of your own, which a table has no name for.
    """
    data = {} if spec.strategy is None else _strategy_table(spec.strategy)
    options = attrs.asdict(spec, recurse=False, filter=lambda field, value: value != field.default)
    data.update((key, options[key]) for key in ("restart", "shutdown", "significant", "stop") if key in options)
    if spec.children:
        data["children"] = [
            child.name if isinstance(child, TreeSpec) else _leaf_table(child) for child in spec.children
        ]
    inner = {child.name: tree_to_dict(child) for child in spec.children if isinstance(child, TreeSpec)}
    if inner:
        data["supervisors"] = inner
    return data


def _read(data: Mapping[str, Any], where: str, name: str | None, seen: dict[str, str]) -> TreeSpec:
    _check(data, ROOT if name is None else SUPERVISOR, where)
    inner = data.get("supervisors", {})
    children: list[Leaf | TreeSpec] = []
    placed = set[str]()

    def place(name: str, at: str) -> None:
        if name in seen:
            raise TreeError(at, f"the name {name!r} is used already at {seen[name]}, and a name has one place")
        seen[name] = at

    def read_inner(name: str) -> None:
        at = _join(f"{where}.supervisors", name)
        place(name, at)
        placed.add(name)
        children.append(_read(_table(inner[name], at), at, name, seen))

    for number, entry in enumerate(data.get("children", ())):
        at = f"{where}.children[{number}]"
        if isinstance(entry, str) and entry in inner:
            if entry in placed:
                raise TreeError(at, f"the supervisor {entry!r} is listed twice")
            read_inner(entry)
            continue
        leaf = _read_leaf(entry, at)
        if leaf.name in inner:
            raise TreeError(at, f"{leaf.name!r} is a supervisor, whose options stand in {where}.supervisors")
        place(leaf.name, at)
        children.append(leaf)
    for supervisor in inner:
        if supervisor not in placed:
            read_inner(supervisor)
    options = {key: data[key] for key in ("restart", "shutdown", "significant", "stop") if key in data}
    strategy = _read_strategy(data, where)
    try:
        return TreeSpec(name=name, strategy=strategy, children=tuple(children), **options)
    except ValueError as failure:
        raise TreeError(where, str(failure)) from failure


def _read_leaf(entry: object, at: str) -> Leaf:
    if isinstance(entry, Mapping):
        _check(entry, LEAF, at)
        if "name" not in entry:
            raise TreeError(at, "a child given as a table needs the key name")
        options: dict[str, Any] = dict(entry)
    elif isinstance(entry, str) and entry:
        options = {"name": entry}
    else:
        raise TreeError(at, f"expected a name or a table with the key name, got {entry!r}")
    try:
        return Leaf(**options, where=at)
    except ValueError as failure:
        raise TreeError(at, str(failure)) from failure


def _read_strategy(data: Mapping[str, Any], where: str) -> SupervisorStrategy | None:
    options = {key: data[key] for key in STRATEGY if key in data}
    if not options and "strategy" not in data:
        return None
    kind = STRATEGIES[data.get("strategy", "one-for-one")]
    if kind is CrashingSupervisor and data.get("max_restarts", 0) != 0:
        raise TreeError(f"{where}.max_restarts", "a crashing supervisor restarts nothing: leave this key out")
    if "backoff" in options:
        at = f"{where}.backoff"
        _check(options["backoff"], BACKOFF, at)
        try:
            options["backoff"] = Backoff(**options["backoff"])
        except ValueError as failure:
            raise TreeError(at, str(failure)) from failure
    try:
        return kind(**options)
    except ValueError as failure:
        raise TreeError(where, str(failure)) from failure


def _strategy_table(strategy: SupervisorStrategy) -> dict[str, Any]:
    names = [name for name, kind in STRATEGIES.items() if kind is type(strategy)]
    if not names:
        raise TypeError(f"{type(strategy).__name__} has no name in a table: expected one of {', '.join(STRATEGIES)}")
    plain = type(strategy)()
    data: dict[str, Any] = {"strategy": names[0]}
    for key in STRATEGY:
        value = getattr(strategy, key)
        if value != getattr(plain, key):
            data[key] = attrs.asdict(value) if key == "backoff" else value
    return data


def _leaf_table(leaf: Leaf) -> str | dict[str, Any]:
    options = attrs.asdict(leaf, filter=lambda field, value: bool(field.eq) and value != field.default)
    return leaf.name if len(options) == 1 else options


def _check(data: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> None:
    for key, value in data.items():
        at = _join(where, key)
        if key not in kinds:
            raise TreeError(at, f"there is no such key{near_miss(str(key), kinds) or '; expected ' + ', '.join(kinds)}")
        kind = kinds[key]
        if not kind.accepts(value):
            hint = near_miss(value, kind.expected.removeprefix("one of ").split(", ")) if isinstance(value, str) else ""
            raise TreeError(at, f"expected {kind.expected}, got {value!r}{hint}")


def _table(data: object, at: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise TreeError(at, f"expected a table, got {data!r}")
    return data


def _join(where: str, key: object) -> str:
    text = str(key)
    return f"{where}.{text}" if re.fullmatch(r"[A-Za-z0-9_-]+", text) else f'{where}."{text}"'
