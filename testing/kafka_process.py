"""Child processes that cannot be forgotten, for `famulus.testing.kafka_broker`. Standard library only: see `_supervise`.

`Supervised` does not outlive the process that started it, however that one ends. Between the two stands a small
supervisor, this file run as a program, which holds the reading end of a pipe: when the pipe closes or its parent
changes, it kills its child and removes the child's directory. Only the parent of a process can signal it without ever
hitting a stranger that was given its number, so all signals go through the supervisor. On Linux the child also dies
with the supervisor (PR_SET_PDEATHSIG). PR_SET_PDEATHSIG alone would not do: it acts when the *thread* that started the
child ends, and threads of `trio.to_thread` come and go.

`Detached` is left running on purpose. Another process finds it by its `fingerprint`, so that a stranger with the same
number is never signalled.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["Detached", "Process", "Supervised", "end", "fingerprint"]

_CLEAN_END = 15.0  # seconds between SIGTERM and SIGKILL; a Kafka node takes half a second on an idle machine
_PARENT_CHECK = 1.0  # seconds; a pipe end that a fork has inherited stays open when the parent is gone


class Process(Protocol):
    """What `KafkaBroker` needs of either kind. No method waits for long, `wait` excepted."""

    @property
    def pid(self) -> int: ...

    def running(self) -> bool:
        """Whether it has not ended yet; a suspended one has not."""
        ...

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        ...

    def wait(self, seconds: float) -> bool:
        """Wait for its end; False: still running after so many seconds."""
        ...


class Supervised:
    """Start `command` so that it ends with this process; its output is appended to `log`.

    Args:
        scrap: a directory to remove if this process ends without stopping the child; it may be None.
    """

    def __init__(self, command: Sequence[str], *, log: Path, scrap: Path | None) -> None:
        program = [sys.executable, "-I", "-S", __file__, str(scrap or ""), *command]
        with log.open("ab") as output:
            self._supervisor = subprocess.Popen(
                program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                bufsize=0,
                start_new_session=True,  # Ctrl-C in the terminal is for us, not for the child
            )
        self.pid = int(self._answer() or 0)

    def running(self) -> bool:
        return self._supervisor.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self._supervisor.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # ValueError: closed, since it has ended
            self._supervisor.stdin.write(b"%d\n" % number)
            self._answer()

    def wait(self, seconds: float) -> bool:
        try:
            self._supervisor.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        for pipe in (self._supervisor.stdin, self._supervisor.stdout):
            assert pipe is not None
            pipe.close()
        return True

    def _answer(self) -> bytes:
        assert self._supervisor.stdout is not None
        answer: bytes = self._supervisor.stdout.readline()
        return answer


class Detached:
    """A process that stays when this one ends: one just started, or one found again by number and fingerprint."""

    def __init__(self, pid: int, mark: str | None) -> None:
        self.pid = pid
        self.mark = mark

    @classmethod
    def launch(cls, command: Sequence[str], *, log: Path) -> "Detached":
        """Start `command` in a session of its own; its output is appended to `log`."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        child.returncode = 0  # it is not ours to wait for: without this, Popen warns when it is collected
        return cls(child.pid, fingerprint(child.pid))

    def running(self) -> bool:
        return self.mark is not None and fingerprint(self.pid) == self.mark

    def signal(self, number: signal.Signals) -> None:
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True


def end(process: Process, *, kill: bool = False) -> None:
    """End a process: let it finish for a while, then, or at once with `kill`, with SIGKILL."""
    if not kill:
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)  # a suspended one would not hear of it
        if process.wait(_CLEAN_END):
            return
    process.signal(signal.SIGKILL)
    process.wait(_CLEAN_END)


def fingerprint(pid: int) -> str | None:
    """What tells a process from another one of the same number: when it started. None: it has ended.

    Not its command line: that is empty for a moment while a new program takes a process over.
    """
    proc = Path("/proc") / str(pid)
    if not Path("/proc/self/stat").exists():
        told = subprocess.run(
            ["ps", "-o", "stat=,lstart=,command=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        state, _, rest = told.stdout.strip().partition(" ")
        return rest.strip() if rest and not state.startswith("Z") else None
    try:
        # proc(5): the name in parentheses may hold anything; after it come the state and, 20th, the start in ticks.
        fields = (proc / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"


# The supervisor. It runs as `python -I -S this_file`, without our packages: it starts in 20 ms and stays small.


def _supervise(scrap: str, command: Sequence[str]) -> int:
    """Run `command`; each line on stdin is the number of a signal for it. Returns when it has ended."""
    parent = os.getppid()
    # Still the only thread, which PR_SET_PDEATHSIG and preexec_fn both need; stdout is for answers.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, preexec_fn=_end_with_parent)
    os.write(1, b"%d\n" % child.pid)
    orphaned = threading.Event()

    def obey() -> None:
        while os.getppid() == parent:
            if select.select([0], [], [], _PARENT_CHECK)[0]:
                orders = os.read(0, 1024)
                if not orders:
                    break
                for order in orders.split():
                    child.send_signal(int(order))
                    if int(order) == signal.SIGSTOP:
                        _wait_until_stopped(child.pid)
                    with contextlib.suppress(BrokenPipeError):
                        os.write(1, b"\n")
        orphaned.set()
        child.kill()

    threading.Thread(target=obey, daemon=True).start()
    code = child.wait()
    if orphaned.is_set() and scrap:
        shutil.rmtree(scrap, ignore_errors=True)
    return code if code >= 0 else 128 - code  # as a shell would say it


def _wait_until_stopped(pid: int) -> None:
    """A busy JVM needs a moment until its last thread stands still; only then the system reports it, once."""
    until = time.monotonic() + 5.0
    while hasattr(os, "waitid") and time.monotonic() < until:  # macOS has it from Python 3.13 on
        with contextlib.suppress(ChildProcessError):  # it has ended
            if os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is None:
                time.sleep(0.005)
                continue
        return


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of <linux/prctl.h>


if __name__ == "__main__":
    os._exit(_supervise(sys.argv[1], sys.argv[2:]))  # at once: the other thread is inside `select`
