"""The options of a broker's URL: what follows its question mark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from .errors import ImproperlyConfigured

__all__ = ["url_options"]


def url_options(
    query: str, known: Mapping[str, tuple[Callable[[str], Any], str]], refuse: Callable[[str], ImproperlyConfigured]
) -> dict[str, Any]:
    """What is given, by name.

    Args:
        query: OPTION=VALUE&OPTION=VALUE, percent-encoded. A plus is itself, as it is in names of files.
        known: how each option is parsed, by a function that raises ValueError, KeyError or StopIteration, and what it takes.
        refuse: makes the error for a URL, of what is wrong with it.

    Raises:
        ImproperlyConfigured: an option that is not known, is there twice, or does not take its value.
    """
    given: dict[str, Any] = {}
    try:
        pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise refuse("expected OPTION=VALUE&OPTION=VALUE after the question mark") from None
    for name, text in pairs:
        if name not in known:
            raise refuse(f"option {name!r}: expected one of {', '.join(known)}")
        if name in given:
            raise refuse(f"option {name}: expected once, found twice")
        parse, expected = known[name]
        try:
            given[name] = parse(text)
        except (ValueError, KeyError, StopIteration):
            raise refuse(f"option {name}={text!r}: expected {expected}") from None
    return given
