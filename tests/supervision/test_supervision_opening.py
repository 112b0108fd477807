"""How failures of the body and of the tree leave ``open_supervisor``."""

import pytest
import trio

from famulus.supervision import (
    OneForOneSupervisor,
    SupervisorFailed,
    child,
    open_supervisor,
    supervisor,
    trap_stop,
)

GIVE_UP = OneForOneSupervisor(max_restarts=0)


class Boom(Exception):
    pass


async def crash_after(seconds: float, failure: BaseException) -> None:
    await trio.sleep(seconds)
    raise failure


async def test_the_bodys_failure_leaves_bare_after_an_ordered_stop() -> None:
    drained: list[float] = []

    async def drains() -> None:
        await trap_stop().wait()
        await trio.sleep(2)
        drained.append(trio.current_time())

    start = trio.current_time()
    failure = Boom("body")
    with pytest.raises(Boom, match="body") as info:
        async with open_supervisor(OneForOneSupervisor, child(drains)):
            await trio.sleep(1)
            raise failure
    assert info.value is failure
    assert drained == [start + 3]


async def test_a_group_out_of_the_body_is_not_wrapped_again() -> None:
    group = ExceptionGroup("mine", [Boom()])
    with pytest.raises(ExceptionGroup) as info:
        async with open_supervisor():
            raise group
    assert info.value is group


async def test_a_failure_of_the_tree_cancels_the_body_and_leaves_as_one_group() -> None:
    cancelled: list[bool] = []
    with pytest.raises(ExceptionGroup) as info:
        async with open_supervisor(GIVE_UP, child(crash_after, 1, Boom()), name="top"):
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                cancelled.append(True)
                raise
    assert info.value.message == "supervision tree 'top' failed"
    assert [type(e) for e in info.value.exceptions] == [SupervisorFailed]
    assert cancelled == [True]


async def test_both_failures_leave_as_a_group_of_both() -> None:
    with pytest.raises(ExceptionGroup) as info:
        async with open_supervisor(GIVE_UP, child(crash_after, 1, Boom("child"))):
            try:
                await trio.sleep_forever()
            finally:
                raise Boom("body")
    tree, body = info.value.exceptions
    assert isinstance(tree, SupervisorFailed)
    assert isinstance(body, Boom)
    assert str(body) == "body"


async def test_a_tree_failure_under_outside_cancellation_is_not_lost() -> None:
    async def fails_when_cancelled() -> None:
        await trio.sleep(1)
        raise Boom

    with pytest.raises(ExceptionGroup) as info, trio.move_on_after(1) as scope:
        async with open_supervisor(GIVE_UP, child(fails_when_cancelled)):
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            await trio.lowlevel.checkpoint()
    assert info.group_contains(SupervisorFailed)
    assert scope.cancel_called


async def test_a_failed_start_of_a_declared_child_leaves_bare_and_stops_those_started_in_reverse() -> None:
    ended: list[str] = []

    async def works(name: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(name)

    async def fails(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(1)
        raise Boom("no start")

    body: list[None] = []
    with pytest.raises(Boom, match="no start") as info:
        async with open_supervisor(
            OneForOneSupervisor,
            child(works, "a", name="a"),
            child(works, "b", name="b"),
            child(fails),
            child(works, "d", name="d"),
        ):
            body.append(None)
    assert (ended, body) == (["b", "a"], [])
    assert info.value.__notes__ == ["this was the start of child 'fails' of supervisor 'root'"]


async def test_giving_up_before_the_body_began_leaves_bare() -> None:
    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(10)
        task_status.started()

    with pytest.raises(SupervisorFailed):
        async with open_supervisor(GIVE_UP, child(crash_after, 1, Boom()), child(slow)):
            raise AssertionError("never reached")


@pytest.mark.parametrize("fatal", [KeyboardInterrupt(), SystemExit(3)])
async def test_keyboard_interrupt_and_system_exit_of_a_child_are_not_restarted_and_leave_bare(
    fatal: BaseException,
) -> None:
    began: list[None] = []

    async def exits() -> None:
        began.append(None)
        await crash_after(1, fatal)

    nested = supervisor(OneForOneSupervisor, child(exits), name="nested")
    with pytest.raises(type(fatal)) as info:
        async with open_supervisor(OneForOneSupervisor, nested):
            await trio.sleep_forever()
    assert info.value is fatal
    assert len(began) == 1


async def test_a_system_exit_inside_a_group_reaches_the_top_too() -> None:
    began: list[None] = []

    async def exits_in_a_nursery() -> None:
        began.append(None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash_after, 1, SystemExit(3))
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as info:
        async with open_supervisor(OneForOneSupervisor, child(exits_in_a_nursery)):
            await trio.sleep_forever()
    assert info.group_contains(SystemExit)
    assert len(began) == 1


async def test_a_keyboard_interrupt_of_the_body_leaves_bare() -> None:
    with pytest.raises(KeyboardInterrupt):
        async with open_supervisor(OneForOneSupervisor, child(trio.sleep_forever)):
            raise KeyboardInterrupt


async def test_an_exit_of_a_child_and_a_failure_of_the_body_leave_as_a_group() -> None:
    with pytest.raises(BaseExceptionGroup) as info:
        async with open_supervisor(OneForOneSupervisor, child(crash_after, 1, SystemExit(3))):
            try:
                await trio.sleep_forever()
            finally:
                raise Boom
    assert [type(e) for e in info.value.exceptions] == [SystemExit, Boom]


async def test_no_task_is_left_behind() -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    nested = supervisor(OneForOneSupervisor, child(trio.sleep_forever), name="nested")
    with pytest.raises(ExceptionGroup):
        async with open_supervisor(GIVE_UP, nested, child(crash_after, 1, Boom())):
            await trio.sleep_forever()
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_trees_can_stand_inside_each_others_bodies_and_children() -> None:
    async def tree_in_a_child() -> None:
        async with open_supervisor(GIVE_UP, child(crash_after, 1, Boom()), name="inner"):
            await trio.sleep_forever()

    async with open_supervisor(name="outer") as sup:
        handle = await sup.start(child(tree_in_a_child))
        await trio.sleep(1.05)
        assert isinstance(handle.last_reason, ExceptionGroup)
        assert handle.state == "backoff"
