"""A declared tree: which supervisor runs an app's agents, tasks, timers and services."""

from collections.abc import Mapping
from typing import Any

import pytest
import trio
import trio.testing

import famulus
from famulus.supervision import (
    Backoff,
    OneForAllSupervisor,
    OneForOneSupervisor,
    RestForOneSupervisor,
    TreeNode,
    trap_stop,
)

AT_ONCE = Backoff(min=0, max=0)


def make_app(**options: Any) -> famulus.App:
    app = famulus.App("shop", **options)

    @app.agent(app.channel("prices", value_type=int), name="shop.prices")
    async def prices(stream: famulus.Stream[int]) -> None:
        async for price in stream:
            if price < 0:
                raise ValueError(f"price {price}")

    @app.agent(app.channel("trades", value_type=int), name="shop.trades")
    async def trades(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    @app.task
    async def replay() -> None:
        await trio.sleep_forever()

    @app.timer(5.0)
    async def beat() -> None: ...

    @app.service(name="shop.gateway")
    async def gateway() -> None:
        await trio.sleep_forever()

    return app


def shape(node: TreeNode) -> dict[str, Any]:
    """The supervisors by name, each with what is below it; agents stand for their actors."""
    return {
        child.name.rpartition(".")[2]: shape(child) if child.kind == "supervisor" else None
        for child in node.children
        if not child.name.endswith("]")
    }


async def shape_of(app: famulus.App, **options: Any) -> dict[str, Any]:
    async with famulus.open_app(app, **options) as running:
        whole = shape(running.tree())
    del whole["messaging"]
    whole["services"].pop("late declarations")
    return whole


async def test_without_a_tree_everything_has_its_default_place() -> None:
    assert await shape_of(make_app()) == {
        "services": {"gateway": None},
        "agents": {"prices": {}, "trades": {}},
        "tasks": {"replay": None},
        "timers": {"beat": None},
    }


TREE = famulus.tree(
    famulus.tree("prices", famulus.tree("shop.trades", name="inner"), "gateway", name="ingest"), "replay", "beat"
)
TABLE: Mapping[str, Any] = {
    "children": ["ingest", "replay", "beat"],
    "supervisors": {
        "ingest": {"children": ["prices", "inner", "gateway"], "supervisors": {"inner": {"children": ["trades"]}}}
    },
}
PLACED: dict[str, Any] = {
    "services": {},
    "tree": {"ingest": {"prices": {}, "inner": {"trades": {}}, "gateway": None}, "replay": None, "beat": None},
    "agents": {},
    "tasks": {},
    "timers": {},
}


@pytest.mark.parametrize("tree", [TREE, TABLE], ids=["python", "table"])
async def test_a_tree_places_agents_tasks_timers_and_services(tree: Any) -> None:
    assert await shape_of(make_app(tree=tree)) == PLACED
    assert await shape_of(make_app(), tree=tree) == PLACED


async def test_what_a_tree_does_not_name_has_its_default_place() -> None:
    found = await shape_of(make_app(tree=famulus.tree(famulus.tree("trades", name="ingest"))))
    assert found["tree"] == {"ingest": {"trades": {}}}
    assert found["agents"] == {"prices": {}}
    assert found["tasks"] == {"replay": None}


async def test_a_run_may_have_another_tree_than_its_app() -> None:
    app = make_app(tree=TREE)
    assert (await shape_of(app, tree=famulus.tree("prices")))["tree"] == {"prices": {}}
    assert await shape_of(app) == PLACED


async def test_supervisors_may_be_declared_one_by_one() -> None:
    app = make_app()
    app.supervisor("ingest", "prices", "trades", strategy=RestForOneSupervisor)
    app.supervisor("front", famulus.leaf("gateway", restart="transient"))
    found = await shape_of(app)
    assert found["tree"] == {"ingest": {"prices": {}, "trades": {}}, "front": {"gateway": None}}
    with pytest.raises(famulus.ImproperlyConfigured, match="'trades' is used twice"):
        app.supervisor("again", "trades")


async def test_a_group_is_restarted_as_its_strategy_says() -> None:
    """The agent gives up at its first crash; its supervisor then starts all of the group again."""
    app = famulus.App("group")
    started: list[str] = []
    numbers = app.channel("numbers", value_type=int)

    @app.agent(numbers, name="parse", supervisor_strategy=famulus.CrashingSupervisor)
    async def parse(stream: famulus.Stream[int]) -> None:
        started.append("parse")
        async for number in stream:
            if number == 13:
                raise ValueError("thirteen")
            started.append(f"parsed {number}")

    @app.service(name="cache")
    async def cache() -> None:
        started.append("cache")
        await trio.sleep_forever()

    app.supervisor("ingest", "cache", "parse", strategy=OneForAllSupervisor(backoff=AT_ONCE, max_restarts=3))
    async with famulus.open_app(app) as running:
        await trio.testing.wait_all_tasks_blocked()
        assert started == ["cache", "parse"]
        await numbers.send(13)
        await numbers.send(14)
        await trio.sleep(1)
        assert started == ["cache", "parse", "cache", "parse", "parsed 14"]
        ingest = next(node for node in running.tree().walk() if node.name == "ingest")
        assert [child.state for child in ingest.children] == ["running", "running"]


async def test_a_supervisor_that_gives_up_ends_the_app() -> None:
    app = famulus.App("ends")
    numbers = app.channel("numbers", value_type=int)

    @app.agent(numbers, name="parse", supervisor_strategy=OneForOneSupervisor(max_restarts=0))
    async def parse(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            raise ValueError("no")

    app.supervisor("ingest", "parse", strategy=OneForOneSupervisor(max_restarts=0))
    with pytest.RaisesGroup(famulus.SupervisorFailed):
        async with famulus.open_app(app):
            await numbers.send(1)
            await trio.sleep(60)


async def test_options_of_a_leaf_are_those_of_the_child() -> None:
    app = famulus.App("once")
    runs = 0

    @app.service(name="once")
    async def once() -> None:
        nonlocal runs
        runs += 1

    app.supervisor("front", famulus.leaf("once", restart="transient"))
    async with famulus.open_app(app):
        await trio.sleep(60)
    assert runs == 1


async def test_a_placed_task_begins_when_the_agents_are_at_their_streams() -> None:
    app = famulus.App("late")
    order: list[str] = []

    @app.task
    async def feed() -> None:
        order.append("task")
        await trio.sleep_forever()

    @app.agent(app.channel("numbers"), name="read")
    async def read(stream: famulus.Stream[int]) -> None:
        await trio.sleep(1)
        order.append("agent")
        async for _ in stream:
            pass

    app.supervisor("ingest", "feed", "read")
    async with famulus.open_app(app):
        await trio.testing.wait_all_tasks_blocked()
    assert order == ["agent", "task"]


async def test_a_service_is_up_before_the_agents_and_ends_after_them() -> None:
    app = famulus.App("services")
    order: list[str] = []

    @app.service
    async def gateway(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(1)
        order.append("service up")
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            order.append("service ends")

    @app.agent(app.channel("numbers"))
    async def read(stream: famulus.Stream[int]) -> None:
        order.append("agent up")
        try:
            async for _ in stream:
                pass
        finally:
            order.append("agent ends")

    async with famulus.open_app(app):
        pass
    assert order == ["service up", "agent up", "agent ends", "service ends"]


async def test_a_service_may_be_declared_while_running() -> None:
    up = trio.Event()
    async with famulus.open_app() as running:

        @running.service
        async def gateway() -> None:
            up.set()
            await trio.sleep_forever()

        with trio.fail_after(5):
            await up.wait()
        assert "gateway" in str(running.tree())


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"children": ["pricse"]},
            r"tree.children\[0\]: there is nothing named 'pricse' to place here; did you mean prices\?",
        ),
        ({"childern": []}, r"tree\.childern: there is no such key; did you mean children\?"),
        (
            {"supervisors": {"a": {"max_restart": 1}}},
            r"tree\.supervisors\.a\.max_restart: .* did you mean max_restarts\?",
        ),
        (["prices"], r"tree=\['prices'\]: expected tree\(\.\.\.\), or a table"),
        (
            famulus.tree("prices", famulus.tree("shop.prices", name="a")),
            "it is shop.prices, which 'prices' has placed already",
        ),
    ],
)
async def test_a_wrong_tree_is_refused_before_anything_starts(tree: Any, message: str) -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match=message):
        async with famulus.open_app(make_app(), tree=tree):
            raise AssertionError("it started")


async def test_a_name_that_means_two_things_cannot_be_placed() -> None:
    app = famulus.App("twice", tree=famulus.tree("feed"))

    @app.agent(app.channel("numbers"), name="feed")
    async def read(stream: famulus.Stream[int]) -> None: ...

    @app.task
    async def feed() -> None: ...

    app.tasks[0] = type(app.tasks[0])("feed", app.tasks[0].fun)
    with pytest.raises(famulus.ImproperlyConfigured, match="tree: feed: it may be any of feed, feed"):
        async with famulus.open_app(app):
            pass


async def test_an_agent_under_a_crashing_supervisor_ends_the_app_within_a_second() -> None:
    app = famulus.App("crashes")
    numbers = app.topic("numbers", value_type=int, partitions=2)
    fine = app.topic("fine", value_type=int, partitions=2)

    @app.agent(numbers, supervisor_strategy=famulus.CrashingSupervisor)
    async def crash(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            raise ValueError("no")

    @app.agent(fine)
    async def work(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep(0.01)

    crashed = 0.0
    with pytest.RaisesGroup(famulus.SupervisorFailed):
        async with famulus.open_app(app):
            for number in range(50):
                await fine.send(number)
            await numbers.send(1)
            crashed = trio.current_time()
            await trio.sleep_forever()
    assert trio.current_time() - crashed < 1


async def test_a_short_name_that_means_two_agents_cannot_be_placed() -> None:
    app = famulus.App("short", tree=famulus.tree("feed"))
    for name in ("a.feed", "b.feed"):

        @app.agent(app.channel(name), name=name)
        async def read(stream: famulus.Stream[int]) -> None: ...

    with pytest.raises(famulus.ImproperlyConfigured, match=r"it may be any of a\.feed, b\.feed"):
        async with famulus.open_app(app):
            pass


async def test_options_of_an_agents_leaf_hold_for_its_actors() -> None:
    app = famulus.App("options")
    runs = 0
    numbers = app.channel("numbers", value_type=int)

    @app.agent(numbers, name="once")
    async def once(stream: famulus.Stream[int]) -> None:
        nonlocal runs
        runs += 1

    slow = app.channel("slow", value_type=int)
    finished: list[int] = []

    @app.agent(slow, name="slow")
    async def take_long(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(20)
            finished.append(number)

    app.supervisor("group", famulus.leaf("once", restart="transient"), famulus.leaf("slow", shutdown=30))
    async with famulus.open_app(app):
        await slow.send(1)
        await trio.sleep(10)
    assert runs == 1
    assert finished == [1]


async def test_an_agent_cannot_be_temporary() -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match="an agent cannot be temporary"):
        async with famulus.open_app(make_app(), tree=famulus.tree(famulus.leaf("prices", restart="temporary"))):
            pass


async def test_a_service_that_is_declared_late_is_restarted_until_it_is_up_and_holds_up_nothing() -> None:
    attempts = 0
    up = trio.Event()
    async with famulus.open_app() as running:

        @running.service(name="slow")
        async def slow(*, task_status: trio.TaskStatus[None]) -> None:
            await trio.sleep_forever()

        @running.service(name="fails")
        async def fails(*, task_status: trio.TaskStatus[None]) -> None:
            nonlocal attempts
            attempts += 1
            if attempts < 3:
                raise OSError("not yet")
            up.set()
            await trio.sleep_forever()

        with pytest.raises(famulus.ImproperlyConfigured, match="'fails' among its services already"):
            running.service(name="fails")(fails)
        with trio.fail_after(60):
            await up.wait()


async def test_services_stop_in_reverse() -> None:
    app = famulus.App("reverse")
    ended: list[str] = []

    def declare(name: str) -> None:
        @app.service(name=name)
        async def service() -> None:
            stop = trap_stop()
            await stop.wait()
            await trio.sleep(1)
            ended.append(name)

    declare("db")
    declare("uses db")
    async with famulus.open_app(app):
        await trio.sleep(1)
    assert ended == ["uses db", "db"]


async def test_a_declared_tree_may_end_by_itself() -> None:
    app = famulus.App("ends")

    @app.task
    async def job() -> None:
        await trio.sleep(1)

    strategy = OneForOneSupervisor(auto_shutdown="any_significant")
    tree = famulus.tree(famulus.leaf("job", restart="transient", significant=True), strategy=strategy)
    async with famulus.open_app(app, tree=tree) as running:
        await trio.sleep(10)
        assert [node.state for node in running.tree().children if node.name == "tree"] == ["finished"]
