"""docs/calls.md: its program runs, and each of its examples says what it says."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

import famulus

PAGE = (Path(__file__).parents[2] / "docs" / "calls.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(PROGRAM,) = [block for block in BLOCKS if "trio.run" in block]
(AGENTS,) = [block for block in BLOCKS if block.startswith("@app.agent()")]
EXAMPLES = [block for block in BLOCKS if block not in (PROGRAM, AGENTS)]


def told(block: str) -> list[str]:
    return re.findall(r"print\(.*\) +# (.*)", block)


def test_every_call_of_an_agent_is_on_the_page() -> None:
    calls = ["ask", "ask_nowait", "ask_stream", "join", "kvjoin", "map", "kvmap", "cast", "send", "send_soon"]
    assert all(f"{call}(" in PAGE and hasattr(famulus.Agent, call) for call in calls)
    assert len(EXAMPLES) == 9


def test_the_settings_on_the_page_are_those_that_there_are() -> None:
    defaults = famulus.App("page").settings()
    assert (defaults.reply_expires, defaults.reply_window, defaults.reply_buffer_maxsize) == (86_400, 1_000, 1_024)
    for name in ("reply_to_prefix", "reply_expires", "reply_create_topic", "reply_window", "reply_buffer_maxsize"):
        assert hasattr(defaults, name)
        assert f"| `{name}` |" in PAGE


def test_the_program_of_the_page_runs(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=PROGRAM,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == told(PROGRAM)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
async def test_an_example_of_the_page_says_what_it_says(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    example = EXAMPLES[number]
    app = famulus.App("page")
    scope: dict[str, Any] = {"famulus": famulus, "trio": trio, "app": app, "AsyncIterator": AsyncIterator}
    exec(AGENTS, scope)
    app.topic("squares", value_type=int)
    exec(f"async def example(running):\n{textwrap.indent(example, '    ')}", scope)
    async with famulus.open_app(app) as running:
        with trio.fail_after(10):
            await scope["example"](running)
    printed = capsys.readouterr().out.splitlines()
    assert printed[: len(told(example))] == told(example)
