"""`coerce=True`: what can be read as the type is taken, in messages and in the constructor; the rest is still refused."""

from __future__ import annotations

import enum
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from famulus.models import DecodeError, Record, ValidationError, field


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Loose(Record, coerce=True):
    text: str = ""
    whole: int = 0
    real: float = 0.0
    flag: bool = False
    price: Decimal = Decimal(0)
    when: datetime | None = None
    level: Level = Level.LOW
    many: list[int] = field(factory=list)
    by_name: dict[str, float] = field(factory=dict)
    either: int | None = None


META: Any = type(Record)
UTC = timezone.utc  # noqa: UP017  # the name that all versions have


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"text": 5}, Loose(text="5")),
        ({"text": 1.5}, Loose(text="1.5")),
        ({"whole": "12"}, Loose(whole=12)),
        ({"whole": " -12 "}, Loose(whole=-12)),
        ({"whole": 12.0}, Loose(whole=12)),
        ({"real": "1.5"}, Loose(real=1.5)),
        ({"real": 2}, Loose(real=2.0)),
        ({"flag": "yes"}, Loose(flag=True)),
        ({"flag": "Off"}, Loose(flag=False)),
        ({"flag": 1}, Loose(flag=True)),
        ({"price": 1.1}, Loose(price=Decimal("1.1"))),
        ({"price": " 1.10"}, Loose(price=Decimal("1.10"))),
        ({"when": 0}, Loose(when=datetime(1970, 1, 1, tzinfo=UTC))),
        ({"when": "2026-01-02T03:04:05Z"}, Loose(when=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))),
        ({"level": "2"}, Loose(level=Level.HIGH)),
        ({"many": ["1", 2, 3.0]}, Loose(many=[1, 2, 3])),
        ({"by_name": {"a": "1"}}, Loose(by_name={"a": 1.0})),
        ({"either": "7"}, Loose(either=7)),
        ({"either": None}, Loose(either=None)),
    ],
)
def test_what_can_be_read_as_the_type_is_taken(data: dict[str, Any], expected: Loose) -> None:
    assert Loose.from_data(data) == expected
    assert Loose(**data) == expected
    ((name, _),) = data.items()
    value = getattr(expected, name)
    assert type(getattr(Loose.from_data(data), name)) is type(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"whole": "twelve"}, "$.whole: expected int, got 'twelve' (str)"),
        ({"whole": 1.5}, "$.whole: expected int, got 1.5 (float)"),
        ({"whole": True}, "$.whole: expected int, got True (bool)"),
        ({"whole": None}, "$.whole: expected int, got None (NoneType)"),
        ({"whole": "1_000"}, "$.whole: expected int, got '1_000' (str)"),
        ({"text": True}, "$.text: expected str, got True (bool)"),
        ({"text": None}, "$.text: expected str, got None (NoneType)"),
        ({"flag": "maybe"}, "$.flag: expected bool, got 'maybe' (str)"),
        ({"flag": 2}, "$.flag: expected bool, got 2 (int)"),
        ({"real": "x"}, "$.real: expected float, got 'x' (str)"),
        ({"price": "x"}, "$.price: expected Decimal, got 'x' (str)"),
        ({"when": "soon"}, "$.when: expected datetime, got 'soon' (str)"),
        ({"when": 1e30}, "$.when: expected datetime, got 1e+30 (float)"),
        ({"many": ["1", "x"]}, "$.many[1]: expected int, got 'x' (str)"),
        ({"many": "12"}, "$.many: expected list[int], got '12' (str)"),
        ({"level": "3"}, "$.level: expected Level (1, 2), got '3' (str)"),
    ],
)
def test_what_cannot_is_refused_by_name_and_place(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DecodeError) as decoding:
        Loose.from_data(data)
    assert str(decoding.value).startswith(message)
    with pytest.raises(ValidationError) as making:
        Loose(**data)
    assert str(making.value).startswith(message)


def test_it_is_off_by_default_and_inherited() -> None:
    class Strict(Record):
        n: int

    class Base(Record, coerce=True):
        n: int

    class Child(Base):
        m: int = 0

    class Back(Base, coerce=False):
        pass

    for refuses in (Strict, Back):
        with pytest.raises(DecodeError, match=r"\$\.n: expected int, got '1' \(str\)"):
            refuses.from_data({"n": "1"})
    assert Back("1").n == "1"  # type: ignore[arg-type, comparison-overlap]  # a constructor that converts nothing
    assert Child.from_data({"n": "1", "m": "2"}) == Child(1, 2) == Child("1", "2")  # type: ignore[arg-type]  # likewise


def test_a_field_may_say_otherwise_than_its_record() -> None:
    class Mixed(Record, coerce=True):
        loose: int
        strict: int = field(default=0, coerce=False)

    class Single(Record):
        strict: int
        loose: int = field(default=0, coerce=True)

    assert Mixed.from_data({"loose": "1"}) == Mixed(1)
    with pytest.raises(DecodeError, match=r"\$\.strict"):
        Mixed.from_data({"loose": "1", "strict": "1"})
    assert Single.from_data({"strict": 1, "loose": "1"}) == Single(1, 1)
    with pytest.raises(DecodeError, match=r"\$\.strict"):
        Single.from_data({"strict": "1"})


def test_records_within_decide_for_themselves() -> None:
    class Inner(Record):
        n: int

    class Outer(Record, coerce=True):
        inner: list[Inner]

    with pytest.raises(DecodeError, match=r"\$\.inner\[0\]\.n: expected int, got '1' \(str\)"):
        Outer.from_data({"inner": [{"n": "1"}]})
    assert Outer.from_data({"inner": [{"n": 1}]}) == Outer([Inner(1)])


def test_setting_a_field_converts_too() -> None:
    loose = Loose()
    loose.whole = "5"  # type: ignore[assignment]  # that is the test
    assert loose.whole == 5


def test_in_a_union_what_fits_as_it_is_comes_first() -> None:
    class Either(Record, coerce=True):
        value: int | str
        number: float | int | None = None
        ident: UUID | int | None = None

    assert Either.from_data({"value": "12"}) == Either("12")
    assert Either.from_data({"value": "a", "number": "12"}).number == 12.0
    assert Either.from_data({"value": "a", "ident": "12"}).ident == 12
    with pytest.raises(DecodeError, match=r"\$\.number: expected float or int or None, got 'x'"):
        Either.from_data({"value": "a", "number": "x"})


def test_a_date_parser_reads_what_others_write() -> None:
    def german(text: str) -> datetime:
        return datetime.strptime(text, "%d.%m.%Y")

    class Bill(Record, date_parser=german):
        due: datetime
        paid: datetime | None = field(default=None, date_parser=datetime.fromtimestamp)

    when = datetime(2026, 2, 1)
    assert Bill.from_data({"due": "01.02.2026", "paid": when.timestamp()}) == Bill(when, when)
    with pytest.raises(DecodeError, match=r"\$\.due: expected datetime, got '2026-02-01' \(str\): time data"):
        Bill.from_data({"due": "2026-02-01"})

    class Wrong(Record, date_parser=str):
        due: datetime

    with pytest.raises(DecodeError, match="the date_parser gave str"):
        Wrong.from_data({"due": "x"})
    with pytest.raises(TypeError, match="date_parser is a function"):
        META("Odd", (Record,), {}, date_parser="iso")


@pytest.mark.parametrize("option", ["isodates", "decimals"])
def test_isodates_and_decimals_are_always_on(option: str) -> None:
    class Dated(Record, isodates=True, decimals=True):
        when: datetime
        price: Decimal

    read = Dated.loads(b'{"when": "2026-01-02T00:00:00", "price": "1.5"}')
    assert read == Dated(datetime(2026, 1, 2), Decimal("1.5"))
    with pytest.raises(TypeError, match=f"{option}=False: .* annotate the field as str"):
        META("Odd", (Record,), {}, **{option: False})


def test_a_decimal_that_would_fill_the_memory_is_no_int() -> None:
    class Count(Record, coerce=True):
        count: int

    assert Count(Decimal("1E+3")).count == 1000  # type: ignore[arg-type]  # that is what coerce is for
    for value in ("1E+1000000000000", "NaN", "Infinity"):
        with pytest.raises(ValidationError, match="expected int"):
            Count(Decimal(value))  # type: ignore[arg-type]
