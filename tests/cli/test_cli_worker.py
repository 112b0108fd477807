"""The command `worker` as a process: what its end looks like, whoever or whatever brings it about."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from famulus.app.settings import DEFAULT_BROKER_VARIABLE

HEAD = """
import os, sys, time
import famulus, trio

app = famulus.App("shop")
numbers = app.topic("numbers", value_type=int, partitions=1)

@app.task
async def feed() -> None:
    for number in (1, 2):
        await numbers.send(number)

"""

PATIENT = (
    HEAD
    + """
@app.agent(numbers)
async def patient(stream: famulus.Stream[int]) -> None:
    async for number in stream:
        print("begun", number, flush=True)
        while not os.path.exists("go"):
            await trio.sleep(0.01)
        print("finished", number, flush=True)
"""
)

SHIELDED = (
    HEAD
    + """
@app.agent(numbers)
async def stuck(stream: famulus.Stream[int]) -> None:
    async for number in stream:
        print("begun", number, flush=True)
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()
"""
)

BLOCKING = (
    HEAD
    + """
@app.agent(numbers)
async def blocking(stream: famulus.Stream[int]) -> None:
    async for number in stream:
        print("begun", number, flush=True)
        while True:
            time.sleep(1)
"""
)

CRASHING = (
    HEAD
    + """
@app.agent(numbers, supervisor_strategy=famulus.CrashingSupervisor)
async def crashing(stream: famulus.Stream[int]) -> None:
    async for number in stream:
        raise ValueError(f"number {number} is cursed")
"""
)

STARTING = (
    HEAD
    + """
@app.agent(numbers)
async def late(stream: famulus.Stream[int]) -> None:
    try:
        print("begun", flush=True)
        await trio.sleep_forever()
    finally:
        print("cancelled", flush=True)
"""
)

SCRIPT = 'if __name__ == "__main__":\n    app.main()\n'


LIMIT = 30.0  # seconds that any wait may take; only a broken program gets there


class Program:
    """A process of ours. Its two streams are read as they come, so that it never waits for us."""

    def __init__(self, arguments: list[str], cwd: Path, environment: dict[str, str]) -> None:
        own = {name for name in os.environ if name.startswith("FAMULUS_")} - {DEFAULT_BROKER_VARIABLE}
        kept = {name: value for name, value in os.environ.items() if name not in own}
        self._process = subprocess.Popen(
            [sys.executable, "-P", *arguments],
            cwd=cwd,
            env={**kept, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._changed = threading.Condition()
        self._out: list[str] = []
        self._err: list[str] = []
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout, self._out)),
            threading.Thread(target=self._read, args=(self._process.stderr, self._err)),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def out(self) -> str:
        return "".join(self._out)

    @property
    def err(self) -> str:
        return "".join(self._err)

    def wait_for(self, pattern: str) -> None:
        """Wait for a line of either stream that the pattern is found in."""
        deadline = time.monotonic() + LIMIT
        with self._changed:
            while not any(re.search(pattern, line) for line in (*self._out, *self._err)):
                if self._process.poll() is not None and not any(reader.is_alive() for reader in self._readers):
                    pytest.fail(f"the program ended without {pattern!r}:\n{self.out}{self.err}")
                if time.monotonic() > deadline:
                    pytest.fail(f"no {pattern!r} within {LIMIT:g} s:\n{self.out}{self.err}")
                self._changed.wait(1.0)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, with everything it wrote read."""
        try:
            code = self._process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the program has not ended within {LIMIT:g} s:\n{self.out}{self.err}")
        for reader in self._readers:
            reader.join(LIMIT)
        return code

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.wait()


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start("worker", app=SOURCE)``: run ``famulus -A shop worker`` over a shop.py with this source."""
    programs: list[Program] = []

    def start(*arguments: str, app: str = "", script: bool = False, **environment: str) -> Program:
        (tmp_path / "shop.py").write_text(app)
        command = ["shop.py"] if script else ["-m", "famulus", "-A", "shop"]
        programs.append(Program([*command, *arguments], tmp_path, environment))
        return programs[-1]

    yield start
    for program in programs:
        program.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_event_in_hand_finish_and_exits_with_0(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    worker = start("worker", app=PATIENT)
    worker.wait_for("ready: app shop, 1 agent")
    worker.wait_for("begun 1")
    worker.signal(number)
    worker.wait_for(f"{number.name}: stopping in order; a second signal ends the process at once")
    worker.wait_for("draining")
    (tmp_path / "go").touch()
    assert worker.wait() == 0
    assert worker.out == "begun 1\nfinished 1\n"
    assert worker.err.endswith("INFO famulus.worker stopped\n")
    assert "Traceback" not in worker.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_although_an_agent_does_not(start: Start, number: signal.Signals) -> None:
    worker = start("worker", app=SHIELDED)
    worker.wait_for("begun 1")
    worker.signal(signal.SIGTERM)
    worker.wait_for("draining")
    worker.signal(number)
    assert worker.wait() == 128 + number
    assert worker.err.endswith(
        f"{number.name}, the second signal: ending at once, the work in hand is not acknowledged\n"
    )


def test_a_second_signal_ends_the_process_although_an_agent_blocks_the_loop(start: Start) -> None:
    worker = start("worker", app=BLOCKING)
    worker.wait_for("begun 1")
    worker.signal(signal.SIGINT)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 128 + signal.SIGTERM
    assert "the second signal" in worker.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_app_is_ready_stops_it(start: Start, number: signal.Signals) -> None:
    worker = start("--set", "stream_ready_timeout=1000", "worker", app=STARTING)
    worker.wait_for("begun")
    worker.signal(number)
    assert worker.wait() == 0
    assert f"{number.name} while starting: stopping" in worker.err
    assert "ready" not in worker.err
    assert worker.out == "begun\ncancelled\n"
    assert "Traceback" not in worker.err


def test_app_stop_drains_and_exits_with_0(start: Start) -> None:
    worker = start("worker", app=HEAD + "@app.task\nasync def stop() -> None:\n    app.stop()\n")
    assert worker.wait() == 0
    assert "draining" in worker.err
    assert worker.err.endswith("stopped\n")


def test_a_failure_exits_with_1_and_shows_history_and_cause(start: Start) -> None:
    worker = start("worker", app=CRASHING)
    assert worker.wait() == 1
    report = worker.err.partition("CRITICAL famulus.worker app shop failed\n")[2].splitlines()
    assert report[0] == (
        "supervisor 'shop/agents/shop.crashing' gave up at the first incident, as CrashingSupervisor does"
    )
    assert report[1].endswith("shop.crashing[0] #1: ValueError: number 1 is cursed")
    assert sum(line.startswith("Traceback") for line in report) == 1
    assert report[-3:] == [
        '    raise ValueError(f"number {number} is cursed")',
        "ValueError: number 1 is cursed",
        "Error: the worker ends: ValueError: number 1 is cursed (supervisor shop/agents/shop.crashing gave up)",
    ]


def test_with_debug_a_failure_is_shown_whole(start: Start) -> None:
    worker = start("--debug", "worker", app=CRASHING)
    assert worker.wait() == 1
    report = worker.err.partition("CRITICAL famulus.worker app shop failed\n")[2]
    assert "ExceptionGroup: supervision tree 'shop' failed (1 sub-exception)" in report
    assert "supervisor 'shop/agents' gave up" in report


def test_an_agent_that_calls_exit_decides_on_the_exit_code(start: Start) -> None:
    worker = start("worker", app=HEAD + "@app.task\nasync def leave() -> None:\n    sys.exit(7)\n")
    assert worker.wait() == 7
    assert "Traceback" not in worker.err


def test_an_interrupt_while_the_module_is_imported_shows_no_traceback(start: Start) -> None:
    worker = start("worker", app='import time\nprint("importing", flush=True)\nwhile True: time.sleep(1)\n')
    worker.wait_for("importing")
    worker.signal(signal.SIGINT)
    assert worker.wait() == 130
    assert worker.err == "interrupted\n"


def test_sigusr1_shows_the_tree_and_where_its_tasks_wait(start: Start, tmp_path: Path) -> None:
    worker = start("worker", app=PATIENT)
    worker.wait_for("begun 1")
    worker.signal(signal.SIGUSR1)
    worker.wait_for(r"shop\.patient\[0\]: worker, running")
    worker.wait_for(r"shop\.py:\d+ in patient")
    (tmp_path / "go").touch()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_script_is_the_program_bound_to_its_app(start: Start, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    worker = start("worker", "-l", "INFO", app=PATIENT + SCRIPT, script=True)
    worker.wait_for("finished 2")
    worker.signal(signal.SIGINT)
    assert worker.wait() == 0


def test_a_script_without_arguments_prints_help(start: Start) -> None:
    program = start(app=PATIENT + SCRIPT, script=True)
    assert program.wait() == 0
    assert program.out.startswith("Usage: shop.py [OPTIONS]")
    assert "--app" not in program.out
    assert program.err == ""


def test_the_banner_tells_what_runs_and_hides_passwords(start: Start) -> None:
    worker = start("worker", "-l", "Warning", app=CRASHING, FAMULUS_BROKER="memory://ada:s3cret@here")
    worker.wait()
    box = worker.err.partition("╰")[0]
    for fact in (
        "famulus ",
        "app       shop",
        "broker    memory://ada:***@here",
        "agents    shop.crashing",
        f"pid       {worker.pid}",
        "loglevel  warning",
    ):
        assert fact in box
    assert "s3cret" not in worker.err
    assert "INFO" not in worker.err


def test_the_log_goes_to_a_file(start: Start, tmp_path: Path) -> None:
    worker = start("worker", "-f", "worker.log", "--no-banner", app=CRASHING)
    assert worker.wait() == 1
    log = (tmp_path / "worker.log").read_text()
    assert "INFO famulus.worker ready: app shop, 1 agent" in log
    assert "ValueError: number 1 is cursed" in log
    assert worker.err.startswith("Error: the worker ends: ValueError: number 1 is cursed")


def test_the_log_as_json_is_one_object_a_line(start: Start) -> None:
    worker = start("worker", "--log-format", "json", "--no-banner", app=CRASHING)
    assert worker.wait() == 1
    *entries, last = worker.err.splitlines()
    assert last.startswith("Error: the worker ends")
    crash = next(entry for entry in map(json.loads, entries) if "incarnation" in entry)
    assert crash["logger"] == "famulus.supervision"
    assert crash["level"] == "ERROR"
    assert crash["child"] == "shop.crashing[0]"
    assert crash["traceback"].endswith("ValueError: number 1 is cursed")


def test_the_log_as_for_a_terminal(start: Start) -> None:
    worker = start("worker", "--log-format", "rich", "--no-color", "--no-banner", app=CRASHING)
    assert worker.wait() == 1
    assert re.search(r"INFO +ready: app shop, 1 agent", worker.err)
    assert "ValueError: number 1 is cursed" in worker.err


def test_a_program_that_sets_up_its_own_log_keeps_it(start: Start) -> None:
    own = 'import logging\nlogging.basicConfig(format="mine: %(message)s")\n'
    worker = start("worker", "--no-banner", app=own + CRASHING)
    worker.wait()
    assert "mine: ready: app shop, 1 agent\n" in worker.err
    assert "INFO famulus.worker" not in worker.err
