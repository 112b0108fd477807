"""What holds for every history of crashes, found by Hypothesis on running supervisors."""

from math import inf

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from famulus.supervision import (
    Backoff,
    ChildSpec,
    OneForAllSupervisor,
    OneForOneSupervisor,
    RestForOneSupervisor,
    SupervisorFailed,
    SupervisorStrategy,
    child,
    open_supervisor,
)

AT_ONCE = Backoff(min=0.0, max=0.0)
KINDS = st.sampled_from([OneForOneSupervisor, OneForAllSupervisor, RestForOneSupervisor])


class Crash(Exception):
    pass


class Troupe:
    """Children `c0`, `c1` ... that are told to crash, and a diary of who began and ended."""

    def __init__(self, size: int) -> None:
        self.diary: list[str] = []
        self.running: list[str] = []
        self.cues: dict[str, trio.Event] = {}
        self.specs = [self._spec(f"c{number}") for number in range(size)]

    def _spec(self, name: str) -> ChildSpec:
        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            assert name not in self.running, "two incarnations overlap"
            self.running.append(name)
            self.diary.append(f"+{name}")
            cue = self.cues[name] = trio.Event()
            try:
                task_status.started()
                await cue.wait()
                raise Crash
            finally:
                self.running.remove(name)
                self.diary.append(f"-{name}")

        return child(run, name=name)


@settings(max_examples=200)
@given(
    KINDS,
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=40),
    st.integers(0, 5),
    st.integers(1, 40),
)
async def test_no_window_ever_holds_more_than_max_restarts_incidents_of_a_living_supervisor(
    kind: type[SupervisorStrategy], crashes: list[tuple[int, int]], limit: int, within: int
) -> None:
    troupe, times, failure = Troupe(3), list[float](), list[SupervisorFailed]()
    try:
        async with open_supervisor(kind(max_restarts=limit, within=within, backoff=AT_ONCE), *troupe.specs):
            for gap, who in crashes:
                await trio.sleep(gap + 0.125)  # the group restart before is over
                times.append(trio.current_time())
                troupe.cues[f"c{who}"].set()
            await trio.sleep(1)
    except* SupervisorFailed as group:
        failure += [error for error in group.exceptions if isinstance(error, SupervisorFailed)]
    counts = [sum(time - earlier <= within for earlier in times[: n + 1]) for n, time in enumerate(times)]
    survived = counts[:-1] if failure else counts
    assert all(count <= limit for count in survived)
    if failure:
        assert counts[-1] > limit
        assert [incident.time for incident in failure[0].incidents] == times[-counts[-1] :]


@settings(max_examples=200)
@given(KINDS, st.integers(1, 5), st.lists(st.tuples(st.sampled_from([0, 0, 1, 3]), st.integers(0, 4)), max_size=20))
async def test_whoever_is_started_is_stopped_once_in_reverse_order_and_never_runs_twice(
    kind: type[SupervisorStrategy], size: int, crashes: list[tuple[int, int]]
) -> None:
    troupe = Troupe(size)
    names = [spec.name for spec in troupe.specs]
    async with open_supervisor(kind(max_restarts=inf, backoff=AT_ONCE), *troupe.specs):
        assert troupe.diary == [f"+{name}" for name in names]
        for gap, who in crashes:
            await trio.sleep(gap)
            troupe.cues[names[who % size]].set()
        await trio.sleep(10)
        assert sorted(troupe.running) == names
        before = len(troupe.diary)
    assert troupe.diary[before:] == [f"-{name}" for name in reversed(names)]
    for name in names:
        own = [entry[0] for entry in troupe.diary if entry[1:] == name]
        assert own == ["+", "-"] * (len(own) // 2)


@settings(max_examples=300)
@given(
    st.integers(0, 30),
    st.floats(1, 600),
    st.builds(Backoff, min=st.floats(0.01, 5), max=st.floats(5, 60), factor=st.floats(1, 3), jitter=st.floats(0, 0.9)),
)
def test_a_limit_is_taken_exactly_when_a_crash_loop_can_reach_it(limit: int, within: float, backoff: Backoff) -> None:
    shortest = sum(backoff.delay(attempt, 0.0) for attempt in range(limit))  # the waits between limit + 1 incidents
    try:
        OneForOneSupervisor(max_restarts=limit, within=within, backoff=backoff)
        taken = True
    except ValueError:
        taken = False
    if abs(shortest - within) > 1e-6:
        assert taken is (shortest <= within)
    OneForOneSupervisor(max_restarts=inf, within=within, backoff=backoff)
