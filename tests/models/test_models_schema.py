"""Schema: what a plain one comes to, and what one that is subclassed is given and may change."""

from __future__ import annotations

from typing import Any

import pytest

from famulus.models import CodecLimits, DecodeError, Record, Schema, key_serde, value_serde
from famulus.models.schema import Headers


class Order(Record):
    account: str
    cents: int


class ByHeader(Schema):
    """The value's codec stands in a header."""

    def loads_value(self, data: bytes, headers: Headers) -> Any:
        return self.value_serde(dict(headers)["codec"].decode()).loads(data)

    def dumps_value(self, value: Any, headers: Headers) -> tuple[bytes | None, Headers]:
        data, headers = super().dumps_value(value, headers)
        return data, (*headers, ("codec", b"msgpack"))


def test_a_plain_schema_is_the_functions_of_its_serdes() -> None:
    schema = Schema(key_type=str, value_type=Order)
    assert not schema.custom_loads
    assert not schema.custom_dumps
    assert schema.bound().decoders() == (key_serde(str).loads, value_serde(Order).loads)
    assert schema.bound().encoders() == (key_serde(str).dumps, value_serde(Order).dumps)


def test_it_codes_by_its_methods_too() -> None:
    schema = Schema(key_type=int, value_type=Order, value_serializer="json|gzip")
    key, headers = schema.dumps_key(5, (("a", b"1"),))
    value, headers = schema.dumps_value(Order("ada", 1), headers)
    assert headers == (("a", b"1"),)
    assert key is not None
    assert value is not None
    assert schema.loads_key(key, ()) == 5
    assert schema.loads_value(value, ()) == Order("ada", 1)
    assert schema.decode_key(None, ()) is schema.decode_value(None, ()) is None
    assert schema.encode_key(None, ()) == schema.encode_value(None, ()) == (None, ())


def test_a_run_gives_it_defaults_and_limits() -> None:
    bound = Schema(value_type=Order).bound(key_serializer="json", value_serializer="pickle", limits=CodecLimits())
    assert bound.key_serde() is key_serde(None, default="json")
    with pytest.raises(DecodeError, match="codec_allow_pickle"):
        bound.decoders()[1](bound.encoders()[1](Order("a", 1)))
    allowed = Schema(value_type=Order).bound(value_serializer="pickle", limits=CodecLimits(allow_pickle=True))
    assert allowed.decoders()[1](bound.encoders()[1](Order("a", 1))) == Order("a", 1)


def test_a_wrong_schema_says_so_when_a_run_takes_it() -> None:
    with pytest.raises(LookupError, match="unknown codec 'xml'"):
        Schema(value_serializer="xml").bound()
    with pytest.raises(LookupError, match="unknown codec 'xml'"):
        Schema().bound(value_serializer="xml")
    with pytest.raises(TypeError, match="is not a type that values can be decoded to"):
        Schema(value_type=type(lambda: None)).bound()


def test_without_allow_empty_a_message_has_a_value() -> None:
    schema = Schema(value_type=Order, allow_empty=False)
    for decode in (schema.bound().decoders()[1], lambda data: schema.decode_value(data, ())):
        with pytest.raises(DecodeError, match=r"\$: expected Order, got nothing: the schema has allow_empty=False"):
            decode(None)
    assert schema.decoders()[1](b'{"account":"a","cents":1}') == Order("a", 1)
    assert schema.decoders()[0](None) is None


def test_a_subclass_chooses_by_the_headers_and_may_add_some() -> None:
    schema = ByHeader(value_type=Order, value_serializer="msgpack").bound()
    assert schema.custom_loads
    assert schema.custom_dumps
    data, headers = schema.encode_value(Order("ada", 1), ())
    assert headers == (("codec", b"msgpack"),)
    assert schema.decode_value(data, headers) == Order("ada", 1)
    assert schema.decode_value(b'{"account":"a","cents":1}', (("codec", b"json"),)) == Order("a", 1)


def test_a_copy_with_changes_leaves_the_schema_alone() -> None:
    schema = ByHeader(value_type=Order)
    other = schema.but(value_type=int, key_serializer="json")
    assert (type(other), other.value_type, other.key_serializer, other.key_type) == (ByHeader, int, "json", None)
    assert (schema.value_type, schema.key_serializer) == (Order, None)


def test_forms_tell_whether_bytes_may_be_passed_on() -> None:
    one, same, other = Schema(value_type=Order), Schema(value_type=Order), Schema(value_type=int)
    assert one.bound().value_form is same.bound().value_form
    assert one.bound().value_form is not other.bound().value_form
    custom, equal = ByHeader(value_type=Order), ByHeader(value_type=Order)
    assert custom.bound().value_form is custom.bound().value_form
    assert custom.bound().value_form is not equal.bound().value_form  # who knows what it does
    assert custom.bound().key_form is one.bound().key_form
    assert custom.but(value_type=int).bound().value_form is not custom.bound().value_form
    regrouped = custom.regrouped(key_type=str, value_type=Order)
    assert regrouped.bound().value_form is custom.bound().value_form
    assert regrouped.bound().decode_key(b"a", ()) == "a"
    assert regrouped.bound().decode_value(b'{"account":"a","cents":1}', (("codec", b"json"),)) == Order("a", 1)


def test_it_shows_what_it_says() -> None:
    assert repr(Schema(key_type=str, value_type=Order, value_serializer="json|gzip")) == (
        "Schema(key_type=str, value_type=Order, value_serializer='json|gzip')"
    )
