"""The supervisor, clause by clause: each test is named after the clause that it shows (docs/supervision.md lists them).

All on virtual time. `+a` in a diary is the beginning of a run of child a, `-a` its end; the numbers are seconds.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from math import inf
from typing import Any

import pytest
import trio

from famulus.supervision import (
    Backoff,
    ChildActive,
    ChildSpec,
    Counts,
    DuplicateChild,
    LeakedCancellation,
    OneForAllSupervisor,
    OneForOneSupervisor,
    RestForOneSupervisor,
    StartFailed,
    Supervisor,
    SupervisorFailed,
    SupervisorStopping,
    child,
    current_child,
    open_supervisor,
    pool,
    supervisor,
    trap_stop,
)

QUIET = Backoff(min=1.0, max=1.0, factor=1.0, jitter=0.0)  # a second between a crash and the next run
ONE, ALL, REST = (
    OneForOneSupervisor(backoff=QUIET),
    OneForAllSupervisor(backoff=QUIET),
    RestForOneSupervisor(backoff=QUIET),
)


class Crash(Exception):
    pass


class Play:
    """Children that note when they begin and end, crash or return on cue, and must never run twice at once."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.cues: dict[str, trio.MemorySendChannel[BaseException | None]] = {}
        self.running: set[str] = set()
        self.began = trio.current_time()

    def child(self, name: str, *, ready: float = 0, drain: float = 0, cleanup: float = 0, **options: Any) -> ChildSpec:
        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            assert name not in self.running, "two incarnations overlap"
            self.running.add(name)
            self.note(f"+{name}")
            self.cues[name], cues = trio.open_memory_channel[BaseException | None](inf)
            try:
                request = trap_stop()
                await trio.sleep(ready)
                task_status.started()
                async with trio.open_nursery() as nursery:

                    async def drains() -> None:
                        await request.wait()
                        await trio.sleep(drain)
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(drains)
                    failure = await cues.receive()
                    nursery.cancel_scope.cancel()
                if request.requested:
                    return
                if failure is not None:
                    raise failure
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(cleanup)
                self.running.discard(name)
                self.note(f"-{name}")

        return child(run, name=name, **options)

    def note(self, what: str) -> None:
        self.diary.append(f"{trio.current_time() - self.began:g} {what}")

    def crash(self, *names: str) -> None:
        for name in names:
            self.cues[name].send_nowait(Crash(name))

    def finish(self, name: str) -> None:
        self.cues[name].send_nowait(None)

    def new_page(self) -> None:
        self.diary.clear()
        self.began = trio.current_time()


@pytest.fixture
async def play() -> Play:
    return Play()


def states(sup: Supervisor) -> dict[str, str]:
    return {name: handle.state for name, handle in sup.children.items()}


async def test_clause_01_children_start_in_the_declared_order_each_after_the_one_before_is_ready(play: Play) -> None:
    async with open_supervisor(ONE, *(play.child(name, ready=2) for name in "abc")):
        assert play.diary == ["0 +a", "2 +b", "4 +c"]
        play.note("body")
    assert play.diary[3] == "6 body"


async def test_clause_02_a_failed_start_stops_those_started_in_reverse_and_fails_with_its_reason(play: Play) -> None:
    async def fails(*, task_status: trio.TaskStatus[None]) -> None:
        raise Crash("no start")

    with pytest.raises(Crash, match="no start"):
        async with open_supervisor(ONE, play.child("a"), play.child("b"), child(fails), play.child("d")):
            pytest.fail("the body must not run")
    assert play.diary == ["0 +a", "0 +b", "0 -b", "0 -a"]


async def test_clause_02_a_nested_supervisor_whose_start_fails_is_a_failed_start_with_that_reason(play: Play) -> None:
    async def fails(*, task_status: trio.TaskStatus[None]) -> None:
        raise Crash("no start")

    async with open_supervisor(ONE) as sup:
        with pytest.raises(Crash, match="no start"):
            await sup.start(supervisor(ONE, play.child("a"), child(fails), name="nested"))
        assert (states(sup), play.diary) == ({}, ["0 +a", "0 -a"])


async def test_clause_03_children_stop_in_reverse_order_each_when_the_one_after_it_has_ended(play: Play) -> None:
    async with open_supervisor(ONE, *(play.child(name, drain=2) for name in "abc")):
        await trio.lowlevel.checkpoint()
        play.new_page()
    assert play.diary == ["2 -c", "4 -b", "6 -a"]


async def test_clause_04_one_for_one_restarts_the_failed_child_only(play: Play) -> None:
    async with open_supervisor(ONE, *(play.child(name) for name in "abc")):
        play.new_page()
        play.crash("b")
        await trio.sleep(5)
        assert play.diary == ["0 -b", "1 +b"]


async def test_clause_05_one_for_all_stops_all_in_reverse_and_starts_all_in_order(play: Play) -> None:
    async with open_supervisor(ALL, *(play.child(name, ready=2) for name in "abc")):
        play.new_page()
        play.crash("b")
        await trio.sleep(10)
        assert play.diary == ["0 -b", "0 -c", "0 -a", "1 +a", "3 +b", "5 +c"]


async def test_clause_06_rest_for_one_does_so_for_the_failed_child_and_those_after_it(play: Play) -> None:
    async with open_supervisor(REST, *(play.child(name) for name in "abcd")):
        play.new_page()
        play.crash("b")
        await trio.sleep(5)
        assert play.diary == ["0 -b", "0 -d", "0 -c", "1 +b", "1 +c", "1 +d"]


@pytest.mark.parametrize(
    ("restart", "after_a_return", "after_a_crash"),
    [
        ("permanent", {"x": "running"}, {"x": "running"}),
        ("transient", {"x": "finished"}, {"x": "running"}),
        ("temporary", {}, {}),
    ],
)
async def test_clause_07_permanent_always_transient_after_a_crash_temporary_never(
    play: Play, restart: str, after_a_return: dict[str, str], after_a_crash: dict[str, str]
) -> None:
    async with open_supervisor(ONE, play.child("x", restart=restart)) as sup:
        play.finish("x")
        await trio.sleep(2)
        assert states(sup) == after_a_return
    async with open_supervisor(ONE, play.child("x", restart=restart)) as sup:
        play.crash("x")
        await trio.sleep(2)
        assert states(sup) == after_a_crash


async def test_clause_08_a_siblings_restart_drops_temporary_children_and_starts_finished_transient_ones(
    play: Play,
) -> None:
    children = (play.child("a"), play.child("tmp", restart="temporary"), play.child("tra", restart="transient"))
    async with open_supervisor(ALL, *children) as sup:
        play.finish("tra")
        await trio.sleep(1)
        assert states(sup) == {"a": "running", "tmp": "running", "tra": "finished"}
        play.new_page()
        play.crash("a")
        await trio.sleep(5)
        assert play.diary == ["0 -a", "0 -tmp", "1 +a", "1 +tra"]
        assert states(sup) == {"a": "running", "tra": "running"}


async def test_clause_09_more_than_max_restarts_incidents_within_stop_all_and_fail_with_the_history(play: Play) -> None:
    limit = OneForOneSupervisor(max_restarts=2, within=60, backoff=QUIET)
    with pytest.raises(ExceptionGroup) as info:
        async with open_supervisor(limit, play.child("x"), play.child("y")):
            for name in "xyx":
                play.crash(name)
                await trio.sleep(1.5)
    [failure] = info.value.exceptions
    assert isinstance(failure, SupervisorFailed)
    history = [(incident.child, incident.incarnation, str(incident.reason)) for incident in failure.incidents]
    assert history == [("x", 1, "x"), ("y", 1, "y"), ("x", 2, "x")]
    assert (play.running, play.diary[-1]) == (set(), "3 -y")


async def test_clause_10_a_group_restart_is_one_incident(play: Play) -> None:
    async with open_supervisor(ALL, *(play.child(name) for name in "abcd")) as sup:
        play.crash("b")
        await trio.sleep(2)
        assert [incident.child for incident in sup.incidents] == ["b"]


@pytest.mark.parametrize("strategy", [OneForOneSupervisor, OneForAllSupervisor, RestForOneSupervisor])
async def test_clause_11_each_failed_attempt_to_restart_is_an_incident(
    strategy: Callable[..., OneForOneSupervisor],
) -> None:
    async def starts_once(*, task_status: trio.TaskStatus[None]) -> None:
        if current_child().incarnation == 1:
            task_status.started()
            raise Crash("crashed")
        raise Crash("no start")

    with pytest.raises(ExceptionGroup) as info:
        async with open_supervisor(strategy(max_restarts=2, within=60, backoff=QUIET), child(starts_once)):
            await trio.sleep_forever()
    [failure] = info.value.exceptions
    assert isinstance(failure, SupervisorFailed)
    assert [str(incident.reason) for incident in failure.incidents] == ["crashed", "no start", "no start"]


async def test_clause_12_incidents_older_than_within_do_not_count(play: Play) -> None:
    async with open_supervisor(OneForOneSupervisor(max_restarts=2, within=10, backoff=QUIET), play.child("x")) as sup:
        for _ in range(20):  # one each 6 s: two in any 10 s
            play.crash("x")
            await trio.sleep(6)
        assert (sup.state, sup.children["x"].restarts) == ("running", 20)


async def test_clause_13_max_restarts_zero_gives_up_at_the_first_incident(play: Play) -> None:
    with pytest.raises(ExceptionGroup):
        async with open_supervisor(OneForOneSupervisor(max_restarts=0), play.child("x")):
            play.crash("x")
            await trio.sleep_forever()
    assert play.diary == ["0 +x", "0 -x"]


async def test_clause_14_giving_up_is_a_crash_in_the_parent_which_restarts_the_whole_subtree(play: Play) -> None:
    inner = supervisor(OneForOneSupervisor(max_restarts=0), play.child("a"), play.child("b"), name="inner")
    async with open_supervisor(ONE, inner, play.child("c")) as sup:
        play.new_page()
        play.crash("a")
        await trio.sleep(5)
        assert play.diary == ["0 -a", "0 -b", "1 +a", "1 +b"]
        [incident] = sup.incidents
        assert (incident.child, type(incident.reason)) == ("inner", SupervisorFailed)


@pytest.mark.parametrize(
    ("auto", "after_each"),
    [
        ("never", ["running", "running"]),
        ("any_significant", ["stopped", "stopped"]),
        ("all_significant", ["running", "stopped"]),
    ],
)
async def test_clause_15_auto_shutdown_stops_the_supervisor_when_significant_children_have_ended(
    play: Play, auto: Any, after_each: list[str]
) -> None:
    marked = {"restart": "transient", "significant": auto != "never"}
    strategy = OneForOneSupervisor(backoff=QUIET, auto_shutdown=auto)
    children = (play.child("a", **marked), play.child("b", **marked), play.child("plain", restart="transient"))
    async with open_supervisor(strategy, *children) as sup:
        play.finish("plain")
        found = list[str]()
        for name in "ab":
            await trio.sleep(1)
            play.finish(name)
            await trio.sleep(1)
            found.append(sup.state)
        assert found == after_each


def test_clause_15_significant_and_permanent_is_refused() -> None:
    with pytest.raises(ValueError, match="child 'x' is significant and permanent"):
        child(trio.sleep_forever, name="x", significant=True)


def test_clause_15_significant_without_auto_shutdown_is_refused() -> None:
    with pytest.raises(ValueError, match="'x' is significant, which means nothing under auto_shutdown='never'"):
        supervisor(ONE, child(trio.sleep_forever, name="x", restart="transient", significant=True), name="sup")


@pytest.mark.parametrize(("shutdown", "end"), [(5, "5 -x"), (20, "10 -x"), (inf, "10 -x"), (None, "0 -x"), (0, "0 -x")])
async def test_clause_16_a_child_that_traps_gets_its_shutdown_seconds_to_drain_and_is_then_cancelled(
    play: Play, shutdown: float | None, end: str
) -> None:
    async with open_supervisor(ONE, play.child("x", drain=10, shutdown=shutdown)):
        await trio.sleep(1)
        play.new_page()
    assert play.diary == [end]


async def test_clause_16_a_shielded_child_is_reported_and_awaited(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async with open_supervisor(ONE, play.child("x", drain=inf, shutdown=3, cleanup=20)):
        await trio.sleep(1)
        play.new_page()
    assert play.diary == ["23 -x"]
    assert [r.__dict__["seconds"] for r in caplog.records if r.__dict__["event"] == "stays"] == [5, 15]


async def test_clause_17_a_pool_starts_one_at_a_time_and_stops_concurrently(play: Play) -> None:
    async def member(name: str, *, task_status: trio.TaskStatus[None]) -> None:
        request = trap_stop()
        play.note(f"+{name}")
        await trio.sleep(2)
        task_status.started()
        await request.wait()
        await trio.sleep(3)
        play.note(f"-{name}")

    async with open_supervisor(ONE) as sup:
        members = (await sup.start(pool(member, name="members"))).supervisor
        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(members.start_child, name)
        assert sorted(entry.split()[0] for entry in play.diary) == ["0", "2", "4"]
        play.new_page()
    assert sorted(play.diary) == ["3 -a", "3 -b", "3 -c"]


async def test_clause_17_terminate_removes_a_pool_child() -> None:
    async with open_supervisor(ONE) as sup:
        members = (await sup.start(pool(trio.sleep_forever, name="members"))).supervisor
        first, second = await members.start_child(), await members.start_child()
        await first.terminate()
        assert list(members.children) == [second.name]


async def test_clause_18_a_name_in_use_is_refused_also_if_that_child_has_ended(play: Play) -> None:
    async with open_supervisor(ONE, play.child("x")) as sup:
        with pytest.raises(DuplicateChild, match="has a child 'x' already"):
            await sup.start(play.child("x"))
        await sup.children["x"].terminate()
        with pytest.raises(DuplicateChild, match="has a child 'x' already"):
            await sup.start(play.child("x"))


async def test_clause_18_adding_while_stopping_is_refused(play: Play) -> None:
    async with open_supervisor(ONE, play.child("x", drain=3)) as sup:
        sup.request_stop()
        with pytest.raises(SupervisorStopping):
            await sup.start(play.child("y"))


async def test_clause_19_terminate_keeps_the_spec_restart_starts_it_again(play: Play) -> None:
    async with open_supervisor(ONE, play.child("x")) as sup:
        handle = sup.children["x"]
        await handle.terminate()
        await trio.sleep(10)
        assert states(sup) == {"x": "stopped"}
        await handle.restart()
        assert (states(sup), handle.incarnation, sup.incidents) == ({"x": "running"}, 2, ())


async def test_clause_19_delete_of_a_running_child_is_refused(play: Play) -> None:
    async with open_supervisor(ONE, play.child("x")) as sup:
        with pytest.raises(ChildActive, match="terminate it before you delete it"):
            await sup.delete("x")
        await sup.children["x"].terminate()
        await sup.delete("x")
        assert states(sup) == {}


async def test_clause_20_counts_of_specs_active_supervisors_and_workers(play: Play) -> None:
    nested = supervisor(ONE, play.child("y"), play.child("z"), name="nested")
    async with open_supervisor(ONE, play.child("a"), play.child("b"), nested) as sup:
        await sup.children["b"].terminate()
        assert sup.counts() == Counts(specs=3, active=2, supervisors=1, workers=2)


async def test_clause_21_a_crash_during_a_siblings_restart_begins_it_anew(play: Play) -> None:
    async with open_supervisor(ALL, play.child("a", ready=5), play.child("b", ready=5)) as sup:
        play.new_page()
        play.crash("b")
        await trio.sleep(7)  # a was started at 1, is ready at 6, and b starts
        play.crash("a")
        await trio.sleep(20)
        assert play.diary == ["0 -b", "0 -a", "1 +a", "6 +b", "7 -a", "7 -b", "8 +a", "13 +b"]
        assert [incident.child for incident in sup.incidents] == ["b", "a"]


async def test_clause_21_a_crash_during_the_backoff_of_a_sibling(play: Play) -> None:
    async with open_supervisor(REST, play.child("a"), play.child("b")) as sup:
        play.new_page()
        play.crash("b")
        await trio.sleep(0.5)
        play.crash("a")
        await trio.sleep(5)
        assert play.diary == ["0 -b", "0.5 -a", "1.5 +a", "1.5 +b"]
        assert len(sup.incidents) == 2


async def test_clause_21_a_crash_while_another_child_starts(play: Play) -> None:
    async with trio.open_nursery() as nursery, open_supervisor(ONE, play.child("a")) as sup:
        nursery.start_soon(sup.start, play.child("slow", ready=5))
        await trio.sleep(1)
        play.crash("a")
        await trio.sleep(9)
        assert play.diary == ["0 +a", "0 +slow", "1 -a", "2 +a"]


async def test_clause_21_a_crash_during_the_stop_and_in_the_childs_own_cleanup_is_not_restarted(play: Play) -> None:
    async def fails_in_its_cleanup() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Crash("cleanup")

    async with open_supervisor(ONE, play.child("a"), child(fails_in_its_cleanup), play.child("c", drain=2)) as sup:
        await trio.sleep(1)
        sup.request_stop()
        await trio.sleep(1)  # c drains
        play.crash("a")
        await sup.wait()
        assert (sup.state, sup.incidents) == ("stopped", ())
        assert set(states(sup).values()) == {"stopped"}
        assert str(sup.children["fails_in_its_cleanup"].last_reason) == "cleanup"


async def test_clause_21_two_crashes_in_one_tick_are_two_incidents_or_one_of_their_group(play: Play) -> None:
    async with open_supervisor(ONE, *(play.child(name) for name in "abc")) as sup:
        play.crash("a", "c")
        await trio.sleep(2)
        assert (len(sup.incidents), set(states(sup).values())) == (2, {"running"})
    async with open_supervisor(ALL, *(play.child(name) for name in "abc")) as sup:
        play.crash("a", "c")
        await trio.sleep(2)
        assert (len(sup.incidents), set(states(sup).values())) == (1, {"running"})


@pytest.mark.parametrize("strategy", [OneForOneSupervisor, OneForAllSupervisor, RestForOneSupervisor])
async def test_clause_22_a_stop_during_backoff_wins_at_once(
    play: Play, strategy: Callable[..., OneForOneSupervisor]
) -> None:
    slow = strategy(max_restarts=inf, backoff=Backoff(min=1000, max=1000))
    async with open_supervisor(slow, play.child("x")) as sup:
        play.crash("x")
        await trio.sleep(1)
        assert states(sup) == {"x": "backoff"}
    assert (trio.current_time() - play.began, states(sup), play.diary) == (1, {"x": "stopped"}, ["0 +x", "0 -x"])


@pytest.mark.parametrize("fatal", [KeyboardInterrupt(), SystemExit(3), BaseExceptionGroup("", [SystemExit(3)])])
async def test_clause_23_keyboard_interrupt_and_system_exit_are_never_restarted_and_reach_the_top(
    play: Play, fatal: BaseException
) -> None:
    with pytest.raises(type(fatal)) as info:
        async with open_supervisor(ONE, supervisor(ONE, play.child("x"), name="inner"), play.child("y")):
            play.cues["x"].send_nowait(fatal)
            await trio.sleep_forever()
    assert info.value is fatal
    assert (play.diary.count("0 +x"), play.running) == (1, set())


async def test_clause_24_outside_cancellation_is_no_crash_and_stops_in_reverse(play: Play) -> None:
    trees = list[Supervisor]()
    with trio.move_on_after(5) as scope:
        async with open_supervisor(ONE, play.child("a", cleanup=1), play.child("b", cleanup=1, drain=inf)) as sup:
            trees.append(sup)
            play.new_page()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert play.diary == ["6 -b", "7 -a"]
    assert [(sup.state, sup.incidents) for sup in trees] == [("stopped", ())]


async def test_clause_25_a_leaked_cancelled_is_a_crash_of_that_child_and_siblings_live(play: Play) -> None:
    async def ticks() -> AsyncGenerator[int, None]:
        with trio.move_on_after(1):  # PEP 789: a yield inside its own cancel scope
            while True:
                yield 1

    async def leaks() -> None:
        async with aclosing(ticks()) as stream:
            async for _ in stream:
                await trio.sleep(100)

    async with open_supervisor(ONE, play.child("sibling"), child(leaks)) as sup:
        await trio.sleep(1.5)
        assert isinstance(sup.children["leaks"].last_reason, LeakedCancellation)
        assert states(sup) == {"sibling": "running", "leaks": "backoff"}
    assert play.diary[:1] == ["0 +sibling"]


async def test_clause_26_a_child_that_ignores_cancellation_goes_on_and_is_stopped_only_by_its_own_end(
    play: Play,
) -> None:
    async def ignores() -> None:
        for _ in range(3):
            with trio.CancelScope(shield=True):
                await trio.sleep(10)
            with suppress(trio.Cancelled):  # which no child should do
                await trio.lowlevel.checkpoint()
        play.note("-ignores")

    async with open_supervisor(ONE, play.child("first"), child(ignores)) as sup:
        await trio.sleep(5)
    assert play.diary == ["0 +first", "30 -ignores", "30 -first"]
    assert states(sup) == {"first": "stopped", "ignores": "stopped"}


async def test_clause_27_a_child_that_returns_before_started_has_failed_to_start() -> None:
    async def returns(*, task_status: trio.TaskStatus[None]) -> None:
        pass

    async with open_supervisor(ONE) as sup:
        with pytest.raises(StartFailed, match=r"returned before it called task_status\.started"):
            await sup.start(child(returns))
        assert states(sup) == {}


async def test_clause_27_in_a_restart_that_is_an_incident() -> None:
    async def returns_the_second_time(*, task_status: trio.TaskStatus[None]) -> None:
        if current_child().incarnation == 2:
            return
        task_status.started()
        await trio.sleep(1)
        if current_child().incarnation == 1:
            raise Crash
        await trio.sleep_forever()

    async with open_supervisor(ONE) as sup:
        handle = await sup.start(child(returns_the_second_time, restart="transient"))
        await trio.sleep(10)
        assert [type(incident.reason) for incident in sup.incidents] == [Crash, StartFailed]
        assert (handle.state, handle.incarnation) == ("running", 3)
