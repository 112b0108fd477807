"""The URL of a SQLite broker: its file and its options. docs/sqlite.md explains them. Pure.

sqlite://                                       the file broker.db in the data directory
sqlite:///var/lib/shop/broker.db                this file
sqlite:///var/lib/shop/                         the file broker.db in this directory
sqlite:///var/lib/shop/?durability=normal       with options
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

import attrs

from ..errors import ImproperlyConfigured
from ..url_options import url_options

__all__ = ["DEFAULT_FILE", "SqliteSettings", "parse_url"]

DEFAULT_FILE: Final = "broker.db"

_EXPECTED: Final = "expected sqlite:// (the data directory), sqlite:///ABSOLUTE/PATH or sqlite://./RELATIVE/PATH"


@attrs.frozen(kw_only=True)
class SqliteSettings:
    """Where the broker is, and how it behaves.

    Attributes:
        path: its file.
        durability: "full": what was acknowledged survives a power cut; "normal": it survives the death of every process,
            and a power cut may cost the last of it (never in the middle).
        busy_timeout: seconds to wait for another process that holds the write lock.
        produce_timeout: seconds after which a write that is not answered becomes `BrokerUnavailable`.
        max_bytes: most bytes that the file may take, 0: as many as there are. A full one refuses writes.
        housekeeping: seconds between two rounds of retention and compaction.
    """

    path: Path
    durability: Literal["full", "normal"] = "full"
    busy_timeout: float = 5.0
    produce_timeout: float = 30.0
    max_bytes: int = 0
    housekeeping: float = 30.0


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _durability(text: str) -> str:
    if text not in ("full", "normal"):
        raise ValueError
    return text


def _bytes(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


_OPTIONS: Final[dict[str, tuple[Callable[[str], Any], str]]] = {
    "durability": (_durability, "full or normal"),
    "busy_timeout": (_seconds, "seconds above 0"),
    "produce_timeout": (_seconds, "seconds above 0"),
    "max_bytes": (_bytes, "bytes, 0 for no limit"),
    "housekeeping": (_seconds, "seconds above 0"),
}


def parse_url(url: str, datadir: str | Path) -> SqliteSettings:
    """Take a broker's URL apart.

    Args:
        datadir: where the file is if the URL names none.

    Raises:
        ImproperlyConfigured: the message names the part and what was expected.

    >>> parse_url("sqlite:///srv/shop/?durability=normal", "data").path.as_posix()
    '/srv/shop/broker.db'
    >>> parse_url("sqlite://", "data").path.as_posix(), parse_url("sqlite://./shop.db", "data").path.as_posix()
    ('data/broker.db', 'shop.db')
    """

    def refuse(what: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(f"broker={url!r}: {what}")

    parts = urlsplit(url)
    if parts.scheme != "sqlite" or parts.fragment or not re.match("sqlite://", url, re.IGNORECASE):
        raise refuse(_EXPECTED)
    if parts.netloc not in ("", ".", ".."):
        raise refuse(f"{_EXPECTED}; {parts.netloc!r} stands where a host would")
    name = unquote(parts.netloc + parts.path)
    if "\0" in name:
        raise refuse("a path has no null characters")
    path = Path(name) if name else Path(datadir, DEFAULT_FILE)
    if name.endswith(("/", "/.", "/..")) or name in (".", "..") or path.is_dir():
        path = path / DEFAULT_FILE
    return SqliteSettings(path=path, **url_options(parts.query, _OPTIONS, refuse))
