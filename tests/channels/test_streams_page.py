"""docs/streams.md: its program runs, and each of its examples does what it says, inside an agent."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import famulus

PAGE = (Path(__file__).parents[2] / "docs" / "streams.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PROGRAMS = [block for block in BLOCKS if "trio.run" in block]
BODIES = [block for block in BLOCKS if "open_app() as running" in block]
EXAMPLES = [block for block in BLOCKS if block not in PROGRAMS and block not in BODIES]


def told(block: str) -> list[str]:
    return re.findall(r"print\(.*\) +# (.*)", block)


def compiled(block: str, parameters: str, scope: dict[str, Any]) -> Callable[..., Awaitable[None]]:
    exec(f"async def example({parameters}):\n" + textwrap.indent(block, "    "), scope)
    made: Callable[..., Awaitable[None]] = scope["example"]
    return made


def test_there_is_an_example_of_every_operator() -> None:
    operators = [name for name, value in vars(famulus.Stream).items() if callable(value) and not name.startswith("_")]
    internal = {"advance", "value_of", "trouble"}
    missing = [name for name in operators if name not in internal and f"{name}(" not in PAGE]
    assert not missing
    assert len(EXAMPLES) == 15


def test_the_program_of_the_page_runs() -> None:
    (program,) = PROGRAMS
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-"], input=program, capture_output=True, text=True, timeout=50, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == told(program)


@pytest.mark.parametrize("number", range(len(BODIES)))
async def test_an_example_of_the_page_runs(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    await compiled(BODIES[number], "", {"famulus": famulus})()
    assert capsys.readouterr().out.splitlines() == told(BODIES[number])


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
async def test_an_example_inside_an_agent_says_what_it_says(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    app = famulus.App("page")
    example = compiled(EXAMPLES[number], "stream", {"app": app})
    failures: list[BaseException] = []

    @app.agent(
        app.topic("numbers", key_type=str, value_type=int, partitions=1),
        on_error=lambda agent, error: failures.append(error),
    )
    async def agent(stream: famulus.Stream[int]) -> None:
        await example(stream)

    async with famulus.open_app(app):
        for value in range(4):
            await app.topics["numbers"].send(value, key=f"k{value}")
        await trio.sleep(5)
    assert not failures
    (expected,) = told(EXAMPLES[number])
    assert capsys.readouterr().out.splitlines()[0] == expected
