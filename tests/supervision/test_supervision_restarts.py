"""One-for-one: who is restarted, when, how often, and how a supervisor gives up."""

import contextvars
import logging
from itertools import pairwise
from math import inf

import pytest
import trio

from famulus.supervision import (
    Backoff,
    ChildHandle,
    CrashingSupervisor,
    OneForOneSupervisor,
    Restart,
    StartFailed,
    Supervisor,
    SupervisorFailed,
    child,
    current_child,
    open_supervisor,
    supervisor,
)

STEADY = Backoff(min=1.0, max=1.0, factor=1.0, jitter=0.0)


class Boom(Exception):
    pass


class Flaky:
    """Crashes ``times`` times, each after ``after`` seconds, then runs for ever; notes when it began."""

    def __init__(self, times: float = inf, after: float = 0.0) -> None:
        self.times = times
        self.after = after
        self.began: list[float] = []

    async def __call__(self) -> None:
        self.began.append(trio.current_time())
        await trio.sleep(self.after)
        if len(self.began) <= self.times:
            raise Boom(len(self.began))
        await trio.sleep_forever()


async def test_the_failed_child_runs_again_and_its_sibling_never_stops() -> None:
    start = trio.current_time()
    flaky, steady = Flaky(times=2), Flaky(times=0)
    async with open_supervisor(OneForOneSupervisor(backoff=STEADY)) as sup:
        handle = await sup.start(child(flaky, name="flaky"))
        sibling = await sup.start(child(steady, name="steady"))
        await trio.sleep(10)
        assert [t - start for t in flaky.began] == [0, 1, 2]
        assert (handle.state, handle.incarnation, handle.restarts) == ("running", 3, 2)
        assert isinstance(handle.last_reason, Boom)
        assert (sibling.state, sibling.incarnation, len(steady.began)) == ("running", 1, 1)
        assert [(i.child, i.incarnation) for i in handle.incidents] == [("flaky", 1), ("flaky", 2)]
        assert sibling.incidents == ()


async def test_the_backoff_doubles_and_begins_again_after_a_quiet_time() -> None:
    backoff = Backoff(min=1, max=100, jitter=0, reset_after=50)
    began: list[float] = []

    async def crash_at_once_thrice_then_run_a_minute() -> None:
        began.append(trio.current_time())
        await trio.sleep(60 if len(began) == 4 else 0)
        if len(began) < 6:
            raise Boom
        await trio.sleep_forever()

    async with open_supervisor(OneForOneSupervisor(max_restarts=inf, backoff=backoff)) as sup:
        await sup.start(child(crash_at_once_thrice_then_run_a_minute))
        await trio.sleep(200)
    assert [b - a for a, b in pairwise(began)] == [1, 2, 4, 61, 2]


async def test_a_child_in_backoff_says_so() -> None:
    async with open_supervisor(OneForOneSupervisor(backoff=STEADY)) as sup:
        handle = await sup.start(child(Flaky(times=1), name="x"))
        await trio.sleep(0.5)
        assert (handle.state, handle.alive, handle.incarnation) == ("backoff", False, 2)
        await trio.sleep(1)
        assert (handle.state, handle.alive) == ("running", True)


@pytest.mark.parametrize(("restart", "runs"), [("permanent", 4), ("transient", 1), ("temporary", 1)])
async def test_only_a_permanent_child_is_restarted_after_a_return(restart: Restart, runs: int) -> None:
    began: list[None] = []

    async def returns() -> None:
        began.append(None)

    async with open_supervisor(OneForOneSupervisor(backoff=STEADY)) as sup:
        handle = await sup.start(child(returns, restart=restart))
        await trio.sleep(3.5)
        assert len(began) == runs
        if restart != "permanent":
            assert handle.state == "finished"
        assert ("returns" in sup.children) is (restart != "temporary")


@pytest.mark.parametrize(("restart", "runs"), [("permanent", 4), ("transient", 4), ("temporary", 1)])
async def test_a_temporary_child_alone_is_not_restarted_after_a_crash(restart: Restart, runs: int) -> None:
    flaky = Flaky()
    async with open_supervisor(OneForOneSupervisor(backoff=STEADY)) as sup:
        handle = await sup.start(child(flaky, name="flaky", restart=restart))
        await trio.sleep(3.5)
        assert len(flaky.began) == runs
        if restart == "temporary":
            assert handle.state == "failed"
            assert isinstance(handle.last_reason, Boom)
            assert not sup.children
            assert sup.incidents == ()


async def test_too_many_incidents_make_the_supervisor_give_up_with_their_history() -> None:
    flaky, stopped_at = Flaky(), [0.0]
    trees: list[Supervisor] = []

    async def sibling() -> None:
        try:
            await trio.sleep_forever()
        finally:
            stopped_at[0] = trio.current_time()

    start = trio.current_time()
    with pytest.raises(ExceptionGroup) as info:
        async with open_supervisor(OneForOneSupervisor(max_restarts=3, within=60, backoff=STEADY), name="root") as sup:
            trees.append(sup)
            await sup.start(child(sibling))
            await sup.start(child(flaky, name="flaky"))
            await trio.sleep_forever()
    assert info.value.message == "supervision tree 'root' failed"
    [failure] = info.value.exceptions
    assert isinstance(failure, SupervisorFailed)
    assert (failure.name, len(flaky.began)) == ("root", 4)
    assert [i.time - start for i in failure.incidents] == [0, 1, 2, 3]
    assert failure.__cause__ is failure.incidents[-1].reason
    assert stopped_at[0] - start == 3
    text = str(failure)
    assert "supervisor 'root' gave up: 4 incidents within 60 s, and max_restarts is 3" in text
    assert "-3.000 s  flaky #1: Boom: 1" in text
    assert "Look at the last failure first" in text
    [sup] = trees
    assert (sup.state, [handle.state for handle in sup.children.values()]) == ("failed", ["stopped", "failed"])


async def test_the_window_slides() -> None:
    flaky = Flaky(after=10)  # one incident each 11 s, so never more than 3 within 30 s
    async with open_supervisor(OneForOneSupervisor(max_restarts=3, within=30, backoff=STEADY)) as sup:
        await sup.start(child(flaky, name="flaky"))
        await trio.sleep(1000)
    assert len(flaky.began) == 91


async def test_max_restarts_zero_gives_up_at_the_first_crash() -> None:
    flaky = Flaky()
    with pytest.raises(ExceptionGroup) as info:
        async with open_supervisor(OneForOneSupervisor(max_restarts=0)) as sup:
            await sup.start(child(flaky, name="flaky"))
            await trio.sleep_forever()
    assert info.group_contains(SupervisorFailed)
    assert len(flaky.began) == 1


async def test_progress_clears_the_backoff_and_the_window() -> None:
    began: list[float] = []

    async def works_then_crashes() -> None:
        began.append(trio.current_time())
        await trio.sleep(1)
        current_child().progressed = True
        raise Boom

    backoff = Backoff(min=1, max=64, jitter=0)
    async with open_supervisor(OneForOneSupervisor(max_restarts=1, backoff=backoff)) as sup:
        handle = await sup.start(child(works_then_crashes))
        await trio.sleep(19)
        assert len(sup.incidents) == 1
        assert handle.progressed is False
    assert {b - a for a, b in pairwise(began)} == {2}
    assert len(began) == 10


async def test_a_crashing_supervisor_fails_at_the_first_crash_even_of_a_temporary_child() -> None:
    with pytest.raises(ExceptionGroup) as info:
        async with open_supervisor(CrashingSupervisor) as sup:
            await sup.start(child(Flaky(), name="flaky", restart="temporary"))
            await trio.sleep_forever()
    [failure] = info.value.exceptions
    assert isinstance(failure, SupervisorFailed)
    assert isinstance(failure.__cause__, Boom)
    assert "as CrashingSupervisor does" in str(failure)


async def test_a_crashing_supervisor_does_not_mind_a_transient_child_that_finishes() -> None:
    async with open_supervisor(CrashingSupervisor) as sup:
        await sup.start(child(trio.sleep, 1, name="x", restart="transient"))
        await trio.sleep(2)
        assert sup.state == "running"


async def test_each_failed_restart_attempt_is_an_incident() -> None:
    attempts: list[float] = []

    async def starts_once(*, task_status: trio.TaskStatus[None]) -> None:
        attempts.append(trio.current_time())
        if len(attempts) > 1:
            raise Boom("no start")
        task_status.started()
        raise Boom("first crash")

    with pytest.raises(ExceptionGroup) as info:
        async with open_supervisor(OneForOneSupervisor(max_restarts=2, within=60, backoff=STEADY)) as sup:
            await sup.start(child(starts_once))
            await trio.sleep_forever()
    [failure] = info.value.exceptions
    assert isinstance(failure, SupervisorFailed)
    assert [str(i.reason) for i in failure.incidents] == ["first crash", "no start", "no start"]


async def test_returning_before_started_in_a_restart_is_an_incident_too() -> None:
    attempts: list[None] = []

    async def starts_once(*, task_status: trio.TaskStatus[None]) -> None:
        attempts.append(None)
        if len(attempts) != 2:
            task_status.started()
            if len(attempts) > 2:
                await trio.sleep_forever()

    async with open_supervisor(OneForOneSupervisor(backoff=STEADY)) as sup:
        handle = await sup.start(child(starts_once))
        await trio.sleep(5)
        assert [type(i.reason) for i in sup.incidents] == [type(None), StartFailed]
        assert handle.incarnation == 3


async def test_a_nested_supervisors_giving_up_is_one_crash_of_a_child() -> None:
    flaky, began = Flaky(), list[float]()

    async def sibling() -> None:
        began.append(trio.current_time())
        await trio.sleep_forever()

    inner = OneForOneSupervisor(max_restarts=1, within=60, backoff=STEADY)
    start = trio.current_time()
    async with open_supervisor(OneForOneSupervisor(backoff=STEADY), name="root") as sup:
        node = await sup.start(supervisor(inner, child(sibling), child(flaky, name="flaky"), name="agents"))
        first = node.supervisor
        await trio.sleep(2.5)
        assert node.supervisor is not first
        assert (node.incarnation, node.restarts, len(sup.incidents)) == (2, 1, 1)
        [incident] = sup.incidents
        assert isinstance(incident.reason, SupervisorFailed)
        assert incident.reason.name == "root/agents"
        # The whole subtree is back: crash at 0 and 1, gave up at 1, restarted at 2.
        assert [t - start for t in began] == [0, 2]
        assert [t - start for t in flaky.began] == [0, 1, 2]


async def test_failures_escalate_through_all_levels_up_to_the_top() -> None:
    crash = OneForOneSupervisor(max_restarts=0)
    leaf = supervisor(crash, child(Flaky(after=1), name="flaky"), name="leaf")
    with pytest.raises(ExceptionGroup) as info:
        async with open_supervisor(crash, supervisor(crash, leaf, name="mid"), name="root"):
            await trio.sleep_forever()
    [top] = info.value.exceptions
    names = []
    failure: BaseException | None = top
    while isinstance(failure, SupervisorFailed):
        names.append(failure.name)
        failure = failure.__cause__
    assert names == ["root", "root/mid", "root/mid/leaf"]
    assert isinstance(failure, Boom)


async def test_the_exit_hook_runs_at_each_incarnations_end_before_the_restart() -> None:
    seen: list[tuple[str, int, str]] = []

    def hook(handle: ChildHandle, reason: BaseException | None) -> None:
        seen.append((handle.state, handle.incarnation, repr(reason)))

    async with open_supervisor(OneForOneSupervisor(backoff=STEADY)) as sup:
        await sup.start(child(Flaky(times=2, after=1), name="x", on_exit=hook))
        await trio.sleep(20)
    assert seen == [("running", 1, "Boom(1)"), ("running", 2, "Boom(2)"), ("stopping", 3, "None")]


async def test_a_failing_hook_is_logged_and_counted_and_hurts_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def hook(handle: ChildHandle, reason: BaseException | None) -> None:
        raise Boom("hook")

    async with open_supervisor(OneForOneSupervisor(backoff=STEADY)) as sup:
        handle = await sup.start(child(Flaky(times=1), name="x", on_exit=hook))
        await trio.sleep(5)
        assert (handle.hook_failures, handle.state) == (1, "running")
    assert "root/x: its on_exit hook failed" in caplog.text


async def test_each_incarnation_runs_in_a_fresh_copy_of_the_starters_context() -> None:
    setting = contextvars.ContextVar("setting", default="unset")
    seen: list[str] = []

    async def looks() -> None:
        seen.append(setting.get())
        setting.set("dirty")
        await trio.sleep(1)
        raise Boom

    async with open_supervisor(OneForOneSupervisor(backoff=STEADY)) as sup:
        setting.set("starter's")
        await sup.start(child(looks))
        setting.set("later")
        await trio.sleep(5)
    assert seen == ["starter's"] * 3


async def test_a_thousand_crashes_in_one_tick_are_each_restarted() -> None:
    gate = trio.Event()
    strategy = OneForOneSupervisor(max_restarts=inf, backoff=STEADY)

    async def crashes_at_the_gate() -> None:
        if not gate.is_set():
            await gate.wait()
            raise Boom
        await trio.sleep_forever()

    async with open_supervisor(strategy) as sup:
        for n in range(1000):
            await sup.start(child(crashes_at_the_gate, name=f"c{n}"))
        gate.set()
        await trio.sleep(2)
        assert sup.counts().active == 1000
        assert {handle.incarnation for handle in sup.children.values()} == {2}


async def test_records_tell_supervisor_child_reason_and_count(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="famulus.supervision")
    async with open_supervisor(OneForOneSupervisor(backoff=STEADY), name="top") as sup:
        await sup.start(child(Flaky(times=1, after=1), name="x"))
        await trio.sleep(5)
    told = [(r.levelname, r.__dict__["supervisor"], r.__dict__["child"], r.__dict__["reason"]) for r in caplog.records]
    assert told == [
        ("DEBUG", "top", "x", None),
        ("ERROR", "top", "x", "Boom: 1"),
        ("INFO", "top", "x", "Boom: 1"),
        ("DEBUG", "top", "x", None),
        ("DEBUG", "top", "x", "stopped"),
    ]
    assert caplog.records[1].exc_info is not None
    assert (caplog.records[2].__dict__["incidents"], caplog.records[2].__dict__["delay"]) == (1, 1.0)
