"""The Makefile's own promises; what its commands do is for .ci/run to show, which runs them."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def make(*arguments: str, cwd: Path = ROOT, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    # Not what `make test` itself was called with.
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS"}}
    for name in ("VENV", "PYTHON", "BROKER", "ARGS", "MAKELEVEL", "MAKEOVERRIDES"):
        environment.pop(name, None)
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A directory in which nothing has been set up."""
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def test_make_alone_lists_the_targets() -> None:
    listed = make().stdout
    for target in ("demo", "test", "lint", "types", "check", "bench", "torture", "clean"):
        assert f"make {target} " in listed


def test_demo_plays_the_flights_example(bare: Path) -> None:
    assert ".venv/bin/python examples/flights.py worker -l warning\n" in make("-n", "demo", cwd=bare).stdout


def test_demo_hands_on_the_broker(bare: Path) -> None:
    said = make("-n", "demo", "BROKER=kafka://localhost:9092", cwd=bare).stdout
    assert "examples/flights.py --broker kafka://localhost:9092 worker -l warning\n" in said


def test_without_a_python_it_says_what_to_install(bare: Path) -> None:
    done = make("demo", "PYTHON=no-such-python", cwd=bare)
    assert done.returncode == 2
    assert "needs Python 3.11 or newer" in done.stderr
    assert "no-such-python" in done.stderr
    assert not (bare / ".venv").exists()


def test_an_old_python_is_passed_over(bare: Path) -> None:
    tools = bare / "tools"
    tools.mkdir()
    for name, script in {
        "old-python": 'case "$1" in -c) exit 1;; esac; touch old-was-used',
        "new-python": 'case "$1" in -m) mkdir -p .venv;; --version) echo Python 3.99;; esac',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    done = make(".venv/.made", "PYTHON=old-python new-python", cwd=bare, path=tools)
    assert done.stdout == ".venv: Python 3.99\n", done.stderr
    assert not (bare / "old-was-used").exists()


def test_an_environment_that_somebody_else_made_is_left_alone(bare: Path) -> None:
    (bare / "mine").mkdir()
    (bare / "mine" / "pyvenv.cfg").touch()
    done = make("dev", "VENV=mine", cwd=bare)
    assert done.returncode == 2
    assert (
        "mine is there and was not finished by this Makefile: remove it (rm -rf mine), or name another" in done.stderr
    )
    assert (bare / "mine" / "pyvenv.cfg").exists()


def test_a_second_run_sets_nothing_up_again(bare: Path) -> None:
    (bare / ".venv").mkdir()
    for stamp in (".made", ".installed", ".flights", ".dev"):
        (bare / ".venv" / stamp).touch()
    assert make("-n", "test", cwd=bare).stdout == ".venv/bin/pytest --cov \n"
    os.utime(bare / "pyproject.toml", (2**31, 2**31))  # changed: later than the stamps
    assert "pip" in make("-n", "test", cwd=bare).stdout
