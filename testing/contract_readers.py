"""Contract: reading without a group."""

from __future__ import annotations

import logging

import pytest
import trio

from ..channels.errors import UnknownTopic
from ..channels.message import TP, Message, ProducerRecord
from ..channels.transport import OffsetReset, Reader, TopicSpec
from .contract_kit import ContractBase, numbered, produce, values

__all__ = ["ReaderContract", "ReaderFaultContract"]


async def read(reader: Reader, number: int, most: int = 1000) -> list[Message]:
    """Fetch that many messages, in the order in which they came."""
    messages: list[Message] = []
    while len(messages) < number:
        for batch in await reader.fetch(min(most, number - len(messages))):
            assert batch.generation == -1
            assert batch.next_offset == batch.messages[-1].offset + 1
            assert batch.highwater >= batch.next_offset
            messages += batch.messages
    return messages


class ReaderContract(ContractBase):
    async def test_a_reader_begins_where_it_is_told_and_commits_nothing(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic, group = await broker.new_topic(transport, 3), broker.name("group")
            first, second, third = (TP(topic, number) for number in range(3))
            with trio.fail_after(broker.patience):
                await produce(transport, {first: numbered(0, 5), second: numbered(0, 5), third: numbered(0, 5)})
                start = {first: 3, second: "earliest", third: "latest"}
                async with (
                    self.member(broker, group, [topic]) as member,
                    transport.open_reader(start) as reader,  # type: ignore[arg-type]  # each value is one of them
                    transport.open_reader({first: 0}) as other,
                ):
                    assert reader.partitions == {first, second, third}
                    assert [reader.position(tp) for tp in (first, second, third)] == [3, 0, 5]
                    assert [reader.beginning(tp) for tp in (first, second, third)] == [0, 0, 0]
                    assert [reader.highwater(tp) for tp in (first, second, third)] == [5, 5, 5]
                    found = await read(reader, 7)
                    assert values([message for message in found if message.tp == first]) == [b"3", b"4"]
                    assert [message.offset for message in found if message.tp == second] == [0, 1, 2, 3, 4]
                    assert [reader.position(tp) for tp in (first, second, third)] == [5, 5, 5]
                    assert len(await read(other, 5)) == 5
                    assert len(await member.read(15)) == 15
                    assert set((await member.consumer.committed([first, second, third])).values()) == {None}

    async def test_what_is_written_after_a_reader_is_open_is_not_missed(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                await produce(transport, {tp: numbered(0, 3)})
                async with transport.open_reader({tp: "latest"}) as reader:
                    await produce(transport, {tp: numbered(3, 6)})
                    assert values(await read(reader, 3)) == [b"3", b"4", b"5"]
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(read, reader, 1)
                        await trio.sleep(broker.quiet)
                        await produce(transport, {tp: numbered(6, 7)})
                    assert reader.position(tp) == 7
                    assert reader.highwater(tp) == 7

    async def test_a_reader_takes_no_more_than_it_is_asked_for_and_all_partitions_in_turn(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 3)
            partitions = [TP(topic, number) for number in range(3)]
            with trio.fail_after(broker.patience):
                await produce(transport, dict.fromkeys(partitions, numbered(0, 100)))
                async with transport.open_reader(dict.fromkeys(partitions, "earliest")) as reader:
                    seen: list[Message] = []
                    while len(seen) < 300:
                        batches = await reader.fetch(7)
                        assert 1 <= sum(len(batch.messages) for batch in batches) <= 7
                        seen += [message for batch in batches for message in batch.messages]
                        counts = [sum(message.tp == tp for message in seen) for tp in partitions]
                        if 50 <= len(seen) < 57:
                            assert min(counts) > 0
                    for tp in partitions:
                        assert [message.offset for message in seen if message.tp == tp] == list(range(100))
                    with pytest.raises(ValueError, match="0"):
                        await reader.fetch(0)

    async def test_a_cancelled_fetch_of_a_reader_has_moved_no_position(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                async with transport.open_reader({tp: "earliest"}) as reader:
                    seen: list[Message] = []
                    for attempt in range(40):
                        await produce(transport, {tp: numbered(attempt, attempt + 1)})
                        with trio.move_on_after(attempt / 4000):
                            for batch in await reader.fetch(10):
                                seen += batch.messages
                        assert reader.position(tp) == len(seen)
                    seen += await read(reader, 40 - len(seen))
                    assert [message.offset for message in seen] == list(range(40))

    async def test_a_reader_seeks(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                await produce(transport, {tp: numbered(0, 20)})
                async with transport.open_reader({tp: "latest"}) as reader:
                    for target in (3, 17, 0):
                        await reader.seek(tp, target)
                        assert reader.position(tp) == target
                        assert [message.offset for message in await read(reader, 20 - target)] == [*range(target, 20)]
                    with pytest.raises(ValueError, match="-1"):
                        await reader.seek(tp, -1)
                    for call in (reader.position, reader.beginning, reader.highwater):
                        with pytest.raises(KeyError):
                            call(TP(tp.topic, 1))
                    with pytest.raises(KeyError):
                        await reader.seek(TP(tp.topic, 1), 0)

    async def test_a_reader_whose_offset_is_gone_goes_on_with_the_first_and_tells(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 2)
            trimmed, short = TP(topic, 0), TP(topic, 1)
            told: list[OffsetReset] = []
            with trio.fail_after(broker.patience):
                await produce(transport, {trimmed: numbered(0, 10), short: numbered(0, 2)})
                await transport.delete_records({trimmed: 6})
                async with transport.open_reader({trimmed: 2, short: 70}, on_reset=told.append) as reader:
                    assert reader.beginning(trimmed) == 6
                    found = await read(reader, 6)
                    assert {message.offset for message in found if message.tp == trimmed} == {6, 7, 8, 9}
                    assert {message.offset for message in found if message.tp == short} == {0, 1}
                    assert sorted(told, key=lambda reset: reset.tp) == [
                        OffsetReset(trimmed, 2, 6),
                        OffsetReset(short, 70, 0),
                    ]
                with caplog.at_level(logging.WARNING):
                    async with transport.open_reader({trimmed: 2}) as reader:
                        assert len(await read(reader, 4)) == 4
                assert f"reading {trimmed}: 4 messages from 2 on are gone" in caplog.text

    async def test_a_reader_of_what_is_not_there_says_so(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            missing = broker.name("missing")
            with trio.fail_after(broker.patience):
                with pytest.raises(UnknownTopic, match=missing):
                    async with transport.open_reader({TP(missing, 0): "latest"}):
                        raise AssertionError("it must not open")
                assert missing not in await transport.list_topics()
                with pytest.raises(UnknownTopic, match=f"{tp.topic}.* has partitions 0 to 0, no 1"):
                    async with transport.open_reader({TP(tp.topic, 1): 0}):
                        raise AssertionError("it must not open")
                for start in ({}, {tp: -1}, {tp: "newest"}):
                    with pytest.raises(ValueError, match="expected"):
                        transport.open_reader(start)  # type: ignore[arg-type]  # that is the point

    async def test_a_reader_is_told_of_a_topic_that_is_deleted(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport)
            with trio.fail_after(broker.patience):
                async with transport.open_reader({TP(topic, 0): "earliest"}) as reader:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(transport.delete_topic, topic)
                        with pytest.raises(UnknownTopic, match=topic):
                            await reader.fetch(10)
                    assert topic not in await transport.list_topics()

    async def test_a_reader_goes_over_offsets_without_messages(self) -> None:
        """Its position arrives at what the high-water mark was, whatever stands there: so recovery knows its end."""
        async with self.broker_and_transport() as (broker, transport):
            broker.need_transactions()
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                for number in range(3):
                    await transport.transact(
                        {tp: numbered(number, number + 1)}, {}, group=broker.name("group"), generation=-1
                    )
                async with transport.open_reader({tp: "earliest"}) as reader:
                    end = reader.highwater(tp)
                    seen: list[Message] = []
                    while reader.position(tp) < end:
                        seen += [message for batch in await reader.fetch(1) for message in batch.messages]
                    assert values(seen) == [b"0", b"1", b"2"]


class ReaderFaultContract(ContractBase):
    async def test_a_reader_goes_over_gaps_to_the_end(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("compact", "skip_offsets")
            tp = TP(broker.name("topic"), 0)
            await transport.create_topic(TopicSpec(name=tp.topic, partitions=1, config={"cleanup.policy": "compact"}))
            with trio.fail_after(broker.patience):
                records = [
                    ProducerRecord(b"%d" % number, b"") for number in range(10)
                ]  # Kafka's brokers want keys there
                await produce(transport, {tp: records})
                await faults.compact(tp, [0, 1, 4, 9])
                await faults.skip_offsets(tp, 3)
                async with transport.open_reader({tp: "earliest"}) as reader:
                    end = reader.highwater(tp)
                    seen: list[Message] = []
                    while reader.position(tp) < end:
                        seen += [message for batch in await reader.fetch(2) for message in batch.messages]
                    assert [message.offset for message in seen] == [2, 3, 5, 6, 7, 8]

    async def test_a_reader_waits_while_the_broker_is_away(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            faults = broker.need("stop", "start")
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                async with transport.open_reader({tp: "earliest"}) as reader:
                    await produce(transport, {tp: numbered(0, 3)})
                    assert len(await read(reader, 3)) == 3
                    await faults.stop()
                    with trio.move_on_after(broker.quiet) as waited:
                        await reader.fetch(1)
                    assert waited.cancelled_caught
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(read, reader, 1)
                        opened = trio.Event()

                        async def open_another() -> None:
                            async with transport.open_reader({tp: "earliest"}) as another:
                                opened.set()
                                assert len(await read(another, 4)) == 4

                        nursery.start_soon(open_another)
                        await trio.sleep(broker.quiet)
                        assert not opened.is_set()
                        await faults.start()
                        while True:
                            outcome = (await transport.produce({tp: numbered(3, 4)}))[tp]
                            if not isinstance(outcome, Exception):
                                break
                            await trio.sleep(broker.quiet)
                    assert reader.position(tp) == 4
