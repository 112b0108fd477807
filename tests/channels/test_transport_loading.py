"""Transports are found by the scheme of the broker's URL, so a third party can add one (PAIN row 24)."""

from importlib.metadata import EntryPoint

import pytest

import famulus
from famulus.channels import transport
from famulus.channels.memory import MemoryTransport


class ThirdParty(MemoryTransport):
    """Somebody's own transport."""

    def __init__(self, url: str, options: transport.TransportOptions) -> None:
        super().__init__(url.replace("theirs", "memory"), options)


def install(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    found = (EntryPoint(name="theirs", value=value, group="famulus.transports"),)
    monkeypatch.setattr(transport, "entry_points", lambda group: found)


async def test_pain_24_a_third_party_transport_is_found_by_its_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, f"{__name__}:ThirdParty")
    async with famulus.open_app(broker="theirs://") as running:
        topic = running.topic("t", partitions=1)
        assert (await (await topic.send(1))).offset == 0


def test_an_entry_that_is_no_transport_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "builtins:int")
    with pytest.raises(famulus.ImproperlyConfigured, match=r"no subclass of famulus\.Transport"):
        transport.load_transport("theirs://", transport.TransportOptions())


def test_memory_is_installed() -> None:
    assert "memory" in transport.transport_schemes()
