"""`RecordMeta`: what a class statement of a record means. Users never see it; `Record` tells them the options."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Never, TypeVar, dataclass_transform

import attrs

from .codecs import get_codec
from .construction import coercing, own_by, validating
from .encodings import Codec
from .fields import field
from .hints import SCOPE, remember, seen_names
from .plain import shallow_dict
from .serde import SERIALIZER
from .tags import KEY, place_of, register_namespace
from .traits import ABSTRACT, OPTIONS, TAG, RecordOptions, extras_of, wire_names

__all__ = ["AS_DICT", "RecordMeta"]

KNOWN = (
    "abstract",
    "allow_blessed_key",
    "coerce",
    "date_parser",
    "decimals",
    "frozen",
    "include_metadata",
    "isodates",
    "kw_only",
    "namespace",
    "polymorphic_fields",
    "serializer",
    "validation",
)
AS_DICT = "__record_asdict__"
SAID = "__record_said__"  # class attribute: the options that somebody gave a value

M = TypeVar("M", bound="RecordMeta")


@dataclass_transform(eq_default=True, kw_only_default=False, field_specifiers=(attrs.field, field))
class RecordMeta(type):
    """Makes an attrs slots class of every subclass of `Record`, with the options of its class statement."""

    def __new__(
        mcls: type[M],
        name: str,
        bases: tuple[type, ...],
        class_namespace: dict[str, Any],
        /,
        *,
        serializer: str | Codec | None = None,
        abstract: bool = False,
        frozen: bool = False,
        kw_only: bool = False,
        namespace: str | None = None,
        include_metadata: bool | None = None,
        allow_blessed_key: bool | None = None,
        polymorphic_fields: bool | None = None,
        coerce: bool | None = None,
        validation: bool | None = None,
        date_parser: Callable[[Any], Any] | None = None,
        isodates: bool = True,
        decimals: bool = True,
        **unknown: Never,
    ) -> M:
        space = class_namespace
        if "__attrs_attrs__" in space:  # attrs makes the class once more, with slots
            return super().__new__(mcls, name, bases, space)
        if unknown:
            raise TypeError(
                f"record {name}: unknown option {', '.join(map(repr, unknown))}; the options are {', '.join(KNOWN)}"
            )
        flags = {
            "include_metadata": include_metadata,
            "allow_blessed_key": allow_blessed_key,
            "polymorphic_fields": polymorphic_fields,
            "coerce": coerce,
            "validation": validation,
        }
        _check_flags(name, {"abstract": abstract, "frozen": frozen, "kw_only": kw_only, **flags})
        _check_always(name, {"isodates": isodates, "decimals": decimals})
        if namespace is not None and (not isinstance(namespace, str) or not namespace):
            raise TypeError(f"record {name}: namespace is a non-empty str, got {namespace!r}")
        if date_parser is not None and not callable(date_parser):
            raise TypeError(f"record {name}: date_parser is a function that gives a datetime, got {date_parser!r}")
        if serializer is not None:
            get_codec(serializer)
            space[SERIALIZER] = serializer
        annotations = space.get("__annotations__", {})
        for key in annotations:
            if key in space and not _is_class_variable(annotations[key]):
                space[key] = _safe_default(space[key])
        space[SCOPE] = seen_names(annotations, sys._getframe(1))
        space[ABSTRACT] = abstract
        said = space[SAID] = _inherit(bases, {**flags, "date_parser": date_parser})
        options = space[OPTIONS] = RecordOptions(**said)
        plain_class: type[Any] = super().__new__(mcls, name, bases, space)
        frozen = frozen or any(getattr(base, "__record_frozen__", False) for base in bases)
        made: Any = attrs.define(
            plain_class,
            slots=True,
            auto_attribs=True,
            frozen=frozen,
            kw_only=kw_only,
            weakref_slot=False,
            field_transformer=coercing(options),
        )
        made.__record_frozen__ = frozen
        setattr(made, AS_DICT, shallow_dict(made))
        _check_fields(name, made)
        if abstract:  # subclasses have an __init__ of their own, so this costs them nothing
            made.__init__ = _refuse_instance
        elif options.validation:
            made.__init__ = validating(made.__init__)
        own_by(made)
        remember(made)
        tag_name = namespace or place_of(made)
        register_namespace(made, tag_name)
        setattr(made, TAG, (KEY, {"ns": tag_name}) if options.include_metadata else None)
        return made  # type: ignore[no-any-return]  # attrs keeps the metaclass, its stubs do not say so

    def __init__(cls, name: str, bases: tuple[type, ...], class_namespace: dict[str, Any], /, **options: Any) -> None:
        super().__init__(name, bases, class_namespace)


def _check_flags(name: str, flags: dict[str, bool | None]) -> None:
    for option, value in flags.items():
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"record {name}: {option} is True or False, got {value!r}")


def _check_always(name: str, flags: dict[str, bool]) -> None:
    for option, value in flags.items():
        if value is not True:
            raise TypeError(
                f"record {name}: {option}={value!r}: fields are always read as their annotation says, so it can only be "
                "True; annotate the field as str to keep the text"
            )


def _inherit(bases: tuple[type, ...], given: dict[str, Any]) -> dict[str, Any]:
    """What is said of the options here, and by the bases, the first of which counts most."""
    said: dict[str, Any] = {}
    for base in reversed(bases):
        said.update(getattr(base, SAID, {}))
    said.update((option, value) for option, value in given.items() if value is not None)
    return said


def _check_fields(name: str, made: Any) -> None:
    read: dict[str, str] = {}
    written: dict[str, str] = {}
    for attribute in attrs.fields(made):
        if _is_shared(attribute.default):
            raise TypeError(
                f"record {name}: the default of field {attribute.name!r} would be shared by all "
                "instances; use field(factory=...)"
            )
        for names, wire in zip((read, written), wire_names(attribute), strict=True):
            if names is written and extras_of(attribute).exclude:
                continue
            other = names.setdefault(wire, attribute.name)
            if other != attribute.name:
                raise TypeError(
                    f"record {name}: fields {other!r} and {attribute.name!r} have one name, {wire!r}, in messages"
                )


def _is_shared(default: object) -> bool:
    """Whether a default can be changed in place, which then would show in every instance."""
    return type(default).__hash__ is None


def _safe_default(default: Any) -> Any:
    """A mutable default becomes a fresh copy per instance."""
    return field(factory=partial(copy.deepcopy, default)) if _is_shared(default) else default


def _is_class_variable(annotation: object) -> bool:
    text = str(annotation).strip("'\"")
    return text.removeprefix("typing.").removeprefix("t.").startswith("ClassVar")


def _refuse_instance(self: object, *_: object, **__: object) -> None:
    raise TypeError(f"record {type(self).__name__} is abstract: make instances of a subclass")
