"""Pytest fixtures with a real Kafka. Load them in the top-level ``conftest.py`` of a test suite::

    pytest_plugins = ["famulus.testing.kafka"]

- ``kafka_broker``: a broker for the whole session, `.url` and `.address`. The one that `FAMULUS_TEST_KAFKA` names
  (``host:port``, no TLS, no SASL), else one started for the first test that asks. Use topic names of your own.
- ``own_kafka_broker``: the `KafkaBroker` that this session has started, whatever `FAMULUS_TEST_KAFKA` says, for tests
  that stop or suspend it; they start it again.
- ``kafka_jars``: for tests that start a `KafkaBroker` with options of its own; the directory with Kafka's jars.

Without Java or Maven these tests are skipped with what is missing; where `FAMULUS_CI` is set, they fail.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import attrs
import pytest

from .kafka_broker import KafkaBroker, KafkaBrokerError, MissingToolError
from .kafka_jars import find_java, jars
from .kafka_node import answers, log_tail

__all__ = ["ExternalKafka", "RunningKafka", "kafka_broker", "kafka_jars", "own_kafka_broker"]


class RunningKafka(Protocol):
    """What ``kafka_broker`` is: a `KafkaBroker`, or an `ExternalKafka`."""

    @property
    def address(self) -> str:
        """``host:port``."""
        ...

    @property
    def url(self) -> str:
        """``kafka://host:port``."""
        ...


@attrs.frozen
class ExternalKafka:
    """A broker that somebody else looks after."""

    address: str

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Download Kafka before the first test, if one needs it: it may take longer than a test may."""
    if session.config.option.collectonly:
        return
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    external = os.environ.get("FAMULUS_TEST_KAFKA")
    if "kafka_jars" in wanted or ("kafka_broker" in wanted and not external):
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        try:
            find_java()
            jars(lambda line: reporter.write_line(line) if reporter else None)
        except KafkaBrokerError:
            pass  # the fixture meets it again, and says so at the test


@pytest.fixture(scope="session")
def kafka_jars() -> Path:
    """Kafka itself; a test that has this can start a `KafkaBroker`."""
    try:
        find_java()
        return jars()
    except MissingToolError as problem:
        reason = f"no local Kafka: {problem}"
    if os.environ.get("FAMULUS_CI"):
        pytest.fail(f"{reason} (FAMULUS_CI forbids to skip this)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def own_kafka_broker(kafka_jars: Path) -> Iterator[KafkaBroker]:
    """The broker of this session."""
    with KafkaBroker() as broker:
        yield broker


@pytest.fixture(scope="session")
def kafka_broker(request: pytest.FixtureRequest) -> RunningKafka:
    """A broker: an external one that `FAMULUS_TEST_KAFKA` names, or the one of this session."""
    address = os.environ.get("FAMULUS_TEST_KAFKA")
    if not address:
        broker: KafkaBroker = request.getfixturevalue("own_kafka_broker")
        return broker
    if not answers(address, patience=5.0):
        pytest.fail(f"FAMULUS_TEST_KAFKA={address}: no Kafka broker answers there (expected: host:port)", pytrace=False)
    return ExternalKafka(address)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Show the end of Kafka's log with a failed test, if Kafka has ended by itself."""
    used: dict[str, object] = getattr(item, "funcargs", {})
    for broker in {used.get("kafka_broker"), used.get("own_kafka_broker")}:
        if call.excinfo is not None and isinstance(broker, KafkaBroker) and broker.has_ended:
            item.add_report_section(call.when, "Kafka has ended by itself", log_tail(broker.log))
