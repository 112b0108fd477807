"""Trimming of repartition topics: what the group has read and committed of them is deleted, now and then.

Such a topic has one reader, and a broker that keeps all of it (no retention may drop what is not read yet), so
nobody else would. It is housekeeping: late is fine, and a failure costs disk space only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from ..supervision import child
from .errors import TransportError
from .message import TP, some_names

if TYPE_CHECKING:
    from .runs import Run

__all__ = ["REPARTITION_CONFIG", "Trimmer"]

log = logging.getLogger("famulus.topic")

_NAME = "trimming"

REPARTITION_CONFIG: Final = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "segment.bytes": "52428800",  # a broker frees whole segments: smaller ones sooner
}


class Trimmer:
    """Trims what this run owns of its repartition topics, every `topic_trim_interval` seconds. One per run.

    Attributes:
        topics: to be trimmed.
    """

    def __init__(self, run: Run) -> None:
        self.topics: set[str] = set()
        self._run = run
        self._trimmed: dict[TP, int] = {}
        self._failing = False

    @classmethod
    def of(cls, run: Run) -> Trimmer:
        """The one of this run."""
        return run.state(__name__, lambda: cls(run))

    async def trim_too(self, topic: str) -> None:
        """Trim this topic from now on."""
        self.topics.add(topic)
        services = self._run.services
        if services is not None and _NAME not in services.children:
            await services.start(child(self.run, name=_NAME, restart="transient"))

    async def run(self) -> None:
        """The task of it."""
        while True:
            await trio.sleep(self._run.options.topic_trim_interval)
            await self.trim()

    async def trim(self) -> None:
        """Delete what was committed since the last time. Raises nothing."""
        before = self._due()
        if not before:
            return
        try:
            await self._run.transport.delete_records(before)
        except (TransportError, trio.ClosedResourceError) as error:
            if not self._failing:  # said once
                self._failing = True
                log.warning("what is done of %s cannot be deleted, it is tried again: %s", some_names(before), error)
        else:
            self._failing = False
            self._trimmed.update(before)

    def _due(self) -> dict[TP, int]:
        """Where to trim: at what was committed, which where reading began need not be."""
        return {
            tp: tracker.committed
            for tp, tracker in self._run.conductor.partitions.items()
            if tp.topic in self.topics and tracker.committed > max(tracker.began, self._trimmed.get(tp, 0))
        }
