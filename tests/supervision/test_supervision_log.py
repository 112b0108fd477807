"""The log: one record for each start, exit, restart and escalation, with fields to search by."""

import logging
from typing import Any

import pytest
import trio

from famulus.supervision import (
    Backoff,
    OneForAllSupervisor,
    OneForOneSupervisor,
    child,
    current_child,
    open_supervisor,
    report,
    supervisor,
    trap_stop,
)

QUIET = Backoff(min=1.0, max=1.0, factor=1.0, jitter=0.0)
FIELDS = ("levelname", "event", "supervisor", "child", "reason", "incidents")


class Boom(Exception):
    pass


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[Any, ...]]:
    """What was logged, as tuples of FIELDS; each record must have them all."""
    entries = [tuple(vars(record)[field] for field in FIELDS) for record in caplog.records]
    caplog.clear()
    return entries


async def crashes_once() -> None:
    await trio.sleep(1)
    if current_child().incarnation == 1:
        raise Boom("bad")
    await trio.sleep_forever()


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="famulus.supervision")


async def test_a_start_a_crash_a_restart_and_a_stop_are_one_record_each(caplog: pytest.LogCaptureFixture) -> None:
    async with open_supervisor(OneForOneSupervisor(backoff=QUIET), name="top") as sup:
        await sup.start(child(crashes_once, name="x"))
        await trio.sleep(5)
    assert caplog.records[1].exc_info is not None
    assert caplog.records[2].__dict__["delay"] == 1.0
    assert [record.__dict__["incarnation"] for record in caplog.records] == [1, 1, 1, 2, 2]
    assert told(caplog) == [
        ("DEBUG", "started", "top", "x", None, 0),
        ("ERROR", "exited", "top", "x", "Boom: bad", 0),
        ("INFO", "restarting", "top", "x", "Boom: bad", 1),
        ("DEBUG", "started", "top", "x", None, 1),
        ("DEBUG", "exited", "top", "x", "stopped", 1),
    ]


async def test_an_exit_that_leads_to_nothing_is_one_record_at_the_level_of_its_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def crashes() -> None:
        raise Boom("bad")

    async with open_supervisor() as sup:
        await sup.start(child(trio.lowlevel.checkpoint, name="done", restart="transient"))
        await trio.sleep(1)
        await sup.start(child(crashes, name="lost", restart="temporary"))
        await trio.sleep(1)
    assert [entry[:5] for entry in told(caplog) if entry[1] != "started"] == [
        ("DEBUG", "exited", "root", "done", "finished"),
        ("ERROR", "exited", "root", "lost", "Boom: bad"),
    ]


async def test_a_permanent_child_that_returns_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with open_supervisor(OneForOneSupervisor(backoff=QUIET)) as sup:
        await sup.start(child(trio.sleep, 1, name="x"))
        await trio.sleep(1.5)
    assert told(caplog)[1:3] == [
        ("WARNING", "exited", "root", "x", "returned", 0),
        ("INFO", "restarting", "root", "x", "returned", 1),
    ]


async def test_an_escalation_is_a_record_of_the_one_that_gave_up_and_an_exit_of_that_child(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = supervisor(OneForOneSupervisor(max_restarts=0), child(crashes_once, name="x"), name="inner")
    async with open_supervisor(OneForOneSupervisor(backoff=QUIET)) as sup:
        await sup.start(inner)
        await trio.sleep(1.5)
        entries = told(caplog)
    assert [entry[:4] for entry in entries] == [
        ("DEBUG", "started", "root/inner", "x"),
        ("DEBUG", "started", "root", "inner"),
        ("ERROR", "exited", "root/inner", "x"),
        ("ERROR", "gave_up", "root/inner", "x"),
        ("ERROR", "exited", "root", "inner"),
        ("INFO", "restarting", "root", "inner"),
    ]
    assert entries[3][4:] == ("Boom: bad", 1)


async def test_a_group_restart_is_one_restart_and_one_exit_and_one_start_for_each_child(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_supervisor(OneForAllSupervisor(backoff=QUIET)) as sup:
        await sup.start(child(trio.sleep_forever, name="a"))
        await sup.start(child(crashes_once, name="b"))
        caplog.clear()
        await trio.sleep(2.5)
        assert told(caplog) == [
            ("ERROR", "exited", "root", "b", "Boom: bad", 0),
            ("INFO", "restarting", "root", "b", "Boom: bad", 1),
            ("DEBUG", "exited", "root", "a", "stopped", 1),
            ("DEBUG", "started", "root", "a", None, 1),
            ("DEBUG", "started", "root", "b", None, 1),
        ]


async def test_what_else_can_happen_has_the_same_fields(caplog: pytest.LogCaptureFixture) -> None:
    def hook(*_: object) -> None:
        raise Boom("hook")

    async def fails(*, task_status: trio.TaskStatus[None]) -> None:
        raise Boom("start")

    async def stays() -> None:
        trap_stop(lambda: hook())
        with trio.CancelScope(shield=True):
            await trio.sleep(8)

    async with open_supervisor() as sup:
        with pytest.raises(Boom):
            await sup.start(child(fails, name="fails"))
        hooked = await sup.start(child(trio.sleep_forever, name="hooked", on_exit=hook))
        await hooked.terminate()
        await sup.start(child(stays, name="stays"))
        await trio.sleep(1)
    entries = [entry[:4] for entry in told(caplog) if entry[0] != "DEBUG"]
    assert entries == [
        ("WARNING", "start_failed", "root", "fails"),
        ("ERROR", "hook_failed", "root", "hooked"),
        ("ERROR", "hook_failed", "root", "stays"),
        ("WARNING", "stays", "root", "stays"),
    ]


@pytest.mark.parametrize("fatal", [SystemExit(3), KeyboardInterrupt()])
async def test_a_child_that_ends_the_program_alarms_nobody(
    caplog: pytest.LogCaptureFixture, fatal: BaseException
) -> None:
    async def exits() -> None:
        raise fatal

    with pytest.raises(type(fatal)):
        async with open_supervisor(OneForOneSupervisor, child(exits, name="x")):
            await trio.sleep_forever()
    assert [entry[:4] for entry in told(caplog)][1:] == [("DEBUG", "exited", "root", "x")]


async def test_switched_off_it_builds_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.CRITICAL, logger="famulus.supervision")

    def never(*_: object, **__: object) -> dict[str, object]:
        raise AssertionError("a record was made")

    monkeypatch.setattr(report, "_extra", never)
    monkeypatch.setattr(report, "describe", never)
    limit = OneForOneSupervisor(max_restarts=1, backoff=QUIET, within=60)

    async def crashes() -> None:
        raise Boom

    async with open_supervisor(OneForOneSupervisor(backoff=QUIET)) as sup:
        await sup.start(supervisor(limit, child(crashes), child(trio.sleep_forever), name="inner"))
        await trio.sleep(5)
    assert caplog.records == []
