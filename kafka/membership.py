"""A group member's rebalances: from the client's callbacks in asyncio to our listener in trio, and back.

The client waits in its callback until the listener has returned; heartbeats go on while partitions are revoked, but
not while they are assigned. One trio task (`Membership.run`) calls the listener, so callbacks never overlap. The
client knows the eager protocol only: each rebalance revokes everything.

On leaving: the callback under way returns, what is owned is given up, then the client leaves the group, in this order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

import attrs
import trio
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.structs import TopicPartition

from ..channels.errors import BrokerUnavailable, MemberReplaced, TransportError
from ..channels.message import TP
from ..channels.transport import Assignment, ConsumerOptions, RebalanceListener
from .bridge import Crossing
from .errors import CALL_FAILURES, is_passing, translated
from .inside import Attempt, ConsumerInside

__all__ = ["Membership"]

log = logging.getLogger("famulus.kafka")

_LOOK = 1.0  # seconds between two looks whether the topics are still there whose positions are looked up
_AGAIN = 0.2  # seconds before the group is joined again when the positions could not be found


@attrs.frozen
class _Revoked:
    lost: bool


@attrs.frozen
class _Assigned:
    assignment: Assignment
    positions: dict[TP, int]
    ends: dict[TP, int]
    subscription: object


class Membership:
    """What a consumer owns, and who is told.

    Attributes:
        assignment: what is owned now.
        positions, ends: where reading goes on, and the end of the log, of each owned partition, as last known.
        paused: owned partitions that are not to be read.
        serving: whether batches may be given out.
        closed: whether the group has been left.
        attempts: commits under way; a revocation ends them.
        listener: the client's callbacks.
        task: the one that calls our listener.
    """

    def __init__(
        self,
        client: AIOKafkaConsumer,
        inside: ConsumerInside,
        options: ConsumerOptions,
        listener: RebalanceListener,
        wake: Callable[[], None],
    ) -> None:
        self.assignment = Assignment(-1, frozenset())
        self.positions: dict[TP, int] = {}
        self.ends: dict[TP, int] = {}
        self.paused: set[TP] = set()
        self.serving = False
        self.closed = False
        self.attempts: set[Attempt] = set()
        self.listener = _Callbacks(self)
        self.task: trio.lowlevel.Task | None = None
        self._client = client
        self._inside = inside
        self._options = options
        self._told = listener
        self._wake = wake
        self._granted: object = None
        self._crossing: Crossing[_Revoked | _Assigned] = Crossing()
        self._answering: trio.CancelScope | None = None
        self._failure: TransportError | None = None
        if options.instance_id is not None:
            inside.guard_membership(self._on_forgotten)

    def granted(self, subscription: object, *, not_before: object) -> bool:
        """Whether the assignment stands for this subscription of the client, and it is not `not_before`."""
        return subscription is not None and subscription is not not_before and self._granted is subscription

    def _forget_partitions(self) -> None:
        self.assignment = Assignment(self.assignment.generation, frozenset())
        self.positions = {}
        self.ends = {}
        self.paused.clear()
        for attempt in self.attempts:
            attempt.wanted = False

    # -- in trio -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Tell the listener of rebalances until `ask_close`; then give up what is owned.

        Raises:
            MemberReplaced: the group has forgotten or replaced this static member.
            TransportError: its partitions cannot be read.
        """
        self.task = trio.lowlevel.current_task()
        try:
            try:
                while await self._crossing.answer_next(self._answer):
                    pass
            finally:
                self._crossing.end()
                with trio.move_on_after(self._options.rebalance_timeout):
                    await self._give_up(lost=self._failure is not None)
        finally:
            self.closed = True
            self._crossing.dismiss()
        if self._failure is not None:
            raise self._failure

    def ask_close(self) -> None:
        """End `run` once the callback under way has returned, for which it has `rebalance_timeout` seconds."""
        self._crossing.end()
        if self._answering is not None:
            self._answering.deadline = trio.current_time() + self._options.rebalance_timeout

    async def _answer(self, question: _Revoked | _Assigned) -> None:
        try:
            with trio.CancelScope() as self._answering:
                if isinstance(question, _Revoked):
                    await self._give_up(lost=question.lost)
                else:
                    await self._take(question)
        finally:
            self._answering = None

    async def _give_up(self, *, lost: bool) -> None:
        """Stop serving, tell the listener, forget the partitions."""
        self.serving = False
        self._wake()
        owned = self.assignment.partitions
        if not owned:
            return
        if lost:
            self._forget_partitions()
        try:
            await self._told.on_revoked(owned, lost=lost)
        finally:
            self._forget_partitions()

    async def _take(self, news: _Assigned) -> None:
        """Begin a generation: positions first, so that the listener can see and change them."""
        self.assignment = news.assignment
        self.positions = news.positions
        self.ends = news.ends
        await self._told.on_assigned(news.assignment)
        self.serving = True
        self._granted = news.subscription
        self._wake()

    # -- in asyncio ----------------------------------------------------------------------------------------

    def _fail(self, error: TransportError) -> None:
        if self._failure is None:
            self._failure = error
        self._crossing.end()

    def _on_forgotten(self) -> None:
        who = f"group {self._options.group!r}, static member {self._options.instance_id!r}"
        self.serving = False
        self._fail(
            MemberReplaced(
                f"{who}: another process has joined under this id, or the group has heard nothing of this one for more "
                f"than {self._options.session_timeout:g} s. It must not join again, since two would evict each other for "
                "ever: see that only one process runs with this id, then start it again"
            )
        )

    async def revoked(self) -> None:
        """Partitions are to be given up, now or because they are lost. Returns when the listener has."""
        self.serving = False
        self._wake()
        if self.assignment.partitions:
            # The generation is unset when the coordinator has thrown this member out.
            await self._crossing.ask(_Revoked(self._inside.generation < 0))

    async def _look_up(self, partitions: Collection[TopicPartition]) -> tuple[list[int], dict[TopicPartition, int]]:
        """Where to go on, and the ends of the logs.

        Raises:
            BrokerUnavailable: a topic was deleted meanwhile; the client would wait for its leader, and the group for us.
        """

        async def look_up() -> tuple[list[int], dict[TopicPartition, int]]:
            positions = await asyncio.gather(*(self._client.position(tp) for tp in partitions))
            return positions, await self._client.end_offsets(list(partitions)) if partitions else {}

        looking = asyncio.ensure_future(look_up())
        try:
            while not (await asyncio.wait({looking}, timeout=_LOOK))[0]:
                gone = sorted({tp.topic for tp in partitions if not self._inside.has(tp.topic)})
                if gone:
                    raise BrokerUnavailable(f"topic {gone[0]} was deleted")
            return looking.result()
        finally:
            looking.cancel()

    async def assigned(self, partitions: Collection[TopicPartition]) -> None:
        """A generation begins. Returns when the listener has."""
        generation, subscription = self._inside.generation, self._inside.subscription
        try:
            positions, ends = await self._look_up(partitions)
        except (*CALL_FAILURES, BrokerUnavailable) as error:
            if is_passing(error):
                log.debug("the positions of generation %d are not known: %r", generation, error)
                await asyncio.sleep(_AGAIN)
                self._inside.rejoin()
            else:
                self._fail(translated(error, f"looking up where group {self._options.group!r} goes on"))
            return
        tps = [TP(*tp) for tp in partitions]
        await self._crossing.ask(
            _Assigned(
                Assignment(generation, frozenset(tps)),
                dict(zip(tps, positions, strict=True)),
                {TP(*tp): end for tp, end in ends.items()},
                subscription,
            )
        )


class _Callbacks(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped to mypy
    """What the client calls, in asyncio; it logs what these raise and goes on, so they raise nothing but cancellation."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    # aiokafka declares them as sync, and awaits what they return.
    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, revoked: Collection[TopicPartition]
    ) -> None:
        await self._membership.revoked()

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, assigned: Collection[TopicPartition]
    ) -> None:
        await self._membership.assigned(assigned)
