"""An app's worker as a real process, for tests that kill it, suspend it and start it again. POSIX systems.

Everything it prints is in a file, so it never waits for its test, and its end can be looked at after its death.
Methods that wait are for trio, on the real clock (`@pytest.mark.real_time`).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from ..app.settings import DEFAULT_BROKER_VARIABLE

__all__ = ["WorkerProcess"]

_LOOK = 0.02  # seconds between two looks at the process or its log


class WorkerProcess:
    """Start ``python SCRIPT ARGUMENTS``; the environment's own ``FAMULUS_`` settings are left out, but not
    FAMULUS_DEFAULT_BROKER.

    Resource handling: whoever makes it calls `kill` in the end, whatever happens.

    Args:
        arguments: the script and what follows it.
        log: the file for what it prints; there may be something in it already.
        environment: more variables.
        patience: seconds within which what is waited for must happen.

    Attributes:
        pid: of the process.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        patience: float = 60.0,
    ) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("FAMULUS_") or name == DEFAULT_BROKER_VARIABLE
        }
        self._log = log
        self._patience = patience
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", *arguments],
                env={**kept, "PYTHONUNBUFFERED": "1", **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.pid = self._process.pid

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def lines(self, pattern: str) -> list[str]:
        """The lines of its log that the pattern is found in; while it runs, not the one that it may still be writing."""
        running = self.code is None
        log = self.log
        if running:
            log = log[: log.rfind("\n") + 1]
        return [line for line in log.splitlines() if re.search(pattern, line)]

    @property
    def code(self) -> int | None:
        """Its exit code, minus the signal that killed it; None while it runs."""
        return self._process.poll()

    @property
    def resident(self) -> int:
        """Bytes of memory that it holds; 0 when it has ended."""
        return 1024 * int(self._told("rss") or 0)

    def _told(self, what: str) -> str:
        command = ["ps", "-o", f"{what}=", "-p", str(self.pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    async def wait_for(self, pattern: str, times: int = 1) -> None:
        """Wait until its log has so many lines with this pattern.

        Raises:
            AssertionError: it has ended without them, or time is up; with its log.
        """
        with trio.move_on_after(self._patience):
            while len(self.lines(pattern)) < times:
                ended = self.code is not None
                if ended and len(self.lines(pattern)) < times:
                    raise AssertionError(f"{self!r} has ended without {pattern!r}:\n{self.log}")
                await trio.sleep(_LOOK)
            return
        raise AssertionError(f"no {pattern!r} of {self!r} within {self._patience:g} s:\n{self.log}")

    async def wait(self) -> int:
        """Wait for its end; its exit code.

        Raises:
            AssertionError: it has not ended in time; with its log.
        """
        with trio.move_on_after(self._patience):
            while self.code is None:
                await trio.sleep(_LOOK)
            return self._process.returncode
        raise AssertionError(f"{self!r} has not ended within {self._patience:g} s:\n{self.log}")

    async def wait_inside(self, function: str) -> None:
        """Wait until one of its tasks is in a function of this name, as SIGUSR1 shows them."""
        pattern = rf" in {function}$"
        times = len(self.lines(pattern)) + 1
        while len(self.lines(pattern)) < times:
            reports = len(self.lines("SIGUSR1"))
            self._process.send_signal(signal.SIGUSR1)
            await self.wait_for("SIGUSR1", times=reports + 1)
            await trio.sleep(5 * _LOOK)

    def stop(self) -> None:
        """Ask it to stop in order (SIGTERM)."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL), suspended or not; does nothing if it has ended."""
        self._process.kill()
        self._process.wait()

    def suspend(self) -> None:
        """Let it stand still (SIGSTOP), and return when it does; does nothing if it has ended."""
        self._process.send_signal(signal.SIGSTOP)
        while self.code is None and not self._told("stat").startswith("T"):
            time.sleep(_LOOK)

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        self._process.send_signal(signal.SIGCONT)

    def __repr__(self) -> str:
        state = "running" if self.code is None else f"ended with {self.code}"
        return f"<WorkerProcess {self._log.stem}, pid {self.pid}, {state}>"
