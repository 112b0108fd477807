"""Where a topic's log ends, and how far a group is behind it. For `Topic`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from .message import TP
from .transport import Transport

__all__ = ["end_offsets", "lag"]


async def end_offsets(transport: Transport, topic: str) -> dict[int, int]:
    """By partition, the offset of the next message; raises as `Transport.open_reader`."""
    return {partition: end for partition, (_, end) in (await _ends(transport, topic)).items()}


async def lag(transport: Transport, topic: str, group: str, reset: Literal["earliest", "latest"]) -> dict[int, int]:
    """By partition, how many offsets a group has still before it.

    Args:
        reset: where the group begins in a partition of which it has committed nothing.
    """
    partitions = [TP(topic, number) for number in range(await transport.partition_count(topic))]
    # In this order: the end may move between the two, and nothing that is there shall be left out.
    committed = await transport.committed(group, partitions)
    behind: dict[int, int] = {}
    for partition, (beginning, end) in (await _ends(transport, topic)).items():
        offset = committed.get(TP(topic, partition))
        if offset is None:
            offset = beginning if reset == "earliest" else end
        behind[partition] = max(0, end - max(offset, beginning))
    return behind


async def _ends(transport: Transport, topic: str) -> Mapping[int, tuple[int, int]]:
    """By partition, the first offset and the next one."""
    partitions = [TP(topic, number) for number in range(await transport.partition_count(topic))]
    async with transport.open_reader(dict.fromkeys(partitions, "latest")) as reader:
        return {tp.partition: (reader.beginning(tp), reader.highwater(tp)) for tp in partitions}
