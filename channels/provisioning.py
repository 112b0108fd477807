"""Topics that are ours: made as they are declared, and looked at where they are there already. `Topic` calls this.

A topic whose partitions or configuration are not what is declared stops the start, with what mends it: found out later,
it is keys at the wrong worker or messages that are gone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from .errors import TopicExists, TopicMismatch, TransportError
from .transport import TopicDescription, TopicSpec, Transport

__all__ = ["check_partitions", "compare_partitions", "create_unless_there", "differing_config", "provide_topic"]

log = logging.getLogger("famulus.topic")


async def provide_topic(transport: Transport, spec: TopicSpec, *, partitions: int | None) -> bool:
    """Create a topic of ours, or check the one that is there; whether it was created.

    Args:
        partitions: the number that it must have; None where whatever it has will do.

    Raises:
        TopicMismatch: it is there, and not as declared; the message has what mends it.
        TransportError: the broker neither created nor described it.
    """
    if await create_unless_there(transport, spec):
        return True
    if partitions is not None:
        check_partitions(transport, spec.name, await transport.partition_count(spec.name), partitions)
    if spec.config or (spec.replicas or 1) > 1:
        try:
            found = await transport.describe_topic(spec.name)
        except TransportError as error:
            if error.retriable:
                raise
            log.warning("the configuration of topic %s cannot be checked: %s", spec.name, error)
        else:
            _check_description(transport, spec, found)
    return False


async def create_unless_there(transport: Transport, spec: TopicSpec) -> bool:
    """Create a topic; False where there is one of this name, whatever it is like."""
    try:
        await transport.create_topic(spec)
    except TopicExists:
        return False
    return True


def check_partitions(transport: Transport, name: str, found: int, declared: int) -> None:
    """
    Raises:
        TopicMismatch: the numbers differ.
    """
    problem = partition_mismatch(transport, name, found, declared, ours=True)
    if problem is not None:
        raise TopicMismatch(problem)


def partition_mismatch(transport: Transport, name: str, found: int, declared: int, *, ours: bool) -> str | None:
    """What is wrong and what mends it, where a topic has another number of partitions than is declared; else None.

    Args:
        ours: whether it may be deleted, to be made anew.
    """
    if found == declared:
        return None
    ways = [f"declare it with partitions={found}"]
    if found < declared:
        ways.append(f"add partitions, `{transport.command_to('grow', name, partitions=declared)}` (keys move then)")
    if ours:
        ways.append(f"once it is read to its end, delete it, `{transport.command_to('delete', name)}`: it is made anew")
    has = f"topic {name!r} has {found} partitions at the broker and is declared with {declared}"
    return f"{has}: {', or '.join(ways)}"


async def compare_partitions(transport: Transport, name: str, declared: int) -> None:
    """Warn where a topic of others has another number of partitions than is declared. One that is missing is no matter."""
    try:
        found = await transport.partition_count(name)
    except TransportError as error:
        log.debug("the partitions of topic %s are not known yet: %s", name, error)
        return
    problem = partition_mismatch(transport, name, found, declared, ours=False)
    if problem is not None:
        log.warning("%s; until then its keys are where the broker's number puts them", problem)


def _check_description(transport: Transport, spec: TopicSpec, found: TopicDescription) -> None:
    differing = differing_config(spec.config, found.config)
    if differing:
        has = ", ".join(f"{name}={found.config[name]}" for name in differing)
        wanted = ", ".join(f"{name}={value}" for name, value in differing.items())
        command = transport.command_to("configure", spec.name, config=differing)
        raise TopicMismatch(
            f"topic {spec.name!r} has {has} at the broker and is declared with {wanted}: change it, `{command}`, "
            "or the declaration"
        )
    if spec.replicas is not None and found.replicas < spec.replicas:
        log.warning(
            "topic %s has %d replicas at the broker, fewer than the %d declared: what it holds is less safe than asked for",
            spec.name,
            found.replicas,
            spec.replicas,
        )


def differing_config(declared: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """What is declared and found to be otherwise; what the broker does not tell is no difference.

    >>> differing_config({"cleanup.policy": "compact,delete", "retention.ms": "-1"},
    ...                  {"cleanup.policy": "delete,compact", "retention.ms": "604800000"})
    {'retention.ms': '-1'}
    """
    return {name: value for name, value in declared.items() if name in found and _items(value) != _items(found[name])}


def _items(value: str) -> frozenset[str]:
    """A list's items, as in ``compact,delete``; their order means nothing."""
    return frozenset(item.strip() for item in value.split(","))
