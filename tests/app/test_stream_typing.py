"""What type checkers know of streams through their operators (PAIN row 23)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from collections.abc import AsyncIterator
from typing import assert_type

import famulus

app = famulus.App("typed")


class Order(famulus.Record):
    account: str
    cents: int


class Refund(famulus.Record):
    account: str
    reason: str


orders = app.topic("orders", value_type=Order)
refunds = app.topic("refunds", value_type=Refund)


def cents_of(order: Order) -> int:
    return order.cents


async def account_of(order: Order) -> str:
    return order.account


@app.agent(orders)
async def work(stream: famulus.Stream[Order]) -> AsyncIterator[int]:
    assert_type(stream.map(cents_of), famulus.Stream[int])
    assert_type(stream.map(account_of), famulus.Stream[str])
    assert_type(stream.map(lambda order: order.cents / 2), famulus.Stream[float])
    assert_type(stream.map(account_of).map(len), famulus.Stream[int])
    assert_type(stream.filter(lambda order: order.cents > 3), famulus.Stream[Order])
    assert_type(stream.noack(), famulus.Stream[Order])
    assert_type(stream.echo("copies", orders), famulus.Stream[Order])
    assert_type(stream.through("via"), famulus.Stream[Order])
    assert_type(stream.group_by(Order.account), famulus.Stream[Order])
    assert_type(stream.group_by("account", partitions=4), famulus.Stream[Order])
    assert_type(stream.group_by(account_of, name="a", topic="mine"), famulus.Stream[Order])
    assert_type(stream & refunds.stream(), famulus.Stream[Order | Refund])
    async for batch in stream.take(100, within=10):
        assert_type(batch, list[Order])
    async for events in stream.map(cents_of).take_events(100):
        assert_type(events, list[famulus.Event[int]])
    async for stamped in stream.take_with_timestamp(100, None, "timestamp"):
        assert_type(stamped, list[Order])
    async for pair in stream.map(cents_of).enumerate(1):
        assert_type(pair, tuple[int, int])
    async for event in stream.events():
        assert_type(event, famulus.Event[Order])
        assert_type(await event.forward("copies"), famulus.FutureMessage)
    async for key, cents in stream.map(cents_of).items():
        assert_type(cents, int)
    async for either in stream & refunds.stream():
        assert_type(either, Order | Refund)
        yield 1


async def main() -> None:
    assert_type(app.stream(orders), famulus.Stream[Order])
    assert_type(app.stream([1, 2]), famulus.Stream[int])
    assert_type(orders.stream().filter(account_of), famulus.Stream[Order])
    orders.stream().map(len)  # wrong
"""


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_pain_23_values_are_known_through_every_operator(checker: str, tmp_path: Path) -> None:
    program = Path(sys.executable).parent / checker
    if not program.exists():
        pytest.skip(f"{checker} is not installed in {program.parent}")
    file = tmp_path / "typed_streams.py"
    file.write_text(PROGRAM, encoding="utf-8")
    wrong = next(number for number, line in enumerate(PROGRAM.splitlines(), 1) if "# wrong" in line)
    arguments = ["--strict", "--no-incremental"] if checker == "mypy" else ["--pythonpath", sys.executable]
    done = subprocess.run(
        [str(program), *arguments, str(file)],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(__file__).resolve().parents[2] / "src")},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    lines = [int(number) for number in re.findall(r"typed_streams.py:(\d+):.*error", done.stdout)]
    assert set(lines) == {wrong}, done.stdout + done.stderr
