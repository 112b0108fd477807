"""Calls between runs that share nothing but a broker: answers come through the reply topic."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

import famulus
from famulus.actors import requests
from famulus.actors.replies import Replies
from famulus.app import connecting
from famulus.channels.memory import MemoryBroker, MemoryTransport
from famulus.channels.message import TP
from famulus.channels.transport import TransportOptions

pytestmark = pytest.mark.usefixtures("wire")


class Wire(MemoryTransport):
    """A memory broker that seems to be far away."""

    crosses_processes = True


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run finds another one in this process."""

    def load(url: str, options: TransportOptions) -> Wire:
        return Wire(url, options)

    monkeypatch.setattr(connecting, "load_transport", load)
    monkeypatch.setattr(requests, "replies_at", lambda address: None)


Make = Callable[[str], famulus.App]


@pytest.fixture
def make_app(broker: MemoryBroker) -> Make:
    """The same program, as another process would have it."""

    def make(name: str = "shop") -> famulus.App:
        return famulus.App(name, broker=f"memory://{broker.name}", broker_commit_interval=0.1)

    return make


class Sum(famulus.Record):
    numbers: list[int]
    total: int


class Calls:
    """The program, as a process has it: its App and its agents."""

    def __init__(self, make_app: Make, **options: Any) -> None:
        self.app = app = make_app("shop")

        @app.agent(app.topic("sums", value_type=Sum, partitions=2), name="add")
        async def add(stream: famulus.Stream[Sum]) -> AsyncIterator[Sum]:
            async for asked in stream:
                yield Sum(asked.numbers, sum(asked.numbers))

        @app.agent(app.topic("counts", value_type=int, partitions=1), name="count", **options)
        async def count(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for event in stream.events():
                for each in range(event.value):
                    yield each
                if event.value == 3 and event.attempt < options.get("max_attempts", 2):
                    raise ValueError("three")

        @app.agent(app.topic("notes", value_type=str, partitions=1), name="note")
        async def note(stream: famulus.Stream[str]) -> None:
            async for text in stream:
                if text == "bad":
                    raise RuntimeError(text)
                await trio.sleep(20 if text == "slow" else 0)

        @app.agent(app.topic("odd", value_type=int, partitions=1), name="odd")
        async def odd(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for number in stream:
                yield object() if number else number  # type: ignore[misc]  # what cannot be encoded

        @app.agent(app.topic("doubles", value_type=int, partitions=4), name="double")
        async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for number in stream.group_by(lambda number: str(number % 5), name="five"):
                yield 2 * number

        self.add, self.count, self.note, self.odd, self.double = add, count, note, odd, double


def replies_of(running: Any) -> Replies:
    return Replies.of(running._run)


async def test_an_answer_travels_as_the_type_that_the_agent_is_annotated_with(make_app: Make) -> None:
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app) as worker, famulus.open_client(here.app) as client:
        with trio.fail_after(5):
            answer = await here.add.ask(Sum([1, 2], 0))
            nothing: object = await here.note.ask("good")  # type: ignore[func-returns-value]  # that is the point
        assert answer == Sum([1, 2], 3)
        assert nothing is None
        assert replies_of(client).waiting == 0
        assert worker.statistics().replies_sent == 2


async def test_pain_19_a_failure_travels_with_type_message_and_traceback(make_app: Make) -> None:
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app), famulus.open_client(here.app):
        with trio.fail_after(5), pytest.raises(famulus.AgentError) as caught:
            await here.note.ask("bad")
    error = caught.value
    assert (error.agent, error.remote_type, error.remote_message) == ("note", "RuntimeError", "bad")
    assert "raise RuntimeError(text)" in error.remote_traceback


async def test_an_answer_that_cannot_be_encoded_is_a_failure_at_both_sides(make_app: Make) -> None:
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app) as worker, famulus.open_client(here.app):
        with trio.fail_after(5):
            with pytest.raises(famulus.AgentError, match="EncodeError"):
                await here.odd.ask(1)
            assert await here.odd.ask(0) == 0
        assert worker.statistics().events_failed == 1


async def test_a_request_that_cannot_be_decoded_is_answered_with_that(make_app: Make) -> None:
    here = Calls(make_app)
    topic = here.app.topic("counts", value_type=str)
    mistaken: famulus.Agent[str, int] = here.app.agent(topic, name="count, they think")(here.count.fun)  # type: ignore[arg-type]
    async with famulus.open_app(Calls(make_app).app), famulus.open_client(here.app):
        with trio.fail_after(5), pytest.raises(famulus.AgentError, match="DecodeError"):
            await mistaken.ask("oops")


async def test_parts_come_in_order_and_the_end_is_told(make_app: Make) -> None:
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app), famulus.open_client(here.app) as client:
        with trio.fail_after(5):
            assert [part async for part in here.count.ask_stream(5)] == [0, 1, 2, 3, 4]
            assert [part async for part in here.count.ask_stream(0)] == []
            parts: list[int] = []
            with pytest.raises(famulus.AgentError, match="three"):
                async for part in here.count.ask_stream(3):
                    parts.append(part)
            assert parts == [0, 1, 2]
            assert await here.count.ask(2) == 0
        assert replies_of(client).waiting == 0


async def test_a_redelivered_attempt_gives_no_part_twice(make_app: Make) -> None:
    here = Calls(make_app)
    there = Calls(make_app, on_failure="retry", max_attempts=3)
    async with famulus.open_app(there.app), famulus.open_client(here.app) as client:
        with trio.fail_after(60):
            assert [part async for part in here.count.ask_stream(3)] == [0, 1, 2]
        assert client.statistics().replies_dropped == 6


async def test_a_caller_who_is_too_slow_is_told_so(make_app: Make) -> None:
    here = Calls(make_app)
    async with (
        famulus.open_app(Calls(make_app).app),
        famulus.open_client(here.app, reply_buffer_maxsize=10) as client,
        here.count.ask_stream(1000) as parts,
    ):
        with trio.fail_after(60):
            seen = [await anext(parts)]
            await trio.sleep(5)
            with pytest.raises(famulus.AgentError, match=r"too slow.*reply_buffer_maxsize"):
                seen += [part async for part in parts]
            assert seen == [*range(len(seen))]
            assert len(seen) <= 12
            nothing: object = await here.note.ask("still there")  # type: ignore[func-returns-value]
            assert nothing is None
        assert replies_of(client).waiting == 0


async def test_join_gives_answers_in_the_order_of_the_values(make_app: Make) -> None:
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app), famulus.open_client(here.app) as client:
        with trio.fail_after(60):
            assert await here.double.join(range(300), window=16) == [2 * number for number in range(300)]
            assert await here.double.kvjoin((str(number), number) for number in range(20)) == [
                2 * number for number in range(20)
            ]
            results = here.double.map(range(50))
            pairs = [(results.index, answer) async for answer in results]
            assert sorted(pairs) == [(number, 2 * number) for number in range(50)]
        assert replies_of(client).waiting == 0


async def test_regrouped_requests_are_answered_once_by_the_last_stage(make_app: Make) -> None:
    here, there, elsewhere = Calls(make_app), Calls(make_app), Calls(make_app)
    async with famulus.open_app(there.app) as first, famulus.open_app(elsewhere.app) as second:
        await trio.sleep(5)
        async with famulus.open_client(here.app):
            with trio.fail_after(60):
                assert await here.double.join(range(40)) == [2 * number for number in range(40)]
        assert first.statistics().replies_sent + second.statistics().replies_sent == 40


async def test_the_topic_is_there_while_the_client_is_and_read_from_its_end(
    make_app: Make, broker: MemoryBroker
) -> None:
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app):
        async with famulus.open_client(here.app, reply_expires=60.0) as client:
            (topic,) = [name for name in broker.topics if "-reply-" in name]
            assert topic == replies_of(client).address.decode()
            assert topic.startswith("shop-reply-")
            assert broker.topics[topic].config == {"cleanup.policy": "delete", "retention.ms": "60000"}
            assert len(broker.topics[topic].logs) == 1
        assert topic not in broker.topics


async def test_pain_19_a_worker_makes_its_reply_topic_at_the_first_ask_and_nobody_sleeps(
    make_app: Make, broker: MemoryBroker
) -> None:
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app), famulus.open_app(here.app):
        assert not [name for name in broker.topics if "-reply-" in name]
        before = trio.current_time()
        with trio.fail_after(5):
            assert await here.add.ask(Sum([1], 0)) == Sum([1], 1)
        assert trio.current_time() == before
        assert len([name for name in broker.topics if "-reply-" in name]) == 1
    assert not [name for name in broker.topics if "-reply-" in name]


async def test_with_an_instance_id_the_address_lasts_and_old_answers_are_dropped(
    make_app: Make, broker: MemoryBroker
) -> None:
    options: dict[str, Any] = {"consumer_group_instance_id": "till-1", "reply_to_prefix": "answers-"}
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app) as worker:
        async with famulus.open_client(here.app, **options) as client:
            assert replies_of(client).address == b"answers-client-till-1"
            with trio.move_on_after(1):
                await here.note.ask("slow")
        async with famulus.open_client(here.app, **options) as client:
            with trio.fail_after(60):
                nothing: object = await here.note.ask("next")  # type: ignore[func-returns-value]
            assert nothing is None
            assert client.statistics().replies_dropped == 1
        assert worker.statistics().replies_sent == 2


async def test_a_caller_who_has_gone_holds_nobody_up(make_app: Make, broker: MemoryBroker) -> None:
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app) as worker:
        async with famulus.open_client(here.app):
            with trio.move_on_after(1):
                await here.note.ask("slow")
        before = trio.current_time()
        while worker.statistics().replies_dropped == 0:
            await trio.sleep(0.5)
        await trio.sleep(1)
        assert broker.group("shop").committed[TP("notes", 0)] == 1
        assert trio.current_time() - before < 25
        assert worker.statistics().events_failed == 0


async def test_the_offset_waits_for_the_delivery_of_the_answer(make_app: Make, broker: MemoryBroker) -> None:
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app), famulus.open_client(here.app) as client:
        hold = broker.faults.hold_produce(topic=replies_of(client).address.decode())
        promise = await here.count.ask_nowait(1)
        await trio.sleep(5)
        assert TP("counts", 0) not in broker.group("shop").committed
        hold.release()
        with trio.fail_after(5):
            assert await promise == 0
        await trio.sleep(1)
        assert broker.group("shop").committed[TP("counts", 0)] == 1


async def test_an_answer_that_is_refused_by_the_broker_becomes_a_failure(make_app: Make, broker: MemoryBroker) -> None:
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app), famulus.open_client(here.app) as client:
        broker.faults.fail_produce(
            1, topic=replies_of(client).address.decode(), error=famulus.ProduceError("too large")
        )
        with trio.fail_after(5), pytest.raises(famulus.AgentError, match="too large"):
            await here.count.ask(1)


async def test_a_request_that_is_not_delivered_fails_at_the_caller(make_app: Make) -> None:
    here = Calls(make_app)
    lost = here.app.agent(here.app.topic("nowhere", value_type=int), name="lost")(here.count.fun)
    async with famulus.open_client(here.app):
        with trio.fail_after(5), pytest.raises(famulus.AgentError, match="nowhere"):
            await lost.ask(1, partition=17)


async def test_asking_again_under_the_same_id_is_answered_once(make_app: Make) -> None:
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app), famulus.open_client(here.app) as client:
        with trio.move_on_after(5) as patience:
            await here.note.ask("slow", correlation_id="order-1")
        assert patience.cancelled_caught
        with trio.fail_after(60):
            nothing: object = await here.note.ask("slow", correlation_id="order-1")  # type: ignore[func-returns-value]
        assert nothing is None
        await trio.sleep(60)
        assert client.statistics().replies_dropped == 1


async def test_answers_may_go_to_a_topic_of_the_users(make_app: Make) -> None:
    here, there = Calls(make_app), Calls(make_app)
    heard: list[tuple[int, bytes]] = []

    @there.app.agent(there.app.topic("heard", value_type=int, partitions=1))
    async def hear(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            heard.append((event.value, dict(event.headers)["famulus-correlation-id"]))

    async with famulus.open_app(there.app) as worker, famulus.open_client(here.app):
        await here.count.send(2, reply_to="heard", correlation_id="q")
        here.count.send_soon(1, reply_to=here.app.topic("heard"))
        await here.count.send(3, reply_to=hear)
        await trio.sleep(5)
        assert worker.statistics().events_failed == 1
    assert [value for value, _ in heard] == [0, 1, 0, 0, 1, 2]
    assert [identity for _, identity in heard[:2]] == [b"q", b"q"]


async def test_replies_are_read_on_after_the_reader_crashed(
    make_app: Make, broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    here = Calls(make_app)
    async with famulus.open_app(Calls(make_app).app), famulus.open_client(here.app) as client:
        with trio.fail_after(60):
            assert await here.count.ask(1) == 0
            broker.delete_topic(replies_of(client).address.decode())
            await trio.sleep(10)
            assert await here.count.ask(1) == 0


async def test_a_client_runs_nothing_of_the_app(make_app: Make, broker: MemoryBroker) -> None:
    here = Calls(make_app)
    ran: list[str] = []

    @here.app.task
    async def task() -> None:
        ran.append("task")

    inside = here.app.agent(here.app.channel(value_type=int), name="inside")(here.count.fun)
    async with famulus.open_client(here.app) as client:
        await trio.sleep(5)
        assert [node.name for node in client.tree().children] == ["messaging", "services"]
        with pytest.raises(famulus.AgentError, match="inside its worker"):
            await inside.ask(1)
        receipt = await (await here.count.send(1))
        assert receipt.topic == "counts"
    assert not ran
    assert "shop" not in broker.groups


async def test_a_client_s_asks_end_with_it(make_app: Make) -> None:
    here = Calls(make_app)
    told: list[str] = []

    async def ask() -> None:
        try:
            await here.note.ask("slow")
        except famulus.AgentError as error:
            told.append(error.reason)

    async with famulus.open_app(Calls(make_app).app), trio.open_nursery() as nursery, famulus.open_client(here.app):
        nursery.start_soon(ask)
        await trio.sleep(1)
    assert told == ["the app stopped before the answer came"]


async def test_start_client_is_a_context_and_says_so_when_it_is_awaited(make_app: Make) -> None:
    here = Calls(make_app)
    with pytest.raises(TypeError, match="async with"):
        await here.app.start_client()
    async with famulus.open_app(Calls(make_app).app), here.app.start_client(client_id="me") as client:
        assert client.settings.client_id == "me"
        with trio.fail_after(5):
            assert await here.count.ask(1) == 0


async def test_a_client_of_a_private_broker_is_refused() -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match="private to a run"):
        async with famulus.open_client(famulus.App("alone", broker="memory://")):
            pass
