"""Random crashes, stops and restarts over random trees: the invariants hold, and nothing is left."""

import random
from math import inf

import pytest
import trio

from famulus.supervision import (
    Backoff,
    ChildSpec,
    OneForAllSupervisor,
    OneForOneSupervisor,
    RestForOneSupervisor,
    Spec,
    Supervisor,
    SupervisorSpec,
    child,
    open_supervisor,
    supervisor,
    trap_stop,
)

QUICK = Backoff(min=0.01, max=1.0, jitter=0.5)


class Forest:
    """Specs of a random tree whose workers crash, drain, return and shield at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.calm = False
        self.running: set[str] = set()
        self.crashes = 0
        self.crashed_enough = trio.Event()

    def crash(self, name: str) -> ValueError:
        self.crashes += 1
        if self.crashes == 1500:
            self.crashed_enough.set()
        return ValueError(name)

    def worker(self, name: str) -> ChildSpec:
        chance = self.random

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            assert name not in self.running, f"two incarnations of {name}"
            self.running.add(name)
            try:
                request = trap_stop() if chance.random() < 0.5 else None
                await trio.sleep(chance.choice([0, 0.1]))
                if not self.calm and chance.random() < 0.1:
                    raise self.crash("start")
                task_status.started()
                asked = False
                while not asked:
                    with trio.move_on_after(chance.expovariate(0.5)):
                        if request is None:
                            await trio.sleep_forever()
                        else:
                            await request.wait()
                            asked = True
                    if not asked and not self.calm and chance.random() < 0.9:
                        raise self.crash(name)
                with trio.CancelScope(shield=chance.random() < 0.2):
                    await trio.sleep(chance.choice([0, 0.2]))
            finally:
                self.running.discard(name)

        return child(run, name=name, shutdown=chance.choice([None, 0.1, 5.0]))

    def tree(self, name: str, depth: int) -> SupervisorSpec:
        kind = self.random.choice([OneForOneSupervisor, OneForAllSupervisor, RestForOneSupervisor])
        limit = inf if depth == 3 else 3
        children: list[Spec] = [self.worker(f"{name}.{n}") for n in range(self.random.randint(1, 4))]
        if depth:
            children += [self.tree(f"{name}.s{n}", depth - 1) for n in range(3)]
        self.random.shuffle(children)
        return supervisor(kind(max_restarts=limit, within=60, backoff=QUICK), *children, name=name)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.filterwarnings("error")
async def test_random_crashes_over_random_trees_keep_the_invariants(
    seed: int, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", logger="famulus.supervision")
    forest = Forest(seed + number)
    before = trio.lowlevel.current_statistics().tasks_living
    top = OneForOneSupervisor(max_restarts=inf, backoff=QUICK)
    forest.calm = True
    async with open_supervisor(top, forest.tree("t", 3), name="root") as sup:
        forest.calm = False
        workers = [node.name for node in sup.tree().walk() if node.kind == "worker"]
        await forest.crashed_enough.wait()
        forest.calm = True
        await trio.sleep(600)
        assert [node.name for node in sup.tree().walk() if node.kind == "worker"] == workers
        assert {node.state for node in sup.tree().walk()} == {"running"}
        assert forest.running == set(workers)
    assert forest.running == set()
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_ten_thousand_children_under_one_supervisor() -> None:
    strategy = OneForOneSupervisor(max_restarts=inf, backoff=QUICK)
    async with open_supervisor(strategy) as sup:
        await fill(sup, 10_000)
        assert sup.counts().active == 10_000
        await sup.children["c5000"].terminate()
        await sup.delete("c5000")
    assert all(handle.state == "stopped" for handle in sup.children.values())


async def fill(sup: Supervisor, number: int) -> None:
    for n in range(number):
        await sup.start(child(trio.sleep_forever, name=f"c{n}"))
