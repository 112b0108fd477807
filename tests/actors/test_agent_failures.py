"""What becomes of an agent that raises, and of its event (laws 4 and 6, PAIN rows 3, 9, 10, 11)."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord
from famulus.supervision import CrashingSupervisor, OneForOneSupervisor


class Item(famulus.Record):
    name: str
    price: float


class Order(famulus.Record):
    account: str
    items: list[Item]


def put(broker: MemoryBroker, topic: str, *values: bytes) -> None:
    if topic not in broker.topics:
        broker.create_topic(topic, 1)
    for value in values:
        broker.append(TP(topic, 0), [ProducerRecord(b"k", value, (("h", b"1"),))])


async def test_pain_3_a_failed_event_is_skipped_counted_and_logged_by_default(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app = famulus.App("skips", broker=f"memory://{broker.name}")
    put(broker, "numbers", b"1", b"0", b"2")
    seen: list[float] = []
    told: list[BaseException] = []

    @app.agent(app.topic("numbers"), on_error=lambda agent, error: told.append(error))
    async def divide(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(1 / number)

    async with famulus.open_app(app) as running:
        await trio.sleep(10)
        assert running.statistics().events_failed == 1
    assert seen == [1, 0.5]
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert broker.group("skips").committed == {TP("numbers", 0): 3}
    (record,) = [record for record in caplog.records if record.name == "famulus.agent"]
    assert "numbers-0@1, attempt 1: division by zero; skipped" in record.getMessage()
    (traceback,) = [record for record in caplog.records if record.exc_info]
    assert traceback.name == "famulus.supervision"


async def test_retry_delivers_the_event_again_before_anything_newer(broker: MemoryBroker) -> None:
    app = famulus.App("retries", broker=f"memory://{broker.name}", broker_commit_interval=1.0)
    put(broker, "numbers", b"1", b"2", b"3")
    attempts: list[tuple[int, int]] = []

    @app.agent(app.topic("numbers"), on_failure="retry", max_attempts=4)
    async def flaky(stream: famulus.Stream[int]) -> None:
        async for event in stream.events():
            attempts.append((event.value, event.attempt))
            if event.value == 2 and event.attempt < 3:
                raise RuntimeError("not yet")

    async with famulus.open_app(app):
        await trio.sleep(60)
    assert attempts == [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1)]
    assert broker.group("retries").committed == {TP("numbers", 0): 3}


async def test_retry_holds_the_offset_until_the_event_is_done(broker: MemoryBroker) -> None:
    app = famulus.App("holds", broker=f"memory://{broker.name}", broker_commit_interval=1.0)
    put(broker, "numbers", b"1", b"2")

    @app.agent(app.topic("numbers"), on_failure="retry", max_attempts=1_000_000)
    async def never(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 2:
                raise RuntimeError("never")

    async with famulus.open_app(app):
        await trio.sleep(20)
        assert broker.group("holds").committed == {TP("numbers", 0): 1}


@pytest.mark.parametrize("policy", ["retry", "dead_letter"])
async def test_dead_letters_carry_the_message_and_the_reason(broker: MemoryBroker, policy: str) -> None:
    app = famulus.App("buries", broker=f"memory://{broker.name}")
    put(broker, "numbers", b"1", b"2", b"3")
    seen: list[int] = []

    @app.agent(app.topic("numbers"), name="picky", on_failure=policy, max_attempts=2)  # type: ignore[arg-type]  # parametrized
    async def picky(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 2:
                raise ValueError("two")
            seen.append(number)

    async with famulus.open_app(app) as running:
        await trio.sleep(10)
        assert running.statistics().dead_letters == 1
    assert seen == [1, 3]
    assert broker.group("buries").committed == {TP("numbers", 0): 3}
    (letter,) = broker.messages("numbers.dead-letter")
    headers = dict(letter.headers)
    prefix = "famulus-dead-letter-"
    assert (letter.key, letter.value, headers["h"]) == (b"k", b"2", b"1")
    assert headers[f"{prefix}topic"] == b"numbers"
    assert headers[f"{prefix}partition"] == b"0"
    assert headers[f"{prefix}offset"] == b"1"
    assert headers[f"{prefix}error-type"] == b"builtins.ValueError"
    assert headers[f"{prefix}error-message"] == b"two"
    assert headers[f"{prefix}attempts"] == (b"2" if policy == "retry" else b"1")
    assert b"raise ValueError" in headers[f"{prefix}traceback"]


async def test_an_undelivered_dead_letter_holds_the_offset(broker: MemoryBroker) -> None:
    app = famulus.App("keeps", broker=f"memory://{broker.name}", broker_commit_interval=1.0)
    put(broker, "numbers", b"1", b"2")
    broker.faults.fail_produce(None, topic="numbers.dead-letter")

    @app.agent(app.topic("numbers"), on_failure="dead_letter")
    async def fails(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            if number == 1:
                raise ValueError(number)

    async with famulus.open_app(app):
        await trio.sleep(20)
    assert broker.group("keeps").committed == {}


async def test_pain_9_a_crash_loop_ends_the_run_with_its_history(broker: MemoryBroker) -> None:
    app = famulus.App("loops", broker=f"memory://{broker.name}")
    put(broker, "numbers", *[b"1"] * 10)

    @app.agent(app.topic("numbers"), name="looper", supervisor_strategy=OneForOneSupervisor(max_restarts=3, within=60))
    async def loops(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            raise RuntimeError(f"bad {number}")

    with pytest.raises(ExceptionGroup) as caught:
        async with famulus.open_app(app):
            await trio.sleep_forever()
    (failure,) = caught.value.exceptions
    assert isinstance(failure, famulus.SupervisorFailed)
    assert caught.group_contains(famulus.SupervisorFailed)
    cause: BaseException | None = failure
    history: tuple[object, ...] = ()
    while isinstance(cause, famulus.SupervisorFailed):
        history = cause.incidents
        cause = cause.__cause__
    assert isinstance(cause, RuntimeError)
    assert len(history) == 4


async def test_a_crashing_agent_ends_the_run_at_once() -> None:
    app = famulus.App("crashes")

    @app.agent(supervisor_strategy=CrashingSupervisor)
    async def fragile(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            raise RuntimeError(number)

    with pytest.raises(ExceptionGroup):
        async with famulus.open_app(app):
            await fragile.send(1)
            with trio.fail_after(1):
                await trio.sleep_forever()


async def test_scattered_failures_never_end_a_run(broker: MemoryBroker) -> None:
    app = famulus.App("scattered", broker=f"memory://{broker.name}")
    put(broker, "numbers", *[str(n).encode() for n in range(200)])
    seen = 0

    @app.agent(app.topic("numbers"))
    async def often(stream: famulus.Stream[int]) -> None:
        nonlocal seen
        async for number in stream:
            if number % 2:
                raise ValueError(number)
            seen += 1

    async with famulus.open_app(app) as running:
        await trio.sleep(600)
        assert running.statistics().events_failed == 100
    assert seen == 100


async def test_pain_11_an_agent_that_returns_is_started_again(broker: MemoryBroker) -> None:
    app = famulus.App("returns", broker=f"memory://{broker.name}")
    put(broker, "numbers", b"1", b"2", b"3")
    seen: list[int] = []

    @app.agent(app.topic("numbers"))
    async def one(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)
            return

    async with famulus.open_app(app):
        await trio.sleep(60)
    assert seen == [1, 2, 3]


async def test_pain_10_bad_input_names_itself_and_the_agent_goes_on(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app = famulus.App("garbage", broker=f"memory://{broker.name}")
    good = json.dumps({"account": "ada", "items": [{"name": "x", "price": 1.5}]}).encode()
    put(
        broker,
        "orders",
        good,
        b"\xff not json",
        b'{"items": []}',
        b'{"account": "ada", "items": [{"name": "a", "price": 1}, {"name": "b", "price": "dear"}]}',
        good,
    )
    seen: list[Order] = []

    @app.agent(app.topic("orders", value_type=Order))
    async def collect(stream: famulus.Stream[Order]) -> None:
        async for order in stream:
            seen.append(order)

    async with famulus.open_app(app) as running:
        await trio.testing.wait_all_tasks_blocked()
        assert running.statistics().decode_errors == 3
        assert running.tree().children[2].children[0].children[0].restarts == 0
    assert seen == [Order("ada", [Item("x", 1.5)])] * 2
    assert broker.group("garbage").committed == {TP("orders", 0): 5}
    lines = [record.getMessage() for record in caplog.records if record.name == "famulus.stream"]
    assert [line.split(":")[0] for line in lines] == ["orders-0@1", "orders-0@2", "orders-0@3"]
    assert "$.account" in lines[1]
    assert "$.items[1].price" in lines[2]
    assert "'dear'" in lines[2]


async def test_on_value_decode_error_gets_the_message(broker: MemoryBroker) -> None:
    app = famulus.App("own-handler", broker=f"memory://{broker.name}")
    put(broker, "numbers", b"oops", b"1")
    bad: list[bytes | None] = []

    class Careful(famulus.Topic[int]):
        async def on_value_decode_error(self, error: Exception, message: famulus.Message) -> None:
            bad.append(message.value)

    seen: list[int] = []

    @app.agent(Careful(app, "numbers", value_type=int))
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with famulus.open_app(app):
        await trio.testing.wait_all_tasks_blocked()
    assert (bad, seen) == ([b"oops"], [1])


async def test_the_body_s_failure_alone_leaves_bare() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with famulus.open_app():
            raise KeyError("mine")


async def test_body_and_tree_failing_together_leave_in_one_group(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    app = famulus.App("both")

    @app.agent(supervisor_strategy=CrashingSupervisor)
    async def fragile(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            raise RuntimeError(number)

    with pytest.raises(ExceptionGroup) as caught:
        async with famulus.open_app(app):
            await fragile.send(1)
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("mine")
    assert caught.group_contains(famulus.SupervisorFailed)
    assert caught.group_contains(KeyError)


async def test_an_agent_that_yields_inside_its_own_nursery_is_named() -> None:
    app = famulus.App("pep789")

    @app.agent(name="hazard", supervisor_strategy=CrashingSupervisor)
    async def hazard(stream: famulus.Stream[int]):  # type: ignore[no-untyped-def]  # what a user may write
        async for number in stream:
            async with trio.open_nursery():
                yield number

    with pytest.raises(ExceptionGroup) as caught:
        async with famulus.open_app(app):
            with pytest.raises(famulus.AgentError, match="hazard yielded inside a nursery"):
                await hazard.ask(1)
            await trio.sleep(1)
    text = repr(caught.value)
    assert "SupervisorFailed" in text


async def test_pain_19_whoever_asks_an_agent_that_yields_inside_its_nursery_is_told_and_the_agent_goes_on() -> None:
    app = famulus.App("pep789-asked")
    ended: list[int] = []

    async def helper(number: int) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(number)

    @app.agent(name="hazard")
    async def hazard(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            if number:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(helper, number)
                    await trio.testing.wait_all_tasks_blocked()
                    yield number
            yield number

    async with famulus.open_app(app):
        with trio.fail_after(5):
            with pytest.raises(famulus.AgentError, match="hazard yielded inside a nursery") as caught:
                await hazard.ask(1)
            assert await hazard.ask(0) == 0
        assert ended == [1]
        assert "yield number" in caught.value.remote_traceback
        assert hazard.info().failed == 1


async def test_pain_3_with_noack_a_failed_event_is_delivered_again(broker: MemoryBroker) -> None:
    app = famulus.App("noack-crash", broker=f"memory://{broker.name}")
    put(broker, "numbers", b"1", b"2")
    attempts: list[tuple[int, int]] = []

    @app.agent(app.topic("numbers"))
    async def careful(stream: famulus.Stream[int]) -> None:
        async for event in stream.noack().events():
            attempts.append((event.value, event.attempt))
            if event.attempt < 3 and event.value == 1:
                raise RuntimeError("crash before the ack")
            event.ack()

    async with famulus.open_app(app):
        await trio.sleep(60)
    assert attempts == [(1, 1), (1, 2), (1, 3), (2, 1)]
    assert broker.group("noack-crash").committed == {TP("numbers", 0): 2}


async def test_what_calls_asyncio_is_told_what_to_call_instead(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app = famulus.App("of-faust", broker=f"memory://{broker.name}")
    put(broker, "numbers", b"1")

    @app.agent(app.topic("numbers"), name="agent")
    async def sleepy(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await asyncio.sleep(1)

    @app.task
    async def task() -> None:
        await asyncio.sleep(1)

    @app.timer(0.5)
    async def timer() -> None:
        asyncio.get_running_loop()

    async with famulus.open_app(app):
        await trio.sleep(0.7)
    for who in ("agent[0]", ".task", ".timer"):
        [first, *_] = [record for record in caplog.records if f"{who} #1 crashed" in record.getMessage()]
        assert first.exc_info is not None
        assert "call trio.sleep for asyncio.sleep" in getattr(first.exc_info[1], "__notes__", [""])[0]
