"""docs/topics.md: its programs run, and its tables list every option and argument there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from famulus.channels.arguments import SendSoonOptions, TopicOptions

PAGE = (Path(__file__).parents[2] / "docs" / "topics.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def listed(heading: str) -> set[str]:
    """The names in the first column of the section's first table."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = section[section.index("|---") :].split("\n\n")[0]
    return {name for line in table.splitlines()[1:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_every_option_of_a_topic_is_listed() -> None:
    assert listed("Declaring a topic") | {"pattern"} == set(TopicOptions.__annotations__) | {"value_type"}


def test_every_argument_of_send_is_listed() -> None:
    assert listed("Sending") == set(SendSoonOptions.__annotations__) | {"value", "key"}


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_of_the_page_runs(program: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-"], input=program, capture_output=True, text=True, timeout=50, check=False
    )
    assert ran.returncode == 0, ran.stderr
    (told,) = re.findall(r"print\(.*\) +# (.*)", program)
    assert ran.stdout.strip() == told
