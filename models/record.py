"""`Record`: the base class of values with named, typed fields. Users subclass it; `serde` codes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import attrs

from .construction import field_errors
from .encodings import Codec, CodecLimits
from .errors import ValidationError
from .fields import field
from .plain import plain
from .recordmeta import AS_DICT, RecordMeta
from .serde import structure, value_serde

__all__ = ["Record", "RecordMeta", "field"]


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

    Options of the class statement, `class Order(Record, frozen=True)`; another one raises `TypeError`. Inherited:

    - `serializer`: a codec or its name, used where neither topic nor call names one.
    - `frozen`: instances cannot be changed and can be hashed. Type checkers want it repeated.
    - `coerce`: also take what can be read as a field's type, `"12"` for an int, when decoding and in the constructor.
    - `validation`: the constructor checks every field and raises one `ValidationError` with all that is wrong.
    - `include_metadata`: write a tag that says which subclass a value is, and go by it when decoding.
    - `allow_blessed_key`: when decoding, go by Faust's tag too.
    - `polymorphic_fields`: records in the fields of this one are decoded by their tag, whatever their own options.
    - `date_parser`: a function that makes a datetime of what comes for a datetime field.

    Not inherited:

    - `kw_only`: the fields declared here are keyword arguments only.
    - `abstract`: has no instances, only subclasses.
    - `namespace`: the class's name in a tag; module and qualified name by default.

    `isodates` and `decimals` are Faust's: text is always read as the datetime or Decimal that the annotation says, so
    both can only be True.
    """

    def asdict(self) -> dict[str, Any]:
        """The fields by name, in a new dict; their values are the instance's own, not copies."""
        fields: dict[str, Any] = getattr(self, AS_DICT)()
        return fields

    def to_representation(self) -> dict[str, Any]:
        """What goes to a codec: None, bool, int, float, str, list and dict, all the way down."""
        representation: dict[str, Any] = plain(self)
        return representation

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """A record from what `to_representation` gives, or a codec. Raises `DecodeError`."""
        record: Self = structure(cls, data if data.__class__ is dict or isinstance(data, cls) else dict(data))
        return record

    def dumps(self, *, serializer: str | Codec | None = None) -> bytes:
        """The record as bytes. Raises `EncodeError`; `LookupError` for an unknown serializer."""
        return value_serde(type(self), serializer).dumps(self) or b""

    @classmethod
    def loads(
        cls,
        data: bytes,
        *,
        serializer: str | Codec | None = None,
        default_serializer: str | Codec = "json",
        allow_pickle: bool = False,
    ) -> Self:
        """A record from bytes.

        Args:
            serializer: a codec or its name; the class's own by default.
            default_serializer: for a class without one.
            allow_pickle: load a pickle, which can run any program. Only for bytes from where you trust all writers.

        Raises:
            DecodeError: the bytes hold no such record.
            LookupError: an unknown serializer.
        """
        limits = CodecLimits(allow_pickle=allow_pickle)
        record = value_serde(cls, serializer, default=default_serializer, limits=limits).loads(data)
        if record is None:
            raise TypeError(f"{cls.__name__}.loads takes bytes, got None")
        return record

    def derive(self, *others: Record, **changes: Any) -> Self:
        """A copy with the fields of other records in place of its own, then with the changes.

        Raises `TypeError` for a name that is no field.
        """
        cls: Any = type(self)
        arguments = {a.name: a.alias or a.name for a in attrs.fields(cls)}
        taken = {arguments.get(name, name): value for other in others for name, value in other.asdict().items()}
        return attrs.evolve(self, **{**taken, **changes})  # type: ignore[misc]  # made by RecordMeta, not by a decorator

    def validate(self) -> list[ValidationError]:
        """What is wrong with the fields now, each an error of its own: types, then the fields' validators."""
        return [ValidationError(error) for error in field_errors(self)]

    @property
    def validation_errors(self) -> list[ValidationError]:
        """The same as `validate()`."""
        return self.validate()

    def is_valid(self) -> bool:
        """Whether nothing is wrong with the fields."""
        return not field_errors(self)

    def validate_or_raise(self) -> None:
        """Raise one `ValidationError` with all that is wrong with the fields, if anything is."""
        errors = field_errors(self)
        if errors:
            raise ValidationError(*errors)
