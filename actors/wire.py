"""How requests and replies look on their way between processes: headers and bytes. Pure.

A request is a message of the agent's channel with some headers: the reply address (a topic), a correlation id, who is asked;
the value stays untouched. A reply is a message of that topic with the correlation id and its kind; see docs/calls.md.
"""

from __future__ import annotations

import json
import traceback
from typing import Any, Final, Literal

import attrs

from ..channels.dead_letters import error_text
from ..channels.message import ASKED, CORRELATION_ID, REPLY_MODE, REPLY_TO, Header, Headers
from .errors import AgentError

__all__ = [
    "ASKED",
    "CORRELATION_ID",
    "REPLY_MODE",
    "REPLY_TO",
    "Mode",
    "Reply",
    "ReplyKind",
    "decode_failure",
    "encode_failure",
    "failure_of",
    "parse_reply",
    "reply_headers",
    "request_headers",
]

Mode = Literal["first", "parts", "values"]
"""How much of the answer is wanted: the first yield; all of them, numbered, and the end; all values, and nothing else."""

ReplyKind = Literal["value", "part", "end", "failure"]

REPLY_KIND: Final = "famulus-reply"
REPLY_PART: Final = "famulus-reply-part"

_KINDS: Final[dict[bytes, ReplyKind]] = {b"value": "value", b"part": "part", b"end": "end", b"failure": "failure"}
_DIGITS: Final = 18
_MOST_TEXT: Final = 65_536
"""Characters of a traceback that travel: a broker takes a megabyte at most by default."""
_LEAST_TEXT: Final = 400
"""The same where a topic takes less than that."""


@attrs.frozen
class Reply:
    """A reply as it was read.

    Attributes:
        part: of a "part" its number, from 1 on; of an "end" and a "failure" how many parts there were before.
    """

    correlation_id: bytes
    kind: ReplyKind
    part: int = 0


def request_headers(asked: Header, reply_to: Header, correlation_id: bytes, mode: Mode) -> Headers:
    """What a request carries, besides the headers of its sender.

    Args:
        asked: `ASKED` with the agent's name.
        reply_to: `REPLY_TO` with the address; these two are made once and used for every request.
    """
    if mode == "first":
        return (asked, reply_to, (CORRELATION_ID, correlation_id))
    return ((REPLY_MODE, mode.encode()), asked, reply_to, (CORRELATION_ID, correlation_id))


def reply_headers(correlation_id: bytes, kind: ReplyKind, part: int = 0) -> Headers:
    """What a reply carries."""
    headers: Headers = ((CORRELATION_ID, correlation_id), (REPLY_KIND, kind.encode()))
    return (*headers, (REPLY_PART, str(part).encode())) if part else headers


def parse_reply(headers: Headers) -> Reply | None:
    """The reply that a message is, or None.

    >>> parse_reply(reply_headers(b"a.1", "part", 3))
    Reply(correlation_id=b'a.1', kind='part', part=3)
    """
    correlation_id = kind = None
    part = 0
    for name, value in headers:
        if name == CORRELATION_ID:
            correlation_id = value
        elif name == REPLY_KIND:
            kind = _KINDS.get(value)
        elif name == REPLY_PART and value.isdigit() and len(value) <= _DIGITS:
            part = int(value)
    return None if correlation_id is None or kind is None else Reply(correlation_id, kind, part)


def failure_of(agent: str, error: BaseException) -> AgentError:
    """What the caller gets for what the agent raised; each time another object, since it gets that caller's traceback."""
    if isinstance(error, AgentError) and error.agent == agent:
        return AgentError(
            agent,
            error.reason,
            remote_type=error.remote_type,
            remote_message=error.remote_message,
            remote_traceback=error.remote_traceback,
        )
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    said = error_text(error)
    reason = said if isinstance(error, AgentError) else f"{kind}: {said}" if said else kind
    return AgentError(
        agent,
        reason,
        remote_type=kind,
        remote_message=said,
        remote_traceback="".join(traceback.format_exception(error)),
    )


def encode_failure(error: AgentError, *, short: bool = False) -> bytes:
    """The value of a reply of kind "failure": a JSON object, of half a megabyte at most.

    Args:
        short: cut its texts to what fits anywhere.
    """
    most = _LEAST_TEXT if short else _MOST_TEXT
    fields = {
        "agent": error.agent,
        "reason": error.reason[: most // 4],
        "type": error.remote_type,
        "message": error.remote_message[: most // 4],
        "traceback": error.remote_traceback[-most:],
    }
    # What UTF-8 cannot say, halves of surrogate pairs, is written as JSON writes it, too.
    return json.dumps(fields, ensure_ascii=False).encode(errors="backslashreplace")


def decode_failure(agent: str, data: bytes | None) -> AgentError:
    """The error that a reply of kind "failure" tells of, whatever it looks like.

    Args:
        agent: who was asked, where the reply does not say.
    """
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        found = {}
    fields: dict[str, Any] = found if isinstance(found, dict) else {}
    return AgentError(
        str(fields.get("agent", agent)),
        str(fields.get("reason", "it failed, and said nothing that can be read")),
        remote_type=str(fields.get("type", "")),
        remote_message=str(fields.get("message", "")),
        remote_traceback=str(fields.get("traceback", "")),
    )
