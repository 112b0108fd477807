"""`validation=True` and `validate()`: what a record holds is what its annotations say."""

from __future__ import annotations

import dataclasses
import enum
import pickle
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import attrs
import pytest

from famulus.models import DecodeError, Record, ValidationError, field

T = TypeVar("T")
META: Any = type(Record)


class Colour(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


class Movie(TypedDict, total=False):
    title: str


@dataclasses.dataclass
class Data:
    n: int


class Leaf(Record):
    n: int


class Node(Record):
    children: list[Node] = field(factory=list)
    leaf: Leaf | None = None


class Page(Record, Generic[T]):
    items: list[T]


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [1], [True, 1.0, "1", None]),
        ("float", [1, 1.5], [True, "1"]),
        ("bool", [True], [1]),
        ("str", ["a"], [b"a", 1]),
        ("bytes", [b"a"], ["a"]),
        ("None", [None], [0]),
        ("Any", [1, None], []),
        ("object", [1], []),
        ("int | None", [None, 1], ["1"]),
        ("int | str", [1, "a"], [1.5]),
        ("datetime", [datetime(2026, 1, 1)], ["2026-01-01", date(2026, 1, 1)]),
        ("date", [date(2026, 1, 1)], [datetime(2026, 1, 1), "2026-01-01"]),
        ("Decimal", [Decimal(1)], [1, "1"]),
        ("UUID", [UUID(int=1)], ["1"]),
        ("Colour", [Colour.RED], ["red"]),
        ("Literal['a', 1]", ["a", 1], [True, "b"]),
        ("list[int]", [[1], []], [(1,), "1", [1, "a"]]),
        ("Sequence[str]", [["a"], ("a",)], ["a", [1]]),
        ("set[int]", [{1}], [[1], {"a"}]),
        ("tuple[int, str]", [(1, "a")], [(1,), [1, "a"], ("a", 1)]),
        ("tuple[int, ...]", [(), (1, 2)], [("a",)]),
        ("dict[str, int]", [{"a": 1}], [[], {"a": "b"}, {1: 1}]),
        ("Mapping[str, int]", [{"a": 1}], [[("a", 1)]]),
        ("dict", [{1: 2}], [[]]),
        ("Point", [Point(1, 2)], [(1, 2), Point("a", 2)]),  # type: ignore[arg-type]  # that is the test
        ("Movie", [{"title": "M"}, {}], [{"title": 1}, []]),
        ("Data", [Data(1)], [{"n": 1}, Data("a")]),  # type: ignore[arg-type]  # that is the test
        ("Leaf", [Leaf(1)], [{"n": 1}, Leaf("a")]),  # type: ignore[arg-type]  # that is the test
        ("Page[int]", [Page([1])], [Page(["a"])]),
        ("Leaf | Point | None", [Leaf(1), Point(1, 2), None], [Leaf(None), 3]),  # type: ignore[arg-type]  # likewise
    ],
)
def test_the_constructor_takes_what_the_annotation_says(annotation: str, good: list[Any], bad: list[Any]) -> None:
    namespace = {"__annotations__": {"value": annotation}, "__module__": __name__}
    checked = META("Checked", (Record,), namespace, validation=True)
    for value in good:
        assert checked(value).value == value
    for value in bad:
        with pytest.raises(ValidationError) as caught:
            checked(value)
        assert caught.value.path.startswith("$.value")


class Order(Record, validation=True):
    account: str
    cents: int = field(default=0, validator=attrs.validators.ge(0))
    tags: list[str] = field(factory=list)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        Order(5, "x", ["a", 1])  # type: ignore[arg-type, list-item]  # that is the test
    error = caught.value
    assert [str(e) for e in error.errors] == [
        "$.account: expected str, got 5 (int)",
        "$.cents: expected int, got 'x' (str)",
        "$.tags[1]: expected str, got 1 (int)",
    ]
    assert isinstance(error, ValueError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_records_without_the_option_can_be_asked() -> None:
    tree = Node([Node(leaf=Leaf("a")), Node(leaf=3)])  # type: ignore[arg-type]  # that is the test
    assert not tree.is_valid()
    assert [str(error) for error in tree.validate()] == [
        "$.children[0].leaf.n: expected int, got 'a' (str)",
        "$.children[1].leaf: expected Leaf or None, got 3 (int)",
    ]
    assert [error.path for error in tree.validation_errors] == ["$.children[0].leaf.n", "$.children[1].leaf"]
    with pytest.raises(ValidationError, match=r"\(and 1 more\)"):
        tree.validate_or_raise()
    good = Node([Node()])
    good.validate_or_raise()
    assert good.is_valid()
    assert good.validate() == []


def test_what_was_changed_later_is_seen() -> None:
    order = Order("ada")
    order.tags.append(5)  # type: ignore[arg-type]  # that is the test
    assert [error.path for error in order.validate()] == ["$.tags[0]"]


def test_validators_of_fields_are_asked_too() -> None:
    with pytest.raises(ValidationError, match=r"\$\.cents: expected int, got -1 \(int\): 'cents' must be >= 0"):
        Order("ada", -1)
    with pytest.raises(TypeError, match="account"):
        Order()  # type: ignore[call-arg]  # that is the test
    order = Order("ada", 1)
    object.__setattr__(order, "cents", -1)
    (error,) = order.validate()
    assert (error.path, error.expected, error.got) == ("$.cents", "int", "-1 (int)")
    assert "must be >= 0" in error.reason


def test_with_coerce_what_can_be_converted_is_valid() -> None:
    class Both(Record, validation=True, coerce=True):
        n: int
        when: datetime

    both: Any = Both
    assert both("5", "2026-01-02") == Both(5, datetime(2026, 1, 2))
    with pytest.raises(ValidationError) as caught:
        both("x", "soon")
    assert [str(error) for error in caught.value.errors] == [
        "$.n: expected int, got 'x' (str)",
        "$.when: expected datetime, got 'soon' (str)",
    ]


def test_it_is_inherited_and_sees_what_the_class_computes() -> None:
    class Child(Order):
        twice: int = field(init=False)

        def __attrs_post_init__(self) -> None:
            self.twice = self.cents * 2 if self.cents else None  # type: ignore[assignment]  # that is the test

    assert Child("ada", 2).twice == 4
    with pytest.raises(ValidationError, match=r"\$\.twice: expected int, got None"):
        Child("ada")
    with pytest.raises(DecodeError, match=r"\$\.twice: expected int, got None"):
        Child.loads(b'{"account": "ada"}')
    with pytest.raises(ValidationError):
        Child("ada", 2).derive(account=5)


def test_a_frozen_record_is_validated() -> None:
    class Fixed(Record, frozen=True, validation=True):
        n: int

    assert hash(Fixed(1)) == hash(Fixed(1))
    with pytest.raises(ValidationError):
        Fixed("a")  # type: ignore[arg-type]  # that is the test


def test_a_check_that_could_not_be_made_leaves_nothing_half_made_behind() -> None:
    class Parent(Record):
        child: Child | None
        late: Late | None = None

    class Child(Record):
        parent: Parent | None

    with pytest.raises(TypeError, match="Late"):
        Parent(None).validate()

    class Late(Record):
        n: int

    good, bad = Parent(Child(Parent(None))), Parent(Child(Parent(5)))  # type: ignore[arg-type]  # that is the test
    assert good.is_valid()
    assert [error.path for error in bad.validate()] == ["$.child.parent.child"]
    assert good.child is not None
    assert good.child.is_valid()


def test_names_used_by_annotations_above() -> None:
    assert (Mapping, Sequence, Literal) is not None
