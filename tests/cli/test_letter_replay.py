"""Replays of many letters that are cut off, or run at once: each letter goes back at least once, few go twice."""

from __future__ import annotations

from math import inf

import click
import pytest
import trio

from famulus.channels.letters import MARK, PREFIX
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.message import TP, ProducerRecord
from famulus.channels.transport import ConsumerOptions
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
