"""A pytest plugin: `async def` tests and fixtures under trio, on virtual time, each with a hard time limit.

Load it in the top-level ``conftest.py`` of a test suite::

    pytest_plugins = ["famulus.testing.plugin"]

It is no automatic entry point, since it takes every async test that no other plugin has marked for itself.

- ``async def`` test functions and methods run in a `trio.run` of their own on a `VirtualClock`, Hypothesis's
  ``@given`` included (one run per example). The fixture ``virtual_clock`` is that clock.
- ``@pytest.mark.real_time``: this test runs on the real clock.
- ``@pytest.fixture`` functions may be async (function scope): they are entered in the run of the test, in the
  task of the test, and left in reverse order.
- ``@pytest.mark.hard_timeout(seconds, grace=5)``: real seconds a test may take; the ini option
  ``famulus_hard_timeout`` is the default (60). A test over its limit fails, an async one with a list of its
  tasks and where each waits. If that does not end it within `grace` more seconds (a blocked loop, a shield),
  the stacks of all threads are printed and the process exits with code 1. 0 seconds means no limit.
- A test that leaves system tasks of its own behind fails.
- An app that sets no broker has ``memory://`` in place of a file that would stay behind (and that a worker may be using):
  while tests run, FAMULUS_DEFAULT_BROKER is that, unless the environment has it set. Processes that tests start inherit it.
"""

import contextlib
import faulthandler
import functools
import inspect
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import IO, Any

import attrs
import pytest
import trio

from ..app.settings import DEFAULT_BROKER_VARIABLE
from .clock import VirtualClock

__all__ = ["virtual_clock"]

_GRACE = 5.0  # seconds between asking a test to end and ending the process; a marker may set its own

_TRIO_CORE = os.path.dirname(trio.__file__) + os.sep + "_core"
_default_broker_key = pytest.StashKey[str | None]()
_guard_key = pytest.StashKey["_Guard"]()
_stderr_key = pytest.StashKey[IO[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("famulus_hard_timeout", "real seconds a test may take (default: 60)", default="60")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_time: run this async test on the real clock")
    config.addinivalue_line("markers", "hard_timeout(seconds, grace=5): real seconds this test may take")
    config.stash[_default_broker_key] = os.environ.get(DEFAULT_BROKER_VARIABLE)
    os.environ.setdefault(DEFAULT_BROKER_VARIABLE, "memory://")
    # Capturing is off at this point, so this is the terminal; captured output would be lost with the process.
    config.stash[_stderr_key] = os.fdopen(os.dup(2), "w")


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_stderr_key].close()
    if config.stash[_default_broker_key] is None:
        os.environ.pop(DEFAULT_BROKER_VARIABLE, None)


@pytest.fixture
def virtual_clock(request: pytest.FixtureRequest) -> VirtualClock:
    """The clock of this test: `jump` and `hold` it."""
    if request.node.get_closest_marker("real_time"):
        pytest.fail("a test marked real_time has no virtual clock", pytrace=False)
    return VirtualClock()


# Running a test.


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    function = pyfuncitem.obj
    __tracebackhide__ = True
    if not _is_async(pyfuncitem) or _is_foreign(pyfuncitem):
        return None
    hypothesis = getattr(function, "hypothesis", None)
    inner = getattr(hypothesis, "inner_test", function)
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    run = _runner(pyfuncitem, inner)
    if hypothesis is None:
        run(**arguments)
        return True
    hypothesis.inner_test = run  # what @given calls with each example
    try:
        function(**arguments)
    finally:
        hypothesis.inner_test = inner
    return True


def _is_async(item: pytest.Function) -> bool:
    hypothesis = getattr(item.obj, "hypothesis", None)
    return inspect.iscoroutinefunction(getattr(hypothesis, "inner_test", item.obj))


def _is_foreign(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("asyncio", "anyio", "trio"))


def _runner(item: pytest.Function, test: Callable[..., Awaitable[object]]) -> Callable[..., None]:
    """A sync function that runs `test` once: in a new trio run, with its async fixtures open."""
    fixtures = [value for value in item.funcargs.values() if isinstance(value, _AsyncFixture)]
    guard = item.stash[_guard_key]

    async def main(arguments: dict[str, object]) -> None:
        before = _system_tasks()
        with guard.watching():
            async with contextlib.AsyncExitStack() as stack:
                opened: dict[int, object] = {}
                for fixture in fixtures:
                    await fixture.open(stack, opened)
                await test(**{name: opened.get(id(value), value) for name, value in arguments.items()})
        left = [task.name for task in _system_tasks() - before]
        if left:
            pytest.fail(f"the test left system tasks running: {', '.join(sorted(left))}", pytrace=False)

    @functools.wraps(test)
    def run(*args: object, **arguments: object) -> None:
        __tracebackhide__ = True
        if args:  # @given hands over `self`, if anything
            arguments = dict(zip(inspect.signature(test).parameters, args, strict=False)) | arguments
        clocks = [value for value in item.funcargs.values() if isinstance(value, VirtualClock)]
        clock = None if item.get_closest_marker("real_time") else [*clocks, VirtualClock()][0]
        trio.run(main, arguments, clock=clock)

    return run


def _system_tasks() -> set[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    assert root is not None, "called inside a run"
    return {task for nursery in root.child_nurseries for task in nursery.child_tasks}


# Async fixtures: a stand-in goes through pytest, the run of the test opens it.


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    function = fixturedef.func
    if not (inspect.isasyncgenfunction(function) or inspect.iscoroutinefunction(function)):
        return (yield)
    item = request.node
    if isinstance(item, pytest.Item) and _is_foreign(item):
        return (yield)

    def stand_in(*args: object, **arguments: object) -> _AsyncFixture:
        if not isinstance(item, pytest.Function):
            pytest.fail(f"async fixture {fixturedef.argname!r}: its scope must be 'function'", pytrace=False)
        if not _is_async(item):
            pytest.fail(f"async fixture {fixturedef.argname!r}: only async tests can use it", pytrace=False)
        return _AsyncFixture(functools.partial(function, *args), arguments)

    fixturedef.func = stand_in  # type: ignore[misc]  # Final for readers; pytest-asyncio does the same
    try:
        return (yield)
    finally:
        fixturedef.func = function  # type: ignore[misc]  # as above


@attrs.frozen(eq=False)
class _AsyncFixture:
    function: Callable[..., Any]
    arguments: dict[str, object]

    async def open(self, stack: contextlib.AsyncExitStack, opened: dict[int, object]) -> object:
        if id(self) in opened:
            return opened[id(self)]
        arguments = dict(self.arguments)
        for name, value in arguments.items():
            if isinstance(value, _AsyncFixture):
                arguments[name] = await value.open(stack, opened)
        result: object
        if inspect.isasyncgenfunction(self.function):
            manager = contextlib.asynccontextmanager(self.function)
            result = await stack.enter_async_context(manager(**arguments))
        else:
            result = await self.function(**arguments)
        opened[id(self)] = result
        return result


# The hard limit.


class _Guard:
    """One test and its limit: SIGALRM asks the test to end, then faulthandler's C thread ends the process."""

    def __init__(self, item: pytest.Item) -> None:
        marker = item.get_closest_marker("hard_timeout")
        seconds = float(marker.args[0] if marker else item.config.getini("famulus_hard_timeout"))
        self.enabled = seconds > 0 and not item.config.getoption("usepdb")
        self.seconds = seconds
        self.grace = float(marker.kwargs.get("grace", _GRACE) if marker else _GRACE)
        self._stderr = item.config.stash[_stderr_key]
        self._over = f"{item.nodeid}: over {seconds} s of real time"
        self._scope: trio.CancelScope | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._report: str | None = None

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """The last resort: setup, call and teardown together get the limit and the grace."""
        faulthandler.dump_traceback_later(self.seconds + self.grace, exit=True, file=self._stderr)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def alarm(self) -> Iterator[None]:
        """The polite request, around the call of the test, where the platform and the thread allow it."""
        if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGALRM, self._on_alarm)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside a run: let the alarm cancel this block, and fail the test with what its tasks were doing."""
        self._report = None
        self._token = trio.lowlevel.current_trio_token()
        try:
            with trio.CancelScope() as self._scope:
                yield
        finally:
            self._token = None
            if self._report is not None:
                pytest.fail(f"{self._over}; its tasks were:\n{self._report}", pytrace=False)

    def _on_alarm(self, number: int, frame: object) -> None:
        print(f"\n{self._over}", file=self._stderr, flush=True)
        if self._token is None:
            pytest.fail(self._over)
        self._token.run_sync_soon(self._expire)

    def _expire(self) -> None:
        if self._token is not None and self._scope is not None:
            self._report = _task_tree()
            print(self._report, file=self._stderr, flush=True)
            self._scope.cancel()


def _task_tree() -> str:
    """The tasks of this run with the frames in which each waits, innermost last."""
    lines: list[str] = []

    def walk(task: trio.lowlevel.Task, depth: int) -> None:
        indent = "  " * depth
        lines.append(f"{indent}{task.name}")
        for frame, line in task.iter_await_frames():
            code = frame.f_code
            if not code.co_filename.startswith(_TRIO_CORE):
                lines.append(f"{indent}    {code.co_filename}:{line} in {code.co_qualname}")
        for nursery in task.child_nurseries:
            for child in sorted(nursery.child_tasks, key=lambda child: child.name):
                walk(child, depth + 1)

    root = trio.lowlevel.current_root_task()
    assert root is not None, "called inside a run"
    for nursery in root.child_nurseries:
        for task in nursery.child_tasks:
            if not task.name.startswith("<TrioToken"):
                walk(task, 0)
    return "\n".join(lines)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    guard = item.stash[_guard_key] = _Guard(item)
    if not guard.enabled:
        return (yield)
    with guard.armed():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    __tracebackhide__ = True
    guard = item.stash[_guard_key]
    if not guard.enabled:
        return (yield)
    with guard.alarm():
        return (yield)


def pytest_enter_pdb() -> None:
    """Whoever sits in a debugger is not hanging."""
    faulthandler.cancel_dump_traceback_later()
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
