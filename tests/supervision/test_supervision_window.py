"""The sliding window of incidents, on literal times."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from famulus.supervision import Incident, IncidentWindow


def at(time: float) -> Incident:
    return Incident(time, "tally", 1, None)


def test_exactly_max_restarts_incidents_are_still_accepted() -> None:
    window = IncidentWindow(3, 60.0)
    assert [window.record(at(t)) for t in (0, 1, 2)] == [False, False, False]


def test_one_more_than_max_restarts_is_too_many() -> None:
    window = IncidentWindow(3, 60.0)
    assert [window.record(at(t)) for t in (0, 1, 2, 3)] == [False, False, False, True]


def test_max_restarts_zero_is_exceeded_by_the_first_incident() -> None:
    assert IncidentWindow(0, 60.0).record(at(0)) is True


def test_an_incident_exactly_within_seconds_old_still_counts_as_in_otp() -> None:
    window = IncidentWindow(1, 10.0)
    window.record(at(5))
    assert window.record(at(15)) is True


def test_an_older_incident_does_not_count() -> None:
    window = IncidentWindow(1, 10.0)
    window.record(at(5))
    assert window.record(at(15.001)) is False
    assert [i.time for i in window.incidents] == [15.001]


def test_clearing_forgets_everything() -> None:
    window = IncidentWindow(1, 10.0)
    window.record(at(0))
    window.clear()
    assert window.record(at(1)) is False


def test_without_a_limit_it_never_exceeds_and_keeps_only_the_last_twenty() -> None:
    window = IncidentWindow(inf, 1000.0)
    assert not any(window.record(at(t)) for t in range(100))
    assert [i.time for i in window.incidents] == list(range(80, 100))


@given(
    st.lists(st.integers(0, 30), max_size=60),
    st.integers(0, 6),
    st.integers(1, 50),
)
def test_it_says_too_many_exactly_when_a_recount_does(gaps: list[int], limit: int, within: int) -> None:
    window = IncidentWindow(limit, within)
    times: list[int] = []
    for gap in gaps:
        times.append((times[-1] if times else 0) + gap)
        recount = sum(times[-1] - t <= within for t in times)
        assert window.record(at(times[-1])) is (recount > limit)
        assert len(window) == recount


def test_an_incident_reads_as_one_line() -> None:
    assert str(Incident(1.0, "tally", 2, ValueError("bad\nvery bad"))) == "tally #2: ValueError: bad"
    assert str(Incident(1.0, "tally", 2, None)) == "tally #2: returned"


def test_an_exception_whose_message_fails_is_described_all_the_same() -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert str(Incident(0.0, "a", 1, BrokenError())) == "a #1: BrokenError: its message cannot be shown"
