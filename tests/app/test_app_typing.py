"""What type checkers know of agents, topics and streams (PAIN row 23)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import assert_type

import famulus

app = famulus.App("typed")


class Order(famulus.Record):
    account: str
    cents: int


orders = app.topic("orders", value_type=Order)
assert_type(orders, famulus.Topic[Order])
assert_type(app.channel(value_type=int), famulus.Channel[int])


@app.agent(orders)
async def tally(stream: famulus.Stream[Order]) -> AsyncIterator[int]:
    async for order in stream.group_by(Order.account):
        assert_type(order, Order)
        yield order.cents


@app.agent()
async def note(stream: famulus.Stream[str]) -> None:
    async for key, text in stream.items():
        assert_type(text, str)
    async for event in stream.events():
        assert_type(event, famulus.Event[str])


assert_type(tally, famulus.Agent[Order, int])
assert_type(note, famulus.Agent[str, None])


async def main() -> None:
    async with famulus.open_app(app) as running:
        assert_type(running, famulus.RunningApp)
        assert_type(await tally.ask(Order("ada", 1)), int)
        assert_type(await running.agent(tally).ask(Order("ada", 1)), int)
        assert_type(await tally.join([Order("ada", 1)]), list[int])
        assert_type(await tally.kvjoin([("ada", Order("ada", 1))]), list[int])
        assert_type(await tally.ask_nowait(Order("ada", 1)), famulus.ReplyPromise[int])
        assert_type(await (await tally.ask_nowait(Order("ada", 1))), int)
        async for total in tally.map([Order("ada", 1)], key=b"ada", window=10):
            assert_type(total, int)
        async with aclosing(tally.ask_stream(Order("ada", 1))) as parts:
            async for part in parts:
                assert_type(part, int)
        results: AsyncIterator[int] = running.agent(tally).kvmap([("ada", Order("ada", 1))])
        assert_type(await running.agent(tally).join([Order("ada", 1)]), list[int])
        assert_type(await (await orders.send(Order("ada", 1))), famulus.RecordMetadata)

        @running.agent()
        async def double(stream: famulus.Stream[int]) -> AsyncIterator[int]:
            async for n in stream:
                yield 2 * n

        assert_type(await double.ask(21), int)
        async with famulus.open_client(app) as client:
            assert_type(await client.agent(tally).ask(Order("ada", 1)), int)
        await double.ask("no")  # wrong
"""


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_pain_23_answers_and_values_are_known_to_type_checkers(checker: str, tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    program = bin_folder / checker
    if not program.exists() and shutil.which(checker, path=str(bin_folder)) is None:
        pytest.skip(f"{checker} is not installed in {bin_folder}")
    file = tmp_path / "typed_program.py"
    file.write_text(PROGRAM, encoding="utf-8")
    wrong = next(number for number, line in enumerate(PROGRAM.splitlines(), 1) if "# wrong" in line)
    arguments = ["--strict", "--no-incremental"] if checker == "mypy" else ["--pythonpath", sys.executable]
    # With the checkout as working directory its folders would hide other packages; without HOME pyright cannot cache.
    done = subprocess.run(
        [str(program), *arguments, str(file)],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(__file__).resolve().parents[2] / "src")},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if "error" in line and "typed_program.py:" in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert f":{wrong}:" in errors[0]
