"""Faults that a test can order from a broker, whatever broker it is. The contract suite asks for them.

A broker fixture subclasses `BrokerFaults` and overrides what it can do; what it cannot, the test class says in `without`.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager

from ..channels.memory import MemoryBroker
from ..channels.message import TP

__all__ = ["BrokerFaults", "MemoryBrokerFaults"]


class BrokerFaults:
    """What can be ordered. Each method returns once the fault is in effect."""

    def offers(self, *names: str) -> bool:
        """Whether these methods are overridden here."""
        return all(getattr(type(self), name) is not getattr(BrokerFaults, name) for name in names)

    async def stop(self) -> None:
        """Take the broker away; its data stays."""
        raise NotImplementedError

    async def start(self) -> None:
        """Bring it back."""
        raise NotImplementedError

    async def rebalance(self, group: str) -> None:
        """Begin a rebalance of a group that has members."""
        raise NotImplementedError

    async def lose_member(self, group: str, client_id: str) -> None:
        """Let the session of a transport's consumer expire, though it lives."""
        raise NotImplementedError

    async def refuse_commits(self, times: int) -> None:
        """Refuse the next commits."""
        raise NotImplementedError

    async def fail_produce(self, tp: TP, times: int) -> None:
        """Keep the next batches of a partition out of its log, for good."""
        raise NotImplementedError

    def holding_produce(self, tp: TP, *, after_write: bool) -> AbstractAsyncContextManager[None]:
        """Within it, writes to a partition get no answer; `after_write`: though they are in the log."""
        raise NotImplementedError

    async def compact(self, tp: TP, offsets: Collection[int]) -> None:
        """Remove records, and leave gaps."""
        raise NotImplementedError

    async def skip_offsets(self, tp: TP, count: int) -> None:
        """Let the next offsets be used up without records, as transaction markers do."""
        raise NotImplementedError


class _Holding(AbstractAsyncContextManager[None]):
    def __init__(self, broker: MemoryBroker, tp: TP, after_write: bool) -> None:
        self._hold = broker.faults.hold_produce(topic=tp.topic, partition=tp.partition, after_write=after_write)

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        self._hold.release()


class MemoryBrokerFaults(BrokerFaults):
    """All of them, from a memory broker."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker

    async def stop(self) -> None:
        self.broker.faults.stop()

    async def start(self) -> None:
        self.broker.faults.start()

    async def rebalance(self, group: str) -> None:
        self.broker.faults.rebalance(group)

    async def lose_member(self, group: str, client_id: str) -> None:
        self.broker.faults.lose_member(group, client_id)

    async def refuse_commits(self, times: int) -> None:
        self.broker.faults.refuse_commits(times)

    async def fail_produce(self, tp: TP, times: int) -> None:
        self.broker.faults.fail_produce(times, topic=tp.topic, partition=tp.partition)

    def holding_produce(self, tp: TP, *, after_write: bool) -> AbstractAsyncContextManager[None]:
        return _Holding(self.broker, tp, after_write)

    async def compact(self, tp: TP, offsets: Collection[int]) -> None:
        self.broker.faults.compact(tp, offsets)

    async def skip_offsets(self, tp: TP, count: int) -> None:
        self.broker.faults.skip_offsets(tp, count)
