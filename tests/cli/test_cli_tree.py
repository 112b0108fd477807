"""The command `tree` beside a running worker, and trees given to the command `worker`."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import famulus
from famulus.cli import make_program
from famulus.cli.tree import render_tree
from famulus.supervision import TreeNode
from famulus.testing.worker_process import WorkerProcess

PROGRAM = """
import famulus, trio

app = famulus.App("shop")
numbers = app.channel("numbers", value_type=int)

@app.agent(numbers, name="shop.tally")
async def tally(stream: famulus.Stream[int]) -> None:
    async for number in stream:
        if number == 13:
            raise ValueError("thirteen")

@app.task
async def feed() -> None:
    await numbers.send(13)
    await numbers.send(14)
    await trio.sleep_forever()

if __name__ == "__main__":
    app.main()
"""

TREE = """
[tool.famulus.tree]
children = ["ingest"]
[tool.famulus.tree.supervisors.ingest]
strategy = "rest-for-one"
children = ["tally", "feed"]
"""


class Shop:
    """A directory with the program in it, and workers run there."""

    def __init__(self, directory: Path, runtime: Path) -> None:
        self.directory = directory
        self.environment = {"XDG_RUNTIME_DIR": str(runtime), "TMPDIR": str(runtime)}
        self.workers: list[WorkerProcess] = []
        (directory / "shop.py").write_text(PROGRAM)

    def start(self, *arguments: str) -> WorkerProcess:
        worker = WorkerProcess(
            [str(self.directory / "shop.py"), "--workdir", str(self.directory), "worker", "--no-banner", *arguments],
            log=self.directory / f"{len(self.workers)}.log",
            environment=self.environment,
        )
        self.workers.append(worker)
        return worker

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", str(self.directory / "shop.py"), *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def shop(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    shop = Shop(tmp_path, tmp_path_factory.mktemp("r"))
    yield shop
    for worker in shop.workers:
        worker.kill()


@pytest.mark.real_time
async def test_the_tree_of_a_running_worker(shop: Shop) -> None:
    worker = shop.start()
    await worker.wait_for("crashed|thirteen")
    await worker.wait_for("ready: app shop")
    text = shop.call("tree").stdout
    assert f"worker {worker.pid}" in text
    [line] = [line for line in text.splitlines() if "shop.tally[0]" in line]
    assert "last failure: ValueError: thirteen" in line
    [report] = json.loads(shop.call("tree", "--json").stdout)
    assert (report["app"], report["pid"], report["tree"]["name"]) == ("shop", worker.pid, "shop")
    worker.stop()
    assert await worker.wait() == 0
    ended = shop.call("tree")
    assert ended.returncode == 1
    assert ended.stderr == (
        "Error: no worker of app shop runs on this machine under this user: start one with `worker`\n"
    )


@pytest.mark.real_time
async def test_workers_are_told_apart_by_their_process(shop: Shop) -> None:
    first, second = shop.start(), shop.start()
    for worker in (first, second):
        await worker.wait_for("ready: app shop")
    assert [report["pid"] for report in json.loads(shop.call("tree", "--json").stdout)] == sorted(
        [first.pid, second.pid]
    )
    assert [report["pid"] for report in json.loads(shop.call("tree", "--json", "--pid", str(second.pid)).stdout)] == [
        second.pid
    ]
    first.kill()  # its socket stays behind
    await first.wait()
    assert [report["pid"] for report in json.loads(shop.call("tree", "--json").stdout)] == [second.pid]


def test_of_many_dead_workers_three_are_named(shop: Shop) -> None:
    directory = Path(shop.environment["XDG_RUNTIME_DIR"]) / "famulus"
    directory.mkdir(mode=0o700)
    for pid in range(1, 6):
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(directory / f"shop.{pid}.sock"))
    said = shop.call("tree").stderr.splitlines()
    assert [line.endswith("has gone") for line in said] == [True, True, True, False, False]
    assert said[3] == "so with 2 more"


@pytest.mark.real_time
async def test_watching_draws_again_and_again(shop: Shop) -> None:
    worker = shop.start()
    await worker.wait_for("ready: app shop")
    watcher = WorkerProcess(
        [str(shop.directory / "shop.py"), "tree", "--watch", "--interval", "0.1"],
        log=shop.directory / "watch.log",
        environment={**shop.environment, "FORCE_COLOR": "1"},
    )
    shop.workers.append(watcher)
    await watcher.wait_for("shop.tally", times=3)
    worker.stop()
    await worker.wait()
    await watcher.wait_for("no worker of app shop")


@pytest.mark.real_time
@pytest.mark.parametrize("where", ["pyproject.toml", "tree.toml", "whole.toml"])
async def test_a_worker_takes_its_tree_from_a_file(shop: Shop, where: str) -> None:
    whole = where == "whole.toml"
    (shop.directory / where).write_text(
        TREE.replace("tool.famulus.tree.", "").replace("[tool.famulus.tree]", "") if whole else TREE
    )
    worker = shop.start(*([] if where == "pyproject.toml" else ["--tree", str(shop.directory / where)]))
    await worker.wait_for("ready: app shop")
    [report] = json.loads(shop.call("tree", "--json").stdout)
    [declared] = [node for node in report["tree"]["children"] if node["name"] == "tree"]
    [ingest] = declared["children"]
    assert ingest["strategy"] == "RestForOneSupervisor"
    assert [node["name"].rpartition(".")[2] for node in ingest["children"]] == ["tally", "feed"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            TREE.replace("strategy", "stratgey"),
            "tool.famulus.tree.supervisors.ingest.stratgey: there is no such key; did you mean strategy?",
        ),
        (TREE.replace("feed", "fed"), "there is nothing named 'fed' to place here; did you mean feed?"),
        ("[tool.famulus.tree", "no TOML"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(shop: Shop, text: str, problem: str) -> None:
    file = shop.directory / "tree.toml"
    file.write_text(text)
    result = shop.call("worker", "--no-banner", "--tree", str(file))
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert problem in line


def test_the_apps_own_tree_counts_more_than_the_projects_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from famulus.cli.worker import read_tree

    (tmp_path / "pyproject.toml").write_text(TREE)
    monkeypatch.chdir(tmp_path)
    file, tree = read_tree(None, famulus.App("plain"))
    assert str(file) == "pyproject.toml"
    assert tree is not None
    assert read_tree(None, famulus.App("own", tree=famulus.tree("a"))) == (None, None)


def test_watching_and_json_do_not_go_together() -> None:
    result = CliRunner().invoke(make_program(famulus.App("shop")), ["tree", "--watch", "--json"])
    assert result.exit_code == 2
    assert "choose one of them" in result.stderr


def test_names_are_drawn_as_they_are() -> None:
    node = TreeNode(name="[red]x[/]", kind="worker", state="backoff", restarts=2, last_reason="ValueError: [b]")
    drawn = "".join(str(branch.label) for branch in render_tree(node, "t").children)
    assert drawn == "[red]x[/]  worker  backoff  2 restarts  last failure: ValueError: [b]"
