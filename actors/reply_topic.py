"""The reply topic of a run: made when the first ask may leave the process, read from its end, deleted at a clean stop."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping

import trio

from ..channels.errors import BufferFull, TopicMismatch, TransportError, UnknownTopic
from ..channels.message import TP, Message
from ..channels.provisioning import create_unless_there
from ..channels.retry import Retry
from ..channels.runs import Run
from ..channels.transport import StartOffset, TopicSpec
from ..models import NotReady
from ..supervision import trap_stop
from .replies import Replies
from .wire import parse_reply

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
        self._late: dict[bytes, deque[Message]] = {}  # by their request, in order: what waits for a schema
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
            async with trio.open_nursery() as nursery:
                for correlation_id in self._late:  # of a reader that has crashed
                    nursery.start_soon(self._receive_late, correlation_id)
                await self._read(nursery)
        if self._made:
            await self._delete()

    async def _read(self, nursery: trio.Nursery) -> None:
        run, tp = self._run, self._tp
        retry = Retry(f"reading answers from {tp.topic}", run.options, log, patient_with=(TransportError,))
        while True:
            try:
                if self._position is None:
                    await self._provide()
                start: Mapping[TP, StartOffset] = {tp: "latest" if self._position is None else self._position}
                async with run.transport.open_reader(start) as reader:
                    self._position = reader.position(tp)
                    retry.clear()
                    self._replies.begin()
                    while True:
                        for batch in await reader.fetch(_AT_ONCE):
                            for message in batch.messages:
                                self._receive(message, nursery)
                        self._position = reader.position(tp)
            except UnknownTopic as error:
                self._position = None  # somebody has deleted it: it is made again
                await retry.wait(error)
            except TransportError as error:
                if not error.retriable:
                    self._replies.refuse(error)
                await retry.wait(error)

    async def _provide(self) -> None:
        """See that the topic is there, and keeps what is written to it."""
        name, transport = self._tp.topic, self._run.transport
        try:
            self._made = True
            if await create_unless_there(transport, self._spec):
                log.info("created topic %s", name)
                return
        except TransportError as error:
            if error.retriable:
                raise
            self._made = False
            try:
                await transport.partition_count(name)  # perhaps somebody has made it who may
            except TransportError:
                raise TransportError(
                    f"{error}; topics that begin with {name.removesuffix(self._replies.tag)!r} have to be created, described, "
                    "read and deleted by callers, and written by the agents: allow that, or set another reply_to_prefix"
                ) from error
        try:
            found = await transport.describe_topic(name)
        except TransportError as error:
            if error.retriable:
                raise
            log.debug("the configuration of topic %s cannot be looked at: %s", name, error)
            return
        if "compact" in found.config.get("cleanup.policy", ""):
            command = transport.command_to("configure", name, config={"cleanup.policy": "delete"})
            raise TopicMismatch(f"topic {name!r} is compacted, and takes no answers, which have no keys: `{command}`")

    def _receive(self, message: Message, nursery: trio.Nursery) -> None:
        """Settle who waits for it; the parts of one answer in order."""
        if self._late:
            reply = parse_reply(message.headers)
            waiting = None if reply is None else self._late.get(reply.correlation_id)
            if waiting is not None:
                waiting.append(message)
                return
        try:
            self._replies.receive(message)
        except NotReady:
            reply = parse_reply(message.headers)
            assert reply is not None, "else it would have been dropped"
            self._late[reply.correlation_id] = deque([message])
            nursery.start_soon(self._receive_late, reply.correlation_id)
        except Exception:  # else it would come again and again
            self._run.counters.replies_dropped += 1
            log.exception("a message of topic %s is skipped, offset %d", message.topic, message.offset)

    async def _receive_late(self, correlation_id: bytes) -> None:
        """The same, after what the codec has to fetch first. Other callers do not wait for that."""
        waiting = self._late[correlation_id]
        most = self._run.options.reply_buffer_maxsize
        while waiting:
            try:
                self._replies.receive(waiting[0])
                waiting.popleft()
            except NotReady as pending:
                slot = self._replies.find(correlation_id)
                assert slot is not None, "else nothing would have been decoded"
                try:
                    await self._run.errands.run(pending)
                    if len(waiting) > most:
                        raise BufferFull(f"{len(waiting)} parts of it waited for {pending.what}")
                except Exception as error:
                    self._replies.undecodable(slot, error)
        del self._late[correlation_id]

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
