"""Where a worker's log goes and how it looks. Called by the command `worker`, never by the library."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, Literal

import orjson
from rich.logging import RichHandler

from ..channels.errors import ImproperlyConfigured
from .output import console

__all__ = ["LEVELS", "JsonFormatter", "LogFormat", "set_up_logging"]

LogFormat = Literal["auto", "rich", "plain", "json"]

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "crit": logging.CRITICAL,
    "critical": logging.CRITICAL,
}

_PLAIN = "%(asctime)s %(levelname)s %(name)s %(message)s"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (seconds since the epoch), level, logger, message, traceback, extras."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return orjson.dumps({**extra, **entry}, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def set_up_logging(level: str, *, logfile: Path | None, format: LogFormat, color: bool) -> None:
    """Give the root logger its level and a handler.

    A program that has given it handlers of its own keeps those, unless an option asks for ours as well.

    Raises:
        ImproperlyConfigured: the file cannot be written.
    """
    root = logging.getLogger()
    root.setLevel(LEVELS[level.lower()])
    if root.level > logging.DEBUG:  # what matters of it we log ourselves, once; it would say so for each attempt
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    if root.handlers and logfile is None and format == "auto":
        return
    root.addHandler(_handler(logfile, format, color))


def _handler(logfile: Path | None, format: LogFormat, color: bool) -> logging.Handler:
    handler: logging.Handler
    if format == "auto":
        format = "rich" if logfile is None and sys.stderr.isatty() else "plain"
    if logfile is not None:
        try:
            handler = logging.FileHandler(logfile, encoding="utf-8")
        except OSError as error:
            raise ImproperlyConfigured(f"--logfile {logfile}: expected a file that can be written: {error}") from error
    elif format == "rich":
        return RichHandler(console=console(stderr=True, color=color), show_path=False, omit_repeated_times=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else logging.Formatter(_PLAIN))
    return handler
