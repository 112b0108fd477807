"""Placing: which supervisor runs an app's agents, tasks, timers and services. Pure.

A declared tree names them; what it does not name has its default place. A leaf is the full name (``shop.tally``), or its last
part where only one thing is called that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from ..channels.errors import ImproperlyConfigured
from ..supervision import (
    CrashingSupervisor,
    Leaf,
    Spec,
    SupervisorSpec,
    SupervisorStrategy,
    TreeError,
    TreeSpec,
    supervisor,
    tree_from_dict,
)

__all__ = ["Placed", "TreeLike", "as_tree", "place", "with_groups"]

TreeLike = TreeSpec | Mapping[str, Any]
"""A tree as `tree()` makes it, or as a table of plain values."""

ROOT = "tree"
"""The supervisor over a declared tree."""


@attrs.frozen
class Placed:
    """What a declared tree makes of an app's children.

    Attributes:
        spec: the declared tree, ready to start; None where there is none.
        names: the full names of what it runs.
    """

    spec: SupervisorSpec | None = None
    names: frozenset[str] = frozenset()


def as_tree(given: TreeLike | None, *, where: str) -> TreeSpec | None:
    """A tree from what the user gave.

    Raises:
        ImproperlyConfigured: it cannot be one; the message names the key.
    """
    if given is None or isinstance(given, TreeSpec):
        return given
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"{where}={given!r}: expected tree(...), or a table of plain values")
    try:
        return tree_from_dict(given, where=where)
    except TreeError as error:
        raise ImproperlyConfigured(str(error)) from error


def with_groups(declared: TreeSpec | None, groups: Iterable[TreeSpec]) -> TreeSpec | None:
    """A tree with more supervisors at its end.

    Raises:
        ImproperlyConfigured: a name is used twice.
    """
    more = tuple(groups)
    if not more:
        return declared
    base = TreeSpec() if declared is None else declared
    try:
        return attrs.evolve(base, children=(*base.children, *more))
    except ValueError as error:
        raise ImproperlyConfigured(str(error)) from error


def place(declared: TreeSpec | None, children: Iterable[Spec]) -> Placed:
    """Put each child where the tree says.

    Raises:
        ImproperlyConfigured: a leaf names nothing, or several things, or one that another leaf has named; an option does
            not fit what is placed.
    """
    if declared is None:
        return Placed()
    found = tuple(children)
    known, unclear = _by_name(found)
    places: dict[str, str] = {}
    try:
        for name in declared.places():
            if name in unclear:
                raise TreeError(
                    f"tree: {name}", f"it may be any of {', '.join(unclear[name])}: give them names of their own"
                )
        declared.refuse_unknown(known)
        for name, there in declared.places().items():
            spec = known[name] = _with_options(known[name], there.leaf)
            if spec.name in places:
                raise TreeError(f"tree: {name}", f"it is {spec.name}, which {places[spec.name]!r} has placed already")
            places[spec.name] = name
        strategy: SupervisorStrategy = declared.strategy or CrashingSupervisor()
        # It may end by itself, by `auto_shutdown`.
        spec = supervisor(strategy, *declared.specs(known), name=ROOT, restart="transient")
    except ValueError as error:
        raise ImproperlyConfigured(f"the declared tree: {error}") from error
    return Placed(spec, frozenset(places))


def _with_options(spec: Spec, leaf: Leaf) -> Spec:
    """What an agent's leaf says holds for its actors, too.

    Raises:
        TreeError: an agent is to be temporary.
    """
    if not isinstance(spec, SupervisorSpec):
        return spec
    if leaf.restart == "temporary":
        raise TreeError(
            f"tree: {leaf.name}",
            "an agent cannot be temporary: once it is gone, its partitions would wait for it; expected permanent or transient",
        )
    options: dict[str, Any] = {}
    if leaf.restart is not None:
        options["restart"] = leaf.restart
    if leaf.shutdown is not None:
        options["shutdown"] = leaf.shutdown
    return attrs.evolve(spec, children=tuple(attrs.evolve(actor, **options) for actor in spec.children))


def _by_name(children: tuple[Spec, ...]) -> tuple[dict[str, Spec], dict[str, list[str]]]:
    """The children by full name, and by the last part of it where that is one thing's only; the names that mean several."""
    full = Counter(child.name for child in children)
    short = Counter(child.name.rpartition(".")[2] for child in children)
    known: dict[str, Spec] = {}
    unclear: dict[str, list[str]] = {}
    for child in children:
        last = child.name.rpartition(".")[2]
        if short[last] == 1:
            known[last] = child
        elif last not in full:
            unclear.setdefault(last, []).append(child.name)
        if full[child.name] == 1:
            known[child.name] = child
        else:
            unclear.setdefault(child.name, []).append(child.name)
    return known, unclear
