"""The contract suite in the hands of somebody who writes a transport: what is not there has to be said."""

import pytest

TRANSPORT = """
    from collections.abc import AsyncIterator
    from contextlib import asynccontextmanager

    import pytest

    from famulus.channels.memory import MemoryBroker
    from famulus.testing.contract import BrokerFaults, BrokerHarness, MemoryBrokerFaults, TransportContract

    class FewFaults(BrokerFaults):
        def __init__(self, broker):
            self._all = MemoryBrokerFaults(broker)

        async def stop(self):
            await self._all.stop()

        async def start(self):
            await self._all.start()

    class TestTransport(TransportContract):
        {without}

        @asynccontextmanager
        async def open_broker(self):
            broker = MemoryBroker("theirs", auto_create=False).register()
            try:
                yield BrokerHarness("memory://theirs", faults=FewFaults(broker))
            finally:
                MemoryBroker.forget("theirs")
"""

MISSING = {
    "rebalance": "nobody asks",
    "lose_member": "nobody is lost",
    "refuse_commits": "takes all",
    "fail_produce": "takes all",
    "holding_produce": "answers at once",
    "compact": "keeps all",
    "skip_offsets": "counts all",
}


def run(pytester: pytest.Pytester, without: str) -> pytest.RunResult:
    pytester.makeconftest('pytest_plugins = ["famulus.testing.plugin"]')
    pytester.makepyfile(TRANSPORT.format(without=without))
    return pytester.runpytest_inprocess("-rs", "-p", "no:cacheprovider")


def test_what_a_transport_does_without_is_skipped_with_its_reason(pytester: pytest.Pytester) -> None:
    without = {**MISSING, "transactions": "not ours", "test_partitions_have_a_default": "always one"}
    result = run(pytester, f"without = {without!r}")
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed", "skipped"}
    assert outcomes["passed"] > 30
    result.stdout.fnmatch_lines_random(
        [
            "*without compact: keeps all",
            "*without transactions: not ours",
            "*without test_partitions_have_a_default: always one",
        ]
    )


def test_a_fault_that_is_just_not_there_fails(pytester: pytest.Pytester) -> None:
    without = {name: reason for name, reason in MISSING.items() if name != "compact"}
    result = run(pytester, f"without = {without!r}")
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(
        ["*FewFaults cannot be ordered to compact: override it, or say on the test class why not, as in without = *"]
    )


@pytest.mark.parametrize(
    ("without", "problem"),
    [
        ("without = {'transaction': 'not ours'}", "*'transaction': expected the name of a test, or one of compact, *"),
        ("without = {'test_nothing_of_the_kind': 'why'}", "*'test_nothing_of_the_kind': expected the name of a test*"),
        ("without = {'compact': ''}", "*TestTransport.without?'compact'?='': expected the reason, as text"),
        (
            "test_partitions_have_a_default = None",
            "*TestTransport.test_partitions_have_a_default: a test is left out by*",
        ),
    ],
    ids=["no capability", "no test", "no reason", "a test set to None"],
)
def test_what_is_left_out_wrongly_is_an_error(pytester: pytest.Pytester, without: str, problem: str) -> None:
    result = run(pytester, without)
    assert result.parseoutcomes() == {"errors": 1}
    result.stdout.fnmatch_lines([problem])
