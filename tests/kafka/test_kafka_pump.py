"""What runs the callbacks of the bridge's loop: as asyncio promises it, whether by our pump or by trio-asyncio's own way."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sniffio
import trio
import trio.testing

from famulus.kafka import bridge as bridge_module
from famulus.kafka.bridge import Bridge
from famulus.kafka.pump import Pump, quicken

inside: Any = bridge_module  # it may import trio_asyncio, with its warnings
trio_asyncio, AsyncHandle = inside.trio_asyncio, inside.AsyncHandle


@pytest.fixture(params=["pump", "own way"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs on both: they are to do the same."""
    if request.param == "own way":
        monkeypatch.setattr(bridge_module, "AsyncHandle", None)
    return str(request.param)


def pump_of(bridge: Bridge) -> Pump:
    pump = bridge._pump
    assert pump is not None
    return pump


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


# -- order -----------------------------------------------------------------------------------------------------


async def test_callbacks_run_in_the_order_in_which_they_were_given(either: str) -> None:
    ran: list[int] = []

    def first() -> None:
        ran.append(0)
        bridge.loop.call_soon(ran.append, 3)

    async with Bridge().open() as bridge:
        bridge.loop.call_soon(first)
        bridge.loop.call_soon(ran.append, 1)
        cancelled = bridge.loop.call_soon(ran.append, -1)
        bridge.loop.call_soon(ran.append, 2)
        cancelled.cancel()
        await until(lambda: len(ran) == 4)
    assert ran == [0, 1, 2, 3]


async def test_what_was_given_before_runs_before_what_a_call_from_trio_makes_ready() -> None:
    ran: list[int] = []

    def called() -> str:
        ran.append(0)
        bridge.loop.call_soon(ran.append, 3)
        return "result"

    async with Bridge().open() as bridge:
        bridge.loop.call_soon(ran.append, 1)
        bridge.loop.call_soon(ran.append, 2)
        assert bridge.run(called) == "result"
        assert ran == [0, 1, 2, 3]  # without a turn of the others


async def test_order_holds_over_calls_from_many_tasks_and_from_callbacks(either: str) -> None:
    ran: list[tuple[int, int]] = []

    async def caller(name: int) -> None:
        for number in range(50):
            bridge.run(bridge.loop.call_soon, ran.append, (name, number))
            if number % 7 == name:
                await trio.lowlevel.checkpoint()

    def nested(number: int) -> None:
        bridge.run(bridge.loop.call_soon, ran.append, (9, number))
        if number < 30:
            bridge.loop.call_soon(nested, number + 1)

    async with Bridge().open() as bridge:
        async with trio.open_nursery() as nursery:
            for name in range(4):
                nursery.start_soon(caller, name)
            bridge.loop.call_soon(nested, 0)
        await until(lambda: len(ran) == 4 * 50 + 31)
    for name in (0, 1, 2, 3, 9):
        numbers = [number for of, number in ran if of == name]
        assert numbers == sorted(numbers)


async def test_a_call_from_within_a_callback_waits_for_what_is_ready_already() -> None:
    ran: list[str] = []

    def outer() -> None:
        bridge.run(bridge.loop.call_soon, ran.append, "by the inner call")
        ran.append("outer")

    async with Bridge().open() as bridge:
        bridge.loop.call_soon(outer)
        bridge.loop.call_soon(ran.append, "next")
        await until(lambda: len(ran) == 3)
    assert ran == ["outer", "next", "by the inner call"]


async def test_the_exception_of_a_call_from_trio_is_its_caller_s(either: str) -> None:
    ran: list[int] = []

    def fail() -> None:
        bridge.loop.call_soon(ran.append, 1)
        raise LookupError("of the call")

    async with Bridge().open() as bridge:
        with pytest.raises(LookupError, match="of the call"):
            bridge.run(fail)
        await until(lambda: ran)


async def test_a_call_from_trio_sees_the_loop_and_the_next_code_does_not(either: str) -> None:
    async with Bridge().open() as bridge:
        assert bridge.run(asyncio.get_running_loop) is bridge.loop
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        assert sniffio.current_async_library() == "trio"
        inside = bridge.loop.create_future()
        bridge.loop.call_soon(lambda: inside.set_result(sniffio.current_async_library()))
        assert await bridge.call(lambda: asyncio.wait_for(inside, 1)) == "asyncio"
        assert sniffio.current_async_library() == "trio"


# -- what is not urgent ----------------------------------------------------------------------------------------


async def test_what_is_put_off_runs_behind_the_next_call_from_trio_and_all_that_it_makes_ready() -> None:
    ran: list[str] = []

    def call() -> None:
        ran.append("call")
        bridge.loop.call_soon(ran.append, "made ready by it")

    async with Bridge().open() as bridge:
        bridge.put_off(lambda: ran.append("put off"))
        assert ran == []
        bridge.run(call)
        assert ran == ["call", "made ready by it", "put off"]
        await trio.testing.wait_all_tasks_blocked()
        assert len(ran) == 3


async def test_what_is_put_off_runs_without_a_call_too_though_others_are_always_busy() -> None:
    """It lets them have a few turns, and not all."""
    ran: list[str] = []
    turns = 0
    async with Bridge().open() as bridge:
        bridge.put_off(lambda: ran.append("put off"))
        while not ran:
            turns += 1
            await trio.lowlevel.checkpoint()
        assert 2 <= turns <= 10


async def test_what_a_callback_puts_off_runs_and_its_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ran: list[str] = []

    def fail() -> None:
        ran.append("failed")
        raise ValueError("put off")

    async with Bridge().open() as bridge:
        bridge.loop.call_soon(bridge.put_off, fail)
        await until(lambda: ran)
        bridge.loop.call_soon(ran.append, "goes on")
        await until(lambda: len(ran) == 2)
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["put off"]


async def test_without_a_pump_nothing_is_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "AsyncHandle", None)
    ran: list[str] = []
    async with Bridge().open() as bridge:
        bridge.put_off(lambda: ran.append("at once"))
        assert ran == ["at once"]


# -- timers ----------------------------------------------------------------------------------------------------


async def test_timers_run_in_the_order_of_their_times(either: str) -> None:
    ran: list[tuple[str, float]] = []

    def note(name: str) -> None:
        ran.append((name, trio.current_time() - start))

    async with Bridge().open() as bridge:
        loop = bridge.loop
        start = loop.time()
        loop.call_later(3, note, "three")
        loop.call_at(start + 1, note, "one")
        loop.call_later(2, note, "cancelled").cancel()
        await trio.sleep(0.5)  # the loop sleeps until the first one
        loop.call_later(0.25, note, "earlier than that")
        loop.call_at(start - 1, note, "past")
        loop.call_later(1.5, note, "two")
        await trio.sleep(5)
    assert ran == [("past", 0.5), ("earlier than that", 0.75), ("one", 1), ("two", 2), ("three", 3)]


async def test_a_timer_may_set_another_and_end_one(either: str) -> None:
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        other.cancel()
        bridge.loop.call_later(1, ran.append, "second")

    async with Bridge().open() as bridge:
        bridge.loop.call_later(1, first)
        other = bridge.loop.call_later(1.5, ran.append, "other")
        await trio.sleep(1.75)
        assert ran == ["first"]
        await trio.sleep(0.5)
        assert ran == ["first", "second"]


async def test_timers_that_were_cancelled_do_not_pile_up() -> None:
    ran: list[int] = []
    async with Bridge().open() as bridge:
        for number in range(500):
            bridge.loop.call_later(3000 + number, ran.append, number)
        most = 0
        for _ in range(20_000):
            bridge.loop.call_later(2000, ran.append, -1).cancel()
            most = max(most, len(pump_of(bridge)._timers))
        assert most < 2100
        await trio.sleep(4000)
        assert ran == list(range(500))
        assert not pump_of(bridge)._timers


async def test_a_loop_without_work_sleeps() -> None:
    class Turns(trio.abc.Instrument):
        def __init__(self) -> None:
            self.of_loop = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.of_loop += "_main_loop" in task.name

    turns = Turns()
    async with Bridge().open() as bridge:
        bridge.loop.call_later(100, lambda: None).cancel()
        bridge.loop.call_later(200, lambda: None)
        await trio.sleep(1)
        trio.lowlevel.add_instrument(turns)
        await trio.sleep(1000)
        trio.lowlevel.remove_instrument(turns)
    assert turns.of_loop < 10


# -- threads and tasks of trio's -------------------------------------------------------------------------------


@pytest.mark.real_time
@pytest.mark.hard_timeout(30)
async def test_callbacks_come_from_other_threads_in_their_order(either: str) -> None:
    ran: list[int] = []

    def in_thread(loop: asyncio.AbstractEventLoop) -> None:
        for number in range(1000):
            loop.call_soon_threadsafe(ran.append, number)

    async with Bridge().open() as bridge:
        await trio.to_thread.run_sync(in_thread, bridge.loop)
        await until(lambda: len(ran) == 1000)
        assert await bridge.call(lambda: asyncio.to_thread(lambda: "from a thread")) == "from a thread"
    assert ran == list(range(1000))


async def test_asyncio_waits_for_trio_and_trio_for_asyncio(either: str) -> None:
    steps: list[str] = []

    async def inner() -> str:
        await asyncio.sleep(1)
        steps.append("inner")
        return "result"

    async def between() -> str:
        await trio.sleep(1)
        steps.append("between")
        result: str = await trio_asyncio.aio_as_trio(inner)()
        return result

    async def outer() -> str:
        result: str = await trio_asyncio.trio_as_aio(between)()
        steps.append("outer")
        return result

    async with Bridge().open() as bridge:
        with bridge_is_current(bridge):
            assert await bridge.call(outer) == "result"
    assert steps == ["between", "inner", "outer"]


async def test_a_task_of_trio_s_that_is_ready_in_a_call_starts_and_what_follows_runs(either: str) -> None:
    ran: list[str] = []

    async def in_trio() -> None:
        ran.append("trio began")
        await trio.sleep(1)
        ran.append("trio ended")

    def call() -> None:
        bridge.loop.call_soon(ran.append, "before")
        inside: Any = bridge.loop
        inside.run_trio_task(in_trio)
        bridge.loop.call_soon(ran.append, "after")

    async with Bridge().open() as bridge:
        bridge.run(call)
        await trio.sleep(2)
    assert ran == ["before", "trio began", "after", "trio ended"]


@contextmanager
def bridge_is_current(bridge: Bridge) -> Iterator[None]:
    """For what asks which loop it is in."""
    token = trio_asyncio.current_loop.set(bridge.loop)
    try:
        yield
    finally:
        trio_asyncio.current_loop.reset(token)


# -- sockets ---------------------------------------------------------------------------------------------------


@pytest.mark.real_time
@pytest.mark.hard_timeout(60)
async def test_much_goes_through_a_socket_and_comes_back(either: str) -> None:
    size = 5_000_000

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def send_and_read() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        async def client(number: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            sent = bytes([number]) * size

            async def send() -> None:
                writer.write(sent)
                await writer.drain()
                writer.write_eof()

            sending = asyncio.ensure_future(send())
            assert await reader.read() == sent
            await sending
            writer.close()
            await writer.wait_closed()

        await asyncio.gather(*map(client, range(3)))
        server.close()
        await server.wait_closed()

    async with Bridge().open() as bridge:
        await bridge.call(send_and_read)


@pytest.mark.real_time
@pytest.mark.hard_timeout(30)
async def test_a_socket_that_is_closed_while_it_is_read_ends_the_read(either: str, caplog: Any) -> None:
    async def close_while_reading() -> bytes:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            reading = asyncio.ensure_future(reader.read())
            await asyncio.sleep(0)
            writer.close()
            return await reading

    async with Bridge().open() as bridge:
        for _ in range(20):  # the numbers of the files are used again
            assert await bridge.call(close_while_reading) == b""
    assert not caplog.records


@pytest.mark.real_time
@pytest.mark.hard_timeout(30)
async def test_a_reader_may_remove_or_replace_itself(either: str) -> None:
    read: list[bytes] = []
    ours, theirs = socket.socketpair()

    def once() -> None:
        read.append(b"once " + ours.recv(1))
        bridge.loop.add_reader(ours, then)

    def then() -> None:
        read.append(b"then " + ours.recv(1))
        assert bridge.loop.remove_reader(ours)
        assert not bridge.loop.remove_reader(ours)

    with ours, theirs:
        ours.setblocking(False)
        async with Bridge().open() as bridge:
            bridge.run(bridge.loop.add_reader, ours, once)
            theirs.send(b"123")
            await until(lambda: len(read) == 2)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            assert read == [b"once 1", b"then 2"]
            bridge.run(bridge.loop.add_reader, ours, then)
            await until(lambda: len(read) == 3)


@pytest.mark.real_time
@pytest.mark.hard_timeout(30)
async def test_a_busy_loop_and_a_socket_that_is_always_readable_leave_the_others_their_turns() -> None:
    called = read = 0
    busy = True
    at_turns: list[int] = []
    ours, theirs = socket.socketpair()

    def again() -> None:
        nonlocal called
        called += 1
        if busy:
            bridge.loop.call_soon(again)

    def look() -> None:
        nonlocal read
        read += 1

    with ours, theirs:
        theirs.send(b"never taken")
        async with Bridge().open() as bridge:
            bridge.run(bridge.loop.add_reader, ours, look)
            bridge.run(bridge.loop.call_soon, again)
            timed: list[bool] = []
            bridge.loop.call_later(0.01, timed.append, True)
            while not (len(at_turns) > 300 and read > 100 and timed):
                at_turns.append(called)
                await trio.lowlevel.checkpoint()
            bridge.loop.remove_reader(ours)
            called_at_end = called
            busy = False
    assert called_at_end > 10_000
    # A round of the loop's own task, and one of the socket's.
    assert max(later - earlier for earlier, later in itertools.pairwise(at_turns)) < 500


# -- exceptions ------------------------------------------------------------------------------------------------


@pytest.mark.real_time
@pytest.mark.hard_timeout(30)
async def test_a_failing_callback_is_logged_and_the_next_ones_run(
    either: str, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []
    ours, theirs = socket.socketpair()

    def fail_in_reader() -> None:
        ran.append(len(ours.recv(1)))
        raise LookupError("of a reader")

    with ours, theirs, caplog.at_level(logging.ERROR):
        theirs.send(b"12")
        async with Bridge().open() as bridge:
            bridge.loop.call_soon(lambda: 1 / 0)
            bridge.run(bridge.loop.call_later, 0, lambda: [][0])
            bridge.run(bridge.loop.add_reader, ours, fail_in_reader)
            await until(lambda: len(ran) == 2)  # it is watched on, as asyncio does
            bridge.loop.remove_reader(ours)
            await bridge.call(asyncio.sleep, 0.01)
    for name in ("ZeroDivisionError", "IndexError", "of a reader"):
        assert name in caplog.text


class OwnExit(SystemExit):
    """Of a program."""


@pytest.mark.parametrize("error", [SystemExit("leave"), OwnExit("leave"), KeyboardInterrupt("leave")], ids=repr)
@pytest.mark.parametrize(
    "place", ["callback", "timer", "reader", "what a reader makes ready", "what a call makes ready"]
)
def test_what_ends_the_program_lets_the_clients_say_goodbye_wherever_it_is_raised(
    error: BaseException, place: str
) -> None:
    said: list[str] = []

    def leave() -> None:
        raise error

    async def client() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            said.append("goodbye")

    async def main() -> None:
        async with Bridge().open() as bridge:
            bridge.at_end(lambda: said.append("told"))
            call = bridge.start(client)
            await trio.testing.wait_all_tasks_blocked()
            loop = bridge.loop
            if place == "callback":
                loop.call_soon(leave)
            elif place == "timer":
                loop.call_later(0.01, leave)
            elif place == "reader":
                bridge.run(loop.add_reader, ours, leave)
            elif place == "what a reader makes ready":
                bridge.run(loop.add_reader, ours, lambda: loop.call_soon(leave))
            else:
                bridge.run(loop.call_soon, leave)
            with trio.fail_after(20):
                with trio.CancelScope(shield=True), pytest.raises(trio.ClosedResourceError):
                    await call.wait()
                await trio.sleep_forever()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"1")
        with pytest.raises(BaseExceptionGroup) as caught:
            trio.run(main)
    assert caught.value.subgroup(type(error))
    assert said == ["goodbye", "told"]


def test_what_ends_the_program_in_a_call_from_trio_is_its_caller_s() -> None:
    def leave() -> None:
        raise SystemExit("leave")

    async def main() -> None:
        async with Bridge().open() as bridge:
            with pytest.raises(SystemExit):
                bridge.run(leave)
            assert await bridge.call(lambda: asyncio.sleep(0, "goes on")) == "goes on"

    trio.run(main)


@pytest.mark.parametrize("place", ["callback", "call", "what a call makes ready", "timer"])
def test_an_interrupt_breaks_nothing_off_in_the_loop(place: str) -> None:
    ran: list[str] = []

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        ran.append("to its end")

    async def main() -> None:
        async with Bridge().open() as bridge:
            with pytest.raises(KeyboardInterrupt):
                if place == "callback":
                    bridge.loop.call_soon(interrupted)
                elif place == "call":
                    bridge.run(interrupted)
                elif place == "timer":
                    bridge.loop.call_later(0.01, interrupted)
                else:
                    bridge.run(bridge.loop.call_soon, interrupted)
                await trio.sleep(20)
            assert ran == ["to its end"]
            assert await bridge.call(lambda: asyncio.sleep(0, "goes on")) == "goes on"

    trio.run(main)


# -- the end ---------------------------------------------------------------------------------------------------


async def test_closing_runs_what_is_ready_and_ends_tasks_and_drops_timers(either: str) -> None:
    ran: list[str] = []

    async def task() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ran.append("task ended")

    async def in_trio() -> None:
        try:
            await trio.sleep(1000)
        finally:
            ran.append("task of trio's ended")

    async with Bridge().open() as bridge:
        loop = bridge.loop
        bridge.start(task)
        inside: Any = loop
        inside.run_trio_task(in_trio)
        await trio.testing.wait_all_tasks_blocked()
        loop.call_later(5, ran.append, "timer")
        bridge.at_end(lambda: ran.append("told"))
        loop.call_soon(ran.append, "callback")
    assert ran == ["callback", "task ended", "told", "task of trio's ended"]
    with pytest.raises(RuntimeError):
        loop.call_soon(print)
    with pytest.raises(RuntimeError):
        loop.call_later(1, print)
    with pytest.raises(trio.ClosedResourceError):
        bridge.run(print)


async def test_a_loop_that_is_stopped_in_a_call_stops_in_its_own_task() -> None:
    """What it raises to stop is for that, and not for who happens to run callbacks."""
    ran: list[str] = []

    def stop() -> None:
        bridge.loop.call_soon(bridge.loop.stop)
        bridge.loop.call_soon(ran.append, "given before")

    async with trio_asyncio.open_loop() as loop:
        bridge = Bridge()
        bridge._loop = loop
        bridge._pump = quicken(loop, trio_asyncio.current_loop, AsyncHandle, print)
        await trio.testing.wait_all_tasks_blocked()
        bridge.run(stop)
        await loop.wait_stopped()
    assert ran == ["given before"]


async def test_a_cancelled_scope_around_does_not_end_the_callbacks(either: str) -> None:
    ran: list[int] = []

    async def goodbye() -> None:
        for number in range(300):
            await asyncio.sleep(0.01 * (number % 2))
            ran.append(number)

    with trio.CancelScope() as scope:
        async with Bridge().open() as bridge:
            scope.cancel()
            assert await bridge.try_call(60, goodbye)
    assert ran == list(range(300))


# -- other releases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["_q_send", "_timers", "_main_loop_one", "_stop_wait"])
async def test_a_loop_that_looks_different_is_left_as_it_is(missing: str) -> None:
    class Different:
        def __init__(self, loop: object) -> None:
            self._loop = loop

        def __getattr__(self, name: str) -> object:
            if name == missing:
                raise AttributeError(name)
            return getattr(self._loop, name)

    async with trio_asyncio.open_loop() as loop:
        different: Any = Different(loop)
        assert quicken(different, trio_asyncio.current_loop, AsyncHandle, print) is None
        assert list(vars(different)) == ["_loop"]
        assert quicken(loop, trio_asyncio.current_loop, asyncio.Handle, print) is None  # or its handles do
        assert quicken(loop, trio_asyncio.current_loop, None, print) is None


async def test_a_release_without_those_handles_can_be_imported_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio_asyncio._handles", None)  # importing from it fails
    name = "famulus.kafka.bridge"
    monkeypatch.delitem(sys.modules, name)
    fresh = importlib.import_module(name)
    try:
        assert fresh is not bridge_module
        assert fresh.AsyncHandle is None
        async with fresh.Bridge().open() as bridge:
            assert await bridge.call(lambda: asyncio.sleep(1, "works")) == "works"
            assert bridge.run(lambda: "works") == "works"
    finally:
        sys.modules["famulus.kafka"].bridge = bridge_module  # type: ignore[attr-defined]
