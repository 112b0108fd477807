"""Virtual time: it jumps when nothing else can happen, and never past work that is under way."""

import threading
import time
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from famulus.testing import VirtualClock


async def test_an_hour_of_sleep_takes_no_time() -> None:
    began = time.perf_counter()
    await trio.sleep(3600)
    assert trio.current_time() == 3600.0
    assert time.perf_counter() - began < 5


async def test_time_stands_still_while_tasks_can_run() -> None:
    for _ in range(100):
        await trio.lowlevel.checkpoint()
    assert trio.current_time() == 0.0


async def test_deadlines_come_in_their_order() -> None:
    seen: list[float] = []

    async def nap(seconds: float) -> None:
        await trio.sleep(seconds)
        seen.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for seconds in (0.3, 0.1, 0.2):
            nursery.start_soon(nap, seconds)
    assert seen == [0.1, 0.2, 0.3]


def test_mock_clock_jumps_while_a_thread_runs_and_ours_does_not() -> None:
    async def thread_against_deadline(job: Callable[[], object]) -> tuple[bool, float]:
        with trio.move_on_after(30) as scope:
            await trio.to_thread.run_sync(job, abandon_on_cancel=True)
        return scope.cancelled_caught, trio.current_time()

    # Ends when its caller has left, so that the length of a sleep plays no part.
    left = threading.Event()
    mock = trio.testing.MockClock(autojump_threshold=0)
    try:
        assert trio.run(thread_against_deadline, lambda: left.wait(20), clock=mock) == (True, 30.0)
    finally:
        left.set()
    assert trio.run(thread_against_deadline, lambda: time.sleep(0.1), clock=VirtualClock()) == (False, 0.0)


async def test_after_the_thread_time_goes_on() -> None:
    await trio.to_thread.run_sync(time.sleep, 0.01)
    await trio.sleep(5)
    assert trio.current_time() == 5.0


async def test_it_waits_for_several_threads_and_wakes_without_polling() -> None:
    instrument = CountWakeups()
    trio.lowlevel.add_instrument(instrument)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 7)
        nursery.start_soon(trio.to_thread.run_sync, time.sleep, 0.05)
        nursery.start_soon(trio.to_thread.run_sync, time.sleep, 0.1)
        await trio.sleep(3)
        assert trio.current_time() == 3.0
    trio.lowlevel.remove_instrument(instrument)
    assert trio.current_time() == 7.0
    assert instrument.waits < 30


class CountWakeups(trio.abc.Instrument):
    waits = 0

    def before_io_wait(self, timeout: float) -> None:
        self.waits += 1


async def test_whoever_waits_for_all_tasks_to_block_comes_first() -> None:
    seen: list[str] = []

    async def settled(cushion: float) -> None:
        await wait_all_tasks_blocked(cushion)
        seen.append(f"blocked {cushion} at {trio.current_time()}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(settled, 0.0)
        nursery.start_soon(settled, 0.02)
        await trio.sleep(1)
        seen.append("slept")
    assert seen == ["blocked 0.0 at 0.0", "blocked 0.02 at 0.0", "slept"]


async def test_a_call_from_another_thread_is_served_before_a_jump(virtual_clock: VirtualClock) -> None:
    token = trio.lowlevel.current_trio_token()
    called: list[float] = []

    def thread() -> None:
        time.sleep(0.05)
        trio.from_thread.run_sync(lambda: called.append(trio.current_time()), trio_token=token)
        trio.from_thread.run_sync(released.set, trio_token=token)

    released = trio.Event()
    outside = threading.Thread(target=thread)  # not one of trio's: the clock has to be told
    with virtual_clock.hold():
        outside.start()
        with trio.fail_after(10):
            await released.wait()
    outside.join()
    assert called == [0.0]


async def test_holds_nest(virtual_clock: VirtualClock) -> None:
    with virtual_clock.hold(), virtual_clock.hold():
        assert "held 2x" in repr(virtual_clock)
    await trio.sleep(1)
    assert repr(virtual_clock) == "<VirtualClock at 1.000000 s>"


async def test_a_jump_by_hand(virtual_clock: VirtualClock) -> None:
    with trio.move_on_after(5) as scope:
        virtual_clock.jump(6)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    with pytest.raises(ValueError, match="backwards"):
        virtual_clock.jump(-1)


async def test_real_input_is_not_lost_while_time_jumps() -> None:
    left, right = trio.socket.socketpair()
    with left, right:
        for number in range(20):
            await left.send(bytes([number]))
            with trio.fail_after(1000):
                assert await right.recv(1) == bytes([number])
            await trio.sleep(1)
    assert trio.current_time() == 20.0


def test_a_clock_used_again_goes_on_where_it_stood() -> None:
    clock = VirtualClock()
    trio.run(trio.sleep, 2, clock=clock)
    trio.run(trio.sleep, 3, clock=clock)
    assert clock.current_time() == 5.0
