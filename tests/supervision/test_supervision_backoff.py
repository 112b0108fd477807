"""Backoff arithmetic, and limits that no crash loop can reach."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from famulus.supervision import (
    Backoff,
    CrashingSupervisor,
    IncidentWindow,
    OneForOneSupervisor,
    SupervisorStrategy,
)
from famulus.supervision.window import Incident


def test_the_default_doubles_from_a_tenth_of_a_second_up_to_thirty() -> None:
    waits = [round(Backoff().nominal(n), 3) for n in range(11)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]


def test_a_very_long_crash_loop_does_not_overflow() -> None:
    assert Backoff().nominal(100_000) == 30.0
    assert Backoff(min=0).nominal(100_000) == 0.0


def test_jitter_spreads_evenly_around_the_wait() -> None:
    backoff = Backoff(min=1.0, jitter=0.5)
    assert [backoff.delay(0, chance) for chance in (0.0, 0.5, 1.0)] == [0.5, 1.0, 1.5]


@pytest.mark.parametrize(("within", "most"), [(5, 6), (10, 7), (60, 10)])
def test_the_default_lets_so_many_incidents_fall_into_a_window(within: float, most: int) -> None:
    assert Backoff().fits(within) == most


def test_the_default_limit_is_one_that_a_crash_loop_reaches() -> None:
    assert OneForOneSupervisor().max_restarts == 20
    assert Backoff().span(21) < 600


def test_the_largest_limit_that_fits_is_taken_and_the_next_is_refused() -> None:
    OneForOneSupervisor(max_restarts=9, within=60)
    with pytest.raises(ValueError, match=r"at most 10 incidents within 60 s, and giving up takes 11") as info:
        OneForOneSupervisor(max_restarts=10, within=60)
    assert "max_restarts=9 or less, within=73 or more" in str(info.value)


def test_never_giving_up_is_always_allowed() -> None:
    assert OneForOneSupervisor(max_restarts=inf, within=1).max_restarts == inf


def test_without_backoff_every_limit_can_be_reached() -> None:
    OneForOneSupervisor(max_restarts=10**9, within=1, backoff=Backoff(min=0, max=0))


@given(
    st.floats(0.01, 5),
    st.floats(1, 4),
    st.floats(0, 0.9),
    st.integers(0, 40),
    st.floats(0.5, 500),
)
def test_a_limit_is_refused_exactly_when_the_fastest_crash_loop_never_reaches_it(
    least: float, factor: float, jitter: float, limit: int, within: float
) -> None:
    backoff = Backoff(min=least, max=30, factor=factor, jitter=jitter)
    window, now = IncidentWindow(limit, within), 0.0
    reached = window.record(Incident(now, "x", 1, None))
    for attempt in range(limit):
        now += backoff.delay(attempt, 0.0)
        reached = window.record(Incident(now, "x", 1, None)) or reached
    if abs(backoff.span(limit + 1) - within) < 1e-6:
        return  # on the edge, rounding decides
    try:
        OneForOneSupervisor(max_restarts=limit, within=within, backoff=backoff)
    except ValueError:
        assert not reached
    else:
        assert reached


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"min": -1}, r"min=-1\): expected seconds"),
        ({"min": 3, "max": 2}, r"max=2\): expected seconds, at least min=3"),
        ({"factor": 0.5}, r"factor=0.5\): expected a number from 1"),
        ({"jitter": 2}, r"jitter=2\): expected a fraction"),
        ({"reset_after": 0}, r"reset_after=0\): expected seconds, more than 0"),
        ({"min": float("nan")}, r"min=nan"),
    ],
)
def test_a_bad_backoff_names_the_value(values: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Backoff(**values)


def test_bad_strategies_name_the_value() -> None:
    with pytest.raises(ValueError, match=r"max_restarts=-1\): expected a whole number"):
        OneForOneSupervisor(max_restarts=-1)
    with pytest.raises(ValueError, match=r"max_restarts=1.5\): expected a whole number"):
        OneForOneSupervisor(max_restarts=1.5)
    with pytest.raises(ValueError, match=r"within=0\): expected seconds"):
        OneForOneSupervisor(within=0)
    with pytest.raises(ValueError, match="auto_shutdown='sometimes'"):
        OneForOneSupervisor(auto_shutdown="sometimes")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="max_restarts"):
        CrashingSupervisor(max_restarts=3)


def test_the_base_strategy_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        SupervisorStrategy()
