"""Children added, terminated, restarted and deleted at run time; auto-shutdown; the tree as data."""

import pytest
import trio

from famulus.supervision import (
    AutoShutdown,
    Backoff,
    ChildActive,
    Counts,
    DuplicateChild,
    OneForOneSupervisor,
    StartFailed,
    SupervisorStopping,
    TreeNode,
    UnknownChild,
    child,
    current_child,
    open_supervisor,
    supervisor,
    trap_stop,
)

QUIET = Backoff(min=1.0, max=1.0, factor=1.0, jitter=0.0)
STEADY = OneForOneSupervisor(backoff=QUIET)


class Boom(Exception):
    pass


async def works() -> None:
    await trio.sleep_forever()


async def ready_after(seconds: float, *, task_status: trio.TaskStatus[str]) -> None:
    await trio.sleep(seconds)
    task_status.started("up")
    await trio.sleep_forever()


async def test_start_returns_when_the_child_is_ready_with_its_value() -> None:
    start = trio.current_time()
    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(ready_after, 3))
        assert trio.current_time() - start == 3
        assert (handle.state, handle.value) == ("running", "up")


async def test_declared_children_start_in_order_each_after_the_one_before_is_ready() -> None:
    began: list[tuple[str, float]] = []
    start = trio.current_time()

    async def slow(name: str, *, task_status: trio.TaskStatus[None]) -> None:
        began.append((name, trio.current_time() - start))
        await trio.sleep(2)
        task_status.started()
        await trio.sleep_forever()

    nested = supervisor(STEADY, *(child(slow, name, name=name) for name in "bc"), name="nested")
    async with open_supervisor(STEADY, child(slow, "a", name="a"), nested, child(slow, "d", name="d")):
        assert trio.current_time() - start == 8
    assert began == [("a", 0), ("b", 2), ("c", 4), ("d", 6)]


async def test_a_failed_start_is_raised_bare_and_the_child_forgotten() -> None:
    async def fails(*, task_status: trio.TaskStatus[None]) -> None:
        raise Boom("no")

    async with open_supervisor(STEADY) as sup:
        with pytest.raises(Boom, match="no"):
            await sup.start(child(fails))
        assert not sup.children
        assert sup.incidents == ()


async def test_returning_before_started_is_a_failed_start() -> None:
    async def returns(*, task_status: trio.TaskStatus[None]) -> None:
        pass

    async with open_supervisor(STEADY) as sup:
        with pytest.raises(StartFailed, match="child 'root/returns' returned before"):
            await sup.start(child(returns))


async def test_a_failed_start_of_a_nested_supervisor_is_its_childs_failure() -> None:
    async def fails(*, task_status: trio.TaskStatus[None]) -> None:
        raise Boom("no")

    async with open_supervisor(STEADY) as sup:
        with pytest.raises(Boom, match="no"):
            await sup.start(supervisor(STEADY, child(works), child(fails), name="nested"))
        assert not sup.children


async def test_calling_started_twice_is_a_crash() -> None:
    async def twice(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        task_status.started()

    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(twice))
        await trio.sleep(0.5)
        assert "started() more than once" in str(handle.last_reason)


async def test_cancelling_a_start_cancels_the_child() -> None:
    async with open_supervisor(STEADY) as sup:
        with trio.move_on_after(1) as scope:
            await sup.start(child(ready_after, 3))
        assert scope.cancelled_caught
        assert not sup.children


async def test_a_start_under_way_when_the_supervisor_stops_says_so() -> None:
    refused: list[bool] = []
    async with trio.open_nursery() as nursery, open_supervisor(STEADY) as sup:

        async def starter() -> None:
            with pytest.raises(SupervisorStopping):
                await sup.start(child(ready_after, 10))
            refused.append(True)

        nursery.start_soon(starter)
        await trio.sleep(1)
    assert refused == [True]


async def test_a_name_in_use_and_a_stopping_supervisor_are_refused() -> None:
    async def slow_to_stop() -> None:
        await trap_stop().wait()
        await trio.sleep(3)

    async with open_supervisor(STEADY) as sup:
        await sup.start(child(works, name="x"))
        await sup.start(child(slow_to_stop))
        with pytest.raises(DuplicateChild, match="supervisor 'root' has a child 'x' already"):
            await sup.start(child(works, name="x"))
        sup.request_stop()
        with pytest.raises(SupervisorStopping, match="'root' is stopping"):
            await sup.start(child(works, name="y"))
        await sup.wait()
        with pytest.raises(SupervisorStopping, match="'root' is stopped"):
            await sup.start(child(works, name="y"))


async def test_terminate_keeps_the_spec_restart_starts_it_again_and_delete_forgets_it() -> None:
    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(works))
        with pytest.raises(ChildActive, match="terminate it before"):
            await sup.delete("works")
        await handle.terminate()
        assert (handle.state, handle.alive) == ("stopped", False)
        await trio.sleep(100)
        assert handle.state == "stopped"
        await handle.terminate()  # once more is nothing
        await handle.restart()
        assert (handle.state, handle.incarnation, handle.restarts) == ("running", 2, 0)
        await handle.terminate()
        await sup.delete("works")
        assert not sup.children
        with pytest.raises(UnknownChild):
            await sup.delete("works")
        with pytest.raises(UnknownChild):
            await handle.restart()


async def test_restart_of_a_running_child_stops_it_first_and_never_overlaps() -> None:
    alive: list[int] = []
    most: list[int] = []

    async def counts() -> None:
        alive.append(1)
        most.append(len(alive))
        try:
            await trap_stop().wait()
            await trio.sleep(1)
        finally:
            alive.pop()

    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(counts))
        await handle.restart()
        await handle.restart()
        assert handle.incarnation == 3
    assert most == [1, 1, 1]


async def test_restarting_a_child_in_backoff_begins_at_once_with_a_fresh_backoff() -> None:
    runs: list[float] = []
    start = trio.current_time()

    async def crashes_once() -> None:
        runs.append(trio.current_time() - start)
        if len(runs) == 1:
            raise Boom
        await trio.sleep_forever()

    async with open_supervisor(OneForOneSupervisor(max_restarts=1, backoff=Backoff(min=50, max=50))) as sup:
        handle = await sup.start(child(crashes_once))
        await trio.sleep(5)
        await handle.restart()
        await trio.sleep(100)
    assert runs == [0, 5]


async def test_a_failed_restart_by_hand_is_raised_bare_and_leaves_the_child_stopped() -> None:
    runs: list[None] = []

    async def starts_once(*, task_status: trio.TaskStatus[None]) -> None:
        runs.append(None)
        if len(runs) > 1:
            raise Boom("not again")
        task_status.started()
        await trio.sleep_forever()

    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(starts_once))
        with pytest.raises(Boom, match="not again"):
            await handle.restart()
        await trio.sleep(100)
        assert (handle.state, len(runs)) == ("failed", 2)
        assert sup.children["starts_once"] is handle


async def test_a_terminated_temporary_child_is_forgotten_and_a_restarted_one_is_kept() -> None:
    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(works, restart="temporary"))
        await handle.restart()
        assert (handle.state, list(sup.children)) == ("running", ["works"])
        await handle.terminate()
        assert not sup.children


async def test_terminating_a_nested_supervisor_keeps_it_stopped_and_so_does_its_own_stop() -> None:
    async with open_supervisor(STEADY) as sup:
        node = await sup.start(supervisor(STEADY, child(works), name="nested"))
        nested = node.supervisor
        await nested.stop()
        await trio.sleep(100)
        assert (node.state, nested.state, sup.incidents) == ("stopped", "stopped", ())
        with pytest.raises(RuntimeError, match="'root/nested' does not run now"):
            _ = node.supervisor
        await node.restart()
        assert node.supervisor is not nested
        assert node.supervisor.children["works"].state == "running"


async def test_a_worker_has_no_supervisor() -> None:
    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(works))
        with pytest.raises(RuntimeError, match="'root/works' is a worker"):
            _ = handle.supervisor


async def test_current_child_is_the_innermost_one_in_its_subtasks_too() -> None:
    seen: list[str] = []

    async def looks() -> None:
        async def sub() -> None:
            seen.append(current_child().label)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sub)
        await trio.sleep_forever()

    async with open_supervisor(STEADY, supervisor(STEADY, child(looks), name="nested")):
        await trio.sleep(1)
    assert seen == ["root/nested/looks"]
    with pytest.raises(RuntimeError, match="not inside"):
        current_child()


@pytest.mark.parametrize(("auto", "ends_at"), [("any_significant", 1), ("all_significant", 4), ("never", None)])
async def test_auto_shutdown(auto: AutoShutdown, ends_at: float | None) -> None:
    significant = auto != "never"
    strategy = OneForOneSupervisor(backoff=QUIET, auto_shutdown=auto)
    start = trio.current_time()
    crashes: list[None] = []

    async def crashes_once_then_returns() -> None:
        if not crashes:
            crashes.append(None)
            raise Boom
        await trio.sleep(3)

    async with open_supervisor(strategy) as sup:
        await sup.start(child(works))
        await sup.start(child(trio.sleep, 1, name="short", restart="temporary", significant=significant))
        await sup.start(child(crashes_once_then_returns, restart="transient", significant=significant))
        await sup.start(child(trio.sleep, 0.5, name="plain", restart="transient"))
        with trio.move_on_after(50) as scope:
            await sup.wait()
        if ends_at is None:
            assert scope.cancelled_caught
        else:
            assert (sup.state, trio.current_time() - start) == ("stopped", ends_at)


async def test_terminating_a_significant_child_by_hand_does_not_shut_down() -> None:
    strategy = OneForOneSupervisor(auto_shutdown="any_significant")
    async with open_supervisor(strategy) as sup:
        handle = await sup.start(child(works, restart="transient", significant=True))
        await handle.terminate()
        await trio.sleep(1)
        assert sup.state == "running"


async def test_a_significant_child_is_refused_where_it_means_nothing() -> None:
    async with open_supervisor(STEADY) as sup:
        with pytest.raises(ValueError, match="'works' is significant"):
            await sup.start(child(works, restart="transient", significant=True))
        assert not sup.children


async def test_a_transient_nested_supervisor_that_shuts_itself_down_has_finished() -> None:
    inner = OneForOneSupervisor(auto_shutdown="any_significant")
    short = child(trio.sleep, 1, restart="transient", significant=True)
    async with open_supervisor(STEADY) as sup:
        node = await sup.start(supervisor(inner, short, child(works), name="job", restart="transient"))
        await trio.sleep(2)
        assert (node.state, sup.incidents) == ("finished", ())


async def test_counts_and_tree_tell_what_there_is() -> None:
    async def crashes_once() -> None:
        if current_child().incarnation == 1:
            raise Boom("bad\nvery bad")
        await trio.sleep_forever()

    nested = supervisor(STEADY, child(works), child(crashes_once), name="nested")
    async with open_supervisor(STEADY, nested, child(works), name="top") as sup:
        await trio.sleep(3)
        await sup.children["works"].terminate()
        assert sup.counts() == Counts(specs=2, active=1, supervisors=1, workers=1)
        works_node = TreeNode(name="works", kind="worker", state="running", uptime=3.0)
        crashed = TreeNode(
            name="crashes_once",
            kind="worker",
            state="running",
            restarts=1,
            uptime=2.0,
            last_reason="Boom: bad",
        )
        node = TreeNode(
            name="nested",
            kind="supervisor",
            strategy="OneForOneSupervisor",
            state="running",
            uptime=3.0,
            children=(works_node, crashed),
        )
        stopped = TreeNode(name="works", kind="worker", state="stopped")
        tree = sup.tree()
        assert tree == TreeNode(
            name="top",
            kind="supervisor",
            strategy="OneForOneSupervisor",
            state="running",
            children=(node, stopped),
        )
        assert [n.name for n in tree.walk()] == ["top", "nested", "works", "crashes_once", "works"]
        assert sup.children["nested"].supervisor.tree() == node
        assert repr(sup) == "<Supervisor 'top' OneForOneSupervisor running, 2 children>"
        assert repr(sup.children["nested"]) == "<ChildHandle 'top/nested' running #1, 0 restarts>"
