"""Supervision under hostile hands: random operations on a random tree whose children crash, each cancelled at random.

Several operators terminate, restart, delete, start and stop what they find, at the same time as children crash, return, drain
and shield. A failure names its seed: ``FAMULUS_TORTURE_SEED=123 pytest -k one_seed_of_supervision`` sees that program again,
scheduling included. The soak of 100,000 crashes is in tests/supervision/test_supervision_soak.py.
"""

from __future__ import annotations

import os
import random
from math import inf

import pytest
import trio

from famulus.supervision import (
    Backoff,
    ChildHandle,
    ChildSpec,
    OneForAllSupervisor,
    OneForOneSupervisor,
    RestForOneSupervisor,
    Spec,
    SupervisionError,
    Supervisor,
    child,
    monitor,
    open_supervisor,
    pool,
    supervisor,
    trap_stop,
)

KINDS = [OneForOneSupervisor, OneForAllSupervisor, RestForOneSupervisor]
QUICK = Backoff(min=0.01, max=1.0, jitter=0.5)


class Crash(Exception):
    pass


class Hands:
    """A tree, those who meddle with it, and what must hold all the time."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.calm = False
        self.running: dict[str, int] = {}
        self.names = 0
        self.done: list[str] = []

    def name(self) -> str:
        self.names += 1
        return f"n{self.names}"

    def worker(self) -> ChildSpec:
        chance = self.chance
        name = self.name()
        restart = chance.choice(["permanent", "permanent", "transient", "temporary"])

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            await self.live(name, task_status)

        # mypy cannot see that a choice of literals is one of them.
        return child(run, name=name, restart=restart, shutdown=chance.choice([None, 0.1, 3.0, inf]))  # type: ignore[arg-type]

    async def member(self, name: str, *, task_status: trio.TaskStatus[None]) -> None:
        await self.live(name, task_status)

    async def live(self, name: str, task_status: trio.TaskStatus[None]) -> None:
        chance = self.chance
        assert name not in self.running, f"two incarnations of {name}"
        self.running[name] = 1
        try:
            request = trap_stop() if chance.random() < 0.5 else None
            await trio.sleep(chance.choice([0, 0, 0.2, 1]))
            if not self.calm and chance.random() < 0.1:
                return  # before it is ready
            task_status.started()
            while not (request and request.requested):
                with trio.move_on_after(chance.expovariate(0.3)):
                    if request is None:
                        await trio.sleep_forever()
                    else:
                        await request.wait()
                if not (request and request.requested) and not self.calm and chance.random() < 0.5:
                    if chance.random() < 0.2:
                        return
                    raise Crash(name)
            await trio.sleep(chance.choice([0, 0.2, 2]))
        finally:
            try:
                with trio.CancelScope(shield=chance.random() < 0.2):
                    await trio.sleep(chance.choice([0, 0.3]))
            finally:
                del self.running[name]
            if not self.calm and chance.random() < 0.1:
                raise Crash("cleanup")

    def branch(self, depth: int) -> Spec:
        chance = self.chance
        if depth == 0 or chance.random() < 0.4:
            return self.worker()
        if chance.random() < 0.25:
            template = child(self.member, restart=chance.choice(["transient", "temporary"]))
            return pool(template, name=self.name(), strategy=OneForOneSupervisor(max_restarts=20, backoff=QUICK))
        strategy = chance.choice(KINDS)(max_restarts=chance.choice([2, 5, inf]), within=60, backoff=QUICK)
        children = [self.branch(depth - 1) for _ in range(chance.randint(0, 4))]
        stop = chance.choice(["reverse", "together"])
        return supervisor(strategy, *children, name=self.name(), stop=stop)  # type: ignore[arg-type]  # as above

    def somewhere(self, root: Supervisor) -> Supervisor:
        """A supervisor that lives now."""
        here = root
        while self.chance.random() < 0.7:
            below = [handle._nested for handle in here.children.values() if handle._nested is not None]
            if not below:
                break
            here = self.chance.choice(below)
        return here

    async def meddle(self, root: Supervisor) -> None:
        """One operation, which may be refused, fail, or be cancelled."""
        chance, sup = self.chance, self.somewhere(root)
        handles = list(sup.children.values())
        what = chance.choice(["start", "start", "terminate", "restart", "restart", "delete", "stop", "wait"])
        handle = chance.choice(handles) if handles else None
        with trio.move_on_after(chance.choice([0, 0.01, 0.5, 5, 30])):
            try:
                if what == "start" and sup._template is not None:
                    await sup.start_child(self.name())
                elif what == "start":
                    await sup.start(self.branch(1))
                elif what == "stop" and sup is not root and chance.random() < 0.2:
                    await sup.stop()
                elif handle is None:
                    return
                elif what == "terminate":
                    await handle.terminate()
                elif what == "restart":
                    await handle.restart()
                elif what == "delete":
                    await sup.delete(handle.name)
                elif what == "wait":
                    await handle.wait_stopped()
                self.done.append(what)
            except (SupervisionError, Crash):
                pass

    async def operate(self, root: Supervisor, until: float) -> None:
        while trio.current_time() < until:
            await self.meddle(root)
            await trio.sleep(self.chance.expovariate(5))

    async def watch(self, root: Supervisor, until: float) -> None:
        """Monitors see incarnations in order, and nothing runs that the tree does not show."""
        while trio.current_time() < until:
            await trio.sleep(self.chance.expovariate(1))
            self.check(root)
            handles = list(self.somewhere(root).children.values())
            if not handles:
                continue
            handle = self.chance.choice(handles)
            with trio.move_on_after(10):
                async with monitor(handle) as exits:
                    seen = [exit.incarnation async for exit in exits]
                    assert seen == sorted(set(seen)), handle
                    assert handle.gone

    def check(self, root: Supervisor) -> None:
        shown = set[str]()

        def look(handle: ChildHandle) -> None:
            name = str(handle._args[0]) if handle._args else handle.name
            if handle._run is not None:
                shown.add(name)
            assert (handle.state in ("starting", "running", "stopping")) is handle.alive or handle._run is not None, (
                handle
            )
            if handle._nested is not None:
                for below in handle._nested.children.values():
                    look(below)

        for handle in root.children.values():
            look(handle)
        assert self.running.keys() <= shown, self.running.keys() - shown


async def torture(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    trio._core._run._r.seed(seed)
    try:
        await play(seed)
    except BaseException as error:
        error.add_note(f"FAMULUS_TORTURE_SEED={seed}")
        raise


async def play(seed: int) -> None:
    hands = Hands(seed)
    random.seed(seed)  # jitter
    before = trio.lowlevel.current_statistics().tasks_living
    top = OneForOneSupervisor(max_restarts=inf, backoff=QUICK)
    hands.calm = True  # the first start of the declared tree
    specs = [hands.branch(3) for _ in range(4)]
    async with open_supervisor(top, *specs) as root:
        hands.calm = False
        until = trio.current_time() + 120
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(hands.operate, root, until)
            nursery.start_soon(hands.watch, root, until)
        hands.calm = seed % 2 == 0  # every other one stops in the middle of it all
        if hands.calm:
            await trio.sleep(300)
            hands.check(root)
            alive = {node.state for node in root.tree().walk()}
            assert alive <= {"running", "stopped", "finished", "failed"}, alive
    assert hands.running == {}
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert len(hands.done) > 100


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="famulus.supervision")


@pytest.mark.parametrize("number", range(5))
async def test_hostile_hands_break_no_law_of_supervision(
    seed: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await torture(seed + number, monkeypatch)


@pytest.mark.torture
@pytest.mark.parametrize("number", range(5, 205))
async def test_many_hostile_hands_break_no_law_of_supervision(
    seed: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await torture(seed + number, monkeypatch)


async def test_one_seed_of_supervision(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new program each time."""
    await torture(int(os.environ.get("FAMULUS_TORTURE_SEED") or seed), monkeypatch)
