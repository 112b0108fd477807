"""The example runs as a program, and shows what its text says."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "supervision.py"


def test_the_example_breaks_twice_and_ends_with_everything_running() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLE], capture_output=True, text=True, timeout=50, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert "shop/ingest/feed #2: ConnectionError: no route, it will run again" in lines
    at = lines.index("shop: OneForOneSupervisor, running")
    assert lines[at : at + 7] == [
        "shop: OneForOneSupervisor, running",
        "    ingest: RestForOneSupervisor, running",
        "        feed: worker, running, 2 restarts",
        "        store: worker, running, 2 restarts",
        "    sessions: OneForOneSupervisor, running",
        "        sleep[1]: worker, running",
        "        sleep[2]: worker, running",
    ]
    assert "the store has written what was left" in lines[at + 7 :]
    assert len(EXAMPLE.read_text().splitlines()) < 80
