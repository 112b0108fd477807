"""Contract: writing to partitions and reading them, with one member that owns everything."""

from __future__ import annotations

import time

import pytest
import trio

from ..channels.errors import TransportError
from ..channels.message import TP, ProducerRecord
from ..channels.transport import ProduceResult
from .contract_kit import ContractBase, numbered, produce, values

__all__ = ["LogContract"]


class LogContract(ContractBase):
    """Records go in and come out."""

    async def test_messages_come_in_order_with_dense_offsets(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                first = await produce(transport, {tp: numbered(0, 300)})
                second = await produce(transport, {tp: numbered(300, 500)})
                assert (first[tp].base_offset, second[tp].base_offset) == (0, 300)
                async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                    messages = await member.read(500)
            assert [message.offset for message in messages] == list(range(500))
            assert values(messages) == [b"%d" % number for number in range(500)]
            assert {(message.tp, message.generation) for message in messages} == {
                (tp, member.listener.assigned[-1].generation)
            }

    async def test_a_batch_says_where_it_ends(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                await produce(transport, {tp: numbered(0, 10)})
                async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                    for batch in await member.batches({tp: 4}):
                        assert batch.tp == tp
                        assert batch.generation == member.generation
                        assert batch.next_offset == batch.messages[-1].offset + 1
                        assert batch.highwater == 10

    async def test_keys_values_headers_and_timestamps_survive(self) -> None:
        records = [
            ProducerRecord(b"key", b"value", (("a", b"1"), ("b", b""), ("a", b"2")), 1_700_000_000.123),
            ProducerRecord(None, b"", (), 1_700_000_001.0),
            ProducerRecord(b"", None, (), 1_700_000_002.0),
            ProducerRecord("schlüssel".encode(), bytes(range(256)), (("ü", b"\xff"),), 1_700_000_003.5),
        ]
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                await produce(transport, {tp: records})
                async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                    messages = await member.read(4)
            for record, message in zip(records, messages, strict=True):
                assert (message.key, message.value) == (record.key, record.value)
                assert tuple(message.headers) == record.headers
                assert message.timestamp == pytest.approx(record.timestamp, abs=0.001)

    async def test_a_record_without_a_timestamp_gets_the_time_of_the_write(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                before = time.time()
                result = (await produce(transport, {tp: numbered(0, 1)}))[tp]
                after = time.time()
                async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                    (message,) = await member.read(1)
            assert before - 1 <= message.timestamp <= after + 1
            if result.timestamp is not None:
                assert message.timestamp == pytest.approx(result.timestamp, abs=0.001)

    async def test_partitions_are_written_and_read_apart(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 3)
            batches = {TP(topic, number): numbered(100 * number, 100 * number + 50) for number in range(3)}
            with trio.fail_after(broker.patience):
                results = await produce(transport, batches)
                assert {tp: result.base_offset for tp, result in results.items()} == dict.fromkeys(batches, 0)
                async with self.member(broker, broker.name("group"), [topic]) as member:
                    messages = await member.read(150)
            for tp, records in batches.items():
                assert values([message for message in messages if message.tp == tp]) == [
                    record.value for record in records
                ]

    async def test_position_and_highwater_follow_the_reading(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                await produce(transport, {tp: numbered(0, 10)})
                async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                    assert member.consumer.position(tp) == 0
                    await member.read(4, {tp: 4})
                    assert (member.consumer.position(tp), member.consumer.highwater(tp)) == (4, 10)
                    await member.read(6)
                    assert (member.consumer.position(tp), member.consumer.highwater(tp)) == (10, 10)
                    for foreign in (TP(tp.topic, 7), TP("elsewhere", 0)):
                        for ask in (member.consumer.position, member.consumer.highwater):
                            with pytest.raises(KeyError):
                                ask(foreign)
                        with pytest.raises(KeyError):
                            await member.consumer.seek(foreign, 0)

    async def test_a_fetch_brings_no_more_than_there_is_room_for(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 2)
            room = {TP(topic, 0): 3, TP(topic, 1): 7}
            with trio.fail_after(broker.patience):
                await produce(transport, {tp: numbered(0, 20) for tp in room})
                async with self.member(broker, broker.name("group"), [topic]) as member:
                    number = 0
                    while number < 40:
                        for batch in await member.consumer.fetch(room):
                            assert 1 <= len(batch.messages) <= room[batch.tp]
                            number += len(batch.messages)

    async def test_partitions_left_out_of_room_stay_where_they_are(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 2)
            wanted, other = TP(topic, 0), TP(topic, 1)
            with trio.fail_after(broker.patience):
                await produce(transport, {wanted: numbered(0, 5), other: numbered(0, 5)})
                async with self.member(broker, broker.name("group"), [topic]) as member:
                    assert {message.tp for message in await member.read(5, {wanted: 100})} == {wanted}
                    await member.reads_nothing(broker.quiet, {wanted: 100})
                    assert member.consumer.position(other) == 0
                    assert [message.offset for message in await member.read(5, {other: 100})] == [
                        0,
                        1,
                        2,
                        3,
                        4,
                    ]

    async def test_partitions_that_are_not_owned_are_skipped(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                await produce(transport, {tp: numbered(0, 5)})
                async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                    room = {tp: 100, TP(tp.topic, 9): 100, TP("elsewhere", 0): 100}
                    assert len(await member.read(5, room)) == 5

    async def test_a_waiting_fetch_gets_what_is_written(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                with trio.fail_after(broker.patience):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(member.read, 1)
                        await trio.sleep(broker.quiet)
                        await produce(transport, {tp: numbered(0, 1)})

    async def test_wake_ends_the_fetch_under_way_or_the_next(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                await member.reads_nothing(broker.quiet)
                with trio.fail_after(broker.patience):
                    for room in ({tp: 10}, {}):
                        member.consumer.wake()
                        assert await member.consumer.fetch(room) == []
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(member.consumer.fetch, room)
                            await trio.sleep(broker.quiet)
                            member.consumer.wake()

    async def test_a_fetch_with_no_room_waits(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                await member.reads_nothing(broker.quiet)
                await produce(transport, {tp: numbered(0, 5)})
                with trio.move_on_after(broker.quiet) as waiting:
                    await member.consumer.fetch({})
                assert waiting.cancelled_caught
                with trio.fail_after(broker.patience):
                    assert len(await member.read(5)) == 5

    async def test_a_cancelled_fetch_has_moved_nothing(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                number = 0
                with trio.fail_after(broker.patience):
                    for attempt in range(20):
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(produce, transport, {tp: numbered(number, number + 5)})
                            number += 5
                            position = member.consumer.position(tp)
                            with trio.move_on_after(attempt / 1000):
                                for batch in await member.consumer.fetch({tp: 1000}):
                                    assert batch.messages[0].offset == position
                                    position = batch.next_offset
                            assert member.consumer.position(tp) == position
                    await member.consumer.seek(tp, 0)
                    assert len(await member.read(number)) == number

    async def test_a_paused_partition_waits_until_it_is_resumed(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 2)
            going, paused = TP(topic, 0), TP(topic, 1)
            with trio.fail_after(broker.patience):
                async with self.member(broker, broker.name("group"), [topic]) as member:
                    member.consumer.pause([paused])
                    await produce(transport, {going: numbered(0, 5), paused: numbered(0, 5)})
                    assert {message.tp for message in await member.read(5)} == {going}
                    await member.reads_nothing(broker.quiet)
                    assert member.consumer.position(paused) == 0
                    member.consumer.resume([paused, going])
                    assert [message.offset for message in await member.read(5)] == [0, 1, 2, 3, 4]

    async def test_resume_reaches_a_fetch_that_waits(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            await produce(transport, {tp: numbered(0, 5)})
            async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                member.consumer.pause([tp])
                with trio.fail_after(broker.patience):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(member.read, 5)
                        await trio.sleep(broker.quiet)
                        member.consumer.resume([tp])

    async def test_seek_goes_back_and_forward(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                await produce(transport, {tp: numbered(0, 20)})
                async with self.member(broker, broker.name("group"), [tp.topic]) as member:
                    await member.read(20)
                    for target in (3, 17, 0):
                        await member.consumer.seek(tp, target)
                        assert member.consumer.position(tp) == target
                        messages = await member.read(20 - target)
                        assert [message.offset for message in messages] == list(range(target, 20))

    async def test_offset_reset_says_where_a_new_group_starts(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            tp = TP(await broker.new_topic(transport), 0)
            with trio.fail_after(broker.patience):
                await produce(transport, {tp: numbered(0, 5)})
                async with self.member(broker, broker.name("group"), [tp.topic], offset_reset="latest") as member:
                    assert member.consumer.position(tp) == 5
                    await produce(transport, {tp: numbered(5, 8)})
                    assert values(await member.read(3)) == [b"5", b"6", b"7"]

    async def test_the_outcome_of_a_write_is_per_partition(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            good = TP(await broker.new_topic(transport), 0)
            bad = TP(broker.name("missing"), 0)
            with trio.fail_after(broker.patience):
                outcome = await transport.produce({bad: numbered(0, 3), good: numbered(0, 3)})
                assert isinstance(outcome[good], ProduceResult)
                assert isinstance(outcome[bad], TransportError)
                assert bad.topic in str(outcome[bad])
                assert await transport.produce({}) == {}

    async def test_a_cancelled_write_is_whole_or_not_at_all(self) -> None:
        async with self.broker_and_transport() as (broker, transport):
            topic = await broker.new_topic(transport, 2)
            first, second = TP(topic, 0), TP(topic, 1)
            with trio.fail_after(broker.patience):
                for attempt in range(20):
                    number = attempt * 10
                    with trio.move_on_after(attempt / 2000):
                        records = numbered(number, number + 10)
                        await transport.produce({first: records, second: records})
                end = numbered(-1, 0)
                await produce(transport, {first: end, second: end})
                async with self.member(broker, broker.name("group"), [topic]) as member:
                    seen: dict[TP, list[int]] = {first: [], second: []}
                    while any(numbers[-1:] != [-1] for numbers in seen.values()):
                        for message in await member.read(1):
                            seen[message.tp].append(int(message.value or b""))
            for numbers in seen.values():
                del numbers[-1]
                starts = numbers[::10]
                assert numbers == [number for start in starts for number in range(start, start + 10)]
                assert starts == sorted(set(starts))
