"""What `open_app` starts, and that nothing of it remains (law 1)."""

import gc
import threading

import pytest
import trio
import trio.testing

import famulus
from famulus.channels.memory import MemoryBroker


async def test_tasks_run_once_when_everything_is_up(broker: MemoryBroker) -> None:
    app = famulus.App("tasks", broker=f"memory://{broker.name}")
    numbers = app.topic("numbers", partitions=2)
    seen: list[int] = []

    @app.agent(numbers)
    async def collect(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    @app.task
    async def feed() -> None:
        assert broker.group("tasks").members
        for number in range(10):
            await numbers.send(number)

    @app.task()
    async def other() -> None:
        seen.append(100)

    async with famulus.open_app(app):
        await trio.sleep(5)
    assert sorted(seen) == [*range(10), 100]


async def test_a_task_that_raises_is_started_again() -> None:
    app = famulus.App("again")
    runs: list[float] = []

    @app.task
    async def flaky() -> None:
        runs.append(trio.current_time())
        if len(runs) < 3:
            raise OSError("not yet")

    async with famulus.open_app(app):
        await trio.sleep(60)
    assert len(runs) == 3


async def test_pain_22_timers_do_not_drift_and_survive_a_failure() -> None:
    app = famulus.App("timers")
    times: list[float] = []

    @app.timer(interval=10.0)
    async def tick() -> None:
        times.append(trio.current_time() - start)
        if len(times) == 3:
            await trio.sleep(25)

    async with famulus.open_app(app):
        start = trio.current_time()
        await trio.sleep(101)
    assert times == pytest.approx([10, 20, 30, 60, 70, 80, 90, 100])


async def test_a_failing_timer_is_restarted() -> None:
    app = famulus.App("bad-timer")
    times: list[float] = []

    @app.timer(10.0)
    async def tick() -> None:
        times.append(trio.current_time() - start)
        if len(times) % 2:
            raise OSError("odd")

    async with famulus.open_app(app) as running:
        start = trio.current_time()
        await trio.sleep(61)
        assert running.tree().children[4].children[0].restarts == 3
    assert times == pytest.approx([10, 20, 30, 40, 50, 60])


@pytest.mark.parametrize("interval", [0, -1])
def test_a_timer_needs_an_interval(interval: float) -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match="expected seconds, more than 0"):
        famulus.App("bad").timer(interval)


async def test_the_tree_is_data() -> None:
    app = famulus.App("shape")

    @app.agent(name="worker", concurrency=2)
    async def work(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with famulus.open_app(app):
        tree = app.tree()
    assert (tree.name, tree.kind, tree.state) == ("shape", "supervisor", "running")
    assert [node.name for node in tree.children] == ["messaging", "services", "agents", "tasks", "timers"]
    names = [node.name for node in tree.children[0].children]
    assert names == ["transport", "callbacks", "producer", "conductor", "commits"]
    assert [node.name for node in tree.children[2].children[0].children] == ["worker[0]", "worker[1]"]


async def test_stop_is_seen_by_whoever_waits_for_it() -> None:
    app = famulus.App("stoppable")

    @app.task
    async def finish() -> None:
        await trio.sleep(3)
        app.stop()

    async with famulus.open_app(app) as running:
        with trio.fail_after(10):
            await running.wait_stop()


async def test_the_event_in_hand_is_finished_at_shutdown(broker: MemoryBroker) -> None:
    app = famulus.App("finish", broker=f"memory://{broker.name}")
    topic = app.topic("t", partitions=1)
    done: list[int] = []

    @app.agent(topic)
    async def slow(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            await trio.sleep(2)
            done.append(number)

    async with famulus.open_app(app):
        for number in range(5):
            await topic.send(number)
        await trio.sleep(1)
    assert done == [0]
    assert sum(broker.group("finish").committed.values()) == 1


@pytest.mark.parametrize("agents", [1, 10])
async def test_pain_21_shutdown_is_bounded_however_many_actors_do_not_end(agents: int) -> None:
    app = famulus.App("stuck")

    async def stuck(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await trio.sleep_forever()

    declared = [app.agent(name=f"stuck{number}", concurrency=10)(stuck) for number in range(agents)]
    async with famulus.open_app(app):
        for agent in declared:
            for _ in range(10):
                await agent.send(1)
        await trio.sleep(1)
        left = trio.current_time()
    assert trio.current_time() - left < 10


@pytest.mark.parametrize("moment", [0.0, 0.5, 3.0])
async def test_outside_cancellation_leaves_nothing_behind(broker: MemoryBroker, moment: float) -> None:
    app = famulus.App("cancelled", broker=f"memory://{broker.name}")
    topic = app.topic("t", partitions=4)

    @app.agent(topic)
    async def work(stream: famulus.Stream[int]) -> None:
        async for _ in stream.group_by(lambda n: str(n), name="n"):
            await trio.sleep(0.3)

    @app.task
    async def feed() -> None:
        for number in range(1000):
            await topic.send(number)

    threads = threading.active_count()
    with trio.move_on_after(moment) as scope:
        async with famulus.open_app(app):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not broker.group("cancelled").members
    assert trio.lowlevel.current_task().child_nurseries == []
    assert threading.active_count() <= threads


async def test_cancelled_at_any_checkpoint_nothing_is_left(broker: MemoryBroker) -> None:
    """Cancel at the n-th step of an open_app with work going on, for many n."""
    app = famulus.App("fuzz", broker=f"memory://{broker.name}")
    topic = app.topic("t", partitions=2)

    @app.agent(topic)
    async def work(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            await trio.lowlevel.checkpoint()

    for steps in range(80):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel_later(steps: int = steps, scope: trio.CancelScope = scope) -> None:
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(cancel_later)
                async with famulus.open_app(app):
                    for number in range(5):
                        await topic.send(number)
                    await trio.sleep_forever()
        assert scope.cancelled_caught
        assert not broker.group("fuzz").members
    gc.collect()


async def test_an_agent_that_never_comes_to_its_stream_does_not_hold_up_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = famulus.App("idler")

    @app.agent(name="idler")
    async def idler(stream: famulus.Stream[int]) -> None:
        await trio.sleep_forever()

    async with famulus.open_app(app, stream_ready_timeout=5.0):
        pass
    assert any("agent idler has not come to its stream within 5 s" in record.getMessage() for record in caplog.records)


async def test_idle_agents_do_not_add_up_at_the_start() -> None:
    app = famulus.App("idlers")

    async def idler(stream: famulus.Stream[int]) -> None:
        await trio.sleep_forever()

    for number in range(5):
        app.agent(name=f"idler{number}")(idler)
    began = trio.current_time()
    async with famulus.open_app(app, stream_ready_timeout=5.0):
        assert trio.current_time() - began == 5.0


async def test_declaring_on_an_app_that_stops_says_so() -> None:
    async with famulus.open_app() as running:
        pass
    with pytest.raises(famulus.AppNotRunning, match="is stopping"):

        @running.agent()
        async def late(stream: famulus.Stream[int]) -> None:
            async for _ in stream:
                pass


async def test_an_interrupted_on_error_does_not_hide_the_crash(broker: MemoryBroker) -> None:
    app = famulus.App("interrupted", broker=f"memory://{broker.name}", stream_drain_timeout=1.0)
    topic = app.topic("t", value_type=int, partitions=2)

    async def ponder(agent: object, error: BaseException) -> None:
        await trio.sleep(3)

    @app.agent(topic, name="fragile", on_error=ponder)
    async def fragile(stream: famulus.Stream[int]) -> None:
        async for number in stream:
            raise ValueError(number)

    async with famulus.open_app(app) as running:
        await topic.send(1)
        await trio.testing.wait_all_tasks_blocked()
        broker.faults.rebalance("interrupted")
        await trio.sleep(30)
        assert running.tree().children[2].children[0].children[0].restarts == 1


def test_declaring_starts_nothing() -> None:
    threads = threading.active_count()
    app = famulus.App("declared")
    app.topic("t")
    app.channel()

    @app.agent()
    async def a(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    assert threading.active_count() <= threads
    assert repr(app) == "<App declared agents=1>"


def test_an_agent_s_name_is_its_module_and_function_and_its_topic_follows() -> None:
    app = famulus.App("names")

    @app.agent()
    async def shop(stream: famulus.Stream[dict[str, int]]) -> None:
        """Sells things."""
        async for _ in stream:
            pass

    assert list(app.agents) == [
        "test_app_lifecycle.test_an_agent_s_name_is_its_module_and_function_and_its_topic_follows.shop"
    ]
    assert shop.channel.name == f"names-{shop.name}"
    assert shop.channel.value_type == dict[str, int]
    assert shop.help == "Sells things."


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda app: app.agent(concurrency=0), "concurrency=0: expected a whole number of at least 1"),
        (lambda app: app.agent(on_failure="ignore"), "on_failure='ignore': expected 'ack' or 'retry' or 'dead_letter'"),
        (lambda app: app.agent(lambda stream: None), "without parentheses"),
        (lambda app: app.agent()(lambda stream: None), "expected an async function or async generator function"),
        (lambda app: app.topic(""), "a topic needs a name"),
        (lambda app: app.topic("t", partitions=0), "partitions=0: expected a whole number of at least 1"),
        (
            lambda app: app.agent(app.channel(), partitions=3)(print),
            "partitions describe a topic, but a channel was given",
        ),
    ],
)
def test_wrong_declarations_name_what_was_expected(declare: object, message: str) -> None:
    app = famulus.App("wrong")
    with pytest.raises(famulus.ImproperlyConfigured, match=message):
        declare(app)  # type: ignore[operator]  # parametrized lambdas


def test_two_agents_of_one_name_are_refused() -> None:
    app = famulus.App("twice")

    async def a(stream: famulus.Stream[int]) -> None:
        async for _ in stream:
            pass

    app.agent()(a)
    with pytest.raises(famulus.ImproperlyConfigured, match=r"has an agent .* already"):
        app.agent()(a)
