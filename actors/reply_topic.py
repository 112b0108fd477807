"""The reply topic of a run: made when the first ask may leave the process, read from its end, deleted at a clean stop."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

from ..channels.errors import TransportError, UnknownTopic
from ..channels.message import TP
from ..channels.provisioning import create_unless_there
from ..channels.retry import Retry
from ..channels.runs import Run
from ..channels.transport import StartOffset, TopicSpec
from ..supervision import trap_stop
from .replies import Replies

__all__ = ["ReplyReader"]

log = logging.getLogger("famulus.replies")

_AT_ONCE = 1000  # messages


class ReplyReader:
    """Reads the reply topic and settles who waits. A child of the run; idle until somebody asks.

    After a crash it goes on where it was, so that no answer is missed.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._replies = Replies.of(run)
        self._tp = TP(self._replies.address.decode(), 0)
        self._position: int | None = None
        self._made = False
        self._scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wait for the first ask, then read until asked to stop."""
        self._scope = trio.CancelScope()
        trap_stop(self._scope.cancel)
        task_status.started()
        with self._scope:
            if self._run.options.reply_create_topic:
                self._replies.wanted.set()
            await self._replies.wanted.wait()
            await self._read()
        if self._made:
            await self._delete()

    async def _read(self) -> None:
        run, tp = self._run, self._tp
        retry = Retry(f"reading answers from {tp.topic}", run.options, log, patient_with=(UnknownTopic,))
        while True:
            try:
                if self._position is None:
                    self._made = True
                    if await create_unless_there(run.transport, self._spec):
                        log.info("created topic %s", tp.topic)
                start: Mapping[TP, StartOffset] = {tp: "latest" if self._position is None else self._position}
                async with run.transport.open_reader(start) as reader:
                    self._position = reader.position(tp)
                    retry.clear()
                    self._replies.begin()
                    while True:
                        for batch in await reader.fetch(_AT_ONCE):
                            for message in batch.messages:
                                self._replies.receive(message)
                        self._position = reader.position(tp)
            except UnknownTopic as error:
                self._position = None  # somebody has deleted it: it is made again
                await retry.wait(error)
            except TransportError as error:
                if not error.retriable:
                    self._replies.refuse(error)
                await retry.wait(error)

    @property
    def _spec(self) -> TopicSpec:
        options = self._run.options
        return TopicSpec(
            name=self._tp.topic,
            partitions=1,
            replicas=options.topic_replication_factor,
            config={"cleanup.policy": "delete", "retention.ms": str(round(options.reply_expires * 1000))},
        )

    async def _delete(self) -> None:
        """Nobody will read it any more. Who still answers finds it gone, and drops the answer."""
        try:
            await self._run.transport.delete_topic(self._tp.topic)
        except TransportError as error:
            log.info("topic %s stays at the broker: %s", self._tp.topic, error)

    def __repr__(self) -> str:
        return f"<ReplyReader {self._tp.topic}>"
