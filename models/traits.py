"""What a record's class statement and its fields say beyond types, as data. Written by `recordmeta`, read by all here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

__all__ = ["ABSTRACT", "EXTRAS", "OPTIONS", "STRICT", "TAG", "Coercer", "FieldExtras", "Mode", "RecordOptions"]
__all__ += ["extras_of", "field_mode", "is_record", "options_of", "wire_names"]

OPTIONS = "__record_options__"  # class attribute of records
ABSTRACT = "__record_abstract__"  # likewise, of each class alone
TAG = "__record_tag__"  # likewise: the key and the tag that its values are written with
EXTRAS = "famulus"  # key in the metadata of attrs

DateParser = Callable[[Any], Any]


@attrs.frozen(kw_only=True)
class RecordOptions:
    """The options of a class statement, with what the bases said. See `Record` for their meaning."""

    coerce: bool = False
    validation: bool = False
    include_metadata: bool = False
    allow_blessed_key: bool = False
    polymorphic_fields: bool = False
    date_parser: DateParser | None = None


@attrs.frozen(kw_only=True)
class FieldExtras:
    """What `field` says that attrs knows nothing of. None: nothing said."""

    input_name: str | None = None
    output_name: str | None = None
    coerce: bool | None = None
    exclude: bool = False
    date_parser: DateParser | None = None


@attrs.frozen(cache_hash=True)
class Mode:
    """How the hooks within one field judge. It reaches down to the next class, which has its own.

    Attributes:
        coerce: take what can be read as the type, too.
        polymorphic: records say by a tag which subclass they are.
        blessed: Faust's tag counts, too.
        date_parser: makes datetimes of what is none.
    """

    coerce: bool = False
    polymorphic: bool = False
    blessed: bool = False
    date_parser: DateParser | None = None


STRICT = Mode()

_NO_OPTIONS = RecordOptions()
_NO_EXTRAS = FieldExtras()


class Coercer:
    """Base of the converters that come of `coerce`; other converters are the user's."""


def options_of(cls: Any) -> RecordOptions:
    """The options of a record; the defaults for other classes."""
    options: RecordOptions = getattr(cls, OPTIONS, _NO_OPTIONS)
    return options


def is_record(cls: Any) -> bool:
    """Whether `cls` is a record, without knowing `Record`."""
    return hasattr(cls, OPTIONS)


def extras_of(attribute: attrs.Attribute[Any]) -> FieldExtras:
    """The extras of a field, wherever its class comes from."""
    extras: FieldExtras = attribute.metadata.get(EXTRAS, _NO_EXTRAS)
    return extras


def field_mode(options: RecordOptions, extras: FieldExtras) -> Mode:
    """The mode for the hooks of one field."""
    return Mode(
        options.coerce if extras.coerce is None else extras.coerce,
        options.polymorphic_fields,
        options.allow_blessed_key,
        extras.date_parser or options.date_parser,
    )


def wire_names(attribute: attrs.Attribute[Any]) -> tuple[str, str]:
    """A field's name in what is read, and in what is written."""
    extras = extras_of(attribute)
    read = extras.input_name or attribute.name
    return read, extras.output_name or read
