"""A member of a memory broker's consumer group: its own task for rebalances, positions, fetching, commits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from re import Pattern

import trio

from .errors import CommitRefused, TransportError
from .memory_broker import MemoryBroker
from .memory_group import Member, MemoryGroup, Subscription
from .memory_log import PartitionLog
from .message import TP
from .transport import Assignment, Batch, Consumer, ConsumerOptions, OffsetReset, RebalanceListener

__all__ = ["MemoryConsumer"]


class MemoryConsumer(Consumer):
    """Made by `MemoryTransport.open_consumer`, which runs `run_membership` beside its body.

    All that concerns the group happens in that task, one thing after the other: so callbacks never overlap.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        options: ConsumerOptions,
        listener: RebalanceListener,
        *,
        client_id: str,
        default_partitions: int,
    ) -> None:
        self.options = options
        self.closed = trio.Event()
        self._broker = broker
        self._group: MemoryGroup = broker.group(options.group)
        self._listener = listener
        self._client_id = client_id
        self._default_partitions = default_partitions
        self._member: Member | None = None
        self._subscription: Subscription | None = None
        self._granted: Subscription | None = None
        self._assignment = Assignment(-1, frozenset())
        self._logs: dict[TP, PartitionLog] = {}
        self._positions: dict[TP, int] = {}
        self._paused: set[TP] = set()
        self._serving = False
        self._woken = False
        self._news = trio.Event()
        self._told = trio.Event()
        self._touched = trio.Event()
        self._settled = trio.lowlevel.ParkingLot()
        self._closing = False
        self._task: trio.lowlevel.Task | None = None

    # -- membership: the task of its own -------------------------------------------------------------------

    async def run_membership(self) -> None:
        """Take part in rebalances until `ask_close`, or until a callback fails; then leave the group."""
        self._task = trio.lowlevel.current_task()
        self._broker.listeners[self._tell] = None
        try:
            try:
                while not self._closing:
                    await self._step()
            finally:
                member = self._member
                await self._give_up(lost=member is not None and member.thrown_out is not None)
        finally:
            del self._broker.listeners[self._tell]
            if self._member is not None:
                self._group.remove(self._member)
            self.closed.set()

    def release_waiters(self) -> None:
        """End the waits of other tasks, once the consumer is closed. (The body's own were cancelled.)"""
        self._news.set()
        self._settled.unpark_all()

    def ask_close(self) -> None:
        """End `run_membership`, once the callback under way has returned."""
        self._closing = True
        self._told.set()
        self._touched.set()

    def _tell(self) -> None:
        self._told.set()
        self._news.set()

    async def _step(self) -> None:
        told = self._told = trio.Event()
        group, member = self._group, self._member
        if member is None or not self._broker.up:
            await told.wait()
        elif member.thrown_out is not None:
            await self._after_loss(member)
        elif group.preparing and not member.joined:
            await self._give_up(lost=False)
            group.check_deadline()
            if self._broker.up and not self._closing and member.thrown_out is None:
                group.joining(member)
        elif not group.preparing and member.generation > self._assignment.generation:
            await self._take(member)
        else:
            with trio.move_on_at(group.deadline):
                await told.wait()
            if self._broker.up:
                group.check_deadline()

    async def _give_up(self, *, lost: bool) -> None:
        """Stop serving, tell the listener, forget the partitions."""
        self._serving = False
        owned = self._assignment.partitions
        self.wake()
        if not owned:
            return
        if lost:
            self._forget_partitions()
        try:
            await self._listener.on_revoked(owned, lost=lost)
        finally:
            self._forget_partitions()

    def _forget_partitions(self) -> None:
        for log in self._logs.values():
            log.listeners.pop(self._news_of_a_log, None)
        self._assignment = Assignment(self._assignment.generation, frozenset())
        self._logs = {}
        self._positions = {}
        self._paused.clear()

    async def _take(self, member: Member) -> None:
        """Begin a generation: positions first, so that the listener can see and change them."""
        self._assignment = Assignment(member.generation, member.owned)
        for tp in member.owned:
            log = self._logs[tp] = self._broker.log(tp)
            log.listeners[self._news_of_a_log] = None
            committed = self._group.committed.get(tp)
            self._positions[tp] = self._reset_offset(log) if committed is None else committed
        granted = member.granted
        await self._listener.on_assigned(self._assignment)
        self._serving = True
        self._granted = granted
        self._settled.unpark_all()
        self.wake()

    async def _after_loss(self, member: Member) -> None:
        """Learn of the loss as late as Kafka's client would, tell the listener, join anew."""
        with trio.move_on_at(member.told_at):
            await self._touched.wait()
        await self._give_up(lost=True)
        if member.replaced:
            raise TransportError(f"group {self._group.name!r}, member {member.id}: {member.thrown_out}")
        if self._subscription is not None and not self._closing and self._broker.up:
            self._enter(self._subscription)

    def _enter(self, subscription: Subscription) -> None:
        """Join the group as a new member."""
        self._touched = trio.Event()
        member_id = self._broker.new_member_id(self._client_id)
        self._member = Member(member_id, self._client_id, self.options, subscription, self._tell)
        self._group.add(self._member)

    def _reset_offset(self, log: PartitionLog) -> int:
        return log.start if self.options.offset_reset == "earliest" else log.end

    # -- subscription --------------------------------------------------------------------------------------

    async def subscribe(self, topics: Collection[str], *, pattern: Pattern[str] | None = None) -> None:
        if trio.lowlevel.current_task() is self._task:
            raise RuntimeError("subscribe() in a rebalance callback would wait for itself: use another task")
        await self._broker.wait_up()
        self._check_open()
        for name in sorted(topics):
            if name not in self._broker.topics:
                if not self._broker.auto_create:
                    self._broker.topic(name)
                self._broker.create_topic(name, self._default_partitions)
        wanted = Subscription(frozenset(topics), pattern)
        if self._subscription is None or not wanted.same_as(self._subscription):
            self._subscription = wanted
            if self._member is None:
                self._enter(wanted)
                self._tell()
            elif self._member.thrown_out is None:
                self._group.subscribe(self._member, wanted)
        while self._granted is not self._subscription:
            self._check_open()
            await self._settled.park()

    @property
    def assignment(self) -> Assignment:
        return self._assignment

    # -- reading -------------------------------------------------------------------------------------------

    async def fetch(self, room: Mapping[TP, int]) -> list[Batch]:
        maybe = self._woken or self._has_any(room)
        if maybe:
            await trio.lowlevel.checkpoint()  # before anything is taken: others may take the partition meanwhile
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            self._check_open()
            if self._serving and self._broker.up:
                self._broker.faults.check_fetch()
                if maybe and (batches := self._collect(room)):
                    self._woken = False
                    return batches
            if self._woken:
                self._woken = False
                return []
            self._news = trio.Event()
            await self._news.wait()
            maybe = True

    def _has_any(self, room: Mapping[TP, int]) -> bool:
        """Whether there seems to be something to read."""
        positions, logs = self._positions, self._logs
        for tp in room:
            position = positions.get(tp)
            if position is not None and position != logs[tp].end:
                return True
        return False

    def _collect(self, room: Mapping[TP, int]) -> list[Batch]:
        """What there is to read now. Positions move here and nowhere else, without a checkpoint."""
        batches: list[Batch] = []
        positions, generation = self._positions, self._assignment.generation
        for tp, most in room.items():
            position = positions.get(tp)
            if position is None or tp in self._paused or most < 1:
                continue
            log = self._logs[tp]
            if not log.start <= position <= log.end:
                wanted, position = position, self._reset_offset(log)
                positions[tp] = position
                if self.options.on_reset is not None:
                    self.options.on_reset(OffsetReset(tp, wanted, position))
            if position == log.end:
                continue
            messages, position = log.read(position, most, generation)
            positions[tp] = position
            if messages:
                batches.append(Batch(tp, generation, messages, position, log.end))
        return batches

    def _news_of_a_log(self) -> None:
        self._news.set()

    def wake(self) -> None:
        self._woken = True
        self._news.set()

    def position(self, tp: TP) -> int:
        return self._positions[tp]

    def highwater(self, tp: TP) -> int:
        return self._logs[tp].end

    async def seek(self, tp: TP, offset: int) -> None:
        await trio.lowlevel.checkpoint()
        if tp not in self._positions:
            raise KeyError(tp)
        if offset < 0:
            raise ValueError(f"seek of {tp} to {offset}: expected an offset of at least 0")
        self._positions[tp] = offset
        self._news.set()

    def pause(self, partitions: Collection[TP]) -> None:
        self._paused.update(tp for tp in partitions if tp in self._positions)

    def resume(self, partitions: Collection[TP]) -> None:
        self._paused.difference_update(partitions)
        self._news.set()

    # -- commits -------------------------------------------------------------------------------------------

    async def commit(self, offsets: Mapping[TP, int], *, generation: int) -> None:
        await trio.lowlevel.checkpoint()
        self._broker.check_up()
        self._broker.faults.check_commit()
        self.check_ownership(offsets, generation)
        self._broker.commit(self.options.group, offsets)

    def check_ownership(self, partitions: Collection[TP], generation: int) -> None:
        """Whether these may be committed now.

        Raises:
            CommitRefused: this member does not own them under this generation.
        """
        member = self._member
        if member is None:
            raise CommitRefused(f"group {self.options.group!r}: this consumer has not subscribed yet")
        if member.thrown_out is not None:
            self._touched.set()
        self._group.check_ownership(member, partitions, generation)
        if not self._assignment.partitions.issuperset(partitions):
            who = f"group {self.options.group!r}, member {member.id}"
            raise CommitRefused(f"{who}: its partitions are revoked")

    async def committed(self, partitions: Collection[TP]) -> Mapping[TP, int | None]:
        await trio.lowlevel.checkpoint()
        self._broker.check_up()
        return {tp: self._group.committed.get(tp) for tp in partitions}

    def _check_open(self) -> None:
        if self.closed.is_set():
            raise trio.ClosedResourceError("this consumer has left its group")

    def __repr__(self) -> str:
        state = "closed" if self.closed.is_set() else "serving" if self._serving else "joining"
        return f"<MemoryConsumer of {self.options.group!r} {state} {len(self._positions)} partitions>"
