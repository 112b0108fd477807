"""The socket by which other programs look into a running worker."""

import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
import trio

from famulus.app.control import WorkerGone, WorkerReport, ask_worker, find_workers, serve_control
from famulus.supervision import TreeNode, child, open_supervisor

TREE = TreeNode(
    name="shop",
    kind="supervisor",
    strategy="CrashingSupervisor",
    state="running",
    children=(
        TreeNode(name="agents", kind="supervisor", strategy="OneForOneSupervisor", state="running", uptime=1.5),
        TreeNode(name="feed", kind="worker", state="failed", restarts=3, last_reason="ValueError: no"),
    ),
)


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for sockets, with a short path: the system allows about 100 characters."""
    directory = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    monkeypatch.setattr(tempfile, "tempdir", str(directory))  # where workers that others killed left theirs
    return directory / "famulus"


def leave_socket(directory: Path, *, listen: bool) -> tuple[Path, socket.socket]:
    """What a process left that had the id 1, or one that listens and never answers."""
    directory.mkdir(mode=0o700)
    path = directory / "shop.1.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    if listen:
        left.listen()
    return path, left


def open_to_all(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)


def entries(directory: Path) -> list[Path]:
    return list(directory.iterdir())


@asynccontextmanager
async def serving(app: str = "shop") -> AsyncIterator[Path]:
    async with open_supervisor(name="root") as root:
        await root.start(child(serve_control, app, lambda: TREE, name="control", restart="temporary"))
        with trio.fail_after(5):
            while not find_workers(app):
                await trio.sleep(0.001)
        yield find_workers(app)[os.getpid()]


async def test_a_worker_tells_its_tree() -> None:
    async with serving() as path:
        report = await ask_worker(path)
    assert report == WorkerReport(app="shop", pid=os.getpid(), tree=TREE)


async def test_only_its_own_user_may_ask() -> None:
    async with serving() as path:
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_nothing_is_left_after_the_end(runtime: Path) -> None:
    async with serving():
        assert entries(runtime)
    assert not entries(runtime)
    assert find_workers("shop") == {}


async def test_workers_are_told_apart_by_their_app() -> None:
    async with serving("shop"), serving("shop.eu"), serving("a/b"):
        for app in ("shop", "shop.eu", "a/b"):
            [path] = find_workers(app).values()
            assert (await ask_worker(path)).app == app


async def test_an_id_of_any_length_has_a_socket() -> None:
    first, second = "é" * 300, "é" * 301
    async with serving(first), serving(second):
        assert find_workers(first) != find_workers(second)


async def test_the_socket_of_a_killed_worker_is_removed(runtime: Path) -> None:
    path, left = leave_socket(runtime, listen=False)
    left.close()
    with pytest.raises(WorkerGone, match="has gone"):
        await ask_worker(path)
    assert not entries(runtime)


async def test_a_worker_that_says_nothing_is_not_waited_for(runtime: Path) -> None:
    path, silent = leave_socket(runtime, listen=True)
    with silent, pytest.raises(WorkerGone, match="did not answer within 5 s"):
        await ask_worker(path)


@pytest.mark.parametrize("question", [b"{}\n", b"nonsense\n", b"x" * 5000])
async def test_a_wrong_question_gets_an_error(question: bytes) -> None:
    async with serving() as path:
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(question)
            assert "error" in orjson.loads(await stream.receive_some())
        assert (await ask_worker(path)).tree == TREE


async def test_many_may_ask_at_once() -> None:
    reports = []

    async def ask(path: Path) -> None:
        reports.append(await ask_worker(path))

    async with serving() as path, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask, path)
    assert len(reports) == 50


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"app": "shop", "pid": 1, "tree": {"size": 1, "children": []}}'])
def test_an_answer_of_another_version_is_named(answer: bytes) -> None:
    with pytest.raises(WorkerGone, match="another version"):
        WorkerReport.from_json(answer)


async def test_without_a_place_for_its_socket_a_worker_works_and_says_so(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_to_all(runtime)
    async with open_supervisor(name="root") as root:
        await root.start(child(serve_control, "shop", lambda: TREE, restart="temporary"))
        await trio.testing.wait_all_tasks_blocked()
    assert "is not a directory of this user alone" in caplog.text


async def test_half_a_character_in_a_reason_is_no_obstacle(runtime: Path) -> None:
    strange = TreeNode(name="shop", kind="worker", state="failed", last_reason="ValueError: \ud800")
    async with open_supervisor(name="root") as root:
        await root.start(child(serve_control, "shop", lambda: strange, name="control", restart="temporary"))
        with trio.fail_after(5):
            while not find_workers("shop"):
                await trio.sleep(0.001)
        report = await ask_worker(find_workers("shop")[os.getpid()])
    assert report.tree.last_reason == "ValueError: \ud800"


async def test_a_tree_that_cannot_be_shown_ends_nothing() -> None:
    def broken() -> TreeNode:
        raise RuntimeError("no tree")

    async with open_supervisor(name="root") as root:
        handle = await root.start(child(serve_control, "shop", broken, name="control", restart="temporary"))
        with trio.fail_after(5):
            while not find_workers("shop"):
                await trio.sleep(0.001)
        with pytest.raises(WorkerGone):
            await ask_worker(find_workers("shop")[os.getpid()])
        assert handle.state == "running"


def test_a_directory_that_is_open_to_others_is_not_looked_into(runtime: Path) -> None:
    open_to_all(runtime)
    (runtime / "shop.1.sock").touch()
    assert find_workers("shop") == {}
