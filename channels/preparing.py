"""A topic's preparation in one run: that it is at the broker, made where that is ours to do, before it is used. For `Topic`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio

from .errors import BrokerUnavailable
from .provisioning import compare_partitions, create_unless_there, provide_topic
from .retry import Retry
from .runs import Run

if TYPE_CHECKING:
    from .topic import Topic

__all__ = ["Preparation"]

log = logging.getLogger("famulus.topic")


class Preparation:
    """Made once per run for each description of a topic, or of several; for a pattern there is nothing to do.

    Attributes:
        done: the topics can be used.
    """

    def __init__(self, run: Run, topic: Topic[Any]) -> None:
        self._run = run
        self._topic = topic
        self._lock = trio.Lock()
        self.done = False

    async def create(self, *, check: bool) -> None:
        """Create what is missing, in one attempt.

        Args:
            check: compare what is there with what is declared.

        Raises:
            TopicMismatch: it is otherwise; the message says what mends it.
            TransportError: the broker did not create it.
        """
        transport, topic = self._run.transport, self._topic
        for spec in topic.specs(self._run):
            if check:
                created = await provide_topic(transport, spec, partitions=topic.partitions)
            else:
                created = await create_unless_there(transport, spec)
            if created:
                log.info("created topic %s", spec.name)

    async def wait_done(self) -> None:
        """Before the first use; while the broker is away it waits.

        Raises:
            TopicMismatch: a topic of ours is there, and not as declared.
            TransportError: the broker does not create it.
        """
        run, topic = self._run, self._topic
        async with self._lock:
            if self.done:
                return
            if self._ours:
                retry = Retry(f"creating topic {topic.name}", run.options, log)
                await retry.until_done(lambda: self.create(check=self._topic.internal))
            if topic.partitions is not None and not topic.internal:
                for name in topic.topics:
                    await compare_partitions(run.transport, name, topic.partitions)
            self.done = True

    async def attempt(self) -> None:
        """`wait_done` for the producer's one task, in one attempt: what it sends to other topics must not wait.

        Raises:
            TransportError: not created; or somebody else is at it.
        """
        if self.done:
            return
        if self._lock.locked():
            raise BrokerUnavailable(f"topic {self._topic.name} is being created")
        async with self._lock:
            if self._ours:
                await self.create(check=self._topic.internal)
            self.done = True

    @property
    def _ours(self) -> bool:
        return self._topic.internal or self._run.transport.owns_topics

    def __repr__(self) -> str:
        return f"<Preparation of {self._topic.name} {'done' if self.done else 'to be done'}>"
