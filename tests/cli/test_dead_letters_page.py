"""docs/dead-letters.md: its program and its commands run, and its headers are those that letters have."""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

import famulus
from famulus.channels.memory import MemoryBroker
from famulus.channels.message import TP, ProducerRecord
from famulus.cli import make_program

PAGE = (Path(__file__).parents[2] / "docs" / "dead-letters.md").read_text(encoding="utf-8")
(PROGRAM,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    name = f"letters-page-{uuid.uuid4().hex}"
    yield MemoryBroker.named(name)
    MemoryBroker.forget(name)


def test_the_commands_of_the_page_do_what_it_says(broker: MemoryBroker) -> None:
    scope: dict[str, Any] = {"__name__": "shop"}
    exec(PROGRAM, scope)
    app: famulus.App = scope["app"]
    broker.create_topic("orders", 1)
    broker.append(
        TP("orders", 0),
        [
            ProducerRecord(b"ada", b'{"account": "ada", "cents": -1}'),
            ProducerRecord(b"eve", b"oops"),
            ProducerRecord(b"ada", b'{"account": "ada", "cents": 1}'),
        ],
    )
    url = f"memory://{broker.name}"

    async def work() -> None:
        async with famulus.open_app(app, broker=url) as running:
            with trio.fail_after(20):
                while running.statistics().dead_letters < 2:
                    await trio.sleep(0.01)

    trio.run(work)
    written = {name for letter in broker.messages("orders.dead-letter") for name, _ in letter.headers}
    told = {f"famulus-dead-letter-{name}" for row in re.findall(r"^\| (`.*`) \|", PAGE, re.M) for name in names(row)}
    assert written <= told | {"famulus-dead-letter"}
    assert told - written == {f"famulus-dead-letter-{name}" for name in ("replays", "left-out", "size")}

    assert len(COMMANDS) == 8
    outcomes = []
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert (program, arguments[:2]) == ("famulus", ["-A", "shop"])
        result = CliRunner().invoke(make_program(app), ["--broker", url, *arguments[2:]], env={"COLUMNS": "200"})
        assert result.exit_code == 0, f"{command}\n{result.output}"
        outcomes.append(result.stdout)
    listed, traced, tally, document, dry, one, sent, again = outcomes
    assert "ValueError: ada takes money back" in listed
    assert "undecodable value" in listed
    assert "Traceback (most recent call last)" in traced
    assert "@tally" in tally
    assert document.count('"error"') == 2
    assert dry == "would send back 2 letters to orders\n"
    assert one == "would send back 1 letter to orders\n" or one.startswith("nothing to replay")
    assert sent == "sent back 2 letters to orders\n"
    assert again == "sent back 1 letter to orders\n"


def names(row: str) -> list[str]:
    found: list[str] = re.findall(r"`([a-z-]+)`", row.split("|")[0])
    return [name for name in found if not name.startswith("famulus")]
