"""What the contract suite works with: the harness of a broker, and members that record what happens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from re import Pattern
from types import MappingProxyType
from typing import Any, ClassVar, Literal
from uuid import uuid4

import pytest
import trio

from ..channels.message import TP, Message, ProducerRecord
from ..channels.transport import (
    Assignment,
    Batch,
    Consumer,
    ConsumerOptions,
    ProduceResult,
    RebalanceListener,
    TopicSpec,
    Transport,
    TransportOptions,
    load_transport,
)
from .faults import BrokerFaults

__all__ = [
    "CAPABILITIES",
    "BrokerHarness",
    "Changes",
    "ContractBase",
    "GroupMember",
    "Recorder",
    "numbered",
    "produce",
    "values",
]


TRANSACTIONS = "transactions"
CAPABILITIES = frozenset({TRANSACTIONS, *(name for name in vars(BrokerFaults) if name[0] != "_" and name != "offers")})
"""What the suite asks for and an implementation may do without, if it says why."""


class Changes:
    """Lets tasks wait until a condition holds; whoever changes something says so."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = trio.Event()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until it is true. Ask only about what is notified here."""
        while not condition():
            await self._event.wait()


class BrokerHarness:
    """A broker to test a transport on, and what the suite may expect of it.

    Attributes:
        url: where the broker is.
        faults: the faults it can be ordered to have.
        patience: seconds within which what must happen happens.
        quiet: seconds to watch that something does not happen.
        session_timeout, rebalance_timeout: seconds, for `ConsumerOptions`; short ones make the suite fast.
        creates_missing_topics: whether subscribing to a missing topic creates it.
        without: what the test class says is not there, and why; see `TransportContract`.
        changes: where the members of a test say what has happened to them.
    """

    def __init__(
        self,
        url: str,
        *,
        faults: BrokerFaults | None = None,
        patience: float = 20.0,
        quiet: float = 0.3,
        session_timeout: float = 6.0,
        rebalance_timeout: float = 4.0,
        creates_missing_topics: bool = False,
    ) -> None:
        self.url = url
        self.faults = faults or BrokerFaults()
        self.patience = patience
        self.quiet = quiet
        self.session_timeout = session_timeout
        self.rebalance_timeout = rebalance_timeout
        self.creates_missing_topics = creates_missing_topics
        self.without: Mapping[str, str] = {}
        self.changes = Changes()
        self._names = count(1)
        self._unique = uuid4().hex[:8]

    def transport(self, client_id: str = "contract") -> Transport:
        """A transport for this broker, unopened. Topics get four partitions by default."""
        return load_transport(self.url, TransportOptions(client_id=client_id, default_partitions=4))

    def name(self, stem: str) -> str:
        """A name that nothing on the broker has."""
        return f"{stem}-{self._unique}-{next(self._names)}"

    def need(self, *faults: str) -> BrokerFaults:
        """The faults; skips the test where the class does without one, and fails it where one is just not there."""
        self._skip_without(*faults)
        missing = [name for name in faults if not self.faults.offers(name)]
        if missing:
            pytest.fail(
                f"{type(self.faults).__name__} cannot be ordered to {', '.join(missing)}: override it, or say on the test "
                f"class why not, as in without = {{{missing[0]!r}: 'the reason'}}",
                pytrace=False,
            )
        return self.faults

    def need_transactions(self) -> None:
        """Skip the test where the class does without them."""
        self._skip_without(TRANSACTIONS)

    def _skip_without(self, *capabilities: str) -> None:
        for name in capabilities:
            if name in self.without:
                pytest.skip(f"without {name}: {self.without[name]}")

    async def new_topic(self, transport: Transport, partitions: int = 1, stem: str = "topic") -> str:
        """Create a topic of a name of its own."""
        name = self.name(stem)
        await transport.create_topic(TopicSpec(name=name, partitions=partitions))
        return name


class Recorder(RebalanceListener):
    """A listener that writes down what it is told.

    Attributes:
        assigned: the assignments, in order.
        revoked: partitions and `lost` of each revocation that took any, in order.
        inside: which callback is running.
        before_assigned_returns, before_revoked_returns: what to do in the callbacks.
    """

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.assigned: list[Assignment] = []
        self.revoked: list[tuple[frozenset[TP], bool]] = []
        self.inside: Literal["on_assigned", "on_revoked"] | None = None
        self.before_assigned_returns: Callable[[Assignment], Awaitable[None]] | None = None
        self.before_revoked_returns: Callable[[frozenset[TP], bool], Awaitable[None]] | None = None

    async def on_assigned(self, assignment: Assignment) -> None:
        assert self.inside is None, "callbacks overlap"
        self.inside = "on_assigned"
        try:
            if self.before_assigned_returns is not None:
                await self.before_assigned_returns(assignment)
        finally:
            self.inside = None
        self.assigned.append(assignment)
        self.changes.notify()

    async def on_revoked(self, revoked: frozenset[TP], *, lost: bool) -> None:
        assert self.inside is None, "callbacks overlap"
        self.inside = "on_revoked"
        try:
            if self.before_revoked_returns is not None:
                await self.before_revoked_returns(revoked, lost)
        finally:
            self.inside = None
        if revoked:
            self.revoked.append((revoked, lost))
        self.changes.notify()


class GroupMember:
    """A consumer with its transport and listener.

    Attributes:
        seen: what `pump` has fetched so far.
    """

    def __init__(self, transport: Transport, consumer: Consumer, listener: Recorder) -> None:
        self.transport = transport
        self.consumer = consumer
        self.listener = listener
        self.changes = listener.changes
        self.seen: list[Message] = []

    @property
    def owned(self) -> frozenset[TP]:
        return self.consumer.assignment.partitions

    @property
    def generation(self) -> int:
        return self.consumer.assignment.generation

    def room(self, most: int = 1000) -> dict[TP, int]:
        return dict.fromkeys(self.owned, most)

    async def batches(self, room: Mapping[TP, int]) -> list[Batch]:
        """Fetch until there is anything."""
        while True:
            batches = await self.consumer.fetch(room)
            if batches:
                return batches

    async def read(self, number: int, room: Mapping[TP, int] | None = None) -> list[Message]:
        """Fetch that many messages or a few more, in the order in which they came."""
        messages: list[Message] = []
        while len(messages) < number:
            for batch in await self.consumer.fetch(room or self.room()):
                messages += batch.messages
        return messages

    async def reads_nothing(self, seconds: float, room: Mapping[TP, int] | None = None) -> None:
        """Fetch for a while; nothing may come."""
        with trio.move_on_after(seconds):
            while True:
                batches = await self.consumer.fetch(room or self.room())
                assert batches == []

    async def pump(self) -> None:
        """Fetch everything owned into `seen`, until cancelled."""
        while True:
            for batch in await self.consumer.fetch(self.room()):
                self.seen += batch.messages
                self.changes.notify()

    async def commit(self, offsets: Mapping[TP, int]) -> None:
        await self.consumer.commit(offsets, generation=self.generation)


class ContractBase:
    """How the tests get at their broker. A subclass for a transport overrides `open_broker`.

    Attributes:
        without: what this implementation, or its broker in tests, does not have, and why: by the name of a test, of a
            fault (a method of `BrokerFaults`), or "transactions".
    """

    without: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for name in dir(cls):
            if name.startswith("test_") and not callable(getattr(cls, name)):
                raise TypeError(f"{cls.__name__}.{name}: a test is left out by without = {{{name!r}: 'the reason'}}")
        for name, reason in cls.without.items():
            known = name in CAPABILITIES or (name.startswith("test_") and hasattr(cls, name))
            if not known:
                expected = f"the name of a test, or one of {', '.join(sorted(CAPABILITIES))}"
                raise TypeError(f"{cls.__name__}.without: {name!r}: expected {expected}")
            if not (isinstance(reason, str) and reason.strip()):
                raise TypeError(f"{cls.__name__}.without[{name!r}]={reason!r}: expected the reason, as text")

    @pytest.fixture(autouse=True)
    def _leave_out(self, request: pytest.FixtureRequest) -> None:
        name = request.function.__name__
        if name in self.without:
            pytest.skip(f"without {name}: {self.without[name]}")

    def open_broker(self) -> AbstractAsyncContextManager[BrokerHarness]:
        """A broker that runs while this is open."""
        raise NotImplementedError("a subclass of TransportContract says how to open its broker")

    @asynccontextmanager
    async def broker_and_transport(self) -> AsyncIterator[tuple[BrokerHarness, Transport]]:
        """A broker, and an open transport on it."""
        async with self.open_broker() as broker:
            broker.without = self.without
            transport = broker.transport()
            async with transport.open():
                yield broker, transport

    @asynccontextmanager
    async def member(
        self,
        broker: BrokerHarness,
        group: str,
        topics: Collection[str],
        *,
        pattern: Pattern[str] | None = None,
        client_id: str = "contract",
        instance_id: str | None = None,
        offset_reset: Literal["earliest", "latest"] = "earliest",
        listener: Recorder | None = None,
    ) -> AsyncIterator[GroupMember]:
        """A consumer on a transport of its own, subscribed; no topics and no pattern: not subscribed yet."""
        options = ConsumerOptions(
            group=group,
            instance_id=instance_id,
            offset_reset=offset_reset,
            session_timeout=broker.session_timeout,
            rebalance_timeout=broker.rebalance_timeout,
        )
        recorder = listener or Recorder(broker.changes)
        transport = broker.transport(client_id)
        async with transport.open(), transport.open_consumer(options, recorder) as consumer:
            if topics or pattern is not None:
                with trio.fail_after(broker.patience):
                    await consumer.subscribe(topics, pattern=pattern)
            yield GroupMember(transport, consumer, recorder)


def numbered(start: int, stop: int) -> list[ProducerRecord]:
    """Records whose values count up."""
    return [ProducerRecord(None, b"%d" % number) for number in range(start, stop)]


def values(messages: Sequence[Message]) -> list[bytes | None]:
    return [message.value for message in messages]


async def produce(transport: Transport, batches: Mapping[TP, Sequence[ProducerRecord]]) -> dict[TP, ProduceResult]:
    """Produce; every batch must be taken."""
    results: dict[TP, ProduceResult] = {}
    for tp, result in (await transport.produce(batches)).items():
        assert isinstance(result, ProduceResult), result
        results[tp] = result
    return results
