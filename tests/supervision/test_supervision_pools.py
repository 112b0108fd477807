"""Pools: any number of alike children from one spec."""

import gc
import tracemalloc
from math import inf

import pytest
import trio

from famulus.supervision import (
    Backoff,
    ChildHandle,
    Counts,
    CrashingSupervisor,
    OneForAllSupervisor,
    OneForOneSupervisor,
    SupervisorStopping,
    UnknownChild,
    child,
    current_child,
    open_supervisor,
    pool,
    trap_stop,
)

STEADY = OneForOneSupervisor(max_restarts=inf, backoff=Backoff(min=1.0, max=1.0, factor=1.0, jitter=0.0))


class Boom(Exception):
    pass


async def session(*args: object) -> None:
    await trio.sleep_forever()


async def test_the_arguments_of_a_start_come_after_those_of_the_template() -> None:
    seen: list[tuple[object, ...]] = []

    async def notes(*args: object) -> None:
        seen.append(args)
        await trio.sleep_forever()

    async with open_supervisor() as sup:
        sessions = await sup.start(pool(child(notes, "database"), name="sessions"))
        first = await sessions.supervisor.start_child("ada", 1)
        second = await sessions.supervisor.start_child()
        assert (first.label, second.label) == ("root/sessions/notes[1]", "root/sessions/notes[2]")
        assert list(sessions.supervisor.children) == ["notes[1]", "notes[2]"]
    assert seen == [("database", "ada", 1), ("database",)]


async def test_each_child_restarts_for_itself_with_its_own_arguments() -> None:
    runs: list[str] = []

    async def crashes_once(name: str) -> None:
        runs.append(name)
        if runs.count(name) == 1 and name == "b":
            raise Boom
        await trio.sleep_forever()

    async with open_supervisor() as sup:
        sessions = await sup.start(pool(crashes_once, name="sessions", strategy=STEADY))
        for name in "abc":
            await sessions.supervisor.start_child(name)
        await trio.sleep(2)
        assert [handle.restarts for handle in sessions.supervisor.children.values()] == [0, 1, 0]
    assert runs == ["a", "b", "c", "b"]


@pytest.mark.parametrize("restart", ["transient", "temporary"])
async def test_a_child_that_has_ended_and_will_not_run_again_is_forgotten(restart: str) -> None:
    template = child(trio.sleep, 1, name="job", restart=restart)  # type: ignore[arg-type]  # one of the literals
    async with open_supervisor() as sup:
        jobs = (await sup.start(pool(template, name="jobs"))).supervisor
        handle = await jobs.start_child()
        await trio.sleep(2)
        assert (handle.state, handle.gone, dict(jobs.children)) == ("finished", True, {})
        with pytest.raises(UnknownChild):
            await handle.restart()


async def test_terminate_removes_a_pool_child_and_restart_of_a_live_one_keeps_it() -> None:
    async with open_supervisor() as sup:
        sessions = (await sup.start(pool(session, name="sessions"))).supervisor
        one, two = await sessions.start_child(), await sessions.start_child()
        await one.restart()
        assert (one.state, one.incarnation, len(sessions.children)) == ("running", 2, 2)
        await one.terminate()
        assert (one.state, one.gone, list(sessions.children.values())) == ("stopped", True, [two])
        third = await sessions.start_child()
        assert third.name == "session[3]"  # a name is not used again


async def test_a_failed_start_is_raised_bare_and_the_child_forgotten() -> None:
    async def fails(*, task_status: trio.TaskStatus[None]) -> None:
        raise Boom("no")

    async with open_supervisor() as sup:
        sessions = (await sup.start(pool(fails, name="sessions"))).supervisor
        with pytest.raises(Boom, match="no"):
            await sessions.start_child()
        assert (dict(sessions.children), sessions.state) == ({}, "running")


async def slow(handles: list[float], *, task_status: trio.TaskStatus[None]) -> None:
    handles.append(trio.current_time())
    await trio.sleep(2)
    task_status.started()
    await trio.sleep_forever()


async def test_one_child_starts_at_a_time_in_the_order_of_the_calls() -> None:
    began: list[float] = []
    opened = trio.current_time()
    async with open_supervisor() as sup:
        sessions = (await sup.start(pool(slow, name="sessions"))).supervisor
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(sessions.start_child, began)
    assert [time - opened for time in began] == [0, 2, 4]


async def test_a_cancelled_start_gives_its_turn_to_the_next() -> None:
    began: list[float] = []
    opened = trio.current_time()
    async with open_supervisor() as sup:
        sessions = (await sup.start(pool(slow, name="sessions"))).supervisor
        async with trio.open_nursery() as nursery:

            async def impatient(seconds: float) -> None:
                with trio.move_on_after(seconds):
                    await sessions.start_child(began)

            nursery.start_soon(impatient, 1)
            await trio.sleep(0.1)
            nursery.start_soon(impatient, 0.5)  # cancelled while it waits for its turn
            await trio.sleep(0.1)
            nursery.start_soon(impatient, inf)
        assert len(sessions.children) == 1
    assert [time - opened for time in began] == [0, 1]


async def test_those_that_wait_for_their_turn_when_the_pool_stops_are_told() -> None:
    told: list[str] = []
    async with trio.open_nursery() as nursery, open_supervisor() as sup:
        sessions = (await sup.start(pool(slow, name="sessions"))).supervisor

        async def starter() -> None:
            with pytest.raises(SupervisorStopping):
                await sessions.start_child([])
            told.append("told")

        for _ in range(3):
            nursery.start_soon(starter)
        await trio.sleep(1)
    assert told == ["told"] * 3


async def test_a_child_that_would_wait_for_its_own_pool_is_told_so() -> None:
    async def greedy(*, task_status: trio.TaskStatus[None]) -> None:
        await pools[0].supervisor.start_child()
        task_status.started()

    pools: list[ChildHandle] = []
    async with open_supervisor() as sup:
        pools.append(await sup.start(pool(greedy, name="sessions")))
        with pytest.raises(RuntimeError, match=r"call it after task_status\.started"):
            await pools[0].supervisor.start_child()


async def test_a_pool_stops_all_its_children_at_once() -> None:
    async def drains() -> None:
        await trap_stop().wait()
        await trio.sleep(3)

    async with open_supervisor() as sup:
        sessions = (await sup.start(pool(drains, name="sessions"))).supervisor
        for _ in range(100):
            await sessions.start_child()
        await trio.lowlevel.checkpoint()
        began = trio.current_time()
    assert trio.current_time() - began == 3


async def test_a_restarted_pool_begins_empty_and_counts_its_names_anew() -> None:
    limit = OneForOneSupervisor(max_restarts=0)

    async def crashes() -> None:
        await trio.sleep(1)
        raise Boom

    async with open_supervisor(STEADY) as sup:
        node = await sup.start(pool(crashes, name="sessions", strategy=limit))
        first = node.supervisor
        for _ in range(3):
            await first.start_child()
        await trio.sleep(2.5)
        assert (first.state, node.restarts, dict(node.supervisor.children)) == ("failed", 1, {})


async def test_the_incidents_of_all_children_count_together() -> None:
    async def crashes() -> None:
        await trio.sleep(current_child().incarnation * 1000)
        raise Boom

    three = OneForOneSupervisor(max_restarts=3, within=10, backoff=Backoff(min=1, max=1, jitter=0))
    async with open_supervisor(STEADY) as sup:
        node = await sup.start(pool(crashes, name="sessions", strategy=three))
        for _ in range(4):
            await node.supervisor.start_child()
        await trio.sleep(1000.5)
        assert node.state == "backoff"


async def test_a_pool_takes_its_own_kind_of_start_only() -> None:
    async with open_supervisor() as sup:
        with pytest.raises(TypeError, match=r"supervisor 'root' is no pool"):
            await sup.start_child()
        sessions = (await sup.start(pool(session, name="sessions"))).supervisor
        with pytest.raises(TypeError, match=r"'root/sessions' is a pool.*start_child\(\*args\)"):
            await sessions.start(child(session))


def test_a_pools_declaration_is_checked_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="pool 'x': OneForAllSupervisor restarts siblings"):
        pool(session, name="x", strategy=OneForAllSupervisor)
    with pytest.raises(ValueError, match="'session' is significant"):
        pool(child(session, restart="temporary", significant=True), name="x")
    with pytest.raises(ValueError, match="pool 'x': auto_shutdown='any_significant' means nothing"):
        pool(session, name="x", strategy=OneForOneSupervisor(auto_shutdown="any_significant"))
    with pytest.raises(TypeError, match="expected an async function"):
        pool(3, name="x")  # type: ignore[arg-type]  # what is tested
    assert pool(session, name="x", strategy=CrashingSupervisor).stop == "together"


async def test_ten_thousand_children_come_crash_and_go_without_a_look_at_their_siblings() -> None:
    """Each step of one child touches as few siblings beside 10,000 of them as beside one: none."""
    gates: dict[int, trio.Event] = {}

    async def crashes_at_its_gate(number: int) -> None:
        gates[number] = trio.Event()
        await gates[number].wait()
        raise Boom

    async with open_supervisor() as sup:
        sessions = (await sup.start(pool(crashes_at_its_gate, name="sessions", strategy=STEADY))).supervisor
        handles = [await sessions.start_child(number) for number in range(10_000)]
        assert sessions.counts() == Counts(specs=1, active=10_000, supervisors=0, workers=10_000)

        class Untouchable(dict[str, ChildHandle]):
            def _refuse(self, *_: object) -> None:
                raise AssertionError("somebody looks at all siblings")

            __iter__ = keys = values = items = _refuse  # type: ignore[assignment]  # what is tested

        sessions._children = Untouchable(sessions._children)
        gates[5000].set()
        await trio.sleep(2)
        assert (handles[5000].restarts, handles[5000].state) == (1, "running")
        await handles[7000].terminate()
        await handles[8000].restart()
        await sessions.start_child(10_000)
        assert len(sessions._children) == 10_000
        sessions._children = dict(dict.items(sessions._children))
    assert {handle.state for handle in handles} == {"stopped"}


async def test_a_pool_child_costs_less_than_eight_kibibytes() -> None:
    async with open_supervisor() as sup:
        sessions = (await sup.start(pool(session, name="sessions"))).supervisor
        await sessions.start_child()
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(1000):
                await sessions.start_child()
            gc.collect()
            each = (tracemalloc.get_traced_memory()[0] - before) / 1000
        finally:
            tracemalloc.stop()
    assert each < 8 * 1024  # its task included


async def test_a_pool_that_many_have_passed_through_keeps_nothing_of_them() -> None:
    async with open_supervisor() as sup:
        sessions = (await sup.start(pool(child(trio.lowlevel.checkpoint, restart="temporary"), name="s"))).supervisor
        for _ in range(2000):
            await sessions.start_child()
        await trio.sleep(1)
        gc.collect()
        kept = [kept for kept in gc.get_objects() if isinstance(kept, ChildHandle) and kept._supervisor is sessions]
    assert len(kept) == 0
