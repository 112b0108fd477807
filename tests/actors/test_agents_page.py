"""docs/agents.md: each of its programs runs and prints what it says."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import famulus

OPTIONS = inspect.signature(famulus.App.agent).parameters
PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
HEAD = "from collections.abc import AsyncIterator\n\nimport famulus\nimport trio\n\n"


def test_every_option_of_an_agent_is_on_the_page() -> None:
    options = {"channel"} | {name for name in OPTIONS if name not in ("self", "channel", "topic_options")}
    for option in options:
        assert f"`{option}`" in PAGE


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_program_of_the_page_prints_what_it_says(number: int, tmp_path: Path) -> None:
    program = BLOCKS[number] if "import famulus" in BLOCKS[number] else HEAD + BLOCKS[number]
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(file)], capture_output=True, text=True, timeout=50, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == re.findall(r"print.*\)  # (.*)", program)
