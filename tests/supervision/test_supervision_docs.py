"""docs/supervision.md: its programs run, its TOML is its Python, and its clauses are those that are tested."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from famulus.supervision import tree_from_toml

PAGE = (Path(__file__).parents[2] / "docs" / "supervision.md").read_text()
CONFORMANCE = Path(__file__).with_name("test_otp_conformance.py").read_text()
PROGRAMS = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "trio.run" in block]


def test_every_clause_is_listed_with_its_tests_and_every_test_with_its_clause() -> None:
    listed = [
        (int(number), name)
        for number, names in re.findall(r"^\| (\d+) \|.*\| (.*) \|$", PAGE, re.MULTILINE)
        for name in re.findall(r"\[`(\w+)`\]", names)
    ]
    tested = [(int(number), name) for number, name in re.findall(r"def test_clause_(\d\d)_(\w+)\(", CONFORMANCE)]
    assert len(tested) == CONFORMANCE.count("def test_")
    assert sorted(listed) == sorted(tested)
    assert {number for number, _ in tested} == set(range(1, 28))


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_of_the_page_runs(program: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-"], input=program, capture_output=True, text=True, timeout=50, check=False
    )
    assert ran.returncode == 0, ran.stderr
    for told in re.findall(r"print\(.*\) +# (.*)", program):
        assert told in ran.stdout


def test_the_tree_of_the_page_is_the_same_in_python_and_in_toml() -> None:
    [source] = re.findall(r"```python\n([^`]*?declared = .*?)```", PAGE, re.DOTALL)
    [toml] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(source, scope)
    assert tree_from_toml(toml) == scope["declared"]
