"""The README stays true: its programs are run, and each of its commands is run by a test or is one of CI's steps."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from famulus.app.settings import DEFAULT_BROKER_VARIABLE
from famulus.testing.worker_process import WorkerProcess

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines() if line]

# Commands that a test runs elsewhere, or that this very run is.
RUN_ELSEWHERE = {
    "make test": "CI's first step",
    "make demo": "test_make_demo_runs below",
    "python shop.py worker -l info": "test_one_terminal_sends_and_the_worker_in_the_other_gets_it below",
    """python shop.py send orders '{"account": "ada", "cents": 1250}'""": "the same",
}


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        cwd=cwd,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("FAMULUS_")}, **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_there_are_two_commands_and_a_program() -> None:
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert len(PROGRAMS) == 1
    assert set(COMMANDS) == set(RUN_ELSEWHERE)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_program_runs_as_it_stands(program: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(program, encoding="utf-8")
    done = run(sys.executable, "-P", "shop.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "1250\n"), done.stderr


def test_with_main_it_is_a_command_line_program(tmp_path: Path) -> None:
    program = PROGRAMS[0].replace("trio.run(main)", "app.main()")
    (tmp_path / "shop.py").write_text(program, encoding="utf-8")
    listed = run(sys.executable, "-P", "shop.py", "agents", cwd=tmp_path)
    assert (listed.returncode, "shop.tally" in listed.stdout) == (0, True), listed.stderr
    helped = run(sys.executable, "-P", "shop.py", "--help", cwd=tmp_path)
    assert (helped.returncode, "worker" in helped.stdout) == (0, True), helped.stderr
    named = run(str(Path(sys.executable).parent / "famulus"), "-A", "shop", "agents", cwd=tmp_path)
    assert (named.returncode, "shop.tally" in named.stdout) == (0, True), named.stderr


@pytest.mark.real_time
@pytest.mark.slow
async def test_one_terminal_sends_and_the_worker_in_the_other_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DEFAULT_BROKER_VARIABLE)
    monkeypatch.chdir(tmp_path)
    told = "totals[order.account] = totals.get(order.account, 0) + order.cents\n"
    assert told in PROGRAMS[0]
    program = (
        PROGRAMS[0].replace(told, told + "        print(order, flush=True)\n").replace("trio.run(main)", "app.main()")
    )
    (tmp_path / "shop.py").write_text(program, encoding="utf-8")
    _, *starting = shlex.split(COMMANDS[2])
    _, *sending = shlex.split(COMMANDS[3])
    worker = WorkerProcess(starting, log=tmp_path / "worker.log")
    try:
        await worker.wait_for("ready: app shop")
        sent = await trio.to_thread.run_sync(lambda: run(sys.executable, "-P", *sending, cwd=tmp_path))
        assert sent.returncode == 0, sent.stderr
        await worker.wait_for("cents=1250")
        worker.stop()
        assert await worker.wait() == 0, worker.log
    finally:
        worker.kill()


def test_make_demo_runs(tmp_path: Path) -> None:
    """The target as it is, in this environment instead of one of its own, on a part of the flights."""
    venv = Path(sys.executable).parents[1]
    recipe = run("make", "-n", "demo", f"VENV={venv}", cwd=ROOT).stdout.splitlines()
    command = recipe[-1]
    assert command.startswith(f"{venv}/bin/python examples/flights.py")
    done = run("sh", "-c", command, cwd=ROOT, FLIGHTS_LIMIT="5000", FAMULUS_DATADIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "5,000 flights" in done.stdout


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
