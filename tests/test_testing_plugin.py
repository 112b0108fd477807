"""The pytest plugin as its user sees it: suites of a few lines, run by a pytest of their own."""

import pytest

LOADED = 'pytest_plugins = ["famulus.testing.plugin"]\n'
ALONE = ("-p", "no:cacheprovider", "-p", "no:cov")


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(LOADED)
    pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = --strict-markers\n")
    return pytester


def run(suite: pytest.Pytester, source: str) -> pytest.RunResult:
    suite.makepyfile("import threading, time\nimport pytest, trio\n\n" + source)
    return suite.runpytest_subprocess(*ALONE)


def test_functions_methods_and_parameters_run_under_trio(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
async def test_function():
    await trio.sleep(100)

class TestClass:
    async def test_method(self, tmp_path):
        await trio.sleep(100)

@pytest.mark.parametrize("seconds", [1, 2])
async def test_parameters(seconds):
    await trio.sleep(seconds)
    assert trio.current_time() == seconds

def test_sync():
    pass
""",
    )
    result.assert_outcomes(passed=5)


def test_a_failing_assertion_is_a_failure(suite: pytest.Pytester) -> None:
    result = run(suite, "async def test_wrong():\n    one = 1\n    assert one == 2\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])


def test_real_time_is_real(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
@pytest.mark.real_time
async def test_real():
    began = time.monotonic()
    await trio.sleep(0.05)
    assert time.monotonic() - began > 0.04

@pytest.mark.real_time
async def test_no_clock(virtual_clock):
    pass
""",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*marked real_time has no virtual clock*"])


def test_async_fixtures_open_in_the_run_of_the_test_and_close_in_reverse(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
log = []

@pytest.fixture
def plain():
    return 1

@pytest.fixture
async def base(plain):
    await trio.sleep(1)
    return plain + 1

@pytest.fixture
async def nursery(base):
    async with trio.open_nursery() as nursery:
        log.append("open")
        yield nursery
        nursery.cancel_scope.cancel()
    log.append("close")

@pytest.fixture
async def inner(nursery):
    log.append("open inner")
    yield
    log.append("close inner")

async def test_uses_them(virtual_clock, inner, nursery, base):
    assert (base, virtual_clock.current_time()) == (2, 1.0)
    nursery.start_soon(trio.sleep_forever)
    log.append("test")

def test_order():
    assert log == ["open", "open inner", "test", "close inner", "close"]

class TestClass:
    @pytest.fixture
    async def name(self):
        return type(self).__name__

    async def test_method(self, name):
        assert name == "TestClass"
""",
    )
    result.assert_outcomes(passed=3)


def test_async_fixtures_say_where_they_cannot_be(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
@pytest.fixture(scope="module")
async def wide():
    yield

@pytest.fixture
async def narrow():
    yield

async def test_wide(wide):
    pass

def test_sync(narrow):
    pass
""",
    )
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*'wide': its scope must be 'function'*"])
    result.stdout.fnmatch_lines(["*'narrow': only async tests can use it*"])


def test_hypothesis_runs_each_example_in_a_run_of_its_own(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
from hypothesis import given, strategies

@given(strategies.integers(0, 9))
async def test_given(number):
    await trio.sleep(number)
    assert trio.current_time() == number

class TestClass:
    @given(number=strategies.integers(0, 9))
    async def test_given(self, number):
        await trio.sleep(number)

@given(strategies.integers())
async def test_falsified(number):
    await trio.sleep(0)
    assert number < 100
""",
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*number=100*"])


def test_a_test_over_its_limit_fails_with_its_tasks_and_the_next_one_runs(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
async def forgotten():
    await trio.sleep_forever()

@pytest.mark.hard_timeout(0.2)
async def test_hangs():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forgotten)

@pytest.mark.hard_timeout(0.2)
async def test_spins_in_virtual_time():
    while True:
        await trio.sleep(1)

@pytest.mark.hard_timeout(0.2)
def test_sleeps():
    time.sleep(60)

async def test_next():
    pass
""",
    )
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(["*test_hangs: over 0.2 s of real time; its tasks were:", "*in forgotten"])
    result.stdout.fnmatch_lines(["*test_spins_in_virtual_time: over 0.2 s of real time; its tasks were:"])
    result.stdout.fnmatch_lines(["*test_sleeps: over 0.2 s of real time"])


@pytest.mark.parametrize(
    "body",
    ["while True: pass", "with trio.CancelScope(shield=True): await trio.sleep_forever()"],
    ids=["busy loop", "shield"],
)
def test_what_cannot_be_cancelled_ends_the_run_with_a_traceback(suite: pytest.Pytester, body: str) -> None:
    result = run(suite, f"@pytest.mark.hard_timeout(0.2, grace=0.3)\nasync def test_stuck():\n    {body}\n")
    assert result.ret == 1
    result.stderr.fnmatch_lines(["*test_stuck: over 0.2 s of real time", "Timeout (0:00:00.500000)!"])
    result.stderr.fnmatch_lines(["*in *"])


def test_a_system_task_left_behind_is_a_failure(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
async def forgotten():
    await trio.sleep_forever()

async def test_leaves():
    trio.lowlevel.spawn_system_task(forgotten)
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*left system tasks running: *forgotten*"])


def test_an_async_generator_not_closed_is_a_failure_where_warnings_are_errors(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
async def numbers():
    yield 1
    yield 2

async def test_breaks_off():
    async for number in numbers():
        break
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*numbers* was garbage collected before it had been exhausted*"])


def test_a_test_that_another_plugin_has_marked_is_left_to_it(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\nmarkers =\n    asyncio: of another plugin\n")
    result = run(suite, "@pytest.mark.asyncio\nasync def test_other():\n    pass\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*async def functions are not natively supported*"])
