"""Child specs are validated where they are given."""

import functools
from math import inf

import pytest
import trio

from famulus.supervision import (
    OneForAllSupervisor,
    OneForOneSupervisor,
    StrategyLike,
    child,
    open_supervisor,
    supervisor,
)


async def work(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    task_status.started()


class Worker:
    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()

    async def __call__(self) -> None:
        pass


def test_a_child_has_otps_defaults() -> None:
    spec = child(trio.sleep, 1)
    assert (spec.name, spec.restart, spec.shutdown, spec.significant) == ("sleep", "permanent", 5.0, False)


def test_a_supervisor_gets_for_ever_to_stop() -> None:
    assert supervisor(OneForOneSupervisor, name="agents").shutdown == inf


def test_readiness_is_detected_by_a_parameter_named_task_status() -> None:
    assert child(work).wants_status is True
    assert child(Worker().run).wants_status is True
    assert child(functools.partial(work)).wants_status is True
    assert child(trio.sleep_forever).wants_status is False
    assert child(Worker(), name="w").wants_status is False


def test_the_name_defaults_to_the_functions() -> None:
    assert child(functools.partial(work)).name == "work"
    assert child(Worker()).name == "Worker"


def test_a_strategy_is_taken_as_class_or_instance() -> None:
    assert supervisor(OneForAllSupervisor, name="x") == supervisor(OneForAllSupervisor(), name="x")
    with pytest.raises(TypeError, match="expected a SupervisorStrategy"):
        supervisor("one-for-all", name="x")  # type: ignore[arg-type]  # what is tested


def test_a_bad_spec_names_the_child_and_the_value() -> None:
    with pytest.raises(ValueError, match="child name ''"):
        child(work, name="")
    with pytest.raises(ValueError, match="child 'work': restart='always'"):
        child(work, restart="always")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="child 'work': shutdown=-1"):
        child(work, shutdown=-1)
    with pytest.raises(TypeError, match="expected an async function"):
        child(3)  # type: ignore[arg-type]  # what is tested


def test_significant_and_permanent_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="child 'work' is significant and permanent"):
        child(work, significant=True)


def test_a_significant_child_needs_a_supervisor_that_shuts_down() -> None:
    spec = child(work, restart="transient", significant=True)
    with pytest.raises(ValueError, match="child 'work' is significant"):
        supervisor(OneForOneSupervisor, spec, name="x")
    supervisor(OneForOneSupervisor(auto_shutdown="any_significant"), spec, name="x")


def test_two_children_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="supervisor 'x': two children are named 'work'"):
        supervisor(OneForOneSupervisor, child(work), child(work), name="x")


@pytest.mark.parametrize("strategy", [OneForOneSupervisor, OneForOneSupervisor()])
async def test_open_supervisor_takes_class_or_instance(strategy: StrategyLike) -> None:
    async with open_supervisor(strategy) as sup:
        assert sup.strategy == OneForOneSupervisor()
