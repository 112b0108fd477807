"""The bridge between trio and asyncio, without a broker and on virtual time."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket

import pytest
import trio
import trio.testing

from famulus.kafka.bridge import Bridge, Crossing


async def test_a_call_brings_the_result_or_the_exception() -> None:
    async def divide(one: int, other: int) -> float:
        await asyncio.sleep(1)
        return one / other

    async with Bridge().open() as bridge:
        assert await bridge.call(divide, 1, 2) == 0.5
        with pytest.raises(ZeroDivisionError):
            await bridge.call(divide, 1, 0)


async def test_a_cancelled_caller_leaves_and_the_call_goes_on() -> None:
    ended: list[str] = []

    async def slow() -> None:
        await asyncio.sleep(10)
        ended.append("by itself")

    async with Bridge().open() as bridge:
        with trio.move_on_after(1):
            await bridge.call(slow)
        assert ended == []
        await trio.sleep(10)
        assert ended == ["by itself"]


async def test_calls_come_from_any_task_of_the_run() -> None:
    results: list[int] = []

    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def caller(bridge: Bridge, number: int) -> None:
        results.append(await bridge.call(double, number))

    async with trio.open_nursery() as outside, Bridge().open() as bridge:
        async with trio.open_nursery() as inside:
            outside.start_soon(caller, bridge, 1)
            inside.start_soon(caller, bridge, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(results) == [2, 4]


async def test_the_bodys_exception_leaves_as_it_is() -> None:
    with pytest.raises(LookupError, match="of the body"):
        async with Bridge().open():
            raise LookupError("of the body")


async def test_a_cancelled_body_still_has_its_loop_for_goodbye() -> None:
    said: list[str] = []

    async def goodbye() -> None:
        await asyncio.sleep(1)
        said.append("goodbye")

    with trio.CancelScope() as scope:
        async with Bridge().open() as bridge:
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                assert await bridge.try_call(5, goodbye)
    assert scope.cancelled_caught
    assert said == ["goodbye"]


async def test_what_does_not_end_is_ended_at_the_end() -> None:
    ended: list[str] = []

    async def stubborn() -> None:
        for time in ("first", "second"):
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                ended.append(time)

    bridge = Bridge()
    async with bridge.open():
        call = bridge.start(stubborn)
        assert not await bridge.try_call(1, asyncio.sleep, 1000)
    assert ended == ["first", "second"]
    assert call.done
    with pytest.raises(trio.ClosedResourceError):
        bridge.start(stubborn)


async def test_a_closed_bridge_ends_the_waits_for_its_calls() -> None:
    async with trio.open_nursery() as nursery:

        async def waiter(bridge: Bridge) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await bridge.call(asyncio.sleep, 1000)

        async with Bridge().open() as bridge:
            nursery.start_soon(waiter, bridge)
            await trio.testing.wait_all_tasks_blocked()


async def test_what_nobody_awaits_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)

    async with Bridge().open() as bridge:
        await bridge.call(fail)
        await trio.sleep(1)
    assert "ZeroDivisionError" in caplog.text


async def test_questions_are_answered_one_after_the_other() -> None:
    crossing: Crossing[int] = Crossing()
    asked: list[str] = []

    async def ask(number: int) -> None:
        await crossing.ask(number)
        asked.append(f"asker {number} goes on")

    async def answer(number: int) -> None:
        asked.append(f"begin {number}")
        await trio.sleep(1)
        asked.append(f"end {number}")

    async with Bridge().open() as bridge:
        calls = [bridge.start(ask, number) for number in (1, 2)]
        assert await crossing.answer_next(answer)
        assert await crossing.answer_next(answer)
        for call in calls:
            await call.wait()
    assert asked[:2] == ["begin 1", "end 1"]
    assert asked.index("asker 1 goes on") < asked.index("asker 2 goes on")


async def test_a_failing_answer_lets_the_asker_go_on() -> None:
    crossing: Crossing[int] = Crossing()

    async def fail(number: int) -> None:
        raise LookupError

    async with Bridge().open() as bridge:
        call = bridge.start(crossing.ask, 1)
        with pytest.raises(LookupError):
            await crossing.answer_next(fail)
        await call.wait()


async def test_after_the_end_askers_wait_until_they_are_dismissed() -> None:
    crossing: Crossing[int] = Crossing()

    async def never(number: int) -> None:
        raise AssertionError(number)

    async with Bridge().open() as bridge:
        call = bridge.start(crossing.ask, 1)
        crossing.end()
        assert not await crossing.answer_next(never)
        await trio.sleep(1)
        assert not call.done
        crossing.dismiss()
        with pytest.raises(trio.ClosedResourceError):
            await call.wait()
        with pytest.raises(trio.ClosedResourceError):
            await bridge.call(crossing.ask, 2)


async def test_a_socket_that_nobody_has_closed_is_closed_at_the_end() -> None:
    kept: list[asyncio.StreamWriter] = []

    async def connect(port: int) -> socket.socket:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        kept.append(writer)
        raw: socket.socket = writer.get_extra_info("socket")._sock
        return raw

    with socket.create_server(("127.0.0.1", 0)) as server:
        async with Bridge().open() as bridge:
            left = await bridge.call(connect, server.getsockname()[1])
            assert left.fileno() != -1
        assert left.fileno() == -1


async def test_callbacks_that_are_ready_run_in_one_go_and_let_others_have_their_turn() -> None:
    count = 0
    at_their_turns: list[int] = []

    async def watch() -> None:
        while True:
            at_their_turns.append(count)
            await trio.lowlevel.checkpoint()

    async with Bridge().open() as bridge, trio.open_nursery() as nursery:

        def again() -> None:
            nonlocal count
            count += 1
            if count < 1000:
                bridge.loop.call_soon(again)

        nursery.start_soon(watch)
        bridge.loop.call_soon(again)
        while count < 1000:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    between = [later - earlier for earlier, later in itertools.pairwise(at_their_turns)]
    assert 50 < max(between) < 250


def test_an_interrupt_in_the_middle_of_the_loop_leaves_it_running() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 1

    async def main() -> None:
        async with Bridge().open() as bridge:
            bridge.loop.call_soon(signal.raise_signal, signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                await trio.sleep(60)
            assert await bridge.call(answer) == 1

    trio.run(main)


def test_a_callback_that_ends_the_program_lets_the_clients_say_goodbye() -> None:
    said: list[str] = []

    async def client() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            said.append("goodbye")

    def leave() -> None:
        raise SystemExit("of a callback")

    async def main() -> None:
        async with Bridge().open() as bridge:
            call = bridge.start(client)
            bridge.loop.call_soon(leave)
            with trio.CancelScope(shield=True), pytest.raises(trio.ClosedResourceError):
                await call.wait()
            said.append("told")

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.value.subgroup(SystemExit)
    assert said == ["goodbye", "told"]
