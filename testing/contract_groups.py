"""Contract: consumer groups: subscription, rebalances, generations."""

from __future__ import annotations

import re

import pytest
import trio

from ..channels.errors import CommitRefused, UnknownTopic
from ..channels.message import TP
from ..channels.transport import Assignment, TopicSpec
from .contract_kit import ContractBase, Recorder, numbered, produce, values

__all__ = ["GroupContract", "all_partitions"]


def all_partitions(topic: str, count: int) -> frozenset[TP]:
    """The first so many partitions of a topic."""
    return frozenset(TP(topic, number) for number in range(count))


class GroupContract(ContractBase):
    """Who owns what, and who is told."""

    async def test_one_member_owns_everything(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topics = [await broker.new_topic(transport, count) for count in (3, 1)]
            async with self.member(broker, broker.name("group"), topics) as member:
                assert member.owned == all_partitions(topics[0], 3) | all_partitions(topics[1], 1)
                assert member.listener.assigned[-1] == member.consumer.assignment
                assert member.listener.revoked == []

    async def test_nothing_is_owned_before_subscribing(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            async with self.member(broker, broker.name("group"), []) as member:
                assert member.owned == frozenset()
                with pytest.raises(CommitRefused):
                    await member.consumer.commit({tp: 1}, generation=1)

    async def test_two_members_share_and_the_one_that_stays_gets_all(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 4)
            group = broker.name("group")
            async with self.member(broker, group, [topic], client_id="one") as one:
                before = one.consumer.assignment
                async with self.member(broker, group, [topic], client_id="two") as two:
                    with trio.fail_after(broker.patience):
                        await one.changes.until(lambda: one.generation == two.generation)
                    assert one.listener.revoked[0] == (before.partitions, False)
                    assert one.owned | two.owned == all_partitions(topic, 4)
                    assert not one.owned & two.owned
                    assert len(one.owned) == len(two.owned) == 2
                    assert one.generation > before.generation
                    shared, twos = one.generation, two.owned
                assert two.listener.revoked[-1] == (twos, False)
                with trio.fail_after(broker.patience):
                    await one.changes.until(lambda: len(one.owned) == 4)
                assert one.generation > shared

    async def test_a_member_too_many_owns_nothing(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 1)
            group = broker.name("group")
            async with (
                self.member(broker, group, [topic], client_id="one") as one,
                self.member(broker, group, [topic], client_id="two") as two,
            ):
                with trio.fail_after(broker.patience):
                    await one.changes.until(lambda: one.generation == two.generation)
                assert sorted([len(one.owned), len(two.owned)]) == [0, 1]
                assert one.listener.assigned[-1] == one.consumer.assignment
                assert two.listener.assigned[-1] == two.consumer.assignment

    async def test_groups_know_nothing_of_each_other(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            await produce(transport, {tp: numbered(0, 3)})
            async with (
                self.member(broker, broker.name("group"), [tp.topic], client_id="one") as one,
                self.member(broker, broker.name("group"), [tp.topic], client_id="two") as two,
            ):
                with trio.fail_after(broker.patience):
                    await one.commit({tp: 3})
                    assert values(await two.read(3)) == [b"0", b"1", b"2"]
                    assert await two.consumer.committed([tp]) == {tp: None}

    async def test_the_same_subscription_again_changes_nothing(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topics = [await broker.new_topic(transport) for _ in range(2)]
            async with self.member(broker, broker.name("group"), topics) as member:
                before = member.consumer.assignment
                with trio.fail_after(broker.patience):
                    await member.consumer.subscribe(list(reversed(topics)))
                    await member.reads_nothing(broker.quiet)
                assert member.consumer.assignment == before
                assert member.listener.revoked == []

    async def test_a_new_subscription_replaces_the_old(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            old, both, new = [await broker.new_topic(transport) for _ in range(3)]
            await produce(transport, {TP(topic, 0): numbered(0, 2) for topic in (old, both, new)})
            async with self.member(broker, broker.name("group"), [old, both]) as member:
                with trio.fail_after(broker.patience):
                    await member.consumer.subscribe([both, new])
                    assert member.owned == all_partitions(both, 1) | all_partitions(new, 1)
                    assert {message.topic for message in await member.read(4)} == {both, new}

    async def test_a_pattern_takes_topics_that_come_later_too(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            stem = broker.name("orders")
            first, later, other = f"{stem}-eu", f"{stem}-us", f"not-{stem}-eu"
            for name in (first, other):
                await transport.create_topic(TopicSpec(name=name, partitions=1))
            pattern = re.compile(re.escape(stem) + "-..")
            async with self.member(broker, broker.name("group"), [], pattern=pattern) as member:
                assert member.owned == all_partitions(first, 1)
                await transport.create_topic(TopicSpec(name=later, partitions=2))
                with trio.fail_after(broker.patience):
                    await member.changes.until(
                        lambda: member.owned == all_partitions(first, 1) | all_partitions(later, 2)
                    )

    async def test_a_missing_topic_is_named_or_created(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            missing = broker.name("missing")
            async with self.member(broker, broker.name("group"), []) as member:
                with trio.fail_after(broker.patience):
                    if broker.creates_missing_topics:
                        await member.consumer.subscribe([missing])
                        assert member.owned == all_partitions(missing, 4)
                    else:
                        with pytest.raises(UnknownTopic, match=re.escape(missing)):
                            await member.consumer.subscribe([missing])
                        assert missing not in await transport.list_topics()

    async def test_added_partitions_are_given_out(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 1)
            async with self.member(broker, broker.name("group"), [topic]) as member:
                await transport.add_partitions(topic, 3)
                with trio.fail_after(broker.patience):
                    await member.changes.until(lambda: member.owned == all_partitions(topic, 3))

    async def test_a_static_member_gets_its_partitions_back(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 4)
            group = broker.name("group")
            async with self.member(broker, group, [topic], client_id="one", instance_id="a") as one:
                async with self.member(broker, group, [topic], client_id="two", instance_id="b") as two:
                    with trio.fail_after(broker.patience):
                        await one.changes.until(lambda: len(one.owned) == len(two.owned) == 2)
                    before = two.owned
                async with self.member(broker, group, [topic], client_id="new", instance_id="b") as new:
                    with trio.fail_after(broker.patience):
                        await one.changes.until(lambda: len(one.owned) == len(new.owned) == 2)
                    assert new.owned == before

    async def test_no_batch_comes_from_revocation_to_the_next_assignment(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 2)
            group = broker.name("group")
            recorder = Recorder(broker.changes)
            async with self.member(broker, group, [topic], client_id="one", listener=recorder) as one:
                seen_inside: list[int] = []

                async def write_and_watch() -> None:
                    seen = len(one.seen)
                    await produce(transport, {tp: numbered(0, 5) for tp in all_partitions(topic, 2)})
                    await trio.sleep(broker.quiet)
                    seen_inside.append(len(one.seen) - seen)

                async def while_revoked(revoked: frozenset[TP], lost: bool) -> None:
                    await write_and_watch()

                async def while_assigned(assignment: Assignment) -> None:
                    await write_and_watch()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(one.pump)
                    recorder.before_revoked_returns = while_revoked
                    recorder.before_assigned_returns = while_assigned
                    async with self.member(broker, group, [topic], client_id="two") as two:
                        with trio.fail_after(broker.patience):
                            await one.changes.until(lambda: one.generation == two.generation and one.seen)
                        recorder.before_revoked_returns = None
                        recorder.before_assigned_returns = None
                    nursery.cancel_scope.cancel()
                assert seen_inside[:2] == [0, 0]

    async def test_the_listener_can_look_and_seek_when_assigned(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            await produce(transport, {tp: numbered(0, 10)})
            recorder = Recorder(broker.changes)
            async with self.member(broker, broker.name("group"), [], listener=recorder) as member:

                async def skip_seven(assignment: Assignment) -> None:
                    assert member.consumer.assignment == assignment
                    assert member.consumer.position(tp) == 0
                    await member.consumer.seek(tp, 7)

                recorder.before_assigned_returns = skip_seven
                with trio.fail_after(broker.patience):
                    await member.consumer.subscribe([tp.topic])
                    assert values(await member.read(3)) == [b"7", b"8", b"9"]

    async def test_a_listener_that_fails_ends_the_consumer(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport)
            recorder = Recorder(broker.changes)

            async def fail(assignment: Assignment) -> None:
                raise RuntimeError("the listener failed")

            recorder.before_assigned_returns = fail
            with trio.fail_after(broker.patience), pytest.raises(RuntimeError, match="the listener failed"):
                async with self.member(broker, broker.name("group"), [topic], listener=recorder):
                    await trio.sleep_forever()

    async def test_the_bodys_failure_leaves_as_it_is(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport)
            recorder = Recorder(broker.changes)
            with trio.fail_after(broker.patience), pytest.raises(LookupError, match="of the body"):
                async with self.member(broker, broker.name("group"), [topic], listener=recorder):
                    raise LookupError("of the body")
            assert recorder.revoked == [(all_partitions(topic, 1), False)]

    async def test_a_cancelled_member_leaves_its_group(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 2)
            group = broker.name("group")
            async with self.member(broker, group, [topic], client_id="one") as one:
                with trio.CancelScope() as scope:
                    async with self.member(broker, group, [topic], client_id="two"):
                        scope.cancel()
                with trio.fail_after(broker.patience):
                    await one.changes.until(lambda: len(one.owned) == 2)

    async def test_closing_leaves_no_task(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport)
            async with self.member(broker, broker.name("group"), [topic]):
                pass
            before = trio.lowlevel.current_statistics().tasks_living
            async with self.member(broker, broker.name("group"), [topic]) as member:
                await member.reads_nothing(broker.quiet)
            assert trio.lowlevel.current_statistics().tasks_living == before
