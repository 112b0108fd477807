"""What `coerce` and `validation` do where a record is made. `recordmeta` puts it into the class."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs

from .build import EXPLAINING, FAST
from .checks import check_hook
from .containers import failures
from .errors import FieldError, ValidationError, field_path, short
from .hints import field_types, type_name
from .leaves import Hook
from .traits import Coercer, RecordOptions, extras_of, field_mode, options_of

__all__ = ["coercing", "field_errors", "own_by", "validating"]


class FieldCoercer(Coercer):
    """The converter of one field; its hook is built when the first instance is made, as annotations may be text."""

    __slots__ = ("_explain", "_hook", "name", "owner")

    def __init__(self, name: str) -> None:
        self.name = name
        self.owner: Any = None
        self._hook: Hook | None = None
        self._explain: Hook | None = None

    def __call__(self, value: Any) -> Any:
        hook = self._hook or self._build()
        try:
            return hook(value, None)
        except Exception as exc:
            if options_of(self.owner).validation:
                return value  # found with all else that is wrong
            failed = exc
        raise ValidationError(*(e.under("$") for e in self._errors(value, failed))) from failed

    def _build(self) -> Hook:
        attribute = attrs.fields_dict(self.owner)[self.name]
        mode = field_mode(options_of(self.owner), extras_of(attribute))
        tp = field_types(self.owner, [self.name])[self.name]
        self._explain = EXPLAINING.hook(tp, mode)
        self._hook = FAST.hook(tp, mode)
        return self._hook

    def _errors(self, value: Any, failed: Exception) -> list[FieldError]:
        step = field_path(self.name)
        if self._explain is not None:
            try:
                self._explain(value, None)
            except Exception as exc:
                return failures(exc, step, self.name, value)
        return [FieldError(step, self.name, short(value), str(failed))]


def coercing(
    options: RecordOptions,
) -> Callable[[type, list[attrs.Attribute[Any]]], list[attrs.Attribute[Any]]]:
    """For attrs' `field_transformer`: converters for the fields that coerce."""

    def transform(cls: type, attributes: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
        made = []
        for attribute in attributes:
            extras = extras_of(attribute)
            inherited = isinstance(attribute.converter, Coercer)  # it belongs to the base
            if attribute.converter is None or inherited:
                coerces = options.coerce if extras.coerce is None else extras.coerce
                if coerces or inherited:
                    attribute = attribute.evolve(converter=FieldCoercer(attribute.name) if coerces else None)
            made.append(attribute)
        return made

    return transform


def own_by(cls: type) -> None:
    """Tell the coercers of a class, now that it exists, whose they are."""
    for attribute in attrs.fields(cls):
        converter: Any = attribute.converter
        if isinstance(converter, FieldCoercer):
            converter.owner = cls


def validating(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that looks at what it made."""

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except Exception as exc:  # perhaps the validator of one field: tell what is wrong with the others, too
            errors = field_errors(self)
            if errors:
                raise ValidationError(*errors) from exc
            raise
        errors = field_errors(self)
        if errors:
            raise ValidationError(*errors)

    return checked


def field_errors(record: Any) -> list[FieldError]:
    """All that is wrong in a record's fields: types first, then what the fields' own validators say."""
    cls = type(record)
    errors: list[FieldError] = [error.under("$") for error in check_hook(cls)(record)]
    bad = {error.path for error in errors}
    types: dict[str, Any] | None = None
    for attribute in attrs.fields(cls):
        path = f"${field_path(attribute.name)}"
        value = getattr(record, attribute.name, attrs.NOTHING)
        if attribute.validator is None or path in bad or value is attrs.NOTHING:
            continue
        try:
            attribute.validator(record, attribute, value)
        except Exception as exc:
            types = types or field_types(cls, [a.name for a in attrs.fields(cls)])
            reason = str(exc.args[0]) if exc.args else type(exc).__name__
            errors.append(FieldError(path, type_name(types.get(attribute.name, Any)), short(value), reason))
    return errors
