"""The callers of a run: who waits for which answer, and where answers are sent to reach them.

Every run has one reply address. A request carries it with a correlation id in its headers. An answer to a run of this process is
handed over directly; from other processes it comes through the topic that the address names (`reply_topic`).
"""

from __future__ import annotations

import itertools
import logging
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from ..channels.dead_letters import error_text
from ..channels.errors import AppNotRunning, ImproperlyConfigured
from ..channels.message import Headers, Message
from ..channels.runs import Run
from ..channels.topic import Topic
from ..models import NotReady, Serde, value_serde
from .errors import AgentError
from .slots import AskSlot, PromiseSlot, ReplySlot, StreamSlot
from .wire import REPLY_TO, Mode, Reply, decode_failure, failure_of, parse_reply, request_headers

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["REPLIES", "Replies", "answer_serde", "check_correlation_id", "replies_at"]

log = logging.getLogger("famulus.replies")

S = TypeVar("S", bound=ReplySlot)

REPLIES: Final = "actors.replies"
"""Where a run keeps its own; see `Run.found`."""


class Replies:
    """The callers of one run that wait for answers.

    Attributes:
        address: where answers go: the name of the run's reply topic.
        tag: of this run alone.
        is_client: the run has no agents of its own.
        wanted: set when an answer may come from another process: by then the reply topic is to be read.
        ready: set once that is so, or cannot be.
        refusal: why it cannot.
    """

    def __init__(self, run: Run, *, is_client: bool = False) -> None:
        self.run: Final = run
        self.is_client: Final = is_client
        prefix = run.options.reply_to_prefix or f"{run.app.id}-reply-"
        self.tag: Final = uuid.uuid4().hex
        instance = run.options.consumer_group_instance_id
        lasting = f"client-{instance}" if is_client else instance
        address = f"{prefix}{lasting if instance else self.tag}".encode()
        if address in _by_address:  # two runs here with one instance id: each has its own answers
            address = f"{prefix}{self.tag}".encode()
        self.address: Final = address
        self.wanted = trio.Event()
        self.ready = trio.Event()
        self.refusal: Exception | None = None
        self._slots: dict[bytes, ReplySlot] = {}
        self._failed: dict[str, BaseException] = {}
        self._reply_to: Final = (REPLY_TO, address)
        self._ids: Final[Iterator[bytes]] = map((self.tag[:12].encode() + b".%d").__mod__, itertools.count(1))
        self._token = trio.lowlevel.current_trio_token()
        _by_address[self.address] = self

    @property
    def waiting(self) -> int:
        """Requests that have no answer yet."""
        return len(self._slots)

    def new_id(self) -> str:
        """An id for a request, which no other run has."""
        return next(self._ids).decode()

    # -- for callers -----------------------------------------------------------------------------------------

    def open(
        self, agent: Agent[Any, Any], make: Callable[[Agent[Any, Any], bytes], S], correlation_id: str | None
    ) -> S:
        """A slot for a new request to an agent.

        Raises:
            AppNotRunning: the run is over.
            AgentError: the agent could not be started, or cannot be reached from a client.
            ValueError: a request with this id waits already, or it is no id.
        """
        if self.run.closed:
            raise AppNotRunning(f"app {self.run.app.id!r} has stopped")
        if self._failed and agent.name in self._failed:
            raise failure_of(agent.name, self._failed[agent.name])
        if self.is_client and not isinstance(agent.channel, Topic) and not agent.channel.is_foreign:
            raise AgentError(
                agent.name, f"it reads channel {agent.channel.name}, which is inside its worker: give it a topic"
            )
        identity = next(self._ids) if correlation_id is None else check_correlation_id(correlation_id).encode()
        if identity in self._slots:
            raise ValueError(f"correlation_id={correlation_id!r}: a request with this id waits for its answer already")
        slot = self._slots[identity] = make(agent, identity)
        return slot

    async def reachable(self, agent: Agent[Any, Any]) -> None:
        """Before a request is sent that another process may answer: wait until answers from there would be read.

        Raises:
            AppNotRunning: the run has ended meanwhile.
        """
        if self.ready.is_set() or not self.run.transport.crosses_processes or not isinstance(agent.channel, Topic):
            return
        self.wanted.set()
        if self.refusal is None:
            await self.ready.wait()
        if self.run.closed:
            raise AppNotRunning(f"app {self.run.app.id!r} has stopped")
        if self.refusal is not None:
            raise AgentError(agent.name, f"its answer could not be received here: {self.refusal}")

    def forget(self, slot: ReplySlot) -> None:
        """The caller has its answer, or has left. Another one may have asked under the same id since."""
        if self._slots.get(slot.correlation_id) is slot:
            del self._slots[slot.correlation_id]

    def untaken(self, slot: AskSlot | PromiseSlot) -> None:
        """The caller leaves while it still sends: an answer to an earlier request of the same id may have come meanwhile."""
        if slot.settled:
            self.run.counters.replies_dropped += 1
        else:
            self.forget(slot)

    def leave(self, slot: StreamSlot) -> None:
        """The caller wants no more parts."""
        slot.close()
        self.forget(slot)

    def headers(self, slot: ReplySlot, mode: Mode) -> Headers:
        """What the request carries."""
        return request_headers(slot.agent.asked, self._reply_to, slot.correlation_id, mode)

    def waits_for(self, slot: ReplySlot) -> bool:
        """Whether the answer has not come yet."""
        return self._slots.get(slot.correlation_id) is slot

    def find(self, correlation_id: bytes) -> ReplySlot | None:
        """The slot of a request."""
        return self._slots.get(correlation_id)

    # -- answers, from agents of this process ------------------------------------------------------------------

    def value(self, correlation_id: bytes, value: Any) -> None:
        """An answer came. For a caller that left, or a second one: dropped and counted."""
        slot = self._slots.pop(correlation_id, None)
        if slot is None:
            self.run.counters.replies_dropped += 1
        else:
            slot.value(value)

    def part(self, correlation_id: bytes, number: int, value: Any) -> None:
        """A part of an answer came; see `value`."""
        slot = self._slots.get(correlation_id)
        if not isinstance(slot, StreamSlot) or not slot.part(number, value):
            self.run.counters.replies_dropped += 1
        if slot is not None and isinstance(slot, StreamSlot) and slot.closed:
            self.forget(slot)

    def end(self, correlation_id: bytes, count: int) -> None:
        """All parts of an answer have come."""
        slot = self._slots.get(correlation_id)
        if isinstance(slot, StreamSlot):  # else it is that of an earlier request under the same id
            self.forget(slot)
            slot.end(count)
        else:
            self.run.counters.replies_dropped += 1

    def failure(self, correlation_id: bytes, error: Exception) -> None:
        """There will be no answer."""
        slot = self._slots.pop(correlation_id, None)
        if slot is None:
            self.run.counters.replies_dropped += 1
        else:
            slot.failure(error)

    @property
    def is_here(self) -> bool:
        """Whether this run lives in the trio run, and thread, of who calls this."""
        try:
            return trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def call(self, method: Callable[..., None], *arguments: Any) -> None:
        """Call one of the above, from whatever thread or trio run."""
        if self.is_here:
            method(*arguments)
            return
        try:
            self._token.run_sync_soon(method, *arguments)
        except trio.RunFinishedError:
            log.debug("the caller's program has ended")

    # -- answers, from other processes -------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """A message of the reply topic.

        Raises:
            NotReady: the codec has something to fetch first. Nothing is done then.
        """
        reply = parse_reply(message.headers)
        slot = None if reply is None else self._slots.get(reply.correlation_id)
        if reply is None or slot is None:
            self.run.counters.replies_dropped += 1
            return
        try:
            self._take(slot, reply, message)
        except NotReady:
            raise
        except Exception as error:
            self.undecodable(slot, error)

    def undecodable(self, slot: ReplySlot, error: Exception) -> None:
        """An answer came, and cannot be had."""
        if self.waits_for(slot):
            self.forget(slot)
            slot.failure(AgentError(slot.agent.name, f"its answer cannot be decoded: {error_text(error)}"))

    def _take(self, slot: ReplySlot, reply: Reply, message: Message) -> None:
        identity = reply.correlation_id
        if reply.kind == "end":
            self.end(identity, reply.part)
        elif reply.kind == "failure":
            self.failure(identity, decode_failure(slot.agent.name, message.value))
        else:
            value = answer_serde(self.run, slot.agent.answer_type).loads(message.value)
            if reply.kind == "part":
                self.part(identity, reply.part, value)
            else:
                self.value(identity, value)

    def begin(self) -> None:
        """The reply topic is read."""
        self.refusal = None
        self.ready.set()

    def refuse(self, error: Exception) -> None:
        """The reply topic cannot be made, or not be read: requests to other processes are refused until it can."""
        self.refusal = error
        before, self.ready = self.ready, trio.Event()
        before.set()

    # -- the end -------------------------------------------------------------------------------------------------

    def fail(self, agent: str, error: BaseException, *, for_good: bool = True) -> None:
        """An agent could not be started, or was cancelled: nobody waits for it for ever.

        Args:
            for_good: whoever asks it from now on gets this too, since nobody else could answer.
        """
        if for_good:
            self._failed[agent] = error
        for slot in [slot for slot in self._slots.values() if slot.agent.name == agent]:
            self.forget(slot)
            slot.failure(failure_of(agent, error))

    def revive(self, agent: str) -> None:
        """An agent that had ended has been started again."""
        self._failed.pop(agent, None)

    def close(self) -> None:
        """The run ends: nobody waits for ever."""
        if _by_address.get(self.address) is self:
            del _by_address[self.address]
        slots, self._slots = list(self._slots.values()), {}
        for slot in slots:
            slot.failure(AgentError(slot.agent.name, "the app stopped before the answer came"))
        self.ready.set()

    @staticmethod
    def of_client(run: Run) -> Replies:
        """The replies of a run that is a client; to be called first."""
        return run.state(REPLIES, lambda: Replies(run, is_client=True))

    @staticmethod
    def of(run: Run) -> Replies:
        """The replies of a run."""
        replies: Replies | None = run.found(REPLIES)
        return run.state(REPLIES, lambda: Replies(run)) if replies is None else replies

    def __repr__(self) -> str:
        return f"<Replies {self.address.decode()} waiting={self.waiting}>"


_by_address: dict[bytes, Replies] = {}


replies_at: Final[Callable[[bytes], Replies | None]] = _by_address.get
"""The run of this process that has a reply address, if there is one. No function of our own, which each answer would call."""


def check_correlation_id(given: Any) -> str:
    """
    Raises:
        ValueError: it is no text.
    """
    if not isinstance(given, str) or not given:
        raise ValueError(f"correlation_id={given!r}: expected text that names the request, or None to have an id made")
    return given


def answer_serde(run: Run, tp: Any) -> Serde[Any]:
    """How answers of this type travel in a run: as values of a topic do that names no codec."""
    key = ("actors.answers", tp)
    serde: Serde[Any] | None = run.found(key)
    if serde is None:
        options = run.options
        try:
            serde = value_serde(tp, default=options.value_serializer, limits=options.codec_limits)
        except (TypeError, LookupError) as error:
            raise ImproperlyConfigured(f"answers of type {tp!r} cannot travel: {error}") from error
        run.state(key, lambda: serde)
    return serde
