"""What every test of ours has: trio on virtual time, a hard limit, and one seed for all that is random."""

import logging
import os
import random
import signal
from collections.abc import Generator
from typing import TypeVar

import pytest
from hypothesis import settings

from famulus.channels.memory import MemoryBroker

pytest_plugins = ["famulus.testing.plugin", "famulus.testing.kafka", "pytester"]

# --doctest-modules would import these as modules, two by one name; they are loaded all the same.
collect_ignore_glob = ["*conftest.py"]

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

# A shell without job control starts what ends in `&` with SIGINT ignored, and all programs below inherit that: those
# that our tests start and interrupt would not notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A Kafka of ours lives for seconds: compiled simply it is up in half the time, and leaves the processor to what is tested.
os.environ.setdefault("KAFKA_HEAP_OPTS", "-Xms128m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1")

SEED = int(os.environ.get("FAMULUS_SEED") or random.SystemRandom().randrange(2**32))

# A 2-core machine under load is slow now and then: the hard limit of a test is the deadline.
settings.register_profile("famulus", deadline=None, print_blob=True)
settings.load_profile("famulus")


def pytest_report_header() -> str:
    return f"FAMULUS_SEED={SEED}"


@pytest.fixture
def seed() -> int:
    """For torture runs: `random.Random(seed)`. Set FAMULUS_SEED to the printed number to see a run again."""
    return SEED


@pytest.fixture(autouse=True)
def logging_as_before() -> Generator[None, None, None]:
    """A command that is run in this process sets up logging: the next test shall not find it so."""
    loggers = [logging.getLogger(name) for name in (None, "aiokafka")]
    before = [(logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        for handler in [handler for handler in logger.handlers if handler not in handlers]:
            logger.removeHandler(handler)
            handler.close()


# In CI nothing may be skipped: there a skip is a failure. What a contract class does without, it says with the reason.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _no_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _no_skip((yield))


def _no_skip(report: Report) -> Report:
    if os.environ.get("FAMULUS_CI") and report.skipped and not hasattr(report, "wasxfail") and not _declared(report):
        report.outcome = "failed"
        report.longrepr = f"skipped, which FAMULUS_CI forbids: {report.longrepr}"
    return report


def _declared(report: pytest.TestReport | pytest.CollectReport) -> bool:
    return isinstance(report.longrepr, tuple) and report.longrepr[2].startswith("Skipped: without ")


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Generator[MemoryBroker, None, None]:
    """A named memory broker of this test alone, to look into and to order faults from; its URL is `url_of(broker)`."""
    name = f"test-{request.node.nodeid.replace('/', '.')}".replace("[", "-").replace("]", "").replace("::", "-")
    yield MemoryBroker.named(name)
    MemoryBroker.forget(name)
