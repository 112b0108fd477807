"""What the torture and a hostile reading found: one minimal test per bug, each with the behaviour that is right."""

from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.errors import CommitRefused
from famulus.channels.memory import MemoryBroker
from famulus.channels.memory_consumer import MemoryConsumer
from famulus.channels.message import TP, ProducerRecord


def app_on(broker: MemoryBroker, **settings: Any) -> famulus.App:
    return famulus.App("found", broker=f"memory://{broker.name}", **settings)


def fill(broker: MemoryBroker, count: int, *, topic: str = "numbers", partitions: int = 1) -> None:
    if topic not in broker.topics:
        broker.create_topic(topic, partitions)
    for number in range(count):
        broker.append(TP(topic, number % partitions), [ProducerRecord(None, str(number).encode())])


def committed(broker: MemoryBroker) -> int:
    return sum(offset for tp, offset in broker.group("found").committed.items() if tp.topic == "numbers")


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


# -- law 2: a commit past work in hand, or a message that is lost ------------------------------------------------


async def test_found_1_a_forward_that_was_not_delivered_is_no_success(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, 3)
    broker.faults.fail_produce(1, topic="found-numbers-k-repartition")
    seen: list[int] = []

    @app.agent(app.topic("numbers", value_type=int), on_failure="retry")
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream.group_by(lambda number: str(number).encode(), name="k"):
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(100)
    assert sorted(set(seen)) == [0, 1, 2], f"lost in group_by, committed {committed(broker)}"


async def test_found_2_closing_a_stream_and_then_acking_releases_only_once(broker: MemoryBroker) -> None:
    app = app_on(broker, broker_commit_interval=1.0)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    broker.create_topic("numbers", 1)
    never = trio.Event()

    @app.agent(numbers)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await never.wait()

    async with famulus.open_app(app):
        stream: famulus.Stream[int] = numbers.stream()
        with trio.move_on_after(1):
            await stream.__anext__()  # subscribes
        await (await numbers.send(0))
        async for event in stream.events():
            async with event:
                stream.close()
                break
        await trio.sleep(10)
        assert committed(broker) == 0, "committed past what the agent has in hand"


async def test_found_3_what_a_task_has_in_hand_at_the_end_is_not_committed(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    broker.create_topic("numbers", 1)

    @app.agent(numbers)
    async def quick(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    @app.task
    async def slow() -> None:
        async for _ in numbers.stream():
            await trio.sleep(1000)

    async with famulus.open_app(app):
        await trio.sleep(1)
        for number in range(3):
            await numbers.send(number)
        await trio.sleep(5)
    assert committed(broker) == 0


# -- liveness: what waits for ever -------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [famulus.OneForAllSupervisor, famulus.RestForOneSupervisor])
async def test_found_4_siblings_that_are_restarted_keep_their_stream(
    broker: MemoryBroker, strategy: type[famulus.OneForAllSupervisor]
) -> None:
    app = app_on(broker)
    fill(broker, 20)
    seen: list[int] = []

    @app.agent(app.topic("numbers", value_type=int), concurrency=2, supervisor_strategy=strategy)
    async def work(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(0.1)
            if number == 4:
                raise ValueError(number)
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(100)
    assert sorted(set(seen)) == [number for number in range(20) if number != 4]


async def test_found_5_wait_assigned_does_not_miss_its_event(broker: MemoryBroker) -> None:
    """A subscription that is added while `open_app` waits for its assignment: it hangs for ever."""
    app = app_on(broker)
    fill(broker, 2, partitions=2)
    first = True

    @app.agent(app.topic("numbers", value_type=int))
    async def work(stream: famulus.Stream[int]) -> None:
        if not first:
            await trio.sleep(6)  # more than stream_ready_timeout
        async for _ in stream.group_by(lambda number: str(number).encode(), name="k"):
            pass

    other = app.topic("other", value_type=int, partitions=1)
    broker.create_topic("other", 1)

    @app.agent(other)
    async def busy(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep(8.5)  # the drain of the first run's rebalance lasts until then

    async with famulus.open_app(app):
        await settle()
        first = False
        await (await other.send(0))
        with trio.fail_after(100):
            async with famulus.open_app(app):
                pass


async def test_found_6_a_topic_that_is_closed_and_opened_again_at_once(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, 10)
    async with famulus.open_app(app):
        stream: famulus.Stream[int] = numbers.stream()
        assert await stream.__anext__() == 0
        broker.faults.fail_fetches(1, famulus.BrokerUnavailable("a blip"))
        fill(broker, 1)  # wakes the fetch
        await trio.sleep(0.05)
        stream.close()
        with trio.fail_after(100):
            assert await numbers.stream().__anext__() == 0


async def test_found_7_a_topic_left_during_a_rebalance_is_given_up(broker: MemoryBroker) -> None:
    """Left between revocation and assignment while the fetching task waits out a blip: nobody gets its partitions."""
    app = app_on(broker, broker_retry_backoff=5.0)
    numbers = app.topic("numbers", value_type=int, partitions=2)
    broker.create_topic("numbers", 2)
    other = app.topic("other", value_type=int, partitions=1)
    broker.create_topic("other", 1)

    @app.agent(other)
    async def busy(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep(3)

    async with famulus.open_app(app):
        stream: famulus.Stream[int] = numbers.stream()
        with trio.move_on_after(1):
            await stream.__anext__()
        await (await other.send(0))
        await settle()
        broker.faults.fail_fetches(1, famulus.BrokerUnavailable("a blip"))
        fill(broker, 1)  # wakes the fetch, which now waits for 5 s
        await trio.sleep(0.5)
        broker.faults.rebalance("found")
        await trio.sleep(1)  # draining now
        stream.close()
        await trio.sleep(60)
        wants = [member.subscription.topics for member in broker.group("found").members.values()]
        assert wants == [frozenset({"other"})], "subscribed to a topic that nobody here reads"


async def test_found_8_an_undecodable_request_is_answered_with_the_failure(broker: MemoryBroker) -> None:
    app = app_on(broker)

    @app.agent(app.topic("numbers", value_type=int, value_serializer="json"))
    async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 2 * number

    async with famulus.open_app(app):
        with trio.fail_after(100), pytest.raises(famulus.AgentError):
            await double.ask("no number")  # type: ignore[arg-type]


async def test_found_9_an_agent_declared_while_the_broker_is_away_starts_later(broker: MemoryBroker) -> None:
    app = app_on(broker)
    async with famulus.open_app(app) as running:
        broker.faults.stop()

        @running.agent()
        async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for number in stream:
                yield 2 * number

        await trio.sleep(5)
        broker.faults.start()
        with trio.fail_after(100):
            assert await double.ask(2) == 4


async def test_found_10_a_dead_letter_that_fails_is_sent_again(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, 3)
    broker.faults.fail_produce(1, topic="numbers.dead-letter")

    @app.agent(app.topic("numbers", value_type=int), on_failure="dead_letter")
    async def work(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 1:
                raise ValueError(number)

    async with famulus.open_app(app):
        await trio.sleep(1000)
        assert committed(broker) == 3


async def test_found_11_commit_ends_when_the_run_does(broker: MemoryBroker) -> None:
    app = app_on(broker)
    async with trio.open_nursery() as nursery:
        async with famulus.open_app(app) as running:
            nursery.start_soon(_commit_or_not_running, running)
            nursery.cancel_scope.deadline = trio.current_time() + 100
        with trio.fail_after(10):
            await _commit_or_not_running(running)
    assert not nursery.cancel_scope.cancelled_caught, "commit() hangs after the run has ended"


async def _commit_or_not_running(running: famulus.RunningApp) -> None:
    with suppress(famulus.AppNotRunning):
        await running.commit()


async def test_found_12_a_send_that_waited_past_the_end_fails(broker: MemoryBroker) -> None:
    app = app_on(broker, producer_buffer_maxsize=1, producer_flush_timeout=1.0)
    out = app.topic("out", partitions=1)
    broker.create_topic("out", 1)
    failed: list[Exception] = []

    async def sender() -> None:
        try:
            await (await out.send(1))
        except (famulus.ProduceError, famulus.AppNotRunning) as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + 100
        async with famulus.open_app(app):
            hold = broker.faults.hold_produce(topic="out")
            for _ in range(3):
                nursery.start_soon(sender)
            await settle()
        hold.release()
    assert len(failed) == 3, "a promise was given after the end, and will never be settled"


async def test_found_13_a_delivery_callback_that_sends_cannot_block_the_producer(broker: MemoryBroker) -> None:
    app = app_on(broker)
    out = app.topic("out", partitions=1)
    log = app.topic("log", partitions=1)

    async def note(future: famulus.FutureMessage) -> None:
        await (await log.send("delivered"))

    async with famulus.open_app(app):
        await out.send(1, callback=note)
        await trio.sleep(10)
        with trio.fail_after(100):
            await (await out.send(2))
    assert len(broker.messages("log")) == 1


async def test_found_14_a_task_that_regroups_can_be_restarted(broker: MemoryBroker) -> None:
    app = app_on(broker)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, 5)
    seen: list[int] = []
    crashed = False

    @app.task
    async def work() -> None:
        nonlocal crashed
        async for number in numbers.stream().group_by(lambda number: str(number).encode(), name="k"):
            if number == 2 and not crashed:
                crashed = True
                raise ValueError(number)
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(100)
    assert sorted(set(seen)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("how", ["noack", "group_by"])
async def test_found_15_every_stream_of_a_task_ends_with_it(broker: MemoryBroker, how: str) -> None:
    app = app_on(broker, stream_buffer_maxsize=10)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, 100)
    seen: set[int] = set()

    @app.agent(numbers)
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.add(number)

    @app.task
    async def peek() -> None:
        stream = numbers.stream()
        stream = stream.noack() if how == "noack" else stream.group_by(lambda number: b"k", name="k")
        await stream.__anext__()

    async with famulus.open_app(app):
        await trio.sleep(60)
        assert seen == set(range(100))
        wants = [member.subscription.topics for member in broker.group("found").members.values()]
        assert wants == [frozenset({"numbers"})]


async def test_found_16_a_key_function_that_raises_does_not_end_the_app(broker: MemoryBroker) -> None:
    """The agent's on_failure is "ack": one bad message never stops it."""
    app = app_on(broker)
    fill(broker, 5)
    seen: list[int] = []

    def key(number: int) -> bytes:
        if number == 2:
            raise ValueError(number)
        return b"k"

    @app.agent(app.topic("numbers", value_type=int))
    async def work(stream: famulus.Stream[int]) -> None:
        async for number in stream.group_by(key):
            seen.append(number)

    async with famulus.open_app(app):
        await trio.sleep(1000)
    assert sorted(set(seen)) == [0, 1, 3, 4]


async def test_found_17_a_commit_overtaken_by_a_loss_does_not_close_the_next_generation(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real broker's commit takes time; meanwhile the partitions are lost and assigned anew."""
    app = app_on(broker, broker_commit_interval=1.0)
    fill(broker, 4)
    commit = MemoryConsumer.commit
    slow = 5.0

    async def slow_commit(self: MemoryConsumer, offsets: Mapping[TP, int], *, generation: int) -> None:
        await trio.sleep(slow)
        await commit(self, offsets, generation=generation)

    monkeypatch.setattr(MemoryConsumer, "commit", slow_commit)

    @app.agent(app.topic("numbers", value_type=int))
    async def work(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app) as running:
        await trio.sleep(1.5)  # the first commit is under way
        broker.faults.lose_member("found", "found")
        await trio.sleep(3.4)  # a third of the session timeout: now it knows, and is assigned anew
        slow = 0.0
        await trio.sleep(4)
        assert committed(broker) == 4
        messaging = running.tree().children[0]
        assert {node.name: node.restarts for node in messaging.children}["conductor"] == 0


async def test_found_18_a_commit_overtaken_by_a_loss_that_succeeds(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker took it just before the loss; the answer comes when the trackers are gone: KeyError, waiters hang."""
    app = app_on(broker, broker_commit_interval=1.0)
    fill(broker, 4)
    commit = MemoryConsumer.commit
    slow = 5.0

    async def slow_answer(self: MemoryConsumer, offsets: Mapping[TP, int], *, generation: int) -> None:
        await commit(self, offsets, generation=generation)
        await trio.sleep(slow)

    monkeypatch.setattr(MemoryConsumer, "commit", slow_answer)

    @app.agent(app.topic("numbers", value_type=int))
    async def work(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app) as running:
        await settle()
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.commit)
                await trio.sleep(1)
                broker.faults.lose_member("found", "found")
        messaging = running.tree().children[0]
        assert {node.name: node.restarts for node in messaging.children}["commits"] == 0


async def test_found_19_a_commit_that_was_not_made_is_said_so(broker: MemoryBroker) -> None:
    app = app_on(broker, broker_commit_interval=1000.0)
    fill(broker, 4)

    @app.agent(app.topic("numbers", value_type=int))
    async def work(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app) as running:
        await settle()
        broker.faults.fail_commits(1, CommitRefused("no"))
        try:
            await running.commit()
        except famulus.TransportError:
            return
        assert committed(broker) == 4, "commit() returned as if it had been done"


async def test_found_20_unacked_events_of_a_crashed_actor_come_again(broker: MemoryBroker) -> None:
    """noack(): events gathered in a local list are gone with the crash, and never delivered again."""
    app = app_on(broker, broker_commit_interval=1.0)
    fill(broker, 9)
    crashed = False

    @app.agent(app.topic("numbers", value_type=int))
    async def gather(stream: famulus.Stream[int]) -> None:
        nonlocal crashed
        events: list[famulus.Event[int]] = []
        async for event in stream.noack().events():
            events.append(event)
            if len(events) == 3:
                if not crashed:
                    crashed = True
                    raise ValueError("with three events in hand")
                for held in events:
                    held.ack()
                events.clear()

    async with famulus.open_app(app):
        await trio.sleep(1000)
        assert committed(broker) == 9


async def test_found_21_a_buffer_is_not_overfilled_by_many_partitions(broker: MemoryBroker) -> None:
    app = app_on(broker, stream_buffer_maxsize=2)
    fill(broker, 60, partitions=12)
    hold = trio.Event()

    @app.agent(app.topic("numbers", value_type=int))
    async def work(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await hold.wait()

    async with famulus.open_app(app) as running:
        await trio.sleep(10)
        assert running.statistics().messages_received <= 2
        hold.set()
        await settle()


async def test_found_22_an_error_text_that_is_no_utf8_does_not_wedge_the_partition(broker: MemoryBroker) -> None:
    app = app_on(broker)
    fill(broker, 3)

    @app.agent(app.topic("numbers", value_type=int), on_failure="dead_letter")
    async def work(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 1:
                raise ValueError("no file caf\udce9")  # as os.fsdecode gives it

    async with famulus.open_app(app):
        await trio.sleep(100)
        assert committed(broker) == 3


async def test_found_23_a_sender_to_a_local_channel_outlives_its_reader() -> None:
    app = famulus.App("found")
    pipe = app.channel("pipe", value_type=int, maxsize=1)
    got: list[int] = []
    async with famulus.open_app(app):
        stream = pipe.stream()
        with trio.move_on_after(1):
            await stream.__anext__()
        await pipe.send(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.send, 1)  # waits for room
            await settle()
            stream.close()
            got.append(await pipe.stream().__anext__())
    assert got == [1]


async def test_found_24_a_broadcast_whose_readers_leave_waits_for_the_next() -> None:
    app = famulus.App("found")
    pipe = app.channel("pipe", value_type=int, maxsize=1)
    async with famulus.open_app(app):
        streams = [pipe.stream(), pipe.stream()]
        for stream in streams:
            with trio.move_on_after(1):
                await stream.__anext__()
        await pipe.send(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.send, 1)  # waits for room
            await settle()
            for stream in streams:
                stream.close()
        with trio.fail_after(10):
            assert await pipe.stream().__anext__() == 1


async def test_found_25_callbacks_are_called_for_what_the_end_left_over(broker: MemoryBroker) -> None:
    app = app_on(broker, producer_flush_timeout=1.0)
    out = app.topic("out", partitions=1)
    settled: list[famulus.FutureMessage] = []
    with broker.faults.hold_produce(topic="out"):
        async with famulus.open_app(app):
            await out.send(1, callback=settled.append)
    assert len(settled) == 1


async def test_found_26_an_agents_own_stream_does_not_outlive_the_crash(broker: MemoryBroker) -> None:
    app = app_on(broker, stream_buffer_maxsize=5)
    other = app.topic("other", value_type=int, partitions=1)
    fill(broker, 3)
    fill(broker, 100, topic="other")
    seen: list[int] = []

    @app.agent(other)
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(0.1)
            seen.append(number)

    @app.agent(app.topic("numbers", value_type=int))
    async def work(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await other.stream().__anext__()
            raise ValueError(number)

    async with famulus.open_app(app):
        await trio.sleep(100)
    assert sorted(set(seen)) == list(range(100))


async def test_found_27_a_linger_is_cut_short_by_a_flush(broker: MemoryBroker) -> None:
    app = app_on(broker, producer_linger=20.0)
    out = app.topic("out", partitions=1)
    async with famulus.open_app(app):
        promise = await out.send(1)
        await trio.sleep(1)
    assert promise.result().offset == 0  # not ProduceError: stopped before the delivery was confirmed


async def test_found_28_start_of_group_by_cancelled_at_any_point_subscribes_once(broker: MemoryBroker) -> None:
    for patience in range(40):
        app = famulus.App(f"found{patience}", broker=f"memory://{broker.name}")
        numbers = app.topic(f"numbers{patience}", value_type=int, partitions=1)
        fill(broker, 3, topic=numbers.name)
        seen: list[int] = []
        async with famulus.open_app(app):
            stream = numbers.stream().group_by(lambda number: b"k", name="k")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, scope, patience)
                    seen.append(await stream.__anext__())
                    nursery.cancel_scope.cancel()
            with trio.move_on_after(100):
                async for number in stream:
                    seen.append(number)
        assert sorted(seen) == [0, 1, 2], f"cancelled after {patience} ticks"


async def _cancel_after(scope: trio.CancelScope, ticks: int) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel()


# -- from the random programs ------------------------------------------------------------------------------------


async def test_found_29_a_dead_letter_for_what_the_end_left_over_is_not_kept(broker: MemoryBroker) -> None:
    """`fail_all` fails an output, its event's policy sends a dead letter into the producer that has just ended."""
    app = app_on(broker, producer_flush_timeout=1.0)
    out = app.topic("out", partitions=1)
    fill(broker, 3)

    @app.agent(app.topic("numbers", value_type=int), on_failure="dead_letter")
    async def copy(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await out.send(number)

    with broker.faults.hold_produce(topic="out"):
        async with famulus.open_app(app) as running:
            await settle()
    assert running._run.producer.buffered == 0
    assert committed(broker) == 0


async def test_found_30_what_is_retried_comes_in_its_order(broker: MemoryBroker) -> None:
    """0 and 1 wait for redelivery; 0 crashes once more, and then comes after 1."""
    app = app_on(broker)
    out = app.topic("out", partitions=1)
    fill(broker, 2)
    broker.faults.fail_produce(3, topic="out")  # together, then one by one
    got: list[tuple[int, int]] = []

    @app.agent(app.topic("numbers", value_type=int), on_failure="retry")
    async def copy(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            got.append((event.value, event.attempt))
            if got[-1] == (0, 2):
                raise ValueError("once more")
            await out.send(event.value)

    async with famulus.open_app(app):
        await trio.sleep(100)
    assert got == [(0, 1), (1, 1), (0, 2), (0, 3), (1, 2)]


async def test_found_31_what_comes_while_agents_stop_is_not_committed_past_those_that_stopped(
    broker: MemoryBroker,
) -> None:
    """An agent that stopped reads no more; what others of the run still take must wait for it all the same."""
    app = app_on(broker, broker_commit_interval=0.5)
    numbers = app.topic("numbers", value_type=int, partitions=1)
    fill(broker, 1)
    seen: set[int] = set()
    resting = famulus.OneForOneSupervisor(backoff=famulus.Backoff(min=100, max=100), max_restarts=5, within=10_000)
    crashed = False

    @app.agent(numbers)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(3)
            seen.add(number)

    @app.agent(numbers, supervisor_strategy=resting)
    async def broken(stream: famulus.Stream[int]) -> None:
        nonlocal crashed
        async for _ in stream.group_by(lambda number: b"k", name="k"):
            if not crashed:
                crashed = True
                raise ValueError("not asked to stop, being in backoff, so its forwarder goes on")

    async def write_during_the_drain() -> None:
        await trio.sleep(2)
        broker.append(TP("numbers", 0), [ProducerRecord(None, b"1")])

    async with trio.open_nursery() as nursery, famulus.open_app(app):
        nursery.start_soon(write_during_the_drain)
        await trio.sleep(1)
    async with famulus.open_app(app):
        await trio.sleep(60)
    assert seen == {0, 1}, "committed although an agent never saw it"


async def test_found_32_outputs_belong_to_every_event_that_its_task_has_in_hand(broker: MemoryBroker) -> None:
    """A task that reads a second stream for each event of the first: what it sends must hold both."""
    app = app_on(broker, broker_commit_interval=1.0, producer_flush_timeout=1.0)
    out = app.topic("out", partitions=1)
    other = app.topic("other", value_type=int, partitions=1)
    fill(broker, 3)
    fill(broker, 4, topic="other")
    pairs: list[int] = []

    @app.agent(app.topic("numbers", value_type=int))
    async def pair(stream: famulus.Stream[int]) -> None:
        others = other.stream()
        await others.__anext__()  # subscribed before anything is in hand
        async for number in stream:
            await out.send([number, await others.__anext__()])
            pairs.append(number)

    with broker.faults.hold_produce(topic="out"):
        async with famulus.open_app(app):
            await trio.sleep(20)
            assert pairs == [0, 1, 2]
            assert committed(broker) == 0, "committed past an output that was not delivered"


async def test_found_33_commit_is_answered_although_the_task_that_commits_crashed(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_on(broker, broker_commit_interval=1000.0)
    fill(broker, 3)
    commit = MemoryConsumer.commit
    crashed = False

    async def broken(self: MemoryConsumer, offsets: Mapping[TP, int], *, generation: int) -> None:
        nonlocal crashed
        if not crashed:
            crashed = True
            raise RuntimeError("a mistake in the transport")
        await commit(self, offsets, generation=generation)

    monkeypatch.setattr(MemoryConsumer, "commit", broken)

    @app.agent(app.topic("numbers", value_type=int))
    async def work(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app) as running:
        await settle()
        with trio.fail_after(5000):
            try:
                await running.commit()
            except (famulus.FamulusError, RuntimeError):
                return
        assert committed(broker) == 3


async def test_found_34_a_failed_output_of_an_interrupted_event_is_not_held_against_its_repetition(
    broker: MemoryBroker,
) -> None:
    """Cancelled for a sibling's restart: the same event object comes again, with the failure of the first time."""
    app = app_on(broker)
    out = app.topic("out", partitions=1)
    fill(broker, 2)
    started: list[int] = []
    broker.faults.fail_produce(1, topic="out")

    @app.agent(
        app.topic("numbers", value_type=int),
        concurrency=2,
        on_failure="dead_letter",
        supervisor_strategy=famulus.OneForAllSupervisor,
    )
    async def work(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            started.append(number)
            if number == 0:
                await out.send(number)
                await trio.sleep(1000 if started.count(0) == 1 else 0)
            elif started.count(1) == 1:
                await trio.sleep(1)
                raise ValueError(number)

    async with famulus.open_app(app):
        await trio.sleep(100)
        buried = [message.value for message in broker.messages("numbers.dead-letter")]
    assert [message.value for message in broker.messages("out")] == [b"0"]
    assert buried == [b"1"]
