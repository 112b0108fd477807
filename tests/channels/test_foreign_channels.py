"""Channels over another means of communication: `Channel.listen`, and acknowledgements that go back to the sender."""

import logging
import zlib
from functools import partial
from typing import Any

import pytest
import trio

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.models import codecs
from famulus.testing.cancellation import each_wait
from famulus.testing.settle import settle


class Wire(famulus.Channel[Any]):
    """Where the other side sends pairs of id and bytes, and finds the ids that came back."""

    def __init__(self, app: famulus.App, name: str = "wire", **options: Any) -> None:
        super().__init__(app, name, **options)
        self.sender, self._arriving = trio.open_memory_channel[tuple[str, bytes | None]](0)
        self.acked: list[str] = []
        self.listens = 0
        self.listening = False
        self.undecodable: list[bytes | None] = []

    async def listen(self, intake: famulus.Intake, *, task_status: trio.TaskStatus[Any]) -> None:
        self.listens += 1
        self.listening = True
        task_status.started()
        try:
            async for id, data in self._arriving:
                if data == b"reset":
                    raise ConnectionResetError("the other side went away")
                await intake.deliver(data, key=id.encode(), on_ack=partial(self.acked.append, id))
        finally:
            self.listening = False

    async def on_value_decode_error(self, error: Exception, message: famulus.Message) -> None:
        self.undecodable.append(message.value)

    async def send_numbers(self, *numbers: int) -> None:
        await self.send_all(*((f"id{number}", b"%d" % number) for number in numbers))

    async def send_all(self, *pairs: tuple[str, bytes]) -> None:
        for pair in pairs:
            await self.sender.send(pair)


def ids(*numbers: int) -> list[str]:
    return [f"id{number}" for number in numbers]


async def test_pain_24_an_event_is_acknowledged_to_its_sender_when_the_agent_is_done_with_it_and_only_then() -> None:
    app = famulus.App("done")
    wire = Wire(app, value_type=int)
    step = trio.Semaphore(0)

    @app.agent(wire)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await step.acquire()

    async with famulus.open_app(app):
        await wire.send_numbers(1, 2, 3)
        await settle()
        assert wire.acked == []
        step.release()
        await settle()
        assert wire.acked == ids(1)
        step.release()
        step.release()
        await settle()
        assert wire.acked == ids(1, 2, 3)


async def test_with_several_actors_acks_go_back_in_the_order_in_which_they_finish() -> None:
    app = famulus.App("order")
    wire = Wire(app, value_type=int)

    @app.agent(wire, concurrency=3)
    async def uneven(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(10 - number)

    async with famulus.open_app(app):
        await wire.send_numbers(1, 2, 3)
        await trio.sleep(20)
        assert wire.acked == ids(3, 2, 1)


async def test_events_have_the_key_the_headers_and_the_time_that_they_came_with() -> None:
    class Post(famulus.Channel[Any]):
        async def listen(self, intake: famulus.Intake, *, task_status: trio.TaskStatus[Any]) -> None:
            task_status.started()
            for body in (b'{"n": 1}', None):
                await intake.deliver(body, key=b"7", headers={"h": b"x"}, timestamp=12.5)
            await trio.sleep_forever()

    app = famulus.App("parts")
    async with famulus.open_app(app):
        events = Post(app, "post", key_type=int).stream().events()
        event = await anext(events)
        assert (event.key, event.value, event.headers) == (7, {"n": 1}, (("h", b"x"),))
        assert (event.message.topic, event.message.offset, event.message.timestamp) == ("post", 0, 12.5)
        assert event.message.value == b'{"n": 1}'
        event = await anext(events)
        assert (event.value, event.message.offset) == (None, 1)


@pytest.mark.parametrize("policy", ["ack", "retry", "dead_letter"])
async def test_the_agent_s_policy_says_when_an_event_that_failed_is_acknowledged(
    policy: Any, broker: MemoryBroker
) -> None:
    app = famulus.App("crash", broker=f"memory://{broker.name}")
    wire = Wire(app, value_type=int)
    seen: list[tuple[int, int]] = []
    acked_before: list[list[str]] = []

    @app.agent(wire, on_failure=policy, max_attempts=5)
    async def fragile(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            await trio.sleep(0.1)
            seen.append((event.value, event.attempt))
            acked_before.append(list(wire.acked))
            if event.value == 2 and event.attempt < 3:
                raise ValueError(event.value)

    async with famulus.open_app(app) as running:
        await wire.send_numbers(1, 2, 3)
        await trio.sleep(60)
        assert wire.acked == ids(1, 2, 3)
        assert running.statistics().messages_acked == 3
    if policy == "retry":
        assert seen == [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1)]
        assert acked_before[1:4] == [ids(1)] * 3
    else:
        assert seen == [(1, 1), (2, 1), (3, 1)]
    if policy == "dead_letter":
        assert [letter.value for letter in broker.messages("wire.dead-letter")] == [b"2"]


async def test_a_slow_agent_makes_the_sender_wait() -> None:
    app = famulus.App("full")
    wire = Wire(app, value_type=int, maxsize=3)
    hold = trio.Event()

    @app.agent(wire)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await hold.wait()

    async with famulus.open_app(app):
        taken = 0
        with trio.move_on_after(60):
            for number in range(20):
                await wire.send_numbers(number)
                taken += 1
        assert taken == 1 + 3 + 1  # in the agent's hand, in its buffer, in the hand of `listen`
        hold.set()
        await wire.send_numbers(*range(taken, 20))
        await settle()
        assert wire.acked == ids(*range(20))


async def test_messages_that_nobody_acknowledges_are_bounded_by_stream_max_span() -> None:
    app = famulus.App("span", stream_max_span=10)
    wire = Wire(app, value_type=int, acks=False)
    events: list[famulus.Event[int]] = []

    @app.agent(wire)
    async def keep(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            events.append(event)

    async with famulus.open_app(app):
        with trio.move_on_after(60):
            await wire.send_numbers(*range(20))
        assert len(events) == 10
        events[3].ack()
        await settle()
        assert (len(events), wire.acked) == (11, ids(3))


async def test_two_agents_on_one_channel_and_the_sender_hears_when_both_are_done() -> None:
    app = famulus.App("both")
    wire = Wire(app, value_type=int)
    hold = trio.Event()
    seen: list[int] = []

    @app.agent(wire)
    async def fast(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    @app.agent(wire)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await hold.wait()

    async with famulus.open_app(app):
        await wire.send_numbers(1, 2)
        await settle()
        assert (seen, wire.acked, wire.listens) == ([1, 2], [], 1)
        hold.set()
        await settle()
        assert wire.acked == ids(1, 2)


async def test_the_ack_waits_for_the_delivery_of_what_was_sent_for_the_event(broker: MemoryBroker) -> None:
    app = famulus.App("outputs", broker=f"memory://{broker.name}")
    wire = Wire(app, value_type=int)
    topic = app.topic("doubled", partitions=1)

    @app.agent(wire)
    async def double(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await topic.send(2 * number)

    async with famulus.open_app(app):
        await wire.send_numbers(1)
        await settle()
        assert wire.acked == ids(1)
        with broker.faults.hold_produce():
            await wire.send_numbers(2, 3)
            await trio.sleep(10)
            assert wire.acked == ids(1)
        await settle()
        assert wire.acked == ids(1, 2, 3)


async def test_bad_input_is_named_counted_handed_to_the_channel_and_acknowledged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = famulus.App("bad")
    wire = Wire(app, value_type=int)
    seen: list[int] = []

    @app.agent(wire)
    async def reader(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app) as running:
        await wire.send_numbers(1)
        await wire.sender.send(("broken", b"{"))
        await wire.sender.send(("text", b'"two"'))
        await wire.send_numbers(3)
        await settle()
        assert running.statistics().decode_errors == 2
    assert seen == [1, 3]
    assert wire.undecodable == [b"{", b'"two"']
    assert sorted(wire.acked) == ["broken", "id1", "id3", "text"]
    assert "wire-0@2: undecodable value: $: expected int, got 'two' (str)" in caplog.text


async def test_listen_is_started_again_after_a_failure_and_what_had_arrived_is_processed() -> None:
    app = famulus.App("again")
    wire = Wire(app, value_type=int)
    hold = trio.Event()
    seen: list[int] = []

    @app.agent(wire)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await hold.wait()
            seen.append(number)

    async with famulus.open_app(app) as running:
        await wire.send_numbers(1, 2)
        await wire.sender.send(("", b"reset"))
        await wire.send_numbers(3)  # waits until it listens again
        services = next(node for node in running.tree().children if node.name == "services")
        listener = next(node for node in services.children if node.name == "channel wire")
        assert (listener.state, listener.restarts) == ("running", 1)
        assert listener.last_reason is not None
        assert "the other side went away" in listener.last_reason
        hold.set()
        await settle()
    assert seen == [1, 2, 3]
    assert wire.acked == ids(3)  # the others' sender is gone, and will send them again


async def test_failures_of_listen_between_messages_never_end_the_app_and_a_crash_loop_does() -> None:
    app = famulus.App("loop")
    wire = Wire(app, value_type=int)

    @app.agent(wire)
    async def reader(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    with pytest.raises(ExceptionGroup) as caught:
        async with famulus.open_app(app):
            for number in range(60):
                await wire.send_numbers(number)
                await wire.sender.send(("", b"reset"))
            assert wire.listens >= 60
            while True:
                await wire.sender.send(("", b"reset"))
    assert caught.group_contains(famulus.SupervisorFailed, depth=1)


async def test_a_listen_that_cannot_begin_keeps_the_app_from_starting() -> None:
    class Taken(famulus.Channel[Any]):
        async def listen(self, intake: famulus.Intake, *, task_status: trio.TaskStatus[Any]) -> None:
            raise OSError("address in use")

    app = famulus.App("taken")

    @app.agent(Taken(app))
    async def reader(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    with pytest.raises(ExceptionGroup, match="did not start") as caught:
        async with famulus.open_app(app):
            pytest.fail("it did")
    assert [str(error) for error in caught.value.exceptions] == ["address in use"]


async def test_a_listen_that_returns_is_started_again_and_told_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    class Short(famulus.Channel[Any]):
        async def listen(self, intake: famulus.Intake, *, task_status: trio.TaskStatus[Any]) -> None:
            task_status.started()
            await intake.deliver(b"1")

    app = famulus.App("short")
    async with famulus.open_app(app):
        stream = Short(app, "short").stream()
        assert [await anext(stream) for _ in range(3)] == [1, 1, 1]
        stream.close()
    assert "Short.listen of channel short returned: a source that has come to its end waits" in caplog.text


async def test_at_shutdown_what_has_arrived_is_finished_and_acknowledged_and_nothing_more_is_taken() -> None:
    app = famulus.App("end")
    wire = Wire(app, value_type=int, maxsize=5)
    seen: list[int] = []
    late: list[int] = []

    @app.agent(wire)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            assert wire.listening
            await trio.sleep(0.5)
            seen.append(number)

    async def send_without_end() -> None:
        for number in range(5, 1000):
            await wire.send_numbers(number)
            late.append(number)

    async with trio.open_nursery() as nursery:
        async with famulus.open_app(app):
            await wire.send_numbers(*range(5))
            await settle()
            nursery.start_soon(send_without_end)
        assert not wire.listening
        nursery.cancel_scope.cancel()
    assert wire.acked == ids(*seen)
    assert seen == list(range(len(seen)))
    assert 5 <= len(seen) <= 7
    assert len(late) <= 3


async def test_what_an_agent_does_not_finish_at_shutdown_is_not_acknowledged() -> None:
    app = famulus.App("stuck")
    wire = Wire(app, value_type=int)

    @app.agent(wire)
    async def stuck(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 2:
                await trio.sleep_forever()

    async with famulus.open_app(app):
        await wire.send_numbers(1, 2, 3)
    assert wire.acked == ids(1)


async def test_it_listens_while_somebody_reads_and_again_for_the_next_reader() -> None:
    app = famulus.App("readers")
    wire = Wire(app, value_type=int)
    async with famulus.open_app(app):
        await settle()
        assert not wire.listening
        first, second = wire.stream(), wire.stream()
        await wire_value(wire, first, 1)
        assert await anext(second) == 1
        first.close()
        await settle()
        assert wire.listening
        second.close()
        await settle()
        assert not wire.listening
        third = wire.stream()
        await wire_value(wire, third, 2)
        assert (wire.listening, wire.listens) == (True, 2)


async def wire_value(wire: Wire, stream: famulus.Stream[int], number: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.send_numbers, number)
        assert await anext(stream) == number


async def test_a_reader_that_leaves_is_not_waited_for_and_without_others_nothing_is_acknowledged() -> None:
    app = famulus.App("leaves")
    wire = Wire(app, value_type=int)
    seen: list[int] = []

    @app.agent(wire)
    async def reader(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app):
        other: famulus.Stream[int] = wire.stream()
        await wire_value(wire, other, 1)
        await wire.send_numbers(2, 3)
        await settle()
        assert (seen, wire.acked) == ([1, 2, 3], [])
        other.close()
        await settle()
        assert wire.acked == ids(1, 2, 3)

    app = famulus.App("leaves-alone")
    wire = Wire(app, value_type=int)
    async with famulus.open_app(app):
        alone: famulus.Stream[int] = wire.stream()
        await wire_value(wire, alone, 1)
        await wire.send_numbers(2, 3)
        alone.close()
        await settle()
        assert wire.acked == []


async def test_what_is_sent_in_the_program_and_questions_go_to_the_same_readers() -> None:
    app = famulus.App("inside")
    wire = Wire(app, value_type=int)

    @app.agent(wire)
    async def double(stream: famulus.Stream[int]) -> Any:
        async for number in stream:
            yield 2 * number

    async with famulus.open_app(app):
        await wire.send_numbers(1)
        assert await double.ask(21) == 42
        await settle()
    assert wire.acked == ids(1)


async def test_a_stream_of_it_can_be_grouped_and_the_ack_waits_for_the_copy(broker: MemoryBroker) -> None:
    app = famulus.App("grouped", broker=f"memory://{broker.name}", topic_partitions=2)
    wire = Wire(app, value_type=int)
    seen: list[int] = []

    @app.agent(wire)
    async def reader(stream: famulus.Stream[int]) -> None:
        async for number in stream.group_by(lambda number: number % 2, name="parity"):
            seen.append(number)

    async with famulus.open_app(app):
        await wire.send_numbers(*range(6))
        await trio.sleep(5)
    assert sorted(seen) == list(range(6))
    assert sorted(wire.acked) == ids(*range(6))


async def test_the_events_of_a_take_are_acknowledged_together_and_given_up_together() -> None:
    app = famulus.App("takes")
    wire = Wire(app, value_type=int)
    hold = trio.Event()
    taken: list[list[int]] = []

    @app.agent(wire)
    async def reader(stream: famulus.Stream[int]) -> None:
        async for numbers in stream.take(3, within=1):
            taken.append(numbers)
            await hold.wait()

    async with famulus.open_app(app):
        other: famulus.Stream[int] = wire.stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send_numbers, 0, 1, 2, 3)
            assert await anext(other.take(3)) == [0, 1, 2]
        await settle()
        assert (taken, wire.acked) == ([[0, 1, 2]], [])
        other.close()
        await settle()
        assert wire.acked == []
        hold.set()
        await trio.sleep(10)
        assert taken == [[0, 1, 2], [3]]
        assert wire.acked == ids(0, 1, 2, 3)


async def test_a_clone_reads_the_same_source_which_is_listened_to_once() -> None:
    app = famulus.App("clones")
    wire = Wire(app, value_type=int)
    seen: list[int] = []

    @app.agent(wire)
    async def one(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    @app.agent(wire.clone(maxsize=1))
    async def two(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(-number)

    async with famulus.open_app(app):
        await wire.send_numbers(1, 2)
        await settle()
    assert sorted(seen) == [-2, -1, 1, 2]
    assert (wire.acked, wire.listens) == (ids(1, 2), 1)


async def test_an_event_is_forwarded_to_a_topic_as_the_bytes_that_came(broker: MemoryBroker) -> None:
    app = famulus.App("forwards", broker=f"memory://{broker.name}")
    wire = Wire(app)
    topic = app.topic("copies", partitions=1)

    @app.agent(wire)
    async def copy(stream: famulus.Stream[Any]) -> None:
        async for event in stream.events():
            await event.forward(topic)

    async with famulus.open_app(app):
        await wire.sender.send(("a", b'{"n" :  1}'))
        await settle()
    assert [(copied.key, copied.value) for copied in broker.messages("copies")] == [(b"a", b'{"n" :  1}')]
    assert wire.acked == ["a"]


async def test_single_events_got_from_it_are_the_caller_s_to_acknowledge() -> None:
    app = famulus.App("gets")
    wire = Wire(app, value_type=int)
    async with famulus.open_app(app), trio.open_nursery() as nursery:
        nursery.start_soon(wire.send_numbers, 1, 2)
        first, second = await wire.get(), await wire.get()
        assert (first.value, second.value) == (1, 2)
        second.ack()
        await settle()
        assert wire.acked == ids(2)
        async with first:
            pass
        await settle()
        assert wire.acked == ids(2, 1)


async def test_a_delivery_cancelled_at_any_wait_is_made_or_not_made_and_never_half() -> None:
    """The other side sends again what was cancelled: everything arrives, and everything that arrived is acked once."""

    class Cancelled(famulus.Channel[Any]):
        delivered: list[int]
        acked: list[int]

        async def listen(self, intake: famulus.Intake, *, task_status: trio.TaskStatus[Any]) -> None:
            task_status.started()

            async def deliver(number: int) -> None:
                await intake.deliver(b"%d" % number, on_ack=partial(self.acked.append, number))
                self.delivered.append(number)

            for _ in range(20):
                await each_wait(deliver)
            assert intake.pending <= 2
            await trio.sleep_forever()

    app = famulus.App("cancelled")
    channel = Cancelled(app, value_type=int, maxsize=1)
    channel.delivered, channel.acked = [], []
    seen: list[int] = []

    @app.agent(channel)
    async def reader(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app) as running:
        await trio.sleep(1)
        assert running.statistics().messages_received == len(seen)
    assert sorted(seen) == sorted(channel.acked) == sorted(channel.delivered)
    assert len(seen) >= 20


# Connections: `intake.connection()`


class Hub(famulus.Channel[Any]):
    """Connections are memory channels; an ack takes `ack_time` seconds, and fails once the connection is `dead`."""

    def __init__(self, app: famulus.App, **options: Any) -> None:
        super().__init__(app, "hub", **options)
        self.acked: list[str] = []
        self.ack_time: dict[str, float] = {}
        self.dead: set[str] = set()
        self.ended: list[str] = []
        self.intake: famulus.Intake | None = None
        self.nursery: trio.Nursery | None = None

    async def listen(self, intake: famulus.Intake, *, task_status: trio.TaskStatus[Any]) -> None:
        async with trio.open_nursery() as self.nursery:
            self.intake = intake
            task_status.started()
            await trio.sleep_forever()

    async def ack(self, connection: str, number: int) -> None:
        await trio.sleep(self.ack_time.get(connection, 0))
        if connection in self.dead:
            raise trio.BrokenResourceError(f"{connection} was reset")
        self.acked.append(f"{connection}{number}")

    async def serve(self, connection: str, numbers: range, failure: Exception | None = None) -> None:
        assert self.intake is not None
        async with self.intake.connection() as intake:
            for number in numbers:
                await intake.deliver(b"%d" % number, on_ack=partial(self.ack, connection, number))
            if failure is not None:
                raise failure
        self.ended.append(connection)

    def connect(self, connection: str, numbers: range, failure: Exception | None = None) -> None:
        assert self.nursery is not None
        self.nursery.start_soon(self.serve, connection, numbers, failure)


async def test_a_slow_connection_delays_the_acks_of_no_other_one() -> None:
    app = famulus.App("slow")
    hub = Hub(app)
    hub.ack_time["a"] = 10

    @app.agent(hub)
    async def reader(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app):
        hub.connect("a", range(3))
        hub.connect("b", range(3))
        await trio.sleep(1)
        assert (hub.acked, hub.ended) == (["b0", "b1", "b2"], ["b"])
        await trio.sleep(40)
        assert (hub.acked[3:], hub.ended) == (["a0", "a1", "a2"], ["b", "a"])


async def test_the_end_of_a_connection_waits_until_everything_is_acknowledged() -> None:
    app = famulus.App("waits")
    hub = Hub(app)
    hold = trio.Event()

    @app.agent(hub)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await hold.wait()

    async with famulus.open_app(app):
        hub.connect("a", range(3))
        await trio.sleep(100)
        assert (hub.acked, hub.ended) == ([], [])
        hold.set()
        await settle()
        assert (hub.acked, hub.ended) == (["a0", "a1", "a2"], ["a"])


async def test_an_ack_that_does_not_come_to_its_end_delays_the_shutdown_only_so_long() -> None:
    app = famulus.App("hangs", stream_drain_timeout=2.0)
    hub = Hub(app)
    hub.ack_time["a"] = 1e9

    @app.agent(hub)
    async def reader(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app):
        hub.connect("a", range(3))
        hub.connect("b", range(3))
        await settle()
        began = trio.current_time()
    assert 2.0 <= trio.current_time() - began < 3.0
    assert hub.acked == ["b0", "b1", "b2"]


@pytest.mark.parametrize("where", ["in an ack", "in the block"])
async def test_a_connection_that_breaks_ends_alone_and_its_events_are_processed_without_ack(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "famulus.channel")
    app = famulus.App("breaks")
    hub = Hub(app)
    hold = trio.Event()
    seen: list[int] = []

    @app.agent(hub)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await hold.wait()
            seen.append(number)

    async with famulus.open_app(app) as running:
        hub.connect("a", range(3), ConnectionResetError("a was reset") if where == "in the block" else None)
        hub.connect("b", range(3))
        hub.dead.add("a")
        await trio.sleep(1)
        hold.set()
        await trio.sleep(1)
        assert sorted(hub.ended) == ["a", "b"]
        hub.connect("c", range(1))
        await settle()
        services = next(node for node in running.tree().children if node.name == "services")
        assert {node.name: node.restarts for node in services.children}["channel hub"] == 0
    assert sorted(seen) == [0, 0, 0, 1, 1, 2, 2]
    assert hub.acked == ["b0", "b1", "b2", "c0"]
    assert "channel hub: a connection broke" in caplog.text
    assert "a was reset" in caplog.text


async def test_another_failure_in_a_connection_leaves_it_as_itself() -> None:
    app = famulus.App("raises")
    hub = Hub(app)
    async with famulus.open_app(app):
        stream = hub.stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, stream)
            await settle()
            with pytest.raises(KeyError, match="mine"):
                await hub.serve("a", range(1), KeyError("mine"))


async def test_delivering_after_the_end_of_its_connection_is_refused() -> None:
    app = famulus.App("closed")
    hub = Hub(app)
    async with famulus.open_app(app):
        stream = hub.stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, stream)
            await settle()
            assert hub.intake is not None
            async with hub.intake.connection() as intake:
                pass
            with pytest.raises(trio.ClosedResourceError, match="channel hub: this connection has ended"):
                await intake.deliver(b"1")
            nursery.cancel_scope.cancel()


# -- schemas, codecs and what cannot be decoded ------------------------------------------------------------


async def test_a_schema_of_the_channel_decodes_by_the_headers() -> None:
    class ByHeader(famulus.Schema):
        def loads_value(self, data: bytes, headers: tuple[tuple[str, bytes], ...]) -> Any:
            return dict(headers)["unit"].decode(), int(data)

    class Radio(famulus.Channel[Any]):
        async def listen(self, intake: famulus.Intake, *, task_status: trio.TaskStatus[Any]) -> None:
            task_status.started()
            await intake.deliver(b"5", headers={"unit": "km"})
            await trio.sleep_forever()

    app = famulus.App("schemas")
    async with famulus.open_app(app):
        with trio.fail_after(5):
            assert (await Radio(app, schema=ByHeader()).get()).value == ("km", 5)


async def test_the_codec_settings_of_the_run_hold_for_a_channel_over_something_else() -> None:
    zipped = zlib.compress(b"0" * 1000)
    app = famulus.App("limits", codec_max_decompressed=100, codec_allow_pickle=True)
    wire = Wire(app, value_serializer="raw|zlib")
    pickled = Wire(app, "pickled", value_serializer="pickle")
    data = codecs.dumps("pickle", {"a": 1})
    async with famulus.open_app(app):
        seen = wire.stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send_all, ("bomb", zipped), ("good", zlib.compress(b"ok")))
            with trio.fail_after(5):
                assert await anext(seen) == b"ok"
        assert wire.undecodable == [zipped]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pickled.sender.send, ("pickle", data))
            with trio.fail_after(5):
                assert (await pickled.get()).value == {"a": 1}


async def test_a_channel_of_pickles_that_the_run_does_not_allow_does_not_start() -> None:
    app = famulus.App("refused")

    @app.agent(Wire(app, value_serializer="pickle"))
    async def reads(stream: famulus.Stream[Any]) -> None:
        async for _ in stream:
            raise AssertionError("nothing is decoded")

    with pytest.raises(ExceptionGroup) as refusal:
        async with famulus.open_app(app):
            raise AssertionError("it starts")
    assert "codec_allow_pickle" in str(refusal.value.exceptions[0])


async def test_a_handler_of_bad_input_that_raises_is_logged_and_does_not_end_listening(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Strict(Wire):
        async def on_value_decode_error(self, error: Exception, message: famulus.Message) -> None:
            raise KeyError("mine")

    app = famulus.App("handler")
    wire = Strict(app, value_type=int)
    async with famulus.open_app(app):
        numbers = wire.stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send_all, ("bad", b"oops"), ("good", b"1"))
            with trio.fail_after(5):
                assert await anext(numbers) == 1
        await settle()
        assert (wire.listens, wire.acked) == (1, ["bad"])
    assert "the handler of its undecodable value raised; it is skipped" in caplog.text


async def test_bad_input_of_a_subclass_that_says_so_becomes_a_dead_letter_and_is_acknowledged_then(
    broker: MemoryBroker,
) -> None:
    class Burying(Wire):
        on_decode_error = "dead_letter"

    app = famulus.App("buries", broker=f"memory://{broker.name}")
    wire = Burying(app, value_type=int)

    @app.agent(wire)
    async def reads(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            raise AssertionError("nothing can be decoded")

    async with famulus.open_app(app):
        with broker.faults.hold_produce(topic="wire.dead-letter") as hold:
            await wire.sender.send(("bad", b"oops"))
            await hold.reached()
            await trio.sleep(5)
            assert wire.acked == []
        await trio.sleep(5)
        assert wire.acked == ["bad"]
    assert [letter.value for letter in broker.messages("wire.dead-letter")] == [b"oops"]


async def test_two_channels_of_one_name_both_listen() -> None:
    app = famulus.App("twins")
    first, second = Wire(app, value_type=int), Wire(app, value_type=int)
    async with famulus.open_app(app) as running:
        numbers, others = first.stream(), second.stream()
        async with trio.open_nursery() as nursery:
            for wire, number in ((first, 1), (second, 2)):
                nursery.start_soon(wire.send_numbers, number)
            with trio.fail_after(5):
                assert (await anext(numbers), await anext(others)) == (1, 2)
        assert first.listening
        assert second.listening
        services = next(node for node in running.tree().children if node.name == "services")
        assert {"channel wire", "channel wire 2"} <= {child.name for child in services.children}
