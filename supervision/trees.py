"""A tree declared as data: which named children stand under which supervisors. Pure; it runs nothing.

The same tree in Python and in TOML::

    tree(                                               [tool.famulus.tree]
        "billing",                                      strategy = "one-for-one"
        tree(                                           max_restarts = 5
            "prices",                                   within = 60
            leaf("trades", shutdown=30),                children = ["billing", "ingest"]
            name="ingest",
            strategy=RestForOneSupervisor,              [tool.famulus.tree.supervisors.ingest]
        ),                                              strategy = "rest-for-one"
        strategy=OneForOneSupervisor(                   children = ["prices", {name = "trades", shutdown = 30}]
            max_restarts=5, within=60
        ),
    )

The leaves are names; what they name (agents, tasks, timers, services) is known to whoever runs the tree. :mod:`.tree_tables`
reads and writes tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import attrs

from .errors import SupervisionError
from .specs import Restart, Spec, StopOrder, SupervisorSpec
from .strategies import OneForOneSupervisor, StrategyLike, SupervisorStrategy, as_strategy

__all__ = ["Leaf", "Place", "TreeError", "TreeSpec", "leaf", "near_miss", "tree"]


class TreeError(SupervisionError, ValueError):
    """A declared tree cannot be one.

    Attributes:
        path: Where the fault is, such as ``tool.famulus.tree.supervisors.ingest.within``.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


@attrs.frozen(kw_only=True)
class Leaf:
    """A child by name, and how it is treated here. Made by :func:`leaf`, or from a text.

    Attributes:
        restart: None leaves what the child has by itself.
        shutdown: Seconds; 0 cancels it at once, None leaves what the child has by itself.
        significant: Its end counts for the supervisor's ``auto_shutdown``.
        where: Where it is declared, for messages.
    """

    name: str
    restart: Restart | None = None
    shutdown: float | None = None
    significant: bool = False
    where: str = attrs.field(default="", eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _check_name(self.name)
        if self.restart not in (None, "permanent", "transient", "temporary"):
            raise ValueError(
                f"leaf {self.name!r}: restart={self.restart!r}: expected permanent, transient or temporary"
            )
        if self.shutdown is not None and not self.shutdown >= 0:
            raise ValueError(f"leaf {self.name!r}: shutdown={self.shutdown!r}: expected seconds from 0, or inf")
        if self.significant and self.restart not in ("transient", "temporary"):
            raise ValueError(f"leaf {self.name!r}: a significant child needs restart transient or temporary")

    def applied_to(self, spec: Spec) -> Spec:
        """The spec with the options that are given here."""
        options: dict[str, Any] = {"significant": True} if self.significant else {}
        if self.restart is not None:
            options["restart"] = self.restart
        if self.shutdown is not None:
            options["shutdown"] = self.shutdown
        return attrs.evolve(spec, **options)


@attrs.frozen
class Place:
    """Where a leaf stands: the names of the supervisors from below the root down to its own, and the leaf."""

    path: tuple[str, ...]
    leaf: Leaf


@attrs.frozen(kw_only=True)
class TreeSpec:
    """A supervisor and what is below it. Made by :func:`tree`; the outermost one is the root and has no name.

    Attributes:
        strategy: None is one-for-one with its defaults; at the root, what the program has there.
        children: In start order.
        restart, shutdown, significant, stop: As for :func:`supervisor`; without meaning at the root.
    """

    name: str | None = None
    strategy: SupervisorStrategy | None = None
    children: tuple[Leaf | TreeSpec, ...] = ()
    restart: Restart = "permanent"
    shutdown: float = math.inf
    significant: bool = False
    stop: StopOrder = "reverse"

    def __attrs_post_init__(self) -> None:
        who = "the root of the tree" if self.name is None else f"supervisor {self.name!r}"
        if self.name is not None:
            _check_name(self.name)
            # What a supervisor's own spec would refuse is refused here.
            self._spec(())
        names = {self.name}
        for node in self.walk():
            if node is self:
                continue
            if node.name is None:
                raise ValueError(f"{who}: a tree inside another one needs a name, as tree(..., name=...)")
            if node.name in names:
                raise ValueError(f"{who}: the name {node.name!r} is used twice below it")
            names.add(node.name)
        for child in self.children:
            if child.significant and (self.strategy is None or self.strategy.auto_shutdown == "never"):
                raise ValueError(
                    f"{who}: child {child.name!r} is significant, which means nothing under auto_shutdown='never': "
                    f"use any_significant or all_significant"
                )

    def walk(self) -> Iterator[Leaf | TreeSpec]:
        """This node and all below it, depth first, in start order."""
        yield self
        for child in self.children:
            if isinstance(child, TreeSpec):
                yield from child.walk()
            else:
                yield child

    def places(self) -> dict[str, Place]:
        """All leaves by name, in start order."""
        found: dict[str, Place] = {}
        for child in self.children:
            if isinstance(child, TreeSpec):
                found.update(
                    (name, Place((child.name or "", *place.path), place.leaf)) for name, place in child.places().items()
                )
            else:
                found[child.name] = Place((), child)
        return found

    def place(self, name: str) -> Place | None:
        """Where a name stands; None if the tree does not say."""
        return self.places().get(name)

    def supervisors(self) -> dict[tuple[str, ...], TreeSpec]:
        """The supervisors below this one by their path, each before those below it, in start order."""
        found: dict[tuple[str, ...], TreeSpec] = {}
        for child in self.children:
            if isinstance(child, TreeSpec) and child.name is not None:
                found[(child.name,)] = child
                found.update(((child.name, *path), node) for path, node in child.supervisors().items())
        return found

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """See to it that each leaf names something.

        Raises:
            TreeError: One does not; it says what may have been meant.
        """
        names = list(known)
        for name, place in self.places().items():
            if name not in names:
                raise TreeError(
                    place.leaf.where or "/".join(("tree", *place.path)),
                    f"there is nothing named {name!r} to place here{near_miss(name, names)}",
                )

    def specs(self, children: Mapping[str, Spec]) -> tuple[Spec, ...]:
        """The specs of this node's children, ready for a supervisor: leaves from ``children``, which gives what each name
        means, and inner trees as supervisors. ::

            async with open_supervisor(declared.strategy or OneForOneSupervisor, *declared.specs({"prices": child(read)})):

        Raises:
            TreeError: A leaf has no child.
        """
        self.refuse_unknown(children)
        return tuple(
            node._spec(node.specs(children)) if isinstance(node, TreeSpec) else node.applied_to(children[node.name])
            for node in self.children
        )

    def _spec(self, children: tuple[Spec, ...]) -> SupervisorSpec:
        return SupervisorSpec(
            name=self.name or "",
            strategy=self.strategy or OneForOneSupervisor(),
            children=children,
            restart=self.restart,
            shutdown=self.shutdown,
            significant=self.significant,
            stop=self.stop,
        )


def leaf(
    name: str, *, restart: Restart | None = None, shutdown: float | None = None, significant: bool = False
) -> Leaf:
    """Name a child, with options that override its own; without any, the bare name does.

    Raises:
        ValueError: A value is out of its range.
    """
    return Leaf(name=name, restart=restart, shutdown=shutdown, significant=significant)


def tree(
    *children: str | Leaf | TreeSpec,
    name: str | None = None,
    strategy: StrategyLike | None = None,
    restart: Restart = "permanent",
    shutdown: float = math.inf,
    significant: bool = False,
    stop: StopOrder = "reverse",
) -> TreeSpec:
    """Declare a tree: a supervisor over children given by name, and over trees inside it, which need a name.

    Raises:
        ValueError: A value is out of its range, a name is used twice, or an inner tree has none.
        TypeError: A child is neither a name, nor a leaf, nor a tree.
    """
    return TreeSpec(
        name=name,
        strategy=None if strategy is None else as_strategy(strategy),
        children=tuple(_node(child) for child in children),
        restart=restart,
        shutdown=shutdown,
        significant=significant,
        stop=stop,
    )


def near_miss(word: str, known: Iterable[str]) -> str:
    """What may have been meant, to put behind a complaint about ``word``."""
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _node(child: object) -> Leaf | TreeSpec:
    if isinstance(child, str):
        return Leaf(name=child)
    if isinstance(child, (Leaf, TreeSpec)):
        return child
    raise TypeError(f"tree: expected names, leaf(...) or tree(...) as children, got {child!r}")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name {name!r}: expected a text that is not empty")
