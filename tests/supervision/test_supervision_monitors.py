"""Monitors: a child's exits, as they happen, for whoever wants to know."""

import pytest
import trio

from famulus.supervision import (
    Backoff,
    ChildExit,
    OneForAllSupervisor,
    OneForOneSupervisor,
    child,
    current_child,
    monitor,
    open_supervisor,
    pool,
    supervisor,
)

QUIET = Backoff(min=1.0, max=1.0, factor=1.0, jitter=0.0)
STEADY = OneForOneSupervisor(backoff=QUIET)


class Boom(Exception):
    pass


async def crashes_twice() -> None:
    await trio.sleep(1)
    if current_child().incarnation < 3:
        raise Boom(current_child().incarnation)
    await trio.sleep_forever()


async def test_a_monitor_yields_each_exit_with_its_reason() -> None:
    start = trio.current_time()
    exits: list[ChildExit] = []
    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(crashes_twice, name="flaky"))
        async with monitor(handle) as watched:
            exits.append(await anext(watched))
            exits.append(await anext(watched))
            await trio.sleep(5)
            await handle.terminate()
            exits.append(await anext(watched))
    assert [(exit.time - start, exit.incarnation, repr(exit.reason)) for exit in exits] == [
        (1, 1, "Boom(1)"),
        (3, 2, "Boom(2)"),
        (8, 3, "None"),
    ]
    assert [(exit.state, exit.will_restart, exit.asked) for exit in exits] == [
        ("backoff", True, False),
        ("backoff", True, False),
        ("stopped", False, True),
    ]
    assert [str(exit) for exit in exits] == [
        "root/flaky #1: Boom: 1",
        "root/flaky #2: Boom: 2",
        "root/flaky #3: stopped",
    ]


async def test_it_ends_when_the_supervisor_has() -> None:
    seen: list[str] = []
    async with trio.open_nursery() as nursery, open_supervisor(STEADY) as sup:
        handle = await sup.start(child(crashes_twice))

        async def watch() -> None:
            async with monitor(handle) as exits:
                async for exit in exits:
                    seen.append(exit.state)
            seen.append("over")

        nursery.start_soon(watch)
        await trio.sleep(10)
    assert seen == ["backoff", "backoff", "stopped", "over"]


async def test_it_ends_when_the_child_is_forgotten_and_not_when_it_has_only_ended() -> None:
    async with open_supervisor(STEADY) as sup:
        kept = await sup.start(child(trio.sleep, 1, name="kept", restart="transient"))
        dropped = await sup.start(child(trio.sleep, 1, name="dropped", restart="temporary"))
        async with monitor(kept) as of_kept, monitor(dropped) as of_dropped:
            assert [exit.state async for exit in of_dropped] == ["finished"]
            assert (await anext(of_kept)).state == "finished"
            with trio.move_on_after(10) as scope:
                await anext(of_kept)
            assert scope.cancelled_caught
            await kept.restart()  # it may run again, so it is not gone
            await trio.sleep(2)
            await sup.delete("kept")
            assert [exit.incarnation async for exit in of_kept] == [2]


async def test_a_monitor_of_a_child_that_is_gone_already_is_over_at_once() -> None:
    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(trio.sleep_forever, restart="temporary"))
        await handle.terminate()
        async with monitor(handle) as exits:
            assert [exit async for exit in exits] == []


async def test_a_child_may_have_several_monitors_and_each_sees_every_exit() -> None:
    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(crashes_twice))
        async with monitor(handle) as first, monitor(handle) as second:
            await trio.sleep(2)
            async with monitor(handle) as third:
                await trio.sleep(5)
                assert [(await anext(m)).incarnation for m in (first, second, third)] == [1, 1, 2]
                assert [(await anext(m)).incarnation for m in (first, second)] == [2, 2]
        assert handle._monitors == ()


async def test_a_slow_reader_loses_the_oldest_exits_and_is_told_how_many() -> None:
    async def crashes() -> None:
        await trio.sleep(0.1)
        raise Boom(current_child().incarnation)

    many = OneForOneSupervisor(max_restarts=float("inf"), backoff=QUIET)
    async with open_supervisor(many) as sup:
        handle = await sup.start(child(crashes))
        async with monitor(handle, buffer=3) as exits:
            await trio.sleep(10.5)  # one crash each 1.1 s
            assert (exits.missed, handle.incarnation) == (7, 11)
            assert [(await anext(exits)).incarnation for _ in range(3)] == [8, 9, 10]


async def test_a_cancelled_wait_loses_no_exit() -> None:
    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(crashes_twice))
        async with monitor(handle) as exits:
            for _ in range(9):
                with trio.move_on_after(0.1):
                    await anext(exits)
            assert (await anext(exits)).incarnation == 1


async def test_siblings_that_a_group_restart_stops_are_said_to_run_again() -> None:
    async def crashes_once() -> None:
        await trio.sleep(1)
        if current_child().incarnation == 1:
            raise Boom
        await trio.sleep_forever()

    async with open_supervisor(OneForAllSupervisor(backoff=QUIET)) as sup:
        sibling = await sup.start(child(trio.sleep_forever, name="sibling"))
        await sup.start(child(crashes_once))
        async with monitor(sibling) as exits:
            exit = await anext(exits)
            assert (exit.asked, exit.reason, exit.will_restart) == (True, None, True)
            await trio.sleep(0.5)
            assert sibling.state == "backoff"
            await trio.sleep(1)
            assert (sibling.state, sibling.incarnation) == ("running", 2)


async def test_the_last_exit_of_a_child_whose_supervisor_gives_up_says_that_it_failed() -> None:
    async def crashes() -> None:
        await trio.sleep(1)
        raise Boom

    inner = supervisor(OneForOneSupervisor(max_restarts=0), child(crashes), name="inner")
    async with open_supervisor(STEADY) as sup:
        node = await sup.start(inner)
        async with monitor(node.supervisor.children["crashes"]) as of_child, monitor(node) as of_supervisor:
            assert [(exit.state, exit.will_restart) async for exit in of_child] == [("failed", False)]
            exit = await anext(of_supervisor)
            assert (type(exit.reason).__name__, exit.will_restart) == ("SupervisorFailed", True)


async def test_a_pools_children_can_be_monitored() -> None:
    async with open_supervisor(STEADY) as sup:
        jobs = (await sup.start(pool(child(trio.sleep, 2, restart="temporary"), name="jobs"))).supervisor
        async with monitor(await jobs.start_child()) as exits:
            assert [str(exit) async for exit in exits] == ["root/jobs/sleep[1] #1: returned"]


async def test_a_monitor_tells_its_state() -> None:
    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(trio.sleep_forever, name="x"))
        async with monitor(handle) as exits:
            assert repr(exits) == "<Monitor of 'root/x' open, 0 exits to read, 0 missed>"
        assert repr(exits) == "<Monitor of 'root/x' over, 0 exits to read, 0 missed>"
        with pytest.raises(ValueError, match="buffer=0: expected at least 1"):
            monitor(handle, buffer=0)
