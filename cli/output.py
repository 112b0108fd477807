"""What commands write: tables for people, JSON for programs, and no passwords in either."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import click
import orjson
from rich.box import ROUNDED
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["console", "mask", "write_json", "write_table"]

_PIPE_WIDTH = 200  # columns of a table that no terminal bounds

_PASSWORD = re.compile(r"(://[^\s:'\"]*):[^\s'\"]*@")
_SECRET = re.compile(r"([?&][\w.-]*(?:password|secret|token)[\w.-]*=)[^\s&'\"]*", re.IGNORECASE)


def mask(text: str) -> str:
    """Text without the passwords of the URLs in it.

    >>> mask("kafka://ada:s3cret@one:9092,two:9092")
    'kafka://ada:***@one:9092,two:9092'
    >>> mask("kafka://ada@example.org:s3cret@one:9092")
    'kafka://ada@example.org:***@one:9092'
    >>> mask("kafka://one?sasl_password=s3cret&x=1")
    'kafka://one?sasl_password=***&x=1'
    >>> mask("sqlite:///var/lib/shop.db")
    'sqlite:///var/lib/shop.db'
    """
    return _SECRET.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def console(*, stderr: bool = False, color: bool = True) -> Console:
    """A console on the stream as it is now. Without a terminal it writes wide, plain lines."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(file=stream, width=width, no_color=not color, highlight=False)


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output. Its texts are shown as they are."""
    table = Table(box=ROUNDED)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def write_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())
