"""`field`: what a record says of a field beyond its annotation. Used in class bodies, read by `record`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar, Unpack, overload

import attrs

__all__ = ["FieldOptions", "field"]

T = TypeVar("T")


class FieldOptions(TypedDict, total=False):
    """Options that mean what they mean in `attrs.field`."""

    validator: Any
    converter: Callable[[Any], Any]
    init: bool
    kw_only: bool
    alias: str
    repr: bool | Callable[[Any], str]
    eq: bool
    metadata: Mapping[Any, Any]


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
    """One field of a record, with attrs' options.

    `default` is a value that cannot be changed in place, `factory` is called for each instance that is made
    without the field. A field with a `converter` may come in any form that the converter takes.
    """
    return attrs.field(**options)
