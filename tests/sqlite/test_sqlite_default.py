"""An app with a name and without a broker has one in a file: its data outlive its processes. An anonymous one has memory."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from rich.console import Console

import famulus
from famulus.app.settings import DEFAULT_BROKER_VARIABLE, resolve_settings
from famulus.channels.message import TP
from famulus.channels.transport import ConsumerOptions, TransportOptions, load_transport
from famulus.cli.worker import banner
from famulus.testing.worker_process import WorkerProcess

SHOP = """
import famulus

app = famulus.App("shop", broker_commit_interval=0.05)
orders = app.topic("orders", value_type=int, partitions=2)

@app.agent(orders)
async def tally(stream):
    async for event in stream.events():
        print("tallied", event.value, "at", event.message.offset, flush=True)

if __name__ == "__main__":
    app.main()
"""

real = pytest.mark.real_time


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a shop, in an environment that says nothing of brokers."""
    monkeypatch.delenv(DEFAULT_BROKER_VARIABLE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


def send(value: int) -> None:
    """As in another terminal."""
    command = [sys.executable, "-P", "shop.py", "send", "orders", str(value), "--partition", "0"]
    sent = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert sent.returncode == 0, sent.stderr


def worker(log: Path) -> WorkerProcess:
    return WorkerProcess(["shop.py", "worker", "-l", "info", "--no-banner"], log=log)


@real
async def test_what_a_process_sends_reaches_the_worker_and_after_a_kill_the_next_one_goes_on(shop: Path) -> None:
    send(1)
    assert (shop / "shop-data" / "broker.db").is_file()
    first = worker(shop / "first.log")
    second = None
    try:
        await first.wait_for("tallied 1 at 0")
        send(2)
        await first.wait_for("tallied 2 at 1")
        await wait_committed(2)
        first.kill()
        send(3)
        second = worker(shop / "second.log")
        await second.wait_for("tallied 3 at 2")
        assert second.lines("tallied") == ["tallied 3 at 2"]
    finally:
        first.kill()
        if second is not None:
            second.kill()


class Silent:
    async def on_assigned(self, assignment: object) -> None: ...

    async def on_revoked(self, revoked: object, *, lost: bool) -> None: ...


async def wait_committed(offset: int) -> None:
    """Wait until the group has committed the first partition up to there."""
    transport = load_transport("sqlite://", TransportOptions(datadir="shop-data"))
    async with transport.open(), transport.open_consumer(ConsumerOptions(group="shop"), Silent()) as looking:
        while (await looking.committed([TP("orders", 0)]))[TP("orders", 0)] != offset:
            await trio.sleep(0.02)


async def test_a_running_app_has_its_broker_in_its_data_directory(shop: Path) -> None:
    app = famulus.App("mine")
    async with famulus.open_app(app) as running:
        assert (running.settings.broker, running.settings.datadir) == ("sqlite://", "mine-data")
        assert (shop / "mine-data" / "broker.db").is_file()


def test_a_worker_says_where_its_broker_is() -> None:
    def facts(app: famulus.App) -> str:
        console = Console(width=80, file=io.StringIO())
        with console.capture() as shown:
            console.print(
                banner(app, resolve_settings({"datadir": "/srv/shop", **app.declared_settings}, {}, {}), "info", None)
            )
        return shown.get()

    assert re.search(r"broker +sqlite:// .*\n.*\n?.*datadir +/srv/shop ", facts(famulus.App("shop")), re.DOTALL)
    assert "datadir" not in facts(famulus.App("shop", broker="kafka://one"))


def test_a_version_of_an_app_keeps_the_data_directory_since_its_sources_are_there() -> None:
    assert famulus.App("shop", version=2).settings().datadir == "shop-data"
    assert famulus.App("shop", datadir="/srv/shop").settings().datadir == "/srv/shop"


async def test_an_anonymous_app_leaves_nothing_behind(shop: Path) -> None:
    async with famulus.open_app() as running:
        assert running.settings.broker == "memory://"
    assert os.listdir(shop) == ["shop.py"]


async def test_an_anonymous_app_takes_the_broker_of_the_environment(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAMULUS_BROKER", "memory://shared")
    async with famulus.open_app() as running:
        assert running.settings.broker == "memory://shared"


async def test_a_name_makes_an_app_that_keeps_its_data(shop: Path) -> None:
    async with famulus.open_app("named") as running:
        assert running.settings.broker == "sqlite://"
    assert (shop / "named-data").is_dir()


def test_the_default_broker_of_the_environment_is_below_all_that_names_one() -> None:
    environment = {DEFAULT_BROKER_VARIABLE: "memory://"}
    assert resolve_settings({}, {}, {}).broker == "sqlite://"
    assert resolve_settings({}, {}, environment).broker == "memory://"
    assert resolve_settings({"broker": "kafka://one"}, {}, environment).broker == "kafka://one"
    assert resolve_settings({}, {}, {**environment, "FAMULUS_BROKER": "kafka://two"}).broker == "kafka://two"
    assert resolve_settings({}, {"broker": "kafka://three"}, environment).broker == "kafka://three"


def test_a_test_run_with_the_plugin_keeps_apps_without_a_broker_in_memory(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DEFAULT_BROKER_VARIABLE)
    pytester.makeconftest('pytest_plugins = ["famulus.testing.plugin"]\n')
    pytester.makepyfile("""
import subprocess, sys
import famulus

SHOW = "import famulus; print(famulus.App('shop').settings().broker)"

async def test_app():
    async with famulus.open_app(famulus.App("shop")) as running:
        assert running.settings.broker == "memory://"

def test_process():
    assert subprocess.check_output([sys.executable, "-P", "-c", SHOW]) == b"memory://\\n"

def test_declared():
    assert famulus.App("shop", broker="kafka://one").settings().broker == "kafka://one"
""")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:cov")
    result.assert_outcomes(passed=3)
    assert not any(path.name.endswith("-data") for path in pytester.path.iterdir())
