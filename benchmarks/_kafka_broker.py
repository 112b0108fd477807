"""The broker that a benchmark runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from famulus.testing.kafka_broker import KAFKA_VERSION, KafkaBroker

__all__ = ["broker_at"]


@contextmanager
def broker_at(address: str | None) -> Iterator[tuple[str, str]]:
    """The address of a broker, and what it is: the one that is named, here or by `FAMULUS_TEST_KAFKA`, or one of our own."""
    address = address or os.environ.get("FAMULUS_TEST_KAFKA")
    if address:
        yield address.removeprefix("kafka://"), f"at {address}"
        return
    with KafkaBroker() as broker:
        yield broker.address, f"Kafka {KAFKA_VERSION}, one node on this machine"
