"""Record: what a class statement makes, with annotations as text, as most users write them."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any, ClassVar, Generic, TypeVar

import attrs
import pytest

from famulus.models import DecodeError, Record, field, value_serde

T = TypeVar("T")


class Order(Record):
    account: str
    cents: int
    tags: list[str] = field(factory=list)


class Rush(Order):
    courier: str = "pigeon"


class Later(Record):
    """Refers to a record that is defined below."""

    order: Latest | None
    children: list[Later] = field(factory=list)


class Latest(Record):
    n: int


class Page(Record, Generic[T]):
    items: list[T]
    next: Page[T] | None = None


class OrderPage(Page[Order]):
    total: int = 0


class Counted(Record):
    made: ClassVar[list[int]] = []
    n: int = 0


class Frozen(Record, frozen=True):
    n: int


class FrozenMore(Frozen):  # type: ignore  # checkers want it repeated
    m: int = 1


class Shape(Record, abstract=True):
    name: str


class Circle(Shape):
    r: float


def test_positional_and_keyword_construction_with_defaults() -> None:
    assert Order("ada", 5) == Order(account="ada", cents=5, tags=[])
    assert Order("ada", 5).tags is not Order("ada", 5).tags
    assert repr(Order("ada", 5)) == "Order(account='ada', cents=5, tags=[])"


def test_a_missing_or_unknown_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="cents"):
        Order("ada")  # type: ignore[call-arg]  # that is the test
    with pytest.raises(TypeError, match="colour"):
        Order("ada", 1, colour=2)  # type: ignore[call-arg]  # that is the test


def test_instances_have_slots_and_can_be_changed() -> None:
    order = Order("ada", 5)
    order.cents = 6
    assert order == Order("ada", 6)
    assert not hasattr(order, "__dict__")
    with pytest.raises(AttributeError):
        order.colour = "red"  # type: ignore[attr-defined]  # that is the test


def test_a_field_of_the_class_is_a_descriptor_that_reads_instances() -> None:
    member: Any = Order.account
    assert member.__name__ == "account"
    assert member.__get__(Order("ada", 5)) == "ada"
    inherited: Any = Rush.account
    assert inherited.__get__(Rush("bob", 1)) == "bob"


def test_inheritance_keeps_the_order_of_fields() -> None:
    assert Rush("ada", 5, ["x"], "dog").asdict() == {
        "account": "ada",
        "cents": 5,
        "tags": ["x"],
        "courier": "dog",
    }
    assert Rush.loads(b'{"account": "a", "cents": 1}') == Rush("a", 1)
    assert Rush("a", 1) != Order("a", 1)


def test_super_works_in_methods_of_records() -> None:
    class Loud(Order):
        def asdict(self) -> dict[str, Any]:
            return {"loud": True, **super().asdict()}

    assert Loud("a", 1).asdict()["loud"] is True


def test_derive_changes_a_copy() -> None:
    order = Order("ada", 5)
    assert order.derive(cents=6) == Order("ada", 6)
    assert order.cents == 5
    with pytest.raises(TypeError, match="colour"):
        order.derive(colour=1)


def test_asdict_is_shallow_and_to_representation_is_plain_all_the_way() -> None:
    later = Later(Latest(1), [Later(None)])
    assert later.asdict()["order"] is later.order
    assert later.to_representation() == {
        "order": {"n": 1},
        "children": [{"order": None, "children": []}],
    }


def test_a_mutable_default_is_copied_for_each_instance() -> None:
    class Careless(Record):
        tags: list[str] = []  # noqa: RUF012 - that is the test
        seen: dict[str, list[int]] = {"a": [1]}  # noqa: RUF012 - that is the test

    one, two = Careless(), Careless()
    one.tags.append("x")
    one.seen["a"].append(2)
    assert two == Careless([], {"a": [1]})
    assert Careless.loads(b"{}") == Careless()


def test_a_mutable_default_hidden_in_field_is_refused() -> None:
    with pytest.raises(TypeError, match=r"field 'tags' would be shared by all instances; use field\(factory"):

        class Careless(Record):
            tags: list[str] = field(default=[])


def test_class_variables_are_no_fields() -> None:
    assert Counted(3).asdict() == {"n": 3}
    assert Counted.made is Counted(1).made


def test_an_unknown_option_is_named_with_those_that_exist() -> None:
    with pytest.raises(TypeError, match="record Odd: unknown option 'isodate'; the options are abstract, allow_"):

        class Odd(Record, isodate=True):  # pyright: ignore  # that is the test
            n: int


def test_an_option_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(TypeError, match="record Odd: frozen is True or False, got 'yes'"):

        class Odd(Record, frozen="yes"):  # type: ignore[literal-required]  # that is the test
            n: int


def test_an_unknown_serializer_is_refused_in_the_class_statement() -> None:
    with pytest.raises(LookupError, match="unknown codec 'avro': expected one of binary, gzip, json"):

        class Odd(Record, serializer="avro"):
            n: int


def test_frozen_records_cannot_be_changed_and_can_be_hashed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Frozen(1).n = 2  # type: ignore[misc]  # that is the test
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        FrozenMore(1).m = 2  # that is the test
    assert {Frozen(1): "a"}[Frozen(1)] == "a"
    with pytest.raises(TypeError, match="unhashable"):
        hash(Order("a", 1))


def test_kw_only_records_take_keywords_and_decode() -> None:
    class Wide(Record, kw_only=True):
        a: int = 1
        b: int

    with pytest.raises(TypeError, match="positional"):
        Wide(1, 2)  # type: ignore[call-arg]  # that is the test
    assert Wide.loads(b'{"b": 2}') == Wide(a=1, b=2)


def test_abstract_records_have_no_instances_but_subclasses_have() -> None:
    with pytest.raises(TypeError, match="record Shape is abstract"):
        Shape("x")
    assert Circle.loads(b'{"name": "o", "r": 1}') == Circle("o", 1.0)
    with pytest.raises(TypeError, match="Shape is abstract"):
        Shape.loads(b"{}")


def test_a_record_may_refer_to_itself_and_to_one_below() -> None:
    later = Later(Latest(1), [Later(None, [Later(Latest(2))])])
    assert Later.loads(later.dumps()) == later
    with pytest.raises(DecodeError) as caught:
        Later.loads(b'{"order": null, "children": [{"order": {"n": "x"}}]}')
    assert caught.value.path == "$.children[0].order.n"


def test_records_in_a_function_may_refer_to_each_other() -> None:
    class Tree(Record):
        leaves: list[Leaf]

    class Leaf(Record):
        n: int
        parent: Tree | None = None

    tree = Tree([Leaf(1), Leaf(2, Tree([]))])
    assert Tree.loads(tree.dumps()) == tree


def test_records_in_a_function_see_local_names_that_are_no_records() -> None:
    Cents = int

    @attrs.define
    class Local:
        n: int

    class Holder(Record):
        local: Local
        cents: Cents  # type: ignore  # checkers want a TypeAlias

    assert Holder.loads(b'{"local": {"n": 1}, "cents": 3}') == Holder(Local(1), 3)


def test_a_name_that_cannot_be_resolved_is_named_with_its_field() -> None:
    class Broken(Record):
        n: int
        other: Nowhere  # type: ignore  # noqa: F821 - that is the test

    with pytest.raises(TypeError, match=r"Broken.other: cannot resolve the annotation 'Nowhere'"):
        value_serde(Broken)


def test_a_failed_build_leaves_nothing_half_made_behind() -> None:
    class Parent(Record):
        child: Child
        late: Late

    class Child(Record):
        parent: Parent | None

    with pytest.raises(TypeError, match="Late"):
        value_serde(Parent)

    class Late(Record):
        n: int

    parent = Parent(Child(Parent(Child(None), Late(1))), Late(2))
    assert Parent.loads(parent.dumps()) == parent
    assert Child.loads(parent.child.dumps()) == parent.child


def test_generic_records_decode_their_arguments() -> None:
    serde = value_serde(Page[Order])
    page = Page([Order("a", 1)], Page([Order("b", 2)]))
    assert serde.loads(serde.dumps(page)) == page
    with pytest.raises(DecodeError) as caught:
        serde.loads(b'{"items": [{"account": "a", "cents": 1.5}]}')
    assert str(caught.value) == "$.items[0].cents: expected int, got 1.5 (float)"
    assert value_serde(Page[int]).loads(b'{"items": [1]}') == Page([1])
    derived = OrderPage([Order("a", 1)], None, 7)
    assert OrderPage.loads(derived.dumps()) == derived


def test_private_and_renamed_fields_keep_their_own_names_in_json() -> None:
    class Hidden(Record):
        _secret: int
        other: int = field(default=0, alias="o")

    hidden = Hidden(1, o=2)
    assert hidden.dumps() == b'{"_secret":1,"other":2}'
    assert Hidden.loads(hidden.dumps()) == hidden


def test_converters_validators_and_post_init_work() -> None:
    class Checked(Record):
        cents: int = field(converter=int)
        name: str = field(validator=attrs.validators.min_len(2))
        twice: int = field(init=False)

        def __attrs_post_init__(self) -> None:
            self.twice = 2 * self.cents

    assert Checked.loads(b'{"cents": "12", "name": "ada"}').twice == 24
    with pytest.raises(DecodeError, match=r"\$: expected Checked, got .*: Length of 'name' must be >= 2"):
        Checked.loads(b'{"cents": 1, "name": "a"}')


def test_records_can_be_copied_and_pickled() -> None:
    assert pickle.loads(pickle.dumps(Rush("a", 1))) == Rush("a", 1)
    assert copy.deepcopy(Rush("a", 1)) == Rush("a", 1)


def test_loads_and_dumps_take_a_serializer() -> None:
    assert Order.loads(Order("a", 1).dumps(serializer="json"), serializer="json") == Order("a", 1)
    with pytest.raises(LookupError, match="unknown codec 'xml'"):
        Order("a", 1).dumps(serializer="xml")
    with pytest.raises(TypeError, match="raw codec has no form for Order"):
        Order("a", 1).dumps(serializer="raw")
    with pytest.raises(TypeError, match=r"Order\.loads takes bytes"):
        Order.loads(None)  # type: ignore[arg-type]  # that is the test


def test_a_record_that_was_never_coded_can_be_collected() -> None:
    def make() -> weakref.ref[type]:
        class Gone(Record):
            n: int

        return weakref.ref(Gone)

    gone = make()
    gc.collect()
    assert gone() is None
