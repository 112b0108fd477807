"""Faults to order from a memory broker, for tests: ``broker.faults.refuse_commits(2)``.

Every method but `Hold.reached` is synchronous and takes effect at once. `MemoryFaults.clear` lifts them all.
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from types import TracebackType
from typing import Protocol

import trio

from .errors import CommitRefused, ProduceError, TransportError
from .memory_group import Member, MemoryGroup
from .memory_log import PartitionLog
from .message import TP

__all__ = ["Hold", "MemoryFaults", "ProduceFault"]


class Faultable(Protocol):
    """What the faults need of their broker."""

    def group(self, name: str) -> MemoryGroup: ...

    def log(self, tp: TP) -> PartitionLog: ...

    def set_up(self, up: bool) -> None: ...


class Hold:
    """Writes that get no answer until `release`. As a context manager it releases at the end.

    Attributes:
        waiting: writes that are held now.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._reached = trio.Event()
        self._released = trio.Event()

    def release(self) -> None:
        """Let everything go on that is held; hold nothing more."""
        self._released.set()

    async def reached(self) -> None:
        """Wait until a write is held."""
        await self._reached.wait()

    async def pass_through(self) -> None:
        """Be held."""
        self._reached.set()
        self.waiting += 1
        try:
            await self._released.wait()
        finally:
            self.waiting -= 1

    @property
    def released(self) -> bool:
        return self._released.is_set()

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class ProduceFault:
    """What happens to the writes of a topic or partition, for so many of them."""

    __slots__ = ("after_write", "delay", "error", "hold", "left", "partition", "topic")

    def __init__(
        self,
        topic: str | None,
        partition: int | None,
        left: float,
        *,
        error: TransportError | None = None,
        delay: float = 0.0,
        hold: Hold | None = None,
        after_write: bool = False,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.left = left
        self.error = error
        self.delay = delay
        self.hold = hold
        self.after_write = after_write

    def concerns(self, tp: TP) -> bool:
        if self.left <= 0 or (self.hold is not None and self.hold.released):
            return False
        return self.topic in (None, tp.topic) and self.partition in (None, tp.partition)

    async def wait(self) -> None:
        """Sit out the delay or the hold."""
        if self.delay:
            await trio.sleep(self.delay)
        if self.hold is not None:
            await self.hold.pass_through()


class _Errors:
    """Errors to raise from the next calls of one kind."""

    def __init__(self) -> None:
        self._left = 0.0
        self._error: TransportError = TransportError()

    def order(self, times: float, error: TransportError) -> None:
        self._left, self._error = times, error

    def check(self) -> None:
        if self._left > 0:
            self._left -= 1
            raise self._error.with_traceback(None)


class MemoryFaults:
    """The faults of one broker. `times` is the number of calls that suffer; None: until `clear`."""

    def __init__(self, broker: Faultable) -> None:
        self._broker = broker
        self._produce: list[ProduceFault] = []
        self._commits = _Errors()
        self._fetches = _Errors()

    def clear(self) -> None:
        """Lift every fault, release what is held, and start the broker if it is stopped."""
        self._commits = _Errors()
        self._fetches = _Errors()
        for fault in self._produce:
            if fault.hold is not None:
                fault.hold.release()
        self._produce.clear()
        self.start()

    # -- the broker ----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Take the broker away. Calls raise `BrokerUnavailable` and writes get it as their outcome.

        Fetches, subscriptions and rebalances wait until `start`. Nothing that was stored is lost.
        """
        self._broker.set_up(False)

    def start(self) -> None:
        """Bring the broker back."""
        self._broker.set_up(True)

    # -- groups --------------------------------------------------------------------------------------------

    def refuse_commits(self, times: int | None = 1) -> None:
        """Refuse commits with `CommitRefused`, transactions with offsets included."""
        self.fail_commits(times, CommitRefused("refused by an ordered fault"))

    def fail_commits(self, times: int | None, error: TransportError) -> None:
        """Raise an error from commits, which change nothing."""
        self._commits.order(_times(times), error)

    def rebalance(self, group: str) -> None:
        """Begin a rebalance of a group."""
        self._broker.group(group).ask_rebalance()

    def lose_member(self, group: str, member: str) -> None:
        """Let a member's session expire, as if its process had been frozen: it is out, others take over.

        It learns of it as under Kafka: when it next commits, or with the next heartbeat (a third of its
        `session_timeout` later). Until then it may go on fetching. Then it gets `on_revoked(lost=True)`
        and joins anew.

        Args:
            group: its group.
            member: its id, or its transport's `client_id`.

        Raises:
            KeyError: the group has no such member.
        """
        lost = self._member(group, member)
        told_at = trio.current_time() + lost.options.session_timeout / 3
        self._broker.group(group).throw_out(lost, "its session has expired", told_at=told_at)

    def _member(self, group: str, name: str) -> Member:
        for member in self._broker.group(group).members.values():
            if name in (member.id, member.client_id):
                return member
        raise KeyError(f"group {group!r} has no member {name!r}")

    # -- writing and reading -------------------------------------------------------------------------------

    def fail_produce(
        self,
        times: int | None = 1,
        error: TransportError | None = None,
        *,
        topic: str | None = None,
        partition: int | None = None,
    ) -> None:
        """Keep batches out of the log; their outcome is `error`, a `ProduceError` by default."""
        error = error or ProduceError("failed by an ordered fault")
        self._produce.append(ProduceFault(topic, partition, _times(times), error=error))

    def delay_produce(
        self,
        seconds: float,
        times: int | None = None,
        *,
        topic: str | None = None,
        partition: int | None = None,
    ) -> None:
        """Let batches wait before they are written."""
        self._produce.append(ProduceFault(topic, partition, _times(times), delay=seconds))

    def hold_produce(
        self, *, topic: str | None = None, partition: int | None = None, after_write: bool = False
    ) -> Hold:
        """Answer no write until it is released; `after_write`: they are in the log already."""
        hold = Hold()
        self._produce.append(ProduceFault(topic, partition, inf, hold=hold, after_write=after_write))
        return hold

    def fail_fetches(self, times: int | None = 1, error: TransportError | None = None) -> None:
        """Raise an error from fetches, which move no position."""
        self._fetches.order(_times(times), error or TransportError("failed by an ordered fault"))

    def compact(self, tp: TP, offsets: Collection[int]) -> None:
        """Remove records and leave gaps, as compaction does."""
        self._broker.log(tp).drop(offsets)

    def skip_offsets(self, tp: TP, count: int = 1) -> None:
        """Use up the next offsets without records, as transaction markers do."""
        self._broker.log(tp).skip(count)

    # -- asked by the broker -------------------------------------------------------------------------------

    def take_produce(self, tp: TP) -> ProduceFault | None:
        """What happens to this write; counts as one of its times."""
        for fault in self._produce:
            if fault.concerns(tp):
                fault.left -= 1
                return fault
        if self._produce:
            self._produce = [fault for fault in self._produce if fault.left > 0]
        return None

    def check_commit(self) -> None:
        """Raise what this commit shall suffer."""
        self._commits.check()

    def check_fetch(self) -> None:
        """Raise what this fetch shall suffer."""
        self._fetches.check()


def _times(times: int | None) -> float:
    return inf if times is None else times
