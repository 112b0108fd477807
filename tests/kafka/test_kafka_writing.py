"""Batches on their way to their partitions, on virtual time: with aiokafka's accumulator and without a broker."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.structs import TopicPartition

from famulus.channels.errors import BrokerUnavailable, ProduceError
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import ProduceResult
from famulus.kafka.bridge import Bridge
from famulus.kafka.pump import _AT_ONCE
from famulus.kafka.writing import MOST_BATCH_BYTES, Writes, Writing
from famulus.testing.contract_kit import numbered

ONE, TWO = TP("topic", 0), TP("topic", 1)
MOST = 5.0


class Client:
    """An aiokafka producer whose sender is the test: nothing is sent before `send`, nothing answered before `answer`."""

    def __init__(self) -> None:
        self.partitions: set[int] | None = {0, 1}
        self.client = self.cluster = self
        self._txn_manager: Any = TransactionManager(None, 60_000)
        self._txn_manager.set_pid_and_epoch(1, 0)
        self._message_accumulator: Any = MessageAccumulator(
            self, MOST_BATCH_BYTES, 0, 30, txn_manager=self._txn_manager, loop=asyncio.get_running_loop()
        )
        self.in_flight: dict[TopicPartition, Any] = {}
        self.log: dict[TopicPartition, list[int]] = {}  # the sequence number of each record that is written

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return self.partitions

    def leader_for_partition(self, partition: object) -> int:
        return 1

    async def partitions_for(self, topic: str) -> set[int]:
        return self.partitions or set()

    async def force_metadata_update(self) -> None:
        """It finds nothing."""

    def create_batch(self) -> Any:
        return self._message_accumulator.create_builder()

    async def send_batch(self, builder: Any, topic: str, *, partition: int) -> Any:
        return await self._message_accumulator.add_batch(builder, TopicPartition(topic, partition), 30)

    def send(self) -> None:
        for batches in self._message_accumulator.drain_by_nodes(set(), frozenset(self.in_flight))[0].values():
            self.in_flight.update(batches)

    def answer(self, tp: TP, error: KafkaError | None = None) -> None:
        partition = TopicPartition(*tp)
        batch = self.in_flight.pop(partition)
        if error is not None:
            batch.failure(error)
            return
        log = self.log.setdefault(partition, [])
        base = len(log)
        first = int.from_bytes(bytes(batch.get_data_buffer())[53:57])
        log.extend(range(first, first + batch.record_count))
        batch.done(base, -1)


class Bench:
    """One `Writing` over such a client."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.writing = Writing(MOST)
        self.client: Any = bridge.run(Client)

    def begin(self, batches: dict[TP, Sequence[ProducerRecord]]) -> Writes:
        return self.bridge.run(self.writing.begin, self.client, batches)

    async def write(self, tp: TP, records: Sequence[ProducerRecord]) -> object:
        """As the producer does it; None is no outcome."""
        writes = self.begin({tp: records})
        await self.writing.wait(writes)
        return self.take(writes, tp)

    def take(self, writes: Writes, tp: TP) -> object:
        write = writes.of[tp]
        if not write.outcome.done():
            return None
        self.writing.taken(tp, write)
        return write.outcome.result()

    async def on(self, function: Callable[..., object], *args: object) -> None:
        self.bridge.run(function, *args)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def opened() -> AsyncIterator[Bench]:
    async with Bridge().open() as bridge:
        bench = Bench(bridge)
        bridge.at_end(bench.writing.close)
        yield bench


async def test_batches_of_one_partition_keep_their_order_whichever_way_they_go() -> None:
    async with opened() as bench, trio.open_nursery() as nursery:
        outcomes: dict[int, object] = {}

        async def write(number: int) -> None:
            outcomes[number] = await bench.write(ONE, numbered(number, number + 1))

        for number in range(4):  # the first goes straight, the others wait for their turn
            nursery.start_soon(write, number)
            await trio.testing.wait_all_tasks_blocked()
        for number in range(4, 12):
            await bench.on(bench.client.send)
            await bench.on(bench.client.answer, ONE)
            if number < 8:  # comes when it might overtake
                nursery.start_soon(write, number)
                await trio.testing.wait_all_tasks_blocked()
        assert outcomes == {number: ProduceResult(number) for number in range(8)}
        assert bench.client.log[TopicPartition(*ONE)] == list(range(8))
        assert not bench.writing._queued
        assert not bench.writing._sent


async def test_a_caller_who_is_cancelled_leaves_and_a_repetition_gets_the_outcome() -> None:
    async with opened() as bench:
        records = numbered(0, 3)
        with trio.move_on_after(1) as waiting:
            await bench.write(ONE, records)
        assert waiting.cancelled_caught
        assert not bench.writing._waited_for
        await bench.on(bench.client.send)
        await bench.on(bench.client.answer, ONE)
        assert await bench.write(ONE, records) == ProduceResult(0)
        assert bench.client.log == {ONE: [0, 1, 2]}


async def test_what_was_sent_and_not_answered_has_no_outcome_and_what_was_not_sent_is_taken_back() -> None:
    async with opened() as bench:
        start = trio.current_time()
        sent = bench.begin({ONE: numbered(0, 2)})
        await bench.on(bench.client.send)
        waits = bench.begin({ONE: numbered(2, 4), TWO: numbered(0, 1)})
        await bench.writing.wait(sent)
        assert trio.current_time() - start == MOST
        await bench.writing.wait(waits)
        assert bench.take(sent, ONE) is None
        for tp in (ONE, TWO):
            assert isinstance(bench.take(waits, tp), BrokerUnavailable)
        assert not bench.client._message_accumulator._batches
        await bench.on(bench.client.answer, ONE)
        assert sent.of[ONE].outcome.result() == ProduceResult(0)
        await bench.on(bench.client.send)
        assert not bench.client.in_flight
        assert bench.client.log == {ONE: [0, 1]}


async def test_other_partitions_wait_two_seconds_for_one_that_is_silent() -> None:
    async with opened() as bench:
        writes = bench.begin({ONE: numbered(0, 1), TWO: numbered(0, 1)})
        await bench.on(bench.client.send)
        start = trio.current_time()
        await bench.on(bench.client.answer, ONE)
        await bench.writing.wait(writes)
        assert trio.current_time() - start == 2.0
        assert bench.take(writes, ONE) == ProduceResult(0)
        assert bench.take(writes, TWO) is None


async def test_a_topic_that_was_deleted_is_waited_for_no_longer() -> None:
    async with opened() as bench:
        writes = bench.begin({ONE: numbered(0, 1)})
        await bench.on(bench.client.send)
        bench.client.partitions = None
        with trio.fail_after(1):
            await bench.writing.wait(writes)
        assert bench.take(writes, ONE) is None


async def test_a_partition_that_is_not_known_yet_is_tried_again() -> None:
    async with opened() as bench:
        assert isinstance(await bench.write(TP("topic", 7), numbered(0, 1)), BrokerUnavailable)
        bench.client.partitions.add(7)
        writes = bench.begin({TP("topic", 7): numbered(0, 1)})
        await bench.on(bench.client.send)
        await bench.on(bench.client.answer, TP("topic", 7))
        await bench.writing.wait(writes)
        assert bench.take(writes, TP("topic", 7)) == ProduceResult(0)


async def test_what_the_client_cannot_encode_fails_alone() -> None:
    async with opened() as bench:
        bad: Any = [ProducerRecord(None, "no bytes")]  # type: ignore[arg-type]
        writes = bench.begin({ONE: bad, TWO: numbered(0, 1)})
        await bench.on(bench.client.send)
        await bench.on(bench.client.answer, TWO)
        await bench.writing.wait(writes)
        assert isinstance(bench.take(writes, ONE), ProduceError)
        assert bench.take(writes, TWO) == ProduceResult(0)
        assert not bench.writing._sent


async def test_what_was_refused_uses_up_no_number() -> None:
    async with opened() as bench:
        writes = bench.begin({ONE: numbered(0, 3)})
        queued = bench.begin({ONE: numbered(3, 5)})
        await bench.on(bench.client.send)
        await bench.on(bench.client.answer, ONE, MessageSizeTooLargeError())
        await bench.writing.wait(writes)
        assert isinstance(bench.take(writes, ONE), ProduceError)
        await bench.on(bench.client.send)
        await bench.on(bench.client.answer, ONE)
        await bench.writing.wait(queued)
        assert bench.take(queued, ONE) == ProduceResult(0)
        assert bench.client.log == {ONE: [0, 1]}


@pytest.mark.parametrize("before", [0, _AT_ONCE - 2] * 5)
async def test_a_write_after_one_that_was_taken_back_has_a_number_of_its_own(before: int) -> None:
    """Also where the client sends before it has heard of what was taken back: then it puts no number right any more."""
    async with opened() as bench, trio.open_nursery() as nursery:
        given_up = bench.begin({ONE: numbered(0, 1)})

        async def write_the_next() -> None:
            await bench.writing.wait(given_up)
            assert isinstance(bench.take(given_up, ONE), BrokerUnavailable)
            bench.begin({ONE: numbered(1, 2)})

        def late() -> None:
            """As a timer would, at the end of a round in which the sender is to run next."""
            for _ in range(before):
                bench.bridge.loop.call_soon(lambda: None)
            bench.bridge.loop.call_soon(given_up._late)
            bench.bridge.loop.call_soon(bench.client.send)

        nursery.start_soon(write_the_next)
        await trio.testing.wait_all_tasks_blocked()
        bench.bridge.loop.call_soon(late)
        await trio.testing.wait_all_tasks_blocked()
        for number in (2, 3):
            bench.begin({ONE: numbered(number, number + 1)})
        for _ in range(3):
            await bench.on(bench.client.send)
            await bench.on(bench.client.answer, ONE)
        assert bench.client.log == {ONE: [0, 1, 2]}


async def test_closing_ends_the_waits_and_those_that_come_later() -> None:
    async with opened() as bench, trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await bench.write(ONE, numbered(0, 1))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        bench.writing.close()
        with trio.fail_after(0):
            await wait()


async def test_the_end_of_the_loop_ends_a_wait_that_is_shielded() -> None:
    async def wait(bench: Bench) -> None:
        with trio.CancelScope(shield=True), pytest.raises(trio.ClosedResourceError):
            await bench.write(ONE, numbered(0, 1))

    async with trio.open_nursery() as nursery, opened() as bench:
        nursery.start_soon(wait, bench)
        await trio.testing.wait_all_tasks_blocked()


async def test_a_write_is_freed_when_it_is_over_or_given_up() -> None:
    gone: list[weakref.ref[object]] = []

    async def one_of_each(bench: Bench) -> None:
        written = bench.begin({ONE: numbered(0, 1)})
        await bench.on(bench.client.send)
        await bench.on(bench.client.answer, ONE)
        given_up = bench.begin({TWO: numbered(0, 1)})
        for writes, tp in ((written, ONE), (given_up, TWO)):
            await bench.writing.wait(writes)
            bench.take(writes, tp)
            gone.append(weakref.ref(writes))

    async with opened() as bench:
        gc.collect()
        gc.disable()
        try:
            await one_of_each(bench)
            await trio.sleep(2 * MOST)
            assert [reference() for reference in gone] == [None, None]
        finally:
            gc.enable()
