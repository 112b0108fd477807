"""docs/models.md stays true: its examples are run, and what it says of options and codecs is all there is."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from famulus import Settings
from famulus.models import codecs
from famulus.models.fields import FieldOptions
from famulus.models.recordmeta import KNOWN

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def table(title: str) -> set[str]:
    """The names in code marks in the first column of the table with this head."""
    rows = TEXT.split(f"| {title} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return {name.partition("=")[0] for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_the_examples_run_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "_codecs", dict(codecs._codecs))
    found = doctest.DocTestParser().get_doctest(TEXT, {"__name__": "shop"}, "models.md", "docs/models.md", 0)
    shown: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found, out=shown.append)
    assert result.failed == 0, "".join(shown)
    assert result.attempted > 30


def test_every_option_and_every_codec_is_described() -> None:
    assert table("Option") == set(KNOWN)
    assert table("Option of `field`") == set(FieldOptions.__annotations__) | {"default", "factory"}
    assert (
        table("Codec") == {"binary", "gzip", "json", "msgpack", "pickle", "raw", "yaml", "zlib"} <= set(codecs.names())
    )


def test_the_limit_is_the_one_that_is_set() -> None:
    assert f"{Settings().codec_max_decompressed:,} bytes" in TEXT
