"""What can go wrong between bytes and values, named by field.

Raised by `serde`, shown in logs by everyone above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

__all__ = ["DecodeError", "EncodeError", "FieldError", "ValidationError"]
__all__ += ["NotReady", "Unavailable"]
__all__ += ["Mismatch", "field_path", "key_path", "mismatch", "short", "unencodable"]

SHOWN = 60  # characters of a bad value worth a place in a log line


def short(value: object) -> str:
    """The value and its type, short enough for a log line.

    >>> short("abc")
    "'abc' (str)"
    """
    try:
        text = repr(value[:SHOWN] if isinstance(value, str | bytes) else value)
    except Exception as exc:
        text = f"<repr failed: {exc!r}>"
    if len(text) > SHOWN:
        text = text[: SHOWN - 3] + "..."
    return f"{text} ({type(value).__name__})"


def field_path(name: str) -> str:
    """One step of a path, to a field.

    >>> field_path("price"), field_path("unit-price")
    ('.price', "['unit-price']")
    """
    return f".{name}" if name.isidentifier() else f"[{name!r}]"


def key_path(key: object) -> str:
    """One step of a path, to a list's index or a mapping's key.

    >>> key_path(2), key_path("ada")
    ('[2]', "['ada']")
    """
    return f"[{key!r}]"


@attrs.frozen
class FieldError:
    """One bad place in a message.

    `path` is where (`$.items[2].price`), `expected` names the type, `got` shows the value, shortened;
    `reason` says more where there is more to say, else it is empty.
    """

    path: str
    expected: str
    got: str
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: expected {self.expected}, got {self.got}"
        return f"{text}: {self.reason}" if self.reason else text

    def under(self, prefix: str) -> FieldError:
        """The same error, seen from one level further out."""
        return attrs.evolve(self, path=prefix + self.path)


class _Located(ValueError):
    """Errors with places."""

    def __init__(self, *errors: FieldError) -> None:
        if not errors:
            raise TypeError(f"{type(self).__name__} takes at least one FieldError")
        super().__init__(*errors)

    @property
    def errors(self) -> tuple[FieldError, ...]:
        return self.args

    @property
    def path(self) -> str:
        return self.errors[0].path

    @property
    def expected(self) -> str:
        return self.errors[0].expected

    @property
    def got(self) -> str:
        return self.errors[0].got

    @property
    def reason(self) -> str:
        return self.errors[0].reason

    def __str__(self) -> str:
        more = len(self.errors) - 1
        return f"{self.errors[0]} (and {more} more)" if more else str(self.errors[0])


class DecodeError(_Located):
    """Bytes that do not hold a value of the type asked for.

    `path`, `expected`, `got` and `reason` tell the first bad place, `errors` all of them. Bytes that the
    codec cannot read at all have the path `$`. It can be pickled.
    """


class ValidationError(_Located):
    """A record whose fields do not hold what their annotations say, or what their validators want.

    It has the attributes of a `DecodeError`.
    """


class EncodeError(ValueError):
    """A value that cannot be made into bytes.

    `expected` names what the serde is for, `got` shows the value, shortened, `reason` is the codec's. It can
    be pickled.
    """

    def __init__(self, expected: str, got: str, reason: str) -> None:
        super().__init__(expected, got, reason)
        self.expected = expected
        self.got = got
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot encode {self.got} as {self.expected}: {self.reason}"


def unencodable(name: str, value: Any, exc: Exception, reason: str = "") -> EncodeError:
    """The error for a value that a codec refused."""
    return EncodeError(name, short(value), reason or str(exc) or type(exc).__name__)


class NotReady(Exception):
    """A codec has to fetch something before it can do this: it is no failure yet.

    A codec is synchronous and runs in the thread of the loop, so it does no I/O itself. Whoever called it runs `work` in
    a thread, and then calls the codec again, which has an answer now: a value, or an error that is final. It may
    also raise `NotReady` for the next thing that it needs. The serdes let it through as it is.

    Attributes:
        what: the thing that is missing, for logs: "schema 7 of http://registry:8081".
        work: a plain blocking function that gets it. Raises `Unavailable` when it has to be tried again later.
    """

    def __init__(self, what: str, work: Callable[[], None]) -> None:
        super().__init__(what)
        self.what = what
        self.work = work


class Unavailable(Exception):
    """What a codec has to fetch cannot be had at the moment: its server is away, or too busy. Try again later."""


class Mismatch(Exception):
    """Internal: a hook refuses a value.

    Paths are relative to that value; `serde` makes a `DecodeError` of it.
    """

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(errors)
        self.errors = errors


def mismatch(expected: str, got: Any, reason: str = "") -> Mismatch:
    """The refusal of one value, by the hook that was given it."""
    return Mismatch([FieldError("", expected, short(got), reason)])
