"""One-for-all and rest-for-one, carried out."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf

import attrs
import pytest
import trio

from famulus.supervision import (
    Backoff,
    ChildSpec,
    OneForAllSupervisor,
    Restart,
    RestForOneSupervisor,
    SupervisorFailed,
    SupervisorStopping,
    SupervisorStrategy,
    child,
    current_child,
    open_supervisor,
    supervisor,
    trap_stop,
)

QUIET = Backoff(min=1.0, max=1.0, factor=1.0, jitter=0.0)
ALL = OneForAllSupervisor(backoff=QUIET)
REST = RestForOneSupervisor(backoff=QUIET)


class Boom(Exception):
    pass


class Cast:
    """Children that note what happens to them, crash when told, and must never run twice at once."""

    def __init__(self) -> None:
        self.opened = trio.current_time()
        self.diary: list[tuple[float, str]] = []
        self.crash: dict[str, trio.Event] = {}
        self.running: set[str] = set()

    def note(self, what: str) -> None:
        self.diary.append((trio.current_time() - self.opened, what))

    def child(self, name: str, *, ready: float = 0.0, drain: float = 0.0, restart: Restart = "permanent") -> ChildSpec:
        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            assert name not in self.running
            self.running.add(name)
            self.note(f"+{name}")
            self.crash[name] = trio.Event()
            request = trap_stop()
            try:
                await trio.sleep(ready)
                task_status.started()
                async with trio.open_nursery() as nursery:

                    async def crash() -> None:
                        await self.crash[name].wait()
                        raise Boom(name)

                    nursery.start_soon(crash)
                    await request.wait()
                    nursery.cancel_scope.cancel()
                await trio.sleep(drain)
            finally:
                self.running.discard(name)
                self.note(f"-{name}")

        return child(run, name=name, restart=restart)

    def fell(self) -> list[tuple[float, str]]:
        entries, self.diary = self.diary, []
        return entries


async def test_one_for_all_stops_all_in_reverse_and_starts_all_in_order_as_one_incident() -> None:
    cast = Cast()
    async with open_supervisor(ALL, *(cast.child(n) for n in "abcd")) as sup:
        cast.fell()
        cast.crash["b"].set()
        await trio.sleep(2)
        assert cast.fell() == [
            (0, "-b"), (0, "-d"), (0, "-c"), (0, "-a"), (1, "+a"), (1, "+b"), (1, "+c"), (1, "+d"),
        ]  # fmt: skip
        assert len(sup.incidents) == 1
        assert [h.restarts for h in sup.children.values()] == [1, 1, 1, 1]


async def test_rest_for_one_restarts_the_failed_child_and_those_after_it() -> None:
    cast = Cast()
    async with open_supervisor(REST, *(cast.child(n) for n in "abcd")) as sup:
        cast.fell()
        cast.crash["c"].set()
        await trio.sleep(2)
        assert cast.fell() == [(0, "-c"), (0, "-d"), (1, "+c"), (1, "+d")]
        assert [h.restarts for h in sup.children.values()] == [0, 0, 1, 1]


async def test_each_sibling_drains_before_the_next_is_asked_and_is_ready_before_the_next_starts() -> None:
    cast = Cast()
    async with open_supervisor(ALL, *(cast.child(n, ready=2, drain=1) for n in "abc")):
        cast.opened = trio.current_time()
        cast.fell()
        cast.crash["a"].set()
        await trio.sleep(20)
        assert cast.fell() == [(0, "-a"), (1, "-c"), (2, "-b"), (3, "+a"), (5, "+b"), (7, "+c")]


async def test_a_temporary_sibling_is_dropped_and_a_finished_transient_one_is_started_again() -> None:
    cast = Cast()
    runs: list[None] = []

    async def finishes() -> None:
        runs.append(None)

    specs = (cast.child("a"), cast.child("t", restart="temporary"), child(finishes, restart="transient"))
    async with open_supervisor(ALL, *specs) as sup:
        await trio.sleep(0.5)
        assert sup.children["finishes"].state == "finished"
        cast.crash["a"].set()
        await trio.sleep(2)
        assert list(sup.children) == ["a", "finishes"]
        assert len(runs) == 2


async def test_a_temporary_childs_own_crash_takes_nobody_along() -> None:
    cast = Cast()
    async with open_supervisor(ALL, cast.child("a"), cast.child("t", restart="temporary")) as sup:
        cast.fell()
        cast.crash["t"].set()
        await trio.sleep(5)
        assert cast.fell() == [(0, "-t")]
        assert sup.incidents == ()


async def test_a_child_terminated_by_hand_stays_stopped_through_a_group_restart() -> None:
    cast = Cast()
    async with open_supervisor(ALL, *(cast.child(n) for n in "abc")) as sup:
        await sup.children["b"].terminate()
        cast.fell()
        cast.crash["a"].set()
        await trio.sleep(5)
        assert [what for _, what in cast.fell()] == ["-a", "-c", "+a", "+c"]
        assert sup.children["b"].state == "stopped"


async def test_terminating_a_child_that_waits_for_its_group_leaves_it_out() -> None:
    cast = Cast()
    async with open_supervisor(ALL, *(cast.child(n) for n in "abc")) as sup:
        cast.crash["a"].set()
        await trio.sleep(0.5)
        assert {h.state for h in sup.children.values()} == {"backoff"}
        await sup.children["b"].terminate()
        await trio.sleep(5)
        assert [h.state for h in sup.children.values()] == ["running", "stopped", "running"]


async def test_two_crashes_in_one_tick_are_one_incident_of_one_group() -> None:
    cast = Cast()
    async with open_supervisor(ALL, *(cast.child(n) for n in "abc")) as sup:
        cast.fell()
        cast.crash["a"].set()
        cast.crash["c"].set()
        await trio.sleep(2)
        assert len(sup.incidents) == 1
        assert sorted(cast.fell()[:3]) == [(0, "-a"), (0, "-b"), (0, "-c")]


async def test_a_crash_of_an_earlier_sibling_during_the_group_restart_is_another_incident() -> None:
    cast = Cast()
    async with open_supervisor(REST, *(cast.child(n, ready=5) for n in "abcd")) as sup:
        cast.opened = trio.current_time()
        cast.fell()
        cast.crash["b"].set()  # b, c, d go; b is started at 1, and would be ready at 6
        await trio.sleep(3)
        cast.crash["a"].set()  # all go; a is started at 4
        await trio.sleep(60)
        assert cast.fell() == [
            (0, "-b"), (0, "-d"), (0, "-c"), (1, "+b"), (3, "-a"), (3, "-b"),
            (4, "+a"), (9, "+b"), (14, "+c"), (19, "+d"),
        ]  # fmt: skip
        assert [i.child for i in sup.incidents] == ["b", "a"]


async def test_a_crash_of_a_sibling_that_was_just_started_again_begins_the_group_anew() -> None:
    cast = Cast()
    async with open_supervisor(ALL, *(cast.child(n, ready=5) for n in "abc")) as sup:
        cast.opened = trio.current_time()
        cast.fell()
        cast.crash["c"].set()
        await trio.sleep(8)  # a was started at 1, b at 6
        cast.crash["a"].set()
        await trio.sleep(60)
        assert cast.fell() == [
            (0, "-c"), (0, "-b"), (0, "-a"), (1, "+a"), (6, "+b"),
            (8, "-a"), (8, "-b"), (9, "+a"), (14, "+b"), (19, "+c"),
        ]  # fmt: skip
        assert [i.child for i in sup.incidents] == ["c", "a"]


async def test_a_later_childs_crash_does_not_make_the_group_under_way_be_forgotten() -> None:
    cast = Cast()
    async with open_supervisor(REST, *(cast.child(n, ready=5) for n in "abc")) as sup:
        cast.crash["b"].set()
        await trio.sleep(3)  # b starts, c waits for it
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sup.start, cast.child("late"))
            await trio.sleep(1)
            cast.crash["late"].set()
        await trio.sleep(60)
        assert [(h.name, h.state) for h in sup.children.values()] == [(n, "running") for n in ("a", "b", "c", "late")]
        assert [i.child for i in sup.incidents] == ["b", "late"]


@pytest.mark.parametrize("strategy", [OneForAllSupervisor, RestForOneSupervisor])
async def test_failed_starts_in_a_group_restart_are_incidents_until_it_gives_up(
    strategy: type[SupervisorStrategy],
) -> None:
    runs: list[None] = []
    cast = Cast()

    async def starts_once(*, task_status: trio.TaskStatus[None]) -> None:
        runs.append(None)
        if len(runs) > 1:
            raise Boom("no start")
        task_status.started()
        await trio.sleep_forever()

    limited = strategy(max_restarts=3, within=60, backoff=QUIET)
    with pytest.raises(ExceptionGroup) as info:
        async with open_supervisor(limited, cast.child("a"), child(starts_once)):
            cast.crash["a"].set()
            await trio.sleep_forever()
    [failure] = info.value.exceptions
    assert isinstance(failure, SupervisorFailed)
    assert [i.child for i in failure.incidents] == ["a", "starts_once", "starts_once", "starts_once"]
    assert cast.running == set()


async def test_a_stop_during_a_groups_backoff_wins_at_once() -> None:
    cast = Cast()
    async with open_supervisor(ALL, *(cast.child(n) for n in "ab")) as sup:
        cast.fell()
        cast.crash["a"].set()
        await trio.sleep(0.5)
    assert cast.fell() == [(0, "-a"), (0, "-b")]
    assert [h.state for h in sup.children.values()] == ["stopped", "stopped"]


async def test_a_stop_during_a_group_start_that_hangs_wins_at_once() -> None:
    cast = Cast()
    runs: list[None] = []

    async def hangs_the_second_time(*, task_status: trio.TaskStatus[None]) -> None:
        runs.append(None)
        if len(runs) > 1:
            await trio.sleep_forever()
        task_status.started()
        await trio.sleep_forever()

    async with open_supervisor(ALL, cast.child("a"), child(hangs_the_second_time)) as sup:
        cast.crash["a"].set()
        await trio.sleep(100)
        start = trio.current_time()
        assert sup.children["hangs_the_second_time"].state == "starting"
    assert trio.current_time() == start


async def test_outside_cancellation_during_a_groups_drain_cancels_what_drains() -> None:
    cast = Cast()
    with trio.move_on_after(2) as scope:
        async with open_supervisor(ALL, cast.child("a"), cast.child("b", drain=4)):
            cast.crash["a"].set()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert cast.fell()[-1] == (2, "-b")


async def test_a_group_holds_nested_supervisors_too() -> None:
    cast = Cast()
    nested = supervisor(ALL, cast.child("x"), cast.child("y"), name="nested")
    async with open_supervisor(ALL, cast.child("a"), nested) as sup:
        cast.fell()
        cast.crash["a"].set()
        await trio.sleep(2)
        assert [what for _, what in cast.fell()] == ["-a", "-y", "-x", "+a", "+x", "+y"]
        assert sup.children["nested"].supervisor.counts().active == 2


async def test_a_child_that_someone_is_starting_when_its_group_stops_is_left_to_whoever_starts_it() -> None:
    cast = Cast()
    told: list[str] = []

    async def starter(start: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(SupervisorStopping, match="was stopped while it was starting"):
            await start()
        told.append("told")

    async with (
        trio.open_nursery() as nursery,
        open_supervisor(ALL, cast.child("a"), cast.child("again", ready=5)) as sup,
    ):
        nursery.start_soon(starter, lambda: sup.start(cast.child("new", ready=5)))
        nursery.start_soon(starter, sup.children["again"].restart)
        await trio.sleep(1)
        cast.crash["a"].set()
        await trio.sleep(20)
        assert told == ["told", "told"]
        assert [(handle.name, handle.state) for handle in sup.children.values()] == [
            ("a", "running"),
            ("again", "stopped"),
        ]
        assert cast.running == {"a"}


async def test_a_significant_sibling_that_waits_to_run_again_has_not_ended() -> None:
    cast = Cast()

    async def short() -> None:
        await trio.sleep(1.5)

    strategy = RestForOneSupervisor(backoff=QUIET, auto_shutdown="all_significant")
    first = child(short, restart="transient", significant=True)
    last = attrs.evolve(cast.child("last", restart="transient"), significant=True)
    async with open_supervisor(strategy, first, cast.child("b"), last) as sup:
        await trio.sleep(1)
        cast.crash["b"].set()  # last is stopped, and will be started again at 2
        await trio.sleep(4)
        assert (sup.state, sup.children["short"].state, sup.children["last"].state) == (
            "running",
            "finished",
            "running",
        )


@pytest.mark.parametrize("number", range(5))  # two tasks go on in one tick, in either order
async def test_a_temporary_child_that_someone_restarts_while_its_group_stops_it_is_kept(number: int) -> None:
    cast = Cast()
    async with open_supervisor(ALL, cast.child("a"), cast.child("t", restart="temporary", drain=2)) as sup:
        handle = sup.children["t"]
        cast.crash["a"].set()
        await trio.sleep(1)
        await handle.restart()
        await trio.sleep(5)
        assert cast.running == {"a", "t"}
        assert [(h.name, h.state) for h in sup.children.values()] == [("a", "running"), ("t", "running")]
    assert cast.running == set()


@pytest.mark.parametrize("number", range(5))  # as above
async def test_a_restart_by_hand_that_another_one_overtakes_leaves_no_trace(number: int) -> None:
    cast = Cast()

    async def overtaken() -> None:
        with pytest.raises(SupervisorStopping):
            await handle.restart()

    async with trio.open_nursery() as nursery, open_supervisor(ALL, cast.child("x", ready=5), cast.child("b")) as sup:
        handle = sup.children["x"]
        nursery.start_soon(overtaken)
        await trio.sleep(1)
        await handle.restart()
        cast.crash["x"].set()
        await trio.sleep(20)
        assert [(h.name, h.state) for h in sup.children.values()] == [("x", "running"), ("b", "running")]


@pytest.mark.parametrize("turns", range(12))
async def test_a_restart_by_hand_that_the_group_s_restart_cancels_leaves_the_child_stopped(
    turns: int,
) -> None:
    """Whoever restarts it is of the group too, as one who follows an assignment is; it looks again when it is back."""
    complete, crash = trio.Event(), trio.Event()
    ends: list[str] = []

    async def crashing() -> None:
        if not ends:
            await crash.wait()
            ends.append("crashed")
            raise ValueError
        await trio.sleep_forever()

    async def worker() -> None:
        await trio.sleep_forever()

    async def starter() -> None:
        await complete.wait()
        handle = current_child().parent.children["worker"]
        if not ends:
            crash.set()
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            with suppress(SupervisorStopping):  # the group's restart has stopped it on its way
                await handle.restart()
        while True:
            await trio.sleep(1)
            if handle.state == "stopped":
                await handle.restart()

    strategy = OneForAllSupervisor(backoff=Backoff(min=5, max=5, jitter=0), max_restarts=inf)
    async with open_supervisor(strategy) as sup:
        await sup.start(child(crashing))
        await sup.start(child(starter))
        await sup.start(child(worker))
        complete.set()
        await trio.sleep(100)
        assert {handle.state for handle in sup.children.values()} == {"running"}
