"""Start without a broker: waited for, or not, as `broker_start_timeout` says."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import famulus
from famulus.testing import MemoryBroker


async def start(broker: MemoryBroker, **settings: Any) -> None:
    async with famulus.open_app(famulus.App("starts", broker=f"memory://{broker.name}"), **settings):
        pass


async def test_a_start_timeout_of_zero_fails_at_the_first_attempt_and_logs_no_crash(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.faults.stop()
    with pytest.RaisesGroup(pytest.RaisesExc(famulus.BrokerUnavailable), match="'starts' did not start"):
        await start(broker, broker_start_timeout=0)
    assert trio.current_time() == pytest.approx(0, abs=0.01)
    assert caplog.text == ""


async def test_a_start_timeout_ends_the_wait_with_the_reason(broker: MemoryBroker) -> None:
    broker.faults.stop()
    with pytest.RaisesGroup(famulus.BrokerUnavailable):
        await start(broker, broker_start_timeout=30)
    assert trio.current_time() == pytest.approx(30, abs=0.1)


async def test_a_broker_that_comes_in_time_is_started_with(broker: MemoryBroker) -> None:
    broker.faults.stop()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_broker_in, broker, 20)
        await start(broker, broker_start_timeout=30)
    assert trio.current_time() < 30


async def start_broker_in(broker: MemoryBroker, seconds: float) -> None:
    await trio.sleep(seconds)
    broker.faults.start()


async def test_after_the_start_a_broker_that_is_away_is_waited_for_without_limit(broker: MemoryBroker) -> None:
    app = famulus.App("stays", broker=f"memory://{broker.name}")
    numbers = app.topic("numbers", partitions=1)
    async with famulus.open_app(app, broker_start_timeout=0):
        await (await numbers.send(1))
        broker.faults.stop()
        promise = await numbers.send(2)
        await trio.sleep(60)
        broker.faults.start()
        assert (await promise).offset == 1
