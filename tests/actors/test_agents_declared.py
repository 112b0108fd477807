"""How agents are declared: of which functions, under which names, with which options, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio

import famulus
from famulus.supervision import Backoff, CrashingSupervisor, OneForAllSupervisor, OneForOneSupervisor

if TYPE_CHECKING:
    from collections import OrderedDict as OnlyForTypeCheckers

    from famulus import Stream


class Order(famulus.Record):
    account: str
    cents: int


async def double(factor: int, stream: famulus.Stream[int]) -> AsyncIterator[int]:
    async for number in stream:
        yield factor * number


class Doubler:
    async def __call__(self, stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 2 * number

    @staticmethod
    async def of(stream: famulus.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 2 * number


class Totals:
    """An object with an agent of its own."""

    def __init__(self, app: famulus.App, **options: Any) -> None:
        self.sum = 0
        self.total: famulus.Agent[int, int] = app.agent(**options)(self._total)

    async def _total(self, stream: famulus.Stream[int]) -> AsyncIterator[int]:
        """Add up."""
        async for number in stream:
            self.sum += number
            yield self.sum


def traced(fun: Any) -> Any:
    @functools.wraps(fun)
    def wrapper(*args: Any) -> Any:
        return fun(*args)

    return wrapper


@pytest.mark.parametrize(
    "fun",
    [
        functools.partial(double, 2),
        functools.partial(functools.partial(double), 2),
        Doubler(),
        Doubler().__call__,
        Doubler.of,
        Doubler.__dict__["of"],
        traced(Doubler.of),
        traced(functools.partial(double, 2)),
    ],
    ids=[
        "partial",
        "partial of partial",
        "object",
        "bound method",
        "static method",
        "staticmethod()",
        "wrapped",
        "both",
    ],
)
async def test_an_agent_is_made_of_whatever_is_called_with_a_stream(fun: Any) -> None:
    app = famulus.App("forms")
    agent: famulus.Agent[int, int] = app.agent(name="double")(fun)
    assert agent.channel.value_type is int
    async with famulus.open_app(app):
        with trio.fail_after(5):
            assert await agent.ask(21) == 42


async def test_a_bound_method_is_an_agent_of_its_instance() -> None:
    app = famulus.App("methods")
    totals = Totals(app)
    assert totals.total.name == "test_agents_declared.Totals._total"
    assert totals.total.help == "Add up."
    async with famulus.open_app(app):
        assert await totals.total.ask(2) == 2
        assert await totals.total.ask(3) == 5


async def test_two_instances_of_a_class_need_names() -> None:
    app = famulus.App("instances")
    Totals(app)
    with pytest.raises(famulus.ImproperlyConfigured, match=r"Totals\._total' already: give this one another, name="):
        Totals(app)
    assert len(app.topics) == 1
    other = Totals(app, name="other")
    async with famulus.open_app(app) as running:
        assert await other.total.ask(1) == 1
        with pytest.raises(famulus.ImproperlyConfigured, match="each instance of a class"):
            running.agent(name="other")(other._total)


def test_a_method_in_a_class_body_says_where_to_declare_it() -> None:
    app = famulus.App("unbound")
    with pytest.raises(famulus.ImproperlyConfigured, match=r"takes \(self, stream\): a method is .* `self\.total = "):
        app.agent()(Totals._total)  # type: ignore[arg-type]  # that is the point
    assert app.topics == {}


@pytest.mark.parametrize("fun", [print, lambda stream: None, 3, classmethod(lambda cls, stream: None)])
def test_what_is_no_async_function_is_refused(fun: Any) -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match="expected an async function or async generator function"):
        famulus.App("refuses").agent(name="x")(fun)


def test_the_topic_of_an_agent_is_named_after_app_version_and_agent() -> None:
    app = famulus.App("shop", version=2)

    @app.agent(partitions=3, retention=60.0, key_type=str)
    async def tally(stream: famulus.Stream[Order]) -> None:
        async for _ in stream:
            pass

    topic = app.topics[
        "shop-v2-test_agents_declared.test_the_topic_of_an_agent_is_named_after_app_version_and_agent.tally"
    ]
    assert topic is tally.channel
    assert isinstance(topic, famulus.Topic)
    assert (topic.partitions, topic.key_type, topic.value_type, topic.internal) == (3, str, Order, True)


def test_the_value_type_is_that_of_the_stream_where_nothing_else_is_said() -> None:
    app = famulus.App("types")

    class Local(famulus.Record):
        x: int

    async def of_local(stream: Stream[Local]) -> None: ...

    async def of_anything(stream: Stream[Any]) -> None: ...

    async def not_annotated(stream): ...  # type: ignore[no-untyped-def]  # what a user may write

    assert app.agent()(of_local).channel.value_type is Local
    assert app.agent()(of_anything).channel.value_type is None
    assert app.agent()(not_annotated).channel.value_type is None
    assert app.agent("said", name="said", value_type=bytes)(of_local).channel.value_type is bytes
    assert app.agent(app.topic("given", value_type=Order), name="given")(of_local).channel.value_type is Order


def test_a_type_that_only_type_checkers_see_is_named() -> None:
    app = famulus.App("type-checking")

    async def reads(stream: Stream[OnlyForTypeCheckers]) -> None: ...  # type: ignore[type-arg]

    with pytest.raises(famulus.ImproperlyConfigured, match=r"no 'OnlyForTypeCheckers' at run time; .* value_type="):
        app.agent(name="shop.reads")(reads)
    assert app.agent(name="shop.reads", value_type=None)(reads).channel.value_type is None
    topic: famulus.Topic[Any] = app.topic("orders", value_type=Order)
    assert app.agent(topic, name="of a topic")(reads).channel is topic


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"concurrency": 0}, "concurrency=0: expected a whole number"),
        ({"concurrency": 1.5}, r"concurrency=1\.5: expected a whole number"),
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"on_failure": "ignore"}, "on_failure='ignore': expected 'ack' or 'retry' or 'dead_letter'"),
        ({"on_error": 3}, "on_error=3: expected a function of the agent and the error"),
        ({"supervisor_strategy": 3}, "supervisor_strategy=3: expected a SupervisorStrategy"),
        ({"backoff": -1}, "backoff=-1: expected seconds"),
        ({"backoff": "1s"}, "backoff='1s': expected seconds"),
        ({"backoff": 60}, "backoff=60: .* can never give up: .* What fits: max_restarts="),
        ({"backoff": 1, "supervisor_strategy": CrashingSupervisor}, "starts nothing again"),
        (
            {"backoff": 1, "supervisor_strategy": OneForOneSupervisor(backoff=Backoff(min=2))},
            "has another, .*: give one",
        ),
        ({"isolated_partitions": True, "concurrency": 2}, "concurrency=2: each partition has one actor of its own"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(famulus.ImproperlyConfigured, match=told):
        famulus.App("wrong").agent(**options)


@pytest.mark.parametrize(
    ("backoff", "first", "longest"),
    [(2, 2.0, 30.0), (timedelta(seconds=40), 40.0, 40.0), (Backoff(min=1, max=1), 1.0, 1.0), (None, 0.1, 30.0)],
)
def test_a_backoff_is_that_of_the_agent_s_supervisor(backoff: Any, first: float, longest: float) -> None:
    strategy = OneForAllSupervisor(max_restarts=3)

    async def nothing(stream: famulus.Stream[int]) -> None: ...

    agent = famulus.App("backs-off").agent(backoff=backoff, supervisor_strategy=strategy)(nothing)
    found = agent.options.strategy
    assert isinstance(found, OneForAllSupervisor)
    assert (found.max_restarts, found.backoff.min, found.backoff.max) == (3, first, longest)


def test_isolated_partitions_need_a_topic() -> None:
    app = famulus.App("no-partitions")

    async def nothing(stream: famulus.Stream[int]) -> None: ...

    with pytest.raises(famulus.ImproperlyConfigured, match="needs a topic to read"):
        app.agent(app.channel("here"), isolated_partitions=True)(nothing)


async def yields(stream: famulus.Stream[int]) -> AsyncIterator[int]:
    async for number in stream:
        yield number


async def yields_nothing(stream: famulus.Stream[int]) -> None: ...


@pytest.mark.parametrize(
    ("fun", "sink", "told"),
    [
        (yields, lambda app: [3], "sink 3: expected an agent"),
        (yields, lambda app: [int], "sink <class 'int'>: expected an agent"),
        (yields, lambda app: [lambda: None], "is called with one argument, the answer"),
        (yields, lambda app: "topic", "expected several, in brackets"),
        (yields, lambda app: print, "expected several, in brackets"),
        (yields, lambda app: [app.topic("a", "b")], "written to"),
        (yields_nothing, lambda app: [print], "yields nothing that could go to its sinks"),
    ],
)
def test_a_wrong_sink_is_refused_at_declaration(fun: Any, sink: Callable[[famulus.App], Any], told: str) -> None:
    app = famulus.App("wrong-sink")
    with pytest.raises(famulus.ImproperlyConfigured, match=told):
        app.agent(sink=sink(app))(fun)
