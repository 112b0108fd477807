"""Whom a restart takes along, as literal values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from famulus.supervision import (
    ChildView,
    OneForAllSupervisor,
    OneForOneSupervisor,
    Plan,
    Restart,
    RestForOneSupervisor,
    SupervisorStrategy,
    exit_verdict,
    plan,
)

ABCD = [ChildView("a"), ChildView("b"), ChildView("c"), ChildView("d")]


def test_one_for_one_restarts_the_failed_child_only() -> None:
    assert plan(ABCD, "b", OneForOneSupervisor()) == Plan(stop=(), drop=(), start=("b",))


def test_one_for_all_stops_the_others_in_reverse_and_starts_all_in_order() -> None:
    assert plan(ABCD, "b", OneForAllSupervisor()) == Plan(stop=("d", "c", "a"), drop=(), start=("a", "b", "c", "d"))


def test_rest_for_one_takes_those_after_the_failed_child() -> None:
    assert plan(ABCD, "b", RestForOneSupervisor()) == Plan(stop=("d", "c"), drop=(), start=("b", "c", "d"))


def test_rest_for_one_of_the_last_child_takes_nobody_along() -> None:
    assert plan(ABCD, "d", RestForOneSupervisor()) == Plan(stop=(), drop=(), start=("d",))


def test_temporary_children_that_are_taken_along_are_dropped() -> None:
    children = [
        ChildView("a", "temporary"),
        ChildView("b"),
        ChildView("c", "temporary"),
        ChildView("d", "transient"),
    ]
    assert plan(children, "b", RestForOneSupervisor()) == Plan(stop=("d", "c"), drop=("c",), start=("b", "d"))


def test_children_terminated_by_hand_stay_stopped() -> None:
    children = [ChildView("a", held=True), ChildView("b"), ChildView("c", held=True)]
    assert plan(children, "b", OneForAllSupervisor()) == Plan(stop=(), drop=(), start=("b",))


def test_an_unknown_child_is_refused() -> None:
    with pytest.raises(ValueError, match="'x'"):
        plan(ABCD, "x", OneForAllSupervisor())


@pytest.mark.parametrize(
    ("restart", "normal", "verdict"),
    [
        ("permanent", True, "restart"),
        ("permanent", False, "restart"),
        ("transient", True, "finished"),
        ("transient", False, "restart"),
        ("temporary", True, "drop"),
        ("temporary", False, "drop"),
    ],
)
def test_what_an_exit_leads_to(restart: Restart, normal: bool, verdict: str) -> None:
    assert exit_verdict(restart, normal=normal) == verdict


views = st.lists(
    st.builds(
        ChildView,
        st.text("abcdefgh", min_size=1, max_size=3),
        st.sampled_from(["permanent", "transient", "temporary"]),
        st.booleans(),
    ),
    min_size=1,
    unique_by=lambda view: view.name,
)


@given(views, st.data(), st.sampled_from([OneForOneSupervisor(), OneForAllSupervisor(), RestForOneSupervisor()]))
def test_every_plan_stops_in_reverse_order_and_starts_in_order(
    children: list[ChildView], data: st.DataObject, strategy: SupervisorStrategy
) -> None:
    failed = data.draw(st.sampled_from([c.name for c in children]))
    order = [c.name for c in children]
    decided = plan(children, failed, strategy)
    assert list(decided.stop) == sorted(decided.stop, key=order.index, reverse=True)
    assert list(decided.start) == sorted(decided.start, key=order.index)
    assert failed not in decided.stop
    assert len(set(decided.stop)) == len(decided.stop)
    # Whatever is stopped is started again or dropped, and nothing else is started but the failed one.
    again = set(decided.start) | set(decided.drop)
    assert set(decided.stop) <= again
    assert set(decided.start) <= set(decided.stop) | {failed}
    assert not set(decided.start) & set(decided.drop)
