"""docs/models.md: its program writes what it says, and its tables list every option and codec there is."""

import re
import subprocess
import sys
from pathlib import Path

from famulus.models import codecs
from famulus.models.recordmeta import KNOWN

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def listed(heading: str) -> set[str]:
    """The names in the first column of the section's table."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = section[section.index("|---") :].split("\n\n")[0]
    return {name for line in table.splitlines()[1:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_every_option_of_a_record_is_listed() -> None:
    assert listed("Records") == set(KNOWN) - {"isodates", "decimals"}  # which can only be True


def test_every_codec_is_listed() -> None:
    assert listed("Codecs") <= set(codecs.names())
    assert {"json", "raw", "binary", "msgpack", "yaml", "gzip", "zlib", "pickle"} == listed("Codecs")


def test_the_program_writes_what_the_page_says() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-"], input=program, capture_output=True, text=True, timeout=50, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == re.findall(r"^(?:.*\))?(?:  )?# (.*)$", program, re.MULTILINE)
