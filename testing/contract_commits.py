"""Contract: commits: where a group goes on, and who may say so."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from ..channels.errors import CommitRefused
from ..channels.message import TP
from ..channels.transport import ConsumerOptions
from .contract_groups import all_partitions
from .contract_kit import ContractBase, GroupMember, Recorder, numbered, produce, values

__all__ = ["CommitContract"]


class CommitContract(ContractBase):
    """What a group has done, and who may say so."""

    async def test_a_restart_goes_on_at_the_commit(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 2)
            group = broker.name("group")
            done, fresh = TP(topic, 0), TP(topic, 1)
            with trio.fail_after(broker.patience):
                await produce(transport, {done: numbered(0, 10), fresh: numbered(0, 2)})
                async with self.member(broker, group, [topic]) as member:
                    await member.read(12)
                    await member.commit({done: 6})
                    assert await member.consumer.committed([done, fresh]) == {done: 6, fresh: None}
                async with self.member(broker, group, [topic]) as member:
                    assert (member.consumer.position(done), member.consumer.position(fresh)) == (6, 0)
                    assert await member.consumer.committed([done]) == {done: 6}
                    messages = await member.read(6)
            assert [message.offset for message in messages if message.tp == done] == [6, 7, 8, 9]

    async def test_a_commit_beside_a_waiting_fetch(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            await produce(transport, {tp: numbered(0, 3)})
            async with (
                self.member(broker, broker.name("group"), [tp.topic]) as member,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(member.pump)
                with trio.fail_after(broker.patience):
                    await member.changes.until(lambda: len(member.seen) == 3)
                    await member.commit({tp: 3})
                    assert await member.consumer.committed([tp]) == {tp: 3}
                nursery.cancel_scope.cancel()

    async def test_a_commit_of_another_generation_or_partition_is_refused_whole(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            foreign = TP(await broker.new_topic(transport), 0)
            await produce(transport, {tp: numbered(0, 3)})
            async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                with trio.fail_after(broker.patience):
                    for generation in (member.generation - 1, member.generation + 1, -1):
                        with pytest.raises(CommitRefused):
                            await member.consumer.commit({tp: 3}, generation=generation)
                    with pytest.raises(CommitRefused):
                        await member.commit({tp: 3, foreign: 1})
                    assert await member.consumer.committed([tp, foreign]) == {tp: None, foreign: None}

    async def test_an_old_generation_cannot_commit_after_a_rebalance(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 2)
            group = broker.name("group")
            async with self.member(broker, group, [topic], client_id="one") as one:
                old = one.consumer.assignment
                async with self.member(broker, group, [topic], client_id="two") as two:
                    with trio.fail_after(broker.patience):
                        await one.changes.until(lambda: one.generation == two.generation)
                        for tp in old.partitions:
                            with pytest.raises(CommitRefused):
                                await one.consumer.commit({tp: 1}, generation=old.generation)
                        assert set((await one.consumer.committed(old.partitions)).values()) == {None}

    async def test_the_last_commit_is_made_while_partitions_are_revoked(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            group = broker.name("group")
            await produce(transport, {tp: numbered(0, 5)})
            recorder = Recorder(broker.changes)
            async with self.member(broker, group, [tp.topic], client_id="one", listener=recorder) as one:
                first = one.consumer.assignment

                async def commit_four(revoked: frozenset[TP], lost: bool) -> None:
                    await trio.sleep(broker.quiet)
                    await one.consumer.commit({tp: 4}, generation=first.generation)

                recorder.before_revoked_returns = commit_four
                async with self.member(broker, group, [tp.topic], client_id="two") as two:
                    with trio.fail_after(broker.patience):
                        await one.changes.until(lambda: one.generation == two.generation)
                        with pytest.raises(CommitRefused):
                            await one.consumer.commit({tp: 5}, generation=first.generation)
                        assert await two.consumer.committed([tp]) == {tp: 4}
                    recorder.before_revoked_returns = None

    async def test_the_last_commit_is_made_on_leaving(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            group = broker.name("group")
            await produce(transport, {tp: numbered(0, 5)})
            recorder = Recorder(broker.changes)
            with trio.fail_after(broker.patience):
                async with self.member(broker, group, [tp.topic], listener=recorder) as one:

                    async def commit_all(revoked: frozenset[TP], lost: bool) -> None:
                        await one.commit({tp: 5})

                    recorder.before_revoked_returns = commit_all
                async with self.member(broker, group, [tp.topic]) as two:
                    assert two.consumer.position(tp) == 5

    async def test_who_takes_too_long_to_let_go_is_out(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            group = broker.name("group")
            recorder = Recorder(broker.changes)
            refused = trio.Event()
            async with self.member(broker, group, [tp.topic], client_id="slow", listener=recorder) as slow:
                old = slow.generation

                async def take_too_long(revoked: frozenset[TP], lost: bool) -> None:
                    recorder.before_revoked_returns = None
                    await trio.sleep(broker.rebalance_timeout + broker.session_timeout)
                    with pytest.raises(CommitRefused):
                        await slow.consumer.commit({tp: 1}, generation=old)
                    refused.set()

                recorder.before_revoked_returns = take_too_long
                async with self.member(broker, group, [tp.topic], client_id="other") as other:
                    with trio.fail_after(broker.patience):
                        assert other.owned == {tp}
                        await refused.wait()
                        await slow.changes.until(lambda: slow.generation > old)
                        await other.changes.until(lambda: other.generation == slow.generation)

    async def test_everything_is_seen_over_rebalances_and_nothing_is_committed_unseen(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 3)
            group = broker.name("group")
            partitions = all_partitions(topic, 3)
            seen: dict[TP, set[int]] = {tp: set() for tp in partitions}

            async def work(member: GroupMember) -> None:
                """Read and commit now and then, as a conductor would."""
                while True:
                    for batch in await member.consumer.fetch(member.room(7)):
                        seen[batch.tp].update(message.offset for message in batch.messages)
                        member.changes.notify()
                        if batch.next_offset % 3 == 0:
                            with suppress(CommitRefused):
                                await member.consumer.commit({batch.tp: batch.next_offset}, generation=batch.generation)

            async def come_and_go(number: int) -> None:
                async with self.member(broker, group, [topic], client_id=f"guest-{number}") as guest:
                    with trio.move_on_after(broker.quiet):
                        await work(guest)
                    assert_committed_was_seen(await guest.consumer.committed(partitions))

            def assert_committed_was_seen(committed: object) -> None:
                assert isinstance(committed, dict)
                for tp, offset in committed.items():
                    assert set(range(offset or 0)) <= seen[tp]

            async with (
                self.member(broker, group, [topic], client_id="host") as host,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(work, host)
                for number in range(3):
                    await produce(transport, {tp: numbered(50 * number, 50 * number + 50) for tp in partitions})
                    with trio.fail_after(broker.patience):
                        await come_and_go(number)
                with trio.fail_after(broker.patience):
                    await host.changes.until(lambda: all(len(offsets) == 150 for offsets in seen.values()))
                assert_committed_was_seen(await host.consumer.committed(partitions))
                nursery.cancel_scope.cancel()

    async def test_a_transport_has_consumers_of_several_groups(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            await produce(transport, {tp: numbered(0, 2)})
            first, second = (
                ConsumerOptions(
                    group=broker.name("group"),
                    session_timeout=broker.session_timeout,
                    rebalance_timeout=broker.rebalance_timeout,
                )
                for _ in range(2)
            )
            async with (
                transport.open_consumer(first, Recorder(broker.changes)) as one,
                transport.open_consumer(second, Recorder(broker.changes)) as two,
            ):
                with trio.fail_after(broker.patience):
                    for consumer in (one, two):
                        await consumer.subscribe([tp.topic])
                        member = GroupMember(transport, consumer, Recorder(broker.changes))
                        assert values(await member.read(2)) == [b"0", b"1"]
