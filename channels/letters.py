"""What a dead letter says: the names of its headers, and how they are read. Pure. docs/dead-letters.md has the table."""

from __future__ import annotations

from typing import Final

import attrs

from .message import REQUEST_HEADERS, TP, Headers, Message, as_timestamp

__all__ = [
    "LETTERS",
    "MARK",
    "PREFIX",
    "REPLAYS",
    "DeadLetter",
    "about",
    "is_dead_letter",
    "own_headers",
    "replayed",
    "replays_of",
]

LETTERS: Final = ".dead-letter"
"""What the name of a topic of letters ends with, unless it is given."""

MARK: Final = "famulus-dead-letter"
"""Header: the topic that the letter was written to. So one that was sent on from there is none any more."""

PREFIX: Final = "famulus-dead-letter-"
"""What the names of all other headers of a letter begin with."""

REPLAYS: Final = f"{PREFIX}replays"
"""Header: how many times the message was sent back from the dead letters. It stays on the message that is sent back."""


@attrs.frozen(kw_only=True)
class DeadLetter:
    """A dead letter, read: ``DeadLetter.of(event.message)`` in an agent over a topic of letters.

    Attributes:
        topic, partition, offset: where the message was that could not be processed; offset -1: in no log.
        timestamp: that message's, in seconds since the epoch; None where an older version wrote the letter.
        error_type: module and name of the exception's class.
        error_message, traceback: its texts; of long ones the end.
        agent: who failed on it, or for whom it could not be decoded.
        attempts: deliveries until it was given up.
        part: "key" or "value", where that could not be decoded; else None.
        replays: how many times it had been sent back before.
        left_out: what the letter does not have, since it would have been too large: of "value", "key" and "headers".
        size: bytes of the message's value, where that was left out.
        message: the letter itself: the original key and value, when it was written, and its own partition and offset.
        headers: the original ones.
    """

    topic: str
    partition: int
    offset: int
    timestamp: float | None
    error_type: str
    error_message: str
    traceback: str
    agent: str
    attempts: int
    part: str | None
    replays: int
    left_out: frozenset[str]
    size: int
    message: Message
    headers: Headers

    @property
    def source(self) -> TP:
        """The partition that the message came from."""
        return TP(self.topic, self.partition)

    @classmethod
    def of(cls, message: Message) -> DeadLetter | None:
        """Read a message as a dead letter; None if it is none."""
        if not is_dead_letter(message):
            return None
        facts = {
            name.removeprefix(PREFIX): text.decode(errors="backslashreplace")
            for name, text in message.headers
            if name.startswith(PREFIX)
        }
        timestamp = facts.get("timestamp")
        return cls(
            topic=facts.get("topic", ""),
            partition=_number(facts.get("partition"), -1),
            offset=_number(facts.get("offset"), -1),
            timestamp=None if timestamp is None else _seconds(timestamp),
            error_type=facts.get("error-type", ""),
            error_message=facts.get("error-message", ""),
            traceback=facts.get("traceback", ""),
            agent=facts.get("agent") or facts.get("reader", ""),
            attempts=_number(facts.get("attempts"), 1),
            part=facts.get("part"),
            replays=_number(facts.get("replays"), 0),
            left_out=frozenset(facts.get("left-out", "").split()),
            size=_number(facts.get("size"), 0),
            message=message,
            headers=own_headers(message.headers),
        )


def is_dead_letter(message: Message) -> bool:
    """Whether a message was read as a dead letter. One that was sent on to another topic is none any more."""
    return any(name == MARK and text == message.topic.encode() for name, text in message.headers)


def own_headers(headers: Headers) -> Headers:
    """The headers that are not of the letter: those of the message."""
    return tuple((name, text) for name, text in headers if name != MARK and not name.startswith(PREFIX))


def about(facts: dict[str, str]) -> Headers:
    """The headers that say this."""
    return tuple((f"{PREFIX}{fact}", text.encode(errors="backslashreplace")) for fact, text in facts.items())


def replays_of(headers: Headers) -> int:
    """How many times a message was sent back."""
    return next((_number(text.decode(errors="replace"), 0) for name, text in headers if name == REPLAYS), 0)


def replayed(headers: Headers) -> Headers:
    """The headers of a message that is sent back: its own, without those of a question, whose asker has left."""
    times = str(replays_of(headers) + 1).encode()
    kept = tuple((name, text) for name, text in own_headers(headers) if name not in REQUEST_HEADERS)
    return (*kept, (REPLAYS, times))


def _number(text: str | None, otherwise: int) -> int:
    try:
        number = otherwise if text is None else int(text)
    except ValueError:
        return otherwise
    return number if abs(number) < 2**63 else otherwise


def _seconds(text: str) -> float | None:
    try:
        return as_timestamp(float(text))
    except ValueError:
        return None
