"""What type checkers say of records: right use passes, wrong use is one precise error."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from __future__ import annotations

from typing import Any, Generic, TypeVar

from famulus.models import CodecLimits, Record, Schema, Serde, ValidationError, field, key_serde, value_serde
from famulus.models.schema import Headers

T = TypeVar("T")


class Order(Record):
    account: str
    cents: int
    tags: list[str] = field(factory=list)
    note: str | None = None


class Rush(Order, frozen=False, serializer="json"):
    courier: str = "pigeon"


class Fixed(Record, frozen=True, kw_only=True):
    n: int


class Page(Record, Generic[T]):
    items: list[T]


class Tagged(Record, include_metadata=True, namespace="x", coerce=True, validation=True, isodates=True):
    number: int = field(input_name="order-number")
    token: str = field(default="", exclude=True)
    other: str = field(default="", alias="o", coerce=False)


class Capitals(Schema):
    def loads_key(self, data: bytes, headers: Headers) -> str:
        return data.decode().lower()

    def dumps_key(self, key: str, headers: Headers) -> tuple[bytes | None, Headers]:
        return key.upper().encode(), headers


order = Order("ada", 1250, ["new"], note="x")
rush = Rush("ada", 1, courier="dog")
order.cents = 3
total: int = order.cents + Fixed(n=1).n
data: bytes = order.dumps()
back: Order = Order.loads(data)
other: Rush = rush.derive(cents=1)
fields: dict[str, Any] = order.asdict()
serde: Serde[Order] = value_serde(Order)
got: Order | None = serde.loads(b"")
raw: bytes | None = serde.dumps(order)
numbers: Serde[int] = key_serde(int)
untyped: Serde[Any] = value_serde(None)
several = value_serde(list[Order]).loads(data)
if several:
    account: str = several[0].account
member = Order.account
page: Page[int] = Page([1, 2])
tagged: Tagged = Tagged.from_data({"order-number": 1}).derive(order, token="t")
again: Tagged = Tagged.loads(tagged.dumps(serializer="pickle"), serializer="pickle", allow_pickle=True)
wrongs: list[ValidationError] = Tagged(1, o="x").validate()
limited: Serde[Order] = value_serde(Order, "json|gzip", limits=CodecLimits(max_decompressed=10))
schema: Schema = Capitals(key_type=str, value_type=Order)

Order("ada")  # mypy: call-arg; pyright: reportCallIssue
Order("ada", "1250")  # mypy: arg-type; pyright: reportArgumentType
Order("ada", 1, colour="red")  # mypy: call-arg; pyright: reportCallIssue
Fixed(1)  # mypy: call-arg; pyright: reportCallIssue
Fixed(n=1).n = 2  # mypy: misc; pyright: reportAttributeAccessIssue
order.colour  # mypy: attr-defined; pyright: reportAttributeAccessIssue
wrong: str = order.cents  # mypy: assignment; pyright: reportAssignmentType
serde.dumps("text")  # mypy: arg-type; pyright: reportArgumentType
"""


def expected(checker: str) -> dict[int, str]:
    found = {}
    for number, line in enumerate(PROGRAM.splitlines(), start=1):
        if match := re.search(rf"# .*{checker}: ([\w-]+)", line):
            found[number] = match[1]
    return found


def needs(tool: str) -> None:
    if importlib.util.find_spec(tool) is None and os.environ.get("FAMULUS_CI") != "1":
        pytest.skip(f"{tool} is not installed")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def test_mypy_strict_understands_records(program: Path) -> None:
    needs("mypy")
    command = [sys.executable, "-P", "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"]
    command += ["--cache-dir", str(program.parent / "cache"), str(program)]
    run = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, check=False, timeout=120)
    found = {int(m[1]): m[2] for m in re.finditer(r":(\d+): error: .*\[([\w-]+)\]$", run.stdout, re.MULTILINE)}
    assert found == expected("mypy"), run.stdout + run.stderr


def test_pyright_understands_records(program: Path) -> None:
    needs("pyright")
    (program.parent / "pyrightconfig.json").write_text(
        json.dumps({"include": ["program.py"], "typeCheckingMode": "strict", "reportUnusedExpression": False})
    )
    command = [sys.executable, "-P", "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, check=False, timeout=120)
    report = json.loads(run.stdout)["generalDiagnostics"]
    found = {d["range"]["start"]["line"] + 1: d["rule"] for d in report if d["severity"] == "error"}
    assert found == expected("pyright"), run.stdout + run.stderr
