"""Dead letters for a terminal and for programs: bytes made readable, with the app's types where it has them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs
import click
import orjson

from ..channels.letters import DeadLetter
from ..channels.runs import Run
from ..channels.transport import Transport
from ..models import Record
from .broker import BrokerCall
from .invocation import declared_topic
from .output import write_table

__all__ = ["Decoder", "as_json", "write_letters"]

_SHOWN = 80  # characters of a text in a table


class Decoder:
    """Decodes keys and values as the app declares their topics, without its settings for what is unsafe."""

    def __init__(self, call: BrokerCall, transport: Transport) -> None:
        self._call = call
        self._run = Run(call.declaration, call.settings, transport)
        self._schemas: dict[str, Any] = {}

    def key(self, letter: DeadLetter) -> Any:
        """The key, decoded if that can be done; else its bytes."""
        return self._decoded(letter, "key", letter.message.key)

    def value(self, letter: DeadLetter) -> Any:
        """The value, decoded if that can be done; else its bytes."""
        return self._decoded(letter, "value", letter.message.value)

    def _decoded(self, letter: DeadLetter, part: str, data: bytes | None) -> Any:
        schema = self._schema(letter.topic)
        if data is None or schema is None:
            return data
        try:
            return (schema.decode_key if part == "key" else schema.decode_value)(data, letter.headers)
        except Exception:  # that is why it is here, perhaps
            return data

    def _schema(self, name: str) -> Any:
        if name not in self._schemas:
            self._schemas[name] = None
            topic = declared_topic(self._call.declaration, name)
            if topic is not None:
                schema = topic.serdes(self._run).schema
                try:
                    schema.check_readable()
                except Exception:  # a codec that may execute what it reads: never here
                    return None
                self._schemas[name] = schema
        return self._schemas[name]


def as_json(letter: DeadLetter, decoder: Decoder, *, replayed: bool) -> dict[str, Any]:
    """For ``--json``."""
    message = letter.message
    return {
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "written": message.timestamp,
        "source": {"topic": letter.topic, "partition": letter.partition, "offset": letter.offset},
        "timestamp": letter.timestamp,
        "agent": letter.agent,
        "attempts": letter.attempts,
        "replays": letter.replays,
        "replayed": replayed,
        "undecodable": letter.part,
        "error": {"type": letter.error_type, "message": letter.error_message, "traceback": letter.traceback},
        "key": _plain(decoder.key(letter)),
        "value": _plain(decoder.value(letter)),
        "headers": [[name, _plain(text)] for name, text in letter.headers],
        "left_out": sorted(letter.left_out),
    }


def write_letters(
    letters: Sequence[tuple[DeadLetter, bool]], decoder: Decoder, *, tracebacks: bool, with_replayed: bool
) -> None:
    """A table of letters, each with whether it was replayed; below it their tracebacks."""
    columns = ["letter", "written", "message", "agent", "attempts", "error", "key", "value"]
    again = with_replayed or any(letter.replays for letter, _ in letters)
    rows = []
    for letter, replayed in letters:
        row = _row(letter, decoder)
        if again:
            row.append(f"{letter.replays} times before" if letter.replays else "")
        if with_replayed:
            row.append("yes" if replayed else "")
        rows.append(row)
    write_table(columns + ["came back"] * again + ["replayed"] * with_replayed, rows)
    if tracebacks:
        for letter, _ in letters:
            click.echo(f"\n{_where(letter)}\n{letter.traceback.rstrip() or '(no traceback)'}")


def _row(letter: DeadLetter, decoder: Decoder) -> list[str]:
    failed = f"{letter.error_type.removeprefix('builtins.')}: {letter.error_message}".removesuffix(": ")
    value = f"left out, {letter.size} bytes" if "value" in letter.left_out else _text(decoder.value(letter))
    return [
        _where(letter),
        datetime.fromtimestamp(letter.message.timestamp).astimezone().isoformat(" ", "seconds"),
        f"{letter.topic}-{letter.partition}@{letter.offset}" if letter.offset >= 0 else f"{letter.topic} (no log)",
        f"@{letter.agent}",
        str(letter.attempts),
        _short(failed if letter.part is None else f"undecodable {letter.part}: {letter.error_message}"),
        _text(decoder.key(letter)),
        value,
    ]


def _where(letter: DeadLetter) -> str:
    return f"{letter.message.tp}@{letter.message.offset}"


def _plain(value: Any) -> Any:
    """What JSON can hold; bytes as their text, or where that is none ``{"base64": ...}``."""
    if isinstance(value, bytes):
        text = _readable(value)
        return {"base64": base64.b64encode(value).decode()} if text is None else text
    try:
        return orjson.loads(orjson.dumps(value, default=_asdict, option=orjson.OPT_NON_STR_KEYS))
    except (TypeError, ValueError):
        return repr(value)


def _asdict(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_representation()
    if attrs.has(type(value)):
        return attrs.asdict(value, recurse=False)
    return repr(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        text = _readable(value)
        return _short(f"0x{value.hex()}" if text is None else text)
    return _short(value if isinstance(value, str) else repr(value))


def _readable(data: bytes) -> str | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if all(char.isprintable() or char in "\n\r\t" for char in text) else None


def _short(text: str) -> str:
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
