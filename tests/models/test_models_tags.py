"""Values that say which subclass they are: found by namespace among the subclasses of the declared type, never imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from famulus.models import DecodeError, Record, field, value_serde

HERE = __name__


class Asset(Record, abstract=True, include_metadata=True):
    url: str


class Image(Asset, namespace="tests.Image"):
    width: int = 0


class Video(Asset, namespace="tests.Video"):
    seconds: float = 0.0


class Clip(Video):
    start: float = 0.0


class Other(Record, include_metadata=True, namespace="tests.Other"):
    url: str


class Article(Record):
    title: str
    cover: Asset | None = None
    assets: list[Asset] = field(factory=list)
    by_name: dict[str, Asset] = field(factory=dict)
    either: Image | Video | str = ""


def test_a_tagged_record_is_written_with_its_namespace() -> None:
    image = Image("a.png", 5)
    assert image.dumps() == b'{"__famulus":{"ns":"tests.Image"},"url":"a.png","width":5}'
    assert image.to_representation()["__famulus"] == {"ns": "tests.Image"}
    assert image.asdict() == {"url": "a.png", "width": 5}
    assert b'"ns":"' + HERE.encode() + b'.Clip"' in Clip("c").dumps()


@pytest.mark.parametrize("value", [Image("a.png", 5), Video("v", 1.5), Clip("c", 1.0, 2.0)])
@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml", "json|gzip"])
def test_it_is_decoded_as_what_it_was(value: Asset, serializer: str) -> None:
    assert Asset.loads(value.dumps(serializer=serializer), serializer=serializer) == value
    assert value_serde(list[Asset]).loads(value_serde(list[Asset]).dumps([value])) == [value]


def test_also_within_fields_lists_dicts_and_unions() -> None:
    article = Article("t", Image("a"), [Clip("c"), Video("v")], {"i": Image("b")}, Clip("u"))
    assert Article.loads(article.dumps()) == article
    assert Article.from_data(article.to_representation()) == article


def test_a_union_goes_by_the_tag_before_it_goes_by_the_fields() -> None:
    class Left(Record, include_metadata=True):
        n: int

    class Right(Record, include_metadata=True):
        n: int

    serde = value_serde(Left | Right)
    assert serde.loads(Right(1).dumps()) == Right(1)
    assert serde.loads(Left(1).dumps()) == Left(1)
    assert serde.loads(b'{"n": 1}') == Left(1)
    with pytest.raises(DecodeError, match=r"\$\.__famulus\.ns: expected the namespace of Left or Right"):
        serde.loads(Other("x").dumps())


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b'{"__famulus":{"ns":"os.system"},"url":"a"}', "$.__famulus.ns"),
        (b'{"__famulus":{"ns":"tests.Other"},"url":"a"}', "$.__famulus.ns"),  # no subclass of Asset
        (b'{"__famulus":{"ns":5},"url":"a"}', "$.__famulus"),
        (b'{"__famulus":"tests.Image","url":"a"}', "$.__famulus"),
        (b'{"url":"a"}', "$.__famulus"),  # abstract, and no tag
        (b'{"__famulus":{"ns":"%s.Asset"},"url":"a"}' % HERE.encode(), "$.__famulus.ns"),  # abstract
        (b'{"__famulus":{"ns":"tests.Image"},"url":5}', "$.url"),
        (b"[]", "$"),
    ],
)
def test_a_tag_that_names_no_subclass_is_an_error_that_names_it(data: bytes, path: str) -> None:
    with pytest.raises(DecodeError) as caught:
        Asset.loads(data)
    assert caught.value.path == path


def test_nothing_is_imported_for_a_tag() -> None:
    before = set(sys.modules)
    with pytest.raises(DecodeError, match=r"import its module"):
        Asset.loads(b'{"__famulus":{"ns":"antigravity.Asset"},"url":"a"}')
    assert "antigravity" not in set(sys.modules) - before


def test_without_a_tag_the_declared_class_is_meant() -> None:
    assert Video.loads(b'{"url": "v"}') == Video("v")
    assert Video.loads(Clip("c", 1.0, 2.0).dumps()) == Clip("c", 1.0, 2.0)


def test_a_tag_is_only_another_field_to_records_without_the_option() -> None:
    class Plain(Record):
        url: str

    class Sub(Plain):
        pass

    assert Plain.loads(Image("a").dumps()) == Plain("a")
    assert b"__famulus" not in Sub("a").dumps()


def test_faust_data_is_read_where_that_is_allowed() -> None:
    class Allowed(Asset, allow_blessed_key=True, namespace="old.Allowed"):
        pass

    class Picture(Allowed, namespace="old.app.Picture"):
        width: int = 0

    data = b'{"url": "a", "width": 3, "__faust": {"ns": "old.app.Picture"}}'
    assert Allowed.loads(data) == Picture("a", 3)
    assert value_serde(list[Allowed]).loads(b"[" + data + b"]") == [Picture("a", 3)]
    assert Video.loads(b'{"url": "a", "__faust": {"ns": "%s.Clip"}}' % HERE.encode()) == Video("a")
    with pytest.raises(DecodeError, match=r"\$\.__faust\.ns: expected the namespace of Allowed, got 'os.system'"):
        Allowed.loads(b'{"url": "a", "__faust": {"ns": "os.system"}}')


def test_polymorphic_fields_go_by_tags_whatever_their_types_say() -> None:
    class Base(Record):
        n: int

    class Big(Base, include_metadata=True):
        m: int = 0

    class Strict(Record):
        base: Base

    class Poly(Record, polymorphic_fields=True, allow_blessed_key=True):
        base: Base
        more: list[Base] = field(factory=list)

    poly = Poly(Big(1, 2), [Big(3), Base(4)])
    assert Poly.loads(poly.dumps()) == poly
    assert Strict.loads(Strict(Big(1, 2)).dumps()) == Strict(Base(1))
    place = f"{Big.__module__}.{Big.__qualname__}"
    assert Poly.from_data({"base": {"n": 1, "m": 2, "__faust": {"ns": place}}}) == Poly(Big(1, 2))


def test_a_namespace_is_taken_once() -> None:
    with pytest.raises(TypeError, match=rf"namespace 'tests.Image' is taken by {HERE}.Image; give it another one"):

        class Second(Asset, namespace="tests.Image"):
            pass

    with pytest.raises(TypeError, match="namespace is a non-empty str"):

        class Third(Asset, namespace=""):
            pass


def test_a_class_that_is_defined_again_takes_its_own_name_over() -> None:
    def make() -> Any:
        class Again(Asset):
            n: int = 0

        return Again

    first, second = make(), make()
    assert Asset.loads(first("a").dumps()) == second("a")
    assert first.loads(first("a").dumps()) == first("a")


def test_a_script_and_a_module_that_imports_it_mean_the_same_classes(tmp_path: Path) -> None:
    (tmp_path / "assets.py").write_text(
        "from famulus import Record\n"
        "class Asset(Record, include_metadata=True):\n"
        "    url: str\n"
        "class Image(Asset):\n"
        "    pass\n"
        "class Video(Asset, namespace='Video'):\n"
        "    pass\n"
        "if __name__ == '__main__':\n"
        "    import assets\n"
        "    print(Asset.loads(assets.Image('a').dumps()) == Image('a'), Image('a').dumps().decode())\n"
        "    print(type(assets.Asset.loads(Video('a').dumps())) is assets.Video)\n"
    )
    for arguments in (["assets.py"], ["-m", "assets"]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
        )
        assert done.stdout.splitlines() == ['True {"__famulus":{"ns":"assets.Image"},"url":"a"}', "True"], done.stderr


def test_options_are_inherited_from_every_base() -> None:
    class Coercing(Record, coerce=True):
        pass

    class Mixed(Coercing, Asset):
        n: int = 0

    assert b"__famulus" in Mixed("a").dumps()
    assert Mixed.from_data({"url": "a", "n": "5"}) == Mixed("a", 5)
