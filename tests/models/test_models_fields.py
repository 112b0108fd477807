"""`field(...)`: names in messages, fields that are left out, defaults; and `from_data` and `derive` with them."""

from __future__ import annotations

from typing import Any

import pytest

from famulus.models import DecodeError, Record, field, value_serde


class Order(Record):
    number: int = field(input_name="order-number")
    account: str = field(input_name="acct", output_name="account")
    token: str = field(default="", exclude=True)
    note: str | None = None


def test_a_field_may_have_other_names_in_messages() -> None:
    order = Order(7, "ada", "secret", "x")
    assert order.dumps() == b'{"order-number":7,"account":"ada","note":"x"}'
    assert order.asdict() == {"number": 7, "account": "ada", "token": "secret", "note": "x"}
    assert Order.loads(b'{"order-number": 7, "acct": "ada"}') == Order(7, "ada")
    assert value_serde(list[Order]).dumps([order]) == b"[" + order.dumps() + b"]"


def test_errors_name_a_field_as_it_is_in_the_message() -> None:
    with pytest.raises(DecodeError) as caught:
        Order.loads(b'{"number": 7, "acct": 5}')
    assert [str(error) for error in caught.value.errors] == [
        "$['order-number']: expected int, got nothing: the field is missing",
        "$.acct: expected str, got 5 (int)",
    ]


def test_an_excluded_field_is_read_and_not_written() -> None:
    assert Order.loads(b'{"order-number": 7, "acct": "ada", "token": "t"}').token == "t"
    assert "token" not in Order(7, "ada", "t").to_representation()


def test_a_union_knows_fields_by_their_names_in_messages() -> None:
    class Other(Record):
        number: int

    assert value_serde(Other | Order).loads(b'{"order-number": 7, "acct": "ada"}') == Order(7, "ada")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"required": True, "default": 1}, "has no default"),
        ({"exclude": True}, "needs a default or a factory"),
        ({"input_name": ""}, "expected a name"),
        ({"output_name": 5}, "expected a name"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        field(**options)


def test_a_field_that_is_not_required_is_none() -> None:
    class Noted(Record):
        n: int
        note: str | None = field(required=False)  # type checkers want `= None`

    made: Any = Noted
    assert made(1).note is None
    assert Noted.loads(b'{"n": 1}') == made(1, None)


def test_two_fields_cannot_have_one_name_in_messages() -> None:
    with pytest.raises(TypeError, match="fields 'a' and 'b' have one name, 'a', in messages"):

        class Odd(Record):
            a: int
            b: int = field(input_name="a")


def test_names_are_inherited_with_their_fields() -> None:
    class Rush(Order):
        courier: str = "pigeon"

    rush = Rush(7, "ada", courier="dog")
    assert rush.dumps() == b'{"order-number":7,"account":"ada","note":null,"courier":"dog"}'
    member: Any = Rush.number
    assert (member.__name__, member.__get__(rush)) == ("number", 7)


def test_metadata_of_the_user_stays() -> None:
    import attrs

    class Noted(Record):
        n: int = field(input_name="N", metadata={"unit": "cents"})

    assert attrs.fields(Noted).n.metadata["unit"] == "cents"  # type: ignore[arg-type]  # made by RecordMeta
    assert Noted(1).dumps() == b'{"N":1}'


def test_from_data_takes_any_mapping() -> None:
    import types

    assert Order.from_data(types.MappingProxyType({"order-number": 7, "acct": "a"})) == Order(7, "a")
    order = Order(7, "a")
    assert Order.from_data(order) is order  # type: ignore[arg-type]  # as a codec may have made it already


def test_derive_takes_the_fields_of_other_records() -> None:
    class Contact(Record):
        account: str
        note: str

    class Alias(Record):
        n: int = field(alias="number")
        m: int = 0

    assert Order(7, "ada").derive(Contact("bob", "hi"), number=8) == Order(8, "bob", "", "hi")
    assert Alias(1).derive(Alias(2, 3), m=4) == Alias(2, 4)
    with pytest.raises(TypeError, match="account"):
        Alias(1).derive(Contact("bob", "hi"))


def test_loads_takes_a_default_serializer() -> None:
    class Own(Record, serializer="msgpack"):
        n: int

    order = Order(7, "ada")
    data = b'{"order-number":7,"acct":"ada"}'
    assert Order.loads(data, default_serializer="json") == order
    assert Own.loads(Own(1).dumps(), default_serializer="json") == Own(1)
