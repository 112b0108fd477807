"""Virtual environments for what the benchmarks compare with, made once and kept in the data directory."""

from __future__ import annotations

import platform
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

__all__ = ["FAUST", "PYKKA", "QUIX", "RIVALS", "interpreters", "make_environment"]

ROOT = Path(__file__).parent.parent

FAUST = ("faust-streaming==0.15.3", "aiokafka==0.14.0", "mode-streaming==0.7.1", "orjson==3.13.0", "setuptools==80.9.0")
"""With orjson, which it uses for JSON where it finds it."""

QUIX = ("quixstreams==3.28.1", "confluent-kafka==2.12.2", "orjson==3.13.0", "rocksdict==0.3.29")

PYKKA = ("pykka==4.4.0",)

RIVALS = ("faust", "quix", "raw")


def interpreters(wanted: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """The interpreters of the programs that are wanted, and what cannot be had."""
    found: dict[str, Path] = {"famulus": Path(sys.executable), "raw": Path(sys.executable)}
    notes = []
    for name, requirements in (("faust", FAUST), ("quix", QUIX)):
        if name in wanted:
            python = make_environment(*requirements)
            if isinstance(python, str):
                notes.append(python)
            else:
                found[name] = python
                notes.append(f"{name}: {', '.join(requirements)}, on the same Python")
    return {name: python for name, python in found.items() if name in ("famulus", *wanted)}, notes


def make_environment(*requirements: str) -> Path | str:
    """An interpreter that has these and is of our own Python's version, or why there is none."""
    name = requirements[0].partition("==")[0]
    version = ".".join(platform.python_version_tuple()[:2])
    folder = ROOT / ".famulus" / "benchmarks" / f"{name}-{version}"
    python, made = folder / "bin" / "python", folder / "made"
    wanted = "\n".join(requirements)
    if not made.exists() or made.read_text() != wanted:
        print(f"installing {', '.join(requirements)} into {folder}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *requirements]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines()
            return f"{requirements[0]} cannot be installed: {reason[-1] if reason else done.returncode}"
        made.write_text(wanted)
    return python
