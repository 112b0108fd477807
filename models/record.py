"""`Record`: the base class of values with named, typed fields. Users subclass it; `serde` codes it."""

from __future__ import annotations

import copy
import sys
from functools import partial
from typing import Any, Never, Self, TypeVar, dataclass_transform

import attrs

from .codecs import Codec, get_codec
from .fields import field
from .hints import SCOPE, remember, seen_names
from .plain import plain, shallow_dict
from .serde import SERIALIZER, value_serde

__all__ = ["Record", "RecordMeta", "field"]

OPTIONS = ("abstract", "frozen", "kw_only", "serializer")
ABSTRACT = "__record_abstract__"
AS_DICT = "__record_asdict__"

M = TypeVar("M", bound="RecordMeta")


@dataclass_transform(eq_default=True, kw_only_default=False, field_specifiers=(attrs.field, field))
class RecordMeta(type):
    """Makes an attrs slots class of every subclass of `Record`, with the options of its class statement."""

    def __new__(
        mcls: type[M],
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        serializer: str | Codec | None = None,
        abstract: bool = False,
        frozen: bool = False,
        kw_only: bool = False,
        **unknown: Never,
    ) -> M:
        if "__attrs_attrs__" in namespace:  # attrs makes the class once more, with slots
            return super().__new__(mcls, name, bases, namespace)
        if unknown:
            raise TypeError(
                f"record {name}: unknown option {', '.join(map(repr, unknown))}; the options are {', '.join(OPTIONS)}"
            )
        for option, value in (("abstract", abstract), ("frozen", frozen), ("kw_only", kw_only)):
            if not isinstance(value, bool):
                raise TypeError(f"record {name}: {option} is True or False, got {value!r}")
        if serializer is not None:
            get_codec(serializer)
            namespace[SERIALIZER] = serializer
        annotations = namespace.get("__annotations__", {})
        for key in annotations:
            if key in namespace and not _is_class_variable(annotations[key]):
                namespace[key] = _safe_default(namespace[key])
        namespace[SCOPE] = seen_names(annotations, sys._getframe(1))
        namespace[ABSTRACT] = abstract
        plain_class: type[Any] = super().__new__(mcls, name, bases, namespace)
        frozen = frozen or any(getattr(base, "__record_frozen__", False) for base in bases)
        made: Any = attrs.define(
            plain_class, slots=True, auto_attribs=True, frozen=frozen, kw_only=kw_only, weakref_slot=False
        )
        made.__record_frozen__ = frozen
        setattr(made, AS_DICT, shallow_dict(made))
        for attribute in attrs.fields(made):
            if _is_shared(attribute.default):
                raise TypeError(
                    f"record {name}: the default of field {attribute.name!r} would be shared by all "
                    "instances; use field(factory=...)"
                )
        if abstract:  # subclasses have an __init__ of their own, so this costs them nothing
            made.__init__ = _refuse_instance
        remember(made)
        return made  # type: ignore[no-any-return]  # attrs keeps the metaclass, its stubs do not say so

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> None:
        super().__init__(name, bases, namespace)


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


class Record(metaclass=RecordMeta, abstract=True):
    """A value with named, typed fields. Subclass it and annotate:

    >>> class Order(Record):
    ...     account: str
    ...     cents: int
    ...     tags: list[str] = field(factory=list)
    >>> order = Order("ada", 1250)
    >>> order.dumps()
    b'{"account":"ada","cents":1250,"tags":[]}'
    >>> Order.loads(b'{"account": "ada", "cents": "12"}')
    Traceback (most recent call last):
    famulus.models.errors.DecodeError: $.cents: expected int, got '12' (str)

    Instances have slots, can be changed, and compare by their fields. `Order.account` is the slot's
    descriptor: it has a `__name__` and reads the field of an instance. A default that can be changed in place
    (`tags: list = []`) is copied for each instance; one hidden in `field(default=[])` is refused.

    Options of the class statement, `class Order(Record, frozen=True)`; another one raises `TypeError`:

    - `serializer`: a codec or its name, used where neither topic nor call names one. Inherited.
    - `frozen`: instances cannot be changed and can be hashed. Inherited, but type checkers want it repeated.
    - `kw_only`: the fields declared here are keyword arguments only.
    - `abstract`: has no instances, only subclasses. Not inherited.
    """

    def asdict(self) -> dict[str, Any]:
        """The fields by name, in a new dict; their values are the instance's own, not copies."""
        fields: dict[str, Any] = getattr(self, AS_DICT)()
        return fields

    def to_representation(self) -> dict[str, Any]:
        """What goes to a codec: None, bool, int, float, str, list and dict, all the way down."""
        representation: dict[str, Any] = plain(self)
        return representation

    def dumps(self, *, serializer: str | Codec | None = None) -> bytes:
        """The record as bytes. Raises `EncodeError`; `LookupError` for an unknown serializer."""
        return value_serde(type(self), serializer).dumps(self) or b""

    @classmethod
    def loads(cls, data: bytes, *, serializer: str | Codec | None = None) -> Self:
        """A record from bytes. Raises `DecodeError`; `LookupError` for an unknown serializer."""
        record = value_serde(cls, serializer).loads(data)
        if record is None:
            raise TypeError(f"{cls.__name__}.loads takes bytes, got None")
        return record

    def derive(self, **changes: Any) -> Self:
        """A copy with other values for the named fields. Raises `TypeError` for a name that is no field."""
        return attrs.evolve(self, **changes)  # type: ignore[misc]  # made by RecordMeta, not by a decorator
