"""Replays of many letters that are cut off, or run at once: each letter goes back at least once, few go twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import click
import pytest
import trio

from famulus.channels.letters import MARK, PREFIX
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import ConsumerOptions, Reader
from famulus.cli.letter_reading import GROUP, MOST, Listener, Selection, look
from famulus.cli.letter_replay import Replay, survey

LETTERS = "orders.dead-letter"
COUNT = 1200


def bury(broker: MemoryBroker, count: int, size: int = 2) -> None:
    broker.create_topic("orders", 2)
    broker.create_topic(LETTERS, 1)
    facts = ((MARK, LETTERS.encode()), (f"{PREFIX}topic", b"orders"))
    for number in range(count):
        place = ((f"{PREFIX}partition", b"%d" % (number % 2)), (f"{PREFIX}offset", b"%d" % number))
        record = ProducerRecord(None, (b"%d" % number).rjust(size), (*facts, *place))
        broker.append(TP(LETTERS, 0), [record])


def replaying(transport: MemoryTransport, **options: object) -> Replay:
    defaults = {
        "by_key": False,
        "batch_bytes": 1_000_000,
        "delivery_timeout": 5.0,
        "say": lambda _: None,
        "progress": lambda _: None,
    }
    return Replay(transport, Selection(), **{**defaults, **options})  # type: ignore[arg-type]


async def run(transport: MemoryTransport, replay: Replay) -> None:
    stack = await look(transport, [LETTERS], None)
    with trio.fail_after(100):
        await replay.run(stack, stack.start(from_beginning=False))


async def test_a_replay_that_is_cut_off_sends_a_few_letters_twice_and_leaves_out_none(broker: MemoryBroker) -> None:
    bury(broker, COUNT)
    transport = MemoryTransport(broker=broker)

    class Killed(Exception): ...

    done = 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        if done > MOST:
            raise Killed  # acknowledged, and not remembered yet

    async with transport.open():
        with pytest.raises(Killed):
            await run(transport, replaying(transport, progress=progress))
        assert broker.group(GROUP).committed == {TP(LETTERS, 0): MOST}
        again = replaying(transport)
        await run(transport, again)
        assert again.sent == COUNT - MOST
        await run(transport, replaying(transport))
    back = [int(message.value or b"") for message in broker.messages("orders")]
    assert set(back) == set(range(COUNT))
    assert len(back) == COUNT + MOST
    assert broker.group(GROUP).committed == {TP(LETTERS, 0): COUNT}


async def test_letters_go_back_in_batches_that_their_topic_takes(broker: MemoryBroker) -> None:
    bury(broker, 60, size=100)
    broker.topics["orders"].config["max.message.bytes"] = "1000"
    transport = MemoryTransport(broker=broker)
    async with transport.open():
        await run(transport, replaying(transport))
        bury_too_large = ProducerRecord(
            None, b"x" * 2000, ((MARK, LETTERS.encode()), (f"{PREFIX}topic", b"orders"), (f"{PREFIX}offset", b"7"))
        )
        broker.append(TP(LETTERS, 0), [bury_too_large])
        with pytest.raises(click.ClickException, match=r"stopped after 0 letters: orders-\d does not take the next"):
            await run(transport, replaying(transport))
    for partition in (0, 1):
        values = [int(m.value or b"") for m in broker.messages("orders") if m.partition == partition]
        assert values == list(range(partition, 60, 2))


async def test_a_replay_waits_while_the_broker_is_away(broker: MemoryBroker) -> None:
    from famulus.channels.errors import BrokerUnavailable

    bury(broker, 3)
    transport = MemoryTransport(broker=broker)
    broker.faults.fail_produce(4, BrokerUnavailable("away"), topic="orders")
    async with transport.open():
        replay = replaying(transport)
        await run(transport, replay)
    assert replay.sent == len(broker.messages("orders")) == 3


async def test_a_second_replay_at_once_is_refused(broker: MemoryBroker) -> None:
    bury(broker, 3)
    transport, other = MemoryTransport(broker=broker), MemoryTransport(broker=broker)
    async with transport.open(), other.open():
        async with other.open_consumer(ConsumerOptions(group=GROUP), Listener()) as consumer:
            await consumer.subscribe([LETTERS])
            with pytest.raises(click.ClickException, match="another `dead-letters replay` is at it"):
                await run(transport, replaying(transport))
        stack = await look(transport, [LETTERS], None)
        goals, homeless = await survey(transport, stack, stack.start(from_beginning=False), Selection())
        assert (goals, homeless) == ({"orders": 3}, 0)


async def test_a_replay_that_another_one_joins_stops_and_says_so(broker: MemoryBroker) -> None:
    bury(broker, COUNT)
    transport, other = MemoryTransport(broker=broker), MemoryTransport(broker=broker)
    async with (
        transport.open(),
        other.open(),
        other.open_consumer(ConsumerOptions(group=GROUP), Listener()) as consumer,
    ):
        joined = trio.Event()
        with broker.faults.hold_produce(topic="orders") as hold:

            async def join() -> None:
                await hold.reached()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(consumer.subscribe, [LETTERS])
                    await trio.sleep(60)
                    hold.release()
                joined.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(join)
                with pytest.raises(click.ClickException, match="another `dead-letters replay` has begun"):
                    await run(transport, replaying(transport, delivery_timeout=inf))
    assert len(broker.messages("orders")) == MOST
    assert broker.group(GROUP).committed == {}


async def test_a_letter_that_does_not_say_where_it_came_from_is_named_and_holds_no_other_up(
    broker: MemoryBroker,
) -> None:
    bury(broker, 2)
    broker.append(TP(LETTERS, 0), [ProducerRecord(None, b"?", ((MARK, LETTERS.encode()), (f"{PREFIX}offset", b"4")))])
    transport = MemoryTransport(broker=broker)
    said: list[str] = []
    async with transport.open():
        stack = await look(transport, [LETTERS], None)
        goals, homeless = await survey(transport, stack, stack.start(from_beginning=False), Selection())
        assert (goals, homeless) == ({"orders": 2}, 1)
        replay = replaying(transport, say=said.append)
        await run(transport, replay)
    assert (replay.sent, replay.refused) == (2, 1)
    assert said == [f"{LETTERS}-0@2: its headers do not say where it came from"]


async def test_a_message_that_the_broker_does_not_give_now_is_not_taken_for_gone(broker: MemoryBroker) -> None:
    bury(broker, 1)
    broker.append(TP("orders", 0), [ProducerRecord(None, b"whole")])
    facts = {"topic": b"orders", "partition": b"0", "offset": b"0", "left-out": b"value", "size": b"5"}
    headers = ((MARK, LETTERS.encode()), *((f"{PREFIX}{name}", text) for name, text in facts.items()))
    broker.append(TP(LETTERS, 0), [ProducerRecord(None, None, headers)])
    transport = SlowSource(broker=broker)
    async with transport.open():
        with pytest.raises(
            click.ClickException, match="could not be fetched within 10 s; the next replay goes on there"
        ):
            await run(transport, replaying(transport))
        assert broker.group(GROUP).committed == {}
        transport.slow = False
        replay = replaying(transport)
        await run(transport, replay)
    assert (replay.sent, replay.refused) == (2, 0)
    assert broker.messages("orders")[-1].value == b"whole"


class SlowSource(MemoryTransport):
    """Whose reads of the topic `orders` do not come back."""

    slow = True

    @asynccontextmanager
    async def open_reader(self, start: Any, *, on_reset: Any = None) -> AsyncIterator[Reader]:
        if self.slow and any(tp.topic == "orders" for tp in start):
            await trio.sleep_forever()
        async with super().open_reader(start, on_reset=on_reset) as reader:
            yield reader


async def test_it_is_told_how_many_letters_were_looked_at(broker: MemoryBroker) -> None:
    bury(broker, COUNT)
    transport = MemoryTransport(broker=broker)
    looked: list[int] = []
    async with transport.open():
        stack = await look(transport, [LETTERS], None)
        start = stack.start(from_beginning=False)
        await survey(transport, stack, start, Selection(), looked.append)
        assert sum(looked) == stack.size(start) == COUNT
    assert max(looked) <= MOST
