"""Ordered stop: reverse order, drain, deadlines, children that stay, and what cuts it short."""

from collections.abc import Callable
from math import inf

import pytest
import trio

from famulus.supervision import (
    Backoff,
    ChildSpec,
    OneForOneSupervisor,
    Supervisor,
    SupervisorStopping,
    child,
    open_supervisor,
    supervisor,
    trap_stop,
)

STEADY = OneForOneSupervisor(backoff=Backoff(min=1.0, max=1.0, factor=1.0, jitter=0.0))


class Diary:
    """What happened, with the seconds since the diary was opened."""

    def __init__(self) -> None:
        self.opened = trio.current_time()
        self.entries: list[tuple[float, str]] = []

    def note(self, what: str) -> None:
        self.entries.append((trio.current_time() - self.opened, what))

    def plain(self, name: str) -> ChildSpec:
        async def run() -> None:
            self.note(f"{name} began")
            try:
                await trio.sleep_forever()
            finally:
                self.note(f"{name} ended")

        return child(run, name=name)

    def drains(self, name: str, seconds: float, shutdown: float | None = 5.0) -> ChildSpec:
        async def run() -> None:
            request = trap_stop()
            try:
                await request.wait()
                self.note(f"{name} asked")
                await trio.sleep(seconds)
                self.note(f"{name} drained")
            except trio.Cancelled:
                self.note(f"{name} cancelled")
                raise

        return child(run, name=name, shutdown=shutdown)


async def test_children_stop_in_reverse_order_each_awaited() -> None:
    diary = Diary()
    async with open_supervisor(STEADY, diary.drains("a", 1), diary.drains("b", 2), diary.drains("c", 3)):
        pass
    assert diary.entries == [
        (0, "c asked"), (3, "c drained"), (3, "b asked"), (5, "b drained"), (5, "a asked"), (6, "a drained"),
    ]  # fmt: skip


async def test_a_child_that_did_not_trap_is_cancelled_at_once() -> None:
    diary = Diary()
    async with open_supervisor(STEADY, diary.plain("a"), diary.plain("b")):
        await trio.sleep(1)
    assert diary.entries == [(0, "a began"), (0, "b began"), (1, "b ended"), (1, "a ended")]


@pytest.mark.parametrize(
    ("shutdown", "end"),
    [(5.0, (5, "a cancelled")), (20.0, (10, "a drained")), (inf, (10, "a drained"))],
)
async def test_a_drain_gets_the_shutdown_seconds_of_the_spec(shutdown: float, end: tuple[float, str]) -> None:
    diary = Diary()
    async with open_supervisor(STEADY, diary.drains("a", 10, shutdown=shutdown)):
        await trio.lowlevel.checkpoint()
    assert diary.entries == [(0, "a asked"), end]


async def test_shutdown_none_skips_the_drain() -> None:
    diary = Diary()
    async with open_supervisor(STEADY, diary.drains("a", 10, shutdown=None)):
        await trio.sleep(1)
    assert diary.entries == [(1, "a cancelled")]


async def test_a_stop_request_can_be_looked_at_and_listened_to() -> None:
    heard: list[str] = []

    async def run() -> None:
        request = trap_stop(lambda: heard.append("first"))
        assert trap_stop(lambda: heard.append("second")) is request
        assert not request.requested
        assert repr(request) == "<StopRequest pending>"
        await request.wait()
        assert request.requested
        trap_stop(lambda: heard.append("late"))

    async with open_supervisor(STEADY, child(run)):
        await trio.sleep(1)
    assert heard == ["first", "second", "late"]


async def test_a_child_whose_listener_fails_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    def listener() -> None:
        raise ValueError("deaf")

    async def run() -> None:
        trap_stop(listener)
        await trio.sleep_forever()

    start = trio.current_time()
    async with open_supervisor(STEADY, child(run, shutdown=inf)):
        await trio.sleep(1)
    assert trio.current_time() - start == 1
    assert "ValueError: deaf" in caplog.text


async def test_trapping_outside_a_child_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="not inside a supervised child"):
        trap_stop()


async def test_the_trap_holds_for_one_incarnation_only() -> None:
    ended: list[float] = []
    start = trio.current_time()

    async def traps_the_first_time() -> None:
        if not ended:
            trap_stop()
        try:
            await trio.sleep(1 if not ended else inf)
        finally:
            ended.append(trio.current_time() - start)

    async with open_supervisor(STEADY, child(traps_the_first_time, shutdown=inf)):
        await trio.sleep(10)
    assert ended == [1, 10]


async def test_a_shielded_child_is_reported_at_growing_intervals_and_awaited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    start = trio.current_time()

    async def stays() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    async with open_supervisor(STEADY, child(stays), name="top"):
        await trio.sleep(20)
    assert trio.current_time() - start == 100
    assert [r.__dict__["seconds"] for r in caplog.records] == [5, 15, 35, 75]
    assert {(r.levelname, r.__dict__["supervisor"], r.__dict__["child"]) for r in caplog.records} == {
        ("WARNING", "top", "stays")
    }
    assert f"it is at {__file__}:" in caplog.text


async def test_a_stop_during_backoff_wins_at_once() -> None:
    long = OneForOneSupervisor(max_restarts=inf, backoff=Backoff(min=1000, max=1000))
    began: list[None] = []
    start = trio.current_time()

    async def crashes() -> None:
        began.append(None)
        raise ValueError

    async with open_supervisor(long) as sup:
        handle = await sup.start(child(crashes))
        await trio.sleep(1)
        assert handle.state == "backoff"
    assert trio.current_time() - start == 1
    assert (handle.state, len(began)) == ("stopped", 1)


async def test_a_child_whose_backoff_ends_during_the_stop_does_not_begin_again() -> None:
    began: list[None] = []
    diary = Diary()

    async def crashes() -> None:
        began.append(None)
        raise ValueError

    async with open_supervisor(STEADY, child(crashes), diary.drains("slow", 3)):
        await trio.sleep(0.5)
    assert (len(began), diary.entries) == (1, [(0.5, "slow asked"), (3.5, "slow drained")])


async def test_a_crash_during_the_stop_is_logged_and_not_restarted(caplog: pytest.LogCaptureFixture) -> None:
    began: list[None] = []

    async def fails_in_its_cleanup() -> None:
        began.append(None)
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("cleanup")

    async with open_supervisor(STEADY) as sup:
        handle = await sup.start(child(fails_in_its_cleanup))
        await trio.sleep(1)
    assert (handle.state, len(began), sup.incidents) == ("stopped", 1, ())
    assert isinstance(handle.last_reason, ValueError)
    assert "crashed while stopping: ValueError: cleanup" in caplog.text


async def test_a_child_may_stop_its_own_supervisor() -> None:
    diary = Diary()
    async with open_supervisor(STEADY, diary.plain("a")) as sup:

        async def stops_it() -> None:
            await sup.stop()

        await sup.start(child(stops_it))
        await sup.wait()
        assert sup.state == "stopped"
    assert diary.entries == [(0, "a began"), (0, "a ended")]


async def test_request_stop_begins_the_stop_and_the_body_goes_on() -> None:
    diary = Diary()
    async with open_supervisor(STEADY, diary.drains("a", 2)) as sup:
        await trio.lowlevel.checkpoint()
        sup.request_stop()
        states = [sup.state]
        await sup.wait()
        states.append(sup.state)
        diary.note("body")
    assert states == ["stopping", "stopped"]
    assert diary.entries == [(0, "a asked"), (2, "a drained"), (2, "body")]


async def test_nested_supervisors_drain_their_children_in_the_whole_trees_reverse_order() -> None:
    diary = Diary()
    first = supervisor(STEADY, diary.drains("a", 1), diary.drains("b", 1), name="first")
    second = supervisor(STEADY, diary.drains("c", 1), diary.drains("d", 1), name="second")
    async with open_supervisor(STEADY, first, second):
        await trio.lowlevel.checkpoint()
    assert [what for _, what in diary.entries if "drained" in what] == [f"{x} drained" for x in "dcba"]
    assert diary.entries[-1][0] == 4


async def test_a_nested_supervisor_past_its_shutdown_cancels_its_children() -> None:
    diary = Diary()
    nested = supervisor(STEADY, diary.drains("a", 100, inf), diary.drains("b", 100, inf), name="n", shutdown=3)
    async with open_supervisor(STEADY, nested):
        await trio.lowlevel.checkpoint()
    assert diary.entries == [(0, "b asked"), (3, "b cancelled"), (3, "a cancelled")]


async def test_a_worker_that_is_not_ready_has_nothing_to_drain() -> None:
    diary = Diary()

    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        trap_stop()
        await trio.sleep_forever()

    nested = supervisor(STEADY, diary.drains("a", 2), child(slow, shutdown=inf), name="nested")
    async with trio.open_nursery() as nursery, open_supervisor(STEADY) as sup:

        async def starter() -> None:
            with pytest.raises(SupervisorStopping):
                await sup.start(nested)

        nursery.start_soon(starter)
        await trio.sleep(1)
    assert diary.entries == [(1, "a asked"), (3, "a drained")]  # the supervisor's ready child had


async def test_outside_cancellation_stops_in_reverse_without_drain_and_leaves_as_cancelled() -> None:
    diary = Diary()

    def slow_to_leave(name: str) -> Callable[[], object]:
        return lambda: diary.note(name)

    async def transport() -> None:
        try:
            await trio.sleep_forever()
        finally:
            diary.note("transport ended")

    async def agent() -> None:
        trap_stop()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)  # the transport must still be there
            diary.note("agent ended")

    trees: list[Supervisor] = []
    with trio.move_on_after(5) as scope:
        async with open_supervisor(
            STEADY, child(transport), supervisor(STEADY, child(agent, shutdown=inf), name="agents")
        ) as sup:
            trees.append(sup)
            try:
                await trio.sleep_forever()
            finally:
                diary.note("body ended")
    assert scope.cancelled_caught
    assert diary.entries == [(5, "body ended"), (7, "agent ended"), (7, "transport ended")]
    assert [(sup.state, sup.incidents) for sup in trees] == [("stopped", ())]


async def test_outside_cancellation_cuts_a_drain_short() -> None:
    diary = Diary()
    with trio.move_on_after(5) as scope:
        async with open_supervisor(STEADY, diary.drains("a", 100, inf), diary.drains("b", 100, inf)):
            await trio.sleep(2)
    assert scope.cancelled_caught
    assert diary.entries == [(2, "b asked"), (5, "b cancelled"), (5, "a cancelled")]


async def test_children_that_stop_together_drain_at_once_and_those_in_order_one_after_the_other() -> None:
    async def drains() -> None:
        request = trap_stop()
        await request.wait()
        await trio.sleep(3)

    for stop, seconds in (("reverse", 12.0), ("together", 3.0)):
        async with open_supervisor() as sup:
            group = supervisor(
                OneForOneSupervisor,
                *(child(drains, name=f"child{number}") for number in range(4)),
                name="group",
                stop=stop,  # type: ignore[arg-type]  # one of two literals
            )
            await sup.start(group)
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
        assert trio.current_time() - began == seconds


def test_an_unknown_stop_order_is_refused() -> None:
    with pytest.raises(ValueError, match="stop='random': expected reverse or together"):
        supervisor(OneForOneSupervisor, name="group", stop="random")  # type: ignore[arg-type]  # wrong on purpose
