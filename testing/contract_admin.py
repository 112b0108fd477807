"""Contract: administration of topics, and transactions."""

from __future__ import annotations

import re

import pytest
import trio

from ..channels.errors import CommitRefused, ProduceError, TopicExists, UnknownTopic
from ..channels.message import TP
from ..channels.transport import TopicSpec
from .contract_kit import ContractBase, numbered, produce, values

__all__ = ["AdminContract", "TransactionContract"]


class AdminContract(ContractBase):
    """Topics are created, looked at, grown, trimmed and deleted."""

    async def test_a_topic_is_created_as_asked_for(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            name = broker.name("topic")
            config = {"cleanup.policy": "compact"}
            with trio.fail_after(broker.patience):
                assert name not in await transport.list_topics()
                await transport.create_topic(TopicSpec(name=name, partitions=3, config=config))
                assert await transport.partition_count(name) == 3
                topics = await transport.list_topics()
                assert name in topics
                assert list(topics) == sorted(topics)
                description = await transport.describe_topic(name)
            assert (description.name, description.partitions, description.internal) == (name, 3, False)
            assert description.replicas >= 1
            assert description.config["cleanup.policy"] == "compact"

    async def test_partitions_have_a_default(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            name = broker.name("topic")
            with trio.fail_after(broker.patience):
                await transport.create_topic(TopicSpec(name=name))
                assert await transport.partition_count(name) == 4

    async def test_what_a_group_has_committed_is_known_to_whoever_asks(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic, group = await broker.new_topic(transport, 2), broker.name("group")
            first, second = TP(topic, 0), TP(topic, 1)
            with trio.fail_after(broker.patience):
                assert await transport.committed(group, [first, second]) == {first: None, second: None}
                await produce(transport, {first: numbered(0, 5)})
                async with self.member(broker, group, [topic]) as member:
                    await member.read(5)
                    await member.consumer.commit({first: 3}, generation=member.consumer.assignment.generation)
                    assert await transport.committed(group, [first, second]) == {first: 3, second: None}
                assert await transport.committed(group, [first]) == {first: 3}
                assert await transport.committed(broker.name("group"), [first]) == {first: None}
                assert await transport.committed(group, []) == {}

    async def test_a_topic_is_created_once(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            name = await broker.new_topic(transport, 2)
            with trio.fail_after(broker.patience):
                with pytest.raises(TopicExists, match=re.escape(name)):
                    await transport.create_topic(TopicSpec(name=name, partitions=5))
                assert await transport.partition_count(name) == 2

    async def test_a_deleted_topic_is_gone(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            name = await broker.new_topic(transport)
            with trio.fail_after(broker.patience):
                await transport.delete_topic(name)
                assert name not in await transport.list_topics()

    async def test_a_missing_topic_is_named(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            name = broker.name("missing")
            with trio.fail_after(broker.patience):
                for call in (transport.partition_count, transport.describe_topic, transport.delete_topic):
                    with pytest.raises(UnknownTopic, match=re.escape(name)):
                        await call(name)
                with pytest.raises(UnknownTopic, match=re.escape(name)):
                    await transport.add_partitions(name, 5)
                with pytest.raises(UnknownTopic, match=re.escape(name)):
                    await transport.delete_records({TP(name, 0): 1})
                assert name not in await transport.list_topics()

    async def test_partitions_are_added_and_never_taken_away(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            name = await broker.new_topic(transport, 2)
            with trio.fail_after(broker.patience):
                await transport.add_partitions(name, 3)
                assert await transport.partition_count(name) == 3
                for total in (3, 1):
                    with pytest.raises(ValueError, match=str(total)):
                        await transport.add_partitions(name, total)
                await produce(transport, {TP(name, 2): numbered(0, 1)})

    async def test_deleted_records_are_gone_and_offsets_stay(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                await produce(transport, {tp: numbered(0, 10)})
                await transport.delete_records({tp: 6})
                async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                    assert [message.offset for message in await member.read(4)] == [6, 7, 8, 9]
                    assert (await produce(transport, {tp: numbered(10, 11)}))[tp].base_offset == 10

    async def test_a_position_below_the_deleted_records_goes_on_at_the_first_left(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                await produce(transport, {tp: numbered(0, 10)})
                async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                    await member.read(10)
                    await transport.delete_records({tp: 8})
                    await member.consumer.seek(tp, 2)
                    assert values(await member.read(2)) == [b"8", b"9"]


class TransactionContract(ContractBase):
    """Batches and offsets become visible together, or not at all."""

    async def test_records_and_offsets_appear_together(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            broker.need_transactions()
            source = TP(await broker.new_topic(transport), 0)
            sinks = [TP(await broker.new_topic(transport), 0) for _ in range(2)]
            group = broker.name("group")
            await produce(transport, {source: numbered(0, 5)})
            with trio.fail_after(broker.patience):
                async with self.member(broker, group, [source.topic], client_id="worker") as member:
                    results = await member.transport.transact(
                        {sink: numbered(0, 3) for sink in sinks},
                        {source: 5},
                        group=group,
                        generation=member.generation,
                    )
                    assert {sink: result.base_offset for sink, result in results.items()} == dict.fromkeys(sinks, 0)
                    assert await member.consumer.committed([source]) == {source: 5}
                async with self.member(
                    broker, broker.name("group"), [sink.topic for sink in sinks], client_id="reader"
                ) as reader:
                    assert sorted(values(await reader.read(6)), key=str) == sorted([b"0", b"1", b"2"] * 2, key=str)

    async def test_a_transaction_without_offsets(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            broker.need_transactions()
            sink = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                await transport.transact({sink: numbered(0, 3)}, {}, group="", generation=-1)
                async with self.member(broker, broker.name("group"), [sink.topic]) as reader:
                    assert values(await reader.read(3)) == [b"0", b"1", b"2"]

    async def test_an_old_generation_writes_nothing(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            broker.need_transactions()
            source, sink = [TP(await broker.new_topic(transport), 0) for _ in range(2)]
            group = broker.name("group")
            with trio.fail_after(broker.patience):
                async with self.member(broker, group, [source.topic], client_id="worker") as member:
                    with pytest.raises(CommitRefused):
                        await member.transport.transact(
                            {sink: numbered(0, 3)}, {source: 5}, group=group, generation=member.generation - 1
                        )
                    assert await member.consumer.committed([source]) == {source: None}
                async with self.member(broker, broker.name("group"), [sink.topic]) as reader:
                    await reader.reads_nothing(broker.quiet)

    async def test_a_missing_topic_keeps_all_of_it_out(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            broker.need_transactions()
            source, sink = [TP(await broker.new_topic(transport), 0) for _ in range(2)]
            missing = TP(broker.name("missing"), 0)
            group = broker.name("group")
            with trio.fail_after(broker.patience):
                async with self.member(broker, group, [source.topic], client_id="worker") as member:
                    with pytest.raises(ProduceError, match=re.escape(missing.topic)):
                        await member.transport.transact(
                            {sink: numbered(0, 3), missing: numbered(0, 3)},
                            {source: 5},
                            group=group,
                            generation=member.generation,
                        )
                    assert await member.consumer.committed([source]) == {source: None}
                async with self.member(broker, broker.name("group"), [sink.topic]) as reader:
                    await reader.reads_nothing(broker.quiet)
