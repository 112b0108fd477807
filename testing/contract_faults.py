"""Contract: what holds when the broker, a member or the network does not do its part."""

from __future__ import annotations

import pytest
import trio

from ..channels.errors import BrokerUnavailable, CommitRefused, ProduceError, TransportError
from ..channels.message import TP, Message
from ..channels.transport import ProduceResult
from .contract_kit import ContractBase, numbered, produce, values

__all__ = ["FaultContract"]


class FaultContract(ContractBase):
    """Each test orders a fault from the broker; see `BrokerFaults`."""

    async def test_a_lost_member_is_told_and_cannot_commit(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("lose_member")
            tp = TP(await broker.new_topic(transport), 0)
            group = broker.name("group")
            await produce(transport, {tp: numbered(0, 5)})
            async with (
                self.member(broker, group, [tp.topic], client_id="one") as one,
                self.member(broker, group, [tp.topic], client_id="two") as two,
            ):
                with trio.fail_after(broker.patience):
                    await one.changes.until(lambda: one.generation == two.generation)
                    loser, winner = (one, two) if one.owned else (two, one)
                    old = loser.consumer.assignment
                    await faults.lose_member(group, "one" if loser is one else "two")
                    await winner.changes.until(lambda: winner.owned == {tp})
                    with pytest.raises(CommitRefused):
                        await loser.consumer.commit({tp: 5}, generation=old.generation)
                    await loser.changes.until(lambda: loser.listener.revoked[-1:] == [(old.partitions, True)])
                    assert await winner.consumer.committed([tp]) == {tp: None}
                    await loser.changes.until(lambda: loser.generation > old.generation)
                    await winner.changes.until(lambda: winner.generation == loser.generation)
                    assert len(one.owned | two.owned) == 1

    async def test_a_lost_member_that_does_nothing_is_told_too(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("lose_member")
            topic = await broker.new_topic(transport)
            group = broker.name("group")
            async with self.member(broker, group, [topic], client_id="one") as one:
                old = one.consumer.assignment
                with trio.fail_after(broker.patience):
                    await faults.lose_member(group, "one")
                    await one.changes.until(lambda: one.generation > old.generation)
                assert one.listener.revoked == [(old.partitions, True)]
                assert one.owned == old.partitions

    async def test_a_forced_rebalance_loses_nothing(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("rebalance")
            tp = TP(await broker.new_topic(transport), 0)
            group = broker.name("group")
            async with self.member(broker, group, [tp.topic]) as member:
                old = member.generation
                with trio.fail_after(broker.patience):
                    await produce(transport, {tp: numbered(0, 10)})
                    await member.read(10)
                    await member.commit({tp: 4})
                    await faults.rebalance(group)
                    await member.changes.until(lambda: member.generation > old)
                    assert member.listener.revoked == [(frozenset({tp}), False)]
                    assert [message.offset for message in await member.read(6)] == [4, 5, 6, 7, 8, 9]

    async def test_a_refused_commit_changes_nothing(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("refuse_commits")
            tp = TP(await broker.new_topic(transport), 0)
            await produce(transport, {tp: numbered(0, 5)})
            async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                with trio.fail_after(broker.patience):
                    await member.read(5)
                    await member.commit({tp: 2})
                    await faults.refuse_commits(1)
                    with pytest.raises(CommitRefused):
                        await member.commit({tp: 5})
                    assert await member.consumer.committed([tp]) == {tp: 2}

    async def test_reading_goes_on_when_the_broker_is_back(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("stop", "start")
            tp = TP(await broker.new_topic(transport), 0)
            await produce(transport, {tp: numbered(0, 5)})
            async with (
                self.member(broker, broker.name("group"), [tp.topic]) as member,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(member.pump)
                with trio.fail_after(broker.patience):
                    await member.changes.until(lambda: len(member.seen) == 5)
                    await faults.stop()
                    await trio.sleep(broker.quiet)
                    await faults.start()
                    while True:
                        outcome = (await transport.produce({tp: numbered(5, 8)}))[tp]
                        if isinstance(outcome, ProduceResult):
                            break
                        assert isinstance(outcome, TransportError)
                        assert outcome.retriable
                        await trio.sleep(broker.quiet)
                    await member.changes.until(lambda: member.seen[-1].value == b"7")
                offsets = sorted({message.offset for message in member.seen})
                assert offsets == list(range(len(offsets)))
                assert values(member.seen)[:5] == [b"0", b"1", b"2", b"3", b"4"]
                nursery.cancel_scope.cancel()

    async def test_no_broker_no_answer(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("stop", "start")
            tp = TP(await broker.new_topic(transport), 0)
            await produce(transport, {tp: numbered(0, 5)})
            async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                with trio.fail_after(broker.patience):
                    await member.read(5)
                    await faults.stop()
                    with pytest.raises(BrokerUnavailable):
                        await member.commit({tp: 5})
                    with pytest.raises(BrokerUnavailable):
                        async with broker.transport().open():
                            raise AssertionError("opened though the broker is away")
                    await faults.start()
                    while True:  # it may take the client a moment to find the broker again
                        try:
                            await member.commit({tp: 5})
                        except TransportError:
                            await trio.sleep(broker.quiet)
                        else:
                            break

    async def test_a_write_without_a_broker_is_there_once_or_was_said_to_fail(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("stop", "start")
            tp = TP(await broker.new_topic(transport), 0)
            await produce(transport, {tp: numbered(0, 1)})
            outcomes: list[object] = []

            async def write() -> None:
                outcomes.append((await transport.produce({tp: numbered(1, 2)}))[tp])

            with trio.fail_after(broker.patience):
                await faults.stop()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write)
                    await trio.sleep(broker.quiet)
                    await faults.start()
                (outcome,) = outcomes
                expected = [b"0", b"1", b"2"]
                if not isinstance(outcome, ProduceResult):
                    assert isinstance(outcome, TransportError)
                    expected.remove(b"1")
                last: object = None
                while not isinstance(last, ProduceResult):
                    await trio.sleep(broker.quiet)
                    last = (await transport.produce({tp: numbered(2, 3)}))[tp]
                async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                    assert values(await member.read(len(expected))) == expected

    async def test_leaving_a_group_without_a_broker_is_bounded(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("stop", "start")
            topic = await broker.new_topic(transport)
            with trio.fail_after(broker.patience + 2 * 10.0):  # twice TransportOptions.shutdown_timeout
                async with self.member(broker, broker.name("group"), [topic]) as member:
                    await faults.stop()
                assert [revoked for revoked, _ in member.listener.revoked] == [{TP(topic, 0)}]
                await faults.start()

    async def test_one_partition_fails_and_the_others_do_not(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("fail_produce")
            topic = await broker.new_topic(transport, 2)
            bad, good = TP(topic, 0), TP(topic, 1)
            with trio.fail_after(broker.patience):
                await faults.fail_produce(bad, 1)
                outcome = await transport.produce({bad: numbered(0, 3), good: numbered(0, 3)})
                assert isinstance(outcome[bad], ProduceError)
                assert isinstance(outcome[good], ProduceResult)
                assert (await produce(transport, {bad: numbered(3, 4)}))[bad].base_offset == 0

    async def test_a_transaction_that_fails_leaves_nothing(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            broker.need_transactions()
            faults = broker.need("fail_produce")
            source, good, bad = [TP(await broker.new_topic(transport), 0) for _ in range(3)]
            group = broker.name("group")
            with trio.fail_after(broker.patience):
                async with self.member(broker, group, [source.topic], client_id="worker") as member:
                    await faults.fail_produce(bad, 1)
                    with pytest.raises(ProduceError):
                        await member.transport.transact(
                            {good: numbered(0, 3), bad: numbered(0, 3)},
                            {source: 5},
                            group=group,
                            generation=member.generation,
                        )
                    assert await member.consumer.committed([source]) == {source: None}
                async with self.member(broker, broker.name("group"), [good.topic, bad.topic]) as reader:
                    await reader.reads_nothing(broker.quiet)

    @pytest.mark.parametrize("after_write", [False, True])
    async def test_a_write_cancelled_without_an_answer_is_whole_or_not_at_all(self, after_write: bool) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("holding_produce")
            topic = await broker.new_topic(transport, 2)
            held, free = TP(topic, 0), TP(topic, 1)
            with trio.fail_after(broker.patience):
                async with faults.holding_produce(held, after_write=after_write):
                    with trio.move_on_after(broker.quiet) as waiting:
                        await transport.produce({held: numbered(0, 10), free: numbered(0, 10)})
                    assert waiting.cancelled_caught
                await produce(transport, {held: numbered(10, 11), free: numbered(10, 11)})
                async with self.member(broker, broker.name("group"), [topic]) as member:
                    for tp in (held, free):
                        messages: list[Message] = []
                        while values(messages)[-1:] != [b"10"]:
                            messages += await member.read(1, {tp: 100})
                        assert len(messages) in (1, 11)

    async def test_compaction_leaves_gaps_that_are_read_over(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("compact")
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                await produce(transport, {tp: numbered(0, 10)})
                await faults.compact(tp, [0, 1, 4, 7])
                async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                    messages = [*await member.read(2, {tp: 2}), *await member.read(4)]
                    assert [message.offset for message in messages] == [2, 3, 5, 6, 8, 9]
                    assert member.consumer.position(tp) == member.consumer.highwater(tp) == 10

    async def test_markers_at_the_end_are_passed(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("skip_offsets")
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                    await faults.skip_offsets(tp, 2)
                    await produce(transport, {tp: numbered(0, 3)})
                    await faults.skip_offsets(tp, 3)
                    batches = await member.batches({tp: 100})
                    while batches[-1].next_offset < 5:
                        batches += await member.batches({tp: 100})
                    assert [message.offset for batch in batches for message in batch.messages] == [2, 3, 4]
                    assert batches[-1].next_offset in (5, 8)
                    await member.reads_nothing(broker.quiet)
                    assert member.consumer.position(tp) == member.consumer.highwater(tp) == 8
