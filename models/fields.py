"""`field`: what a record says of a field beyond its annotation. Used in class bodies, read by `record`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar, Unpack, overload

import attrs

from .traits import EXTRAS, DateParser, FieldExtras

__all__ = ["FieldOptions", "field"]

T = TypeVar("T")


class FieldOptions(TypedDict, total=False):
    """The first eight mean what they mean in `attrs.field`; for the others see `field`."""

    validator: Any
    converter: Callable[[Any], Any]
    init: bool
    kw_only: bool
    alias: str
    repr: bool | Callable[[Any], str]
    eq: bool
    metadata: Mapping[Any, Any]
    required: bool
    input_name: str
    output_name: str
    coerce: bool
    exclude: bool
    date_parser: DateParser


# The overloads for bare `list`, `dict` and `set` are for pyright: it finds them partially unknown otherwise.
@overload
def field(*, default: T, **options: Unpack[FieldOptions]) -> T: ...
@overload
def field(*, factory: type[list[Any]], **options: Unpack[FieldOptions]) -> list[Any]: ...
@overload
def field(*, factory: type[dict[Any, Any]], **options: Unpack[FieldOptions]) -> dict[Any, Any]: ...
@overload
def field(*, factory: type[set[Any]], **options: Unpack[FieldOptions]) -> set[Any]: ...
@overload
def field(*, factory: Callable[[], T], **options: Unpack[FieldOptions]) -> T: ...
@overload
def field(**options: Unpack[FieldOptions]) -> Any: ...
def field(**options: Any) -> Any:
    """One field of a record.

    Args:
        default: a value that cannot be changed in place.
        factory: called for each instance that is made without the field.
        required: False is the same as `default=None`, but type checkers know nothing of it.
        input_name: the field's name in what is read; its own by default.
        output_name: its name in what is written; `input_name` by default.
        coerce: overrules the record's option, for this field.
        exclude: leave it out of what is written; it needs a default, as it will be missing in what is read.
        date_parser: overrules the record's option, for this field.
        alias: the name of the constructor's argument, as in attrs.
        converter: as in attrs; a field with one may come in any form that the converter takes.
        validator, init, kw_only, repr, eq, metadata: as in attrs.

    Raises:
        TypeError: options that exclude each other.

    >>> from famulus import Record
    >>> class Order(Record):
    ...     number: int = field(input_name="order-number")
    ...     token: str = field(default="", exclude=True)
    >>> Order(7, "secret").dumps()
    b'{"order-number":7}'
    """
    extras = {name: options.pop(name) for name in _EXTRAS if name in options}
    required = options.pop("required", None)
    has_default = "default" in options or "factory" in options
    if required is False and not has_default:
        options["default"] = None
    elif required and has_default:
        raise TypeError("field(required=True) has no default and no factory")
    for name in ("input_name", "output_name"):
        if name in extras and (not isinstance(extras[name], str) or not extras[name]):
            raise TypeError(f"field({name}={extras[name]!r}): expected a name")
    if extras.get("exclude") and "default" not in options and "factory" not in options:
        raise TypeError("field(exclude=True) needs a default or a factory: it is missing in what is read")
    if extras:
        options["metadata"] = {**(options.get("metadata") or {}), EXTRAS: FieldExtras(**extras)}
    return attrs.field(**options)


_EXTRAS = tuple(attribute.name for attribute in attrs.fields(FieldExtras))
