"""The repository root is the package `famulus`: its folders, the lists that name them and its face agree.

docs/decisions/0001-layout-packaging-and-test-bench.md says why it is laid out so.
"""

import ast
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import famulus

ROOT = Path(__file__).resolve().parents[1]
VIEW = ROOT / "src" / "famulus"
ROOT_FILES = ["__init__.py", "__main__.py", "py.typed"]
BESIDE = [
    "tests",
    "examples",
    "benchmarks",
]  # what pyright reads and the sdist carries, and is not the package
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
PACKAGE = ROOT_FILES + FOLDERS
SOURCES = sorted(
    [ROOT / "__init__.py", ROOT / "__main__.py"]
    + [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
)


def modules() -> list[str]:
    """Every module of the package, `__main__` files excepted: importing those runs them."""
    found = pkgutil.walk_packages(famulus.__path__, "famulus.")
    return ["famulus", *(module.name for module in found if not module.name.endswith(".__main__"))]


# The lists.


def test_the_wheel_is_made_of_the_folders_that_exist() -> None:
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"] == PACKAGE


def test_the_sdist_holds_the_package_and_what_stands_beside_it() -> None:
    listed = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
    assert listed[: len(PACKAGE)] == PACKAGE
    assert {*BESIDE, "docs"} <= set(listed[len(PACKAGE) :])


def test_pyright_reads_the_package_and_what_stands_beside_it() -> None:
    root_modules = [name for name in PACKAGE if name != "py.typed"]
    assert PYPROJECT["tool"]["pyright"]["include"] == root_modules + BESIDE


def test_the_view_in_src_has_one_relative_link_for_each_part() -> None:
    links = {path.name: os.readlink(path) if path.is_symlink() else "no link" for path in VIEW.iterdir()}
    assert links == {name: f"../../{name}" for name in PACKAGE}
    for name in PACKAGE:
        assert (VIEW / name).resolve(strict=True) == ROOT / name


# The modules.


def test_no_source_file_is_loaded_under_two_names(tmp_path: Path) -> None:
    program = """
import importlib, json, os, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
files = [(os.path.realpath(m.__file__), n) for n, m in sys.modules.items() if getattr(m, "__file__", None)]
print(json.dumps(files))
"""
    command = [sys.executable, "-P", "-c", program, json.dumps(modules())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names: dict[str, list[str]] = {}
    for file, name in json.loads(done.stdout):
        if Path(file).is_relative_to(ROOT) and "site-packages" not in file:
            names.setdefault(file, []).append(name)
    assert len(names) >= len(modules())
    assert {file: found for file, found in names.items() if len(found) > 1} == {}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_imports_itself_by_relative_names_only(source: Path) -> None:
    absolute = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        absolute += [f"{source}:{node.lineno}" for name in names if name.split(".")[0] == "famulus"]
    assert absolute == []


@pytest.mark.parametrize("name", modules())
def test_what_a_module_exports_exists_once(name: str) -> None:
    module = importlib.import_module(name)
    exported = list(getattr(module, "__all__", []))
    assert len(exported) == len(set(exported))
    assert [public for public in exported if not hasattr(module, public)] == []


# The face.


def lazy_map() -> dict[str, str]:
    exports: dict[str, str] = vars(famulus)["_EXPORTS"]
    return exports


def typed_imports() -> dict[str, str]:
    """The `TYPE_CHECKING` block of the face, as `{public name: relative module}`."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    for block in tree.body:
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING"):
            for node in block.body:
                assert isinstance(node, ast.ImportFrom), f"line {node.lineno}: only `from .x import A as A` here"
                for alias in node.names:
                    assert alias.asname == alias.name, f"line {node.lineno}: `{alias.name} as {alias.name}`"
                    found[alias.name] = "." * node.level + (node.module or "")
    return found


def test_the_face_says_the_same_to_programs_and_to_type_checkers() -> None:
    assert lazy_map() == typed_imports()
    assert sorted(famulus.__all__) == sorted(lazy_map())
    assert set(famulus.__all__) <= set(dir(famulus))


def test_no_public_name_hides_a_folder() -> None:
    assert set(famulus.__all__) & set(FOLDERS) == set()


REEXPORTED = {"field"}  # attrs' own, so that type checkers know it as a field specifier


@pytest.mark.parametrize("name", sorted(lazy_map()))
def test_a_public_name_is_there_and_says_it_is_ours(name: str) -> None:
    value = getattr(famulus, name)
    home = getattr(value, "__module__", None)  # a constant has none of its own
    assert not isinstance(value, ModuleType)
    assert home is None or home.split(".")[0] == "famulus" or name in REEXPORTED


def test_the_face_refuses_a_name_it_does_not_have() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(famulus, "nonsense")  # noqa: B009  # type checkers refuse it as well, as they should


def test_importing_the_face_loads_nothing_else(tmp_path: Path) -> None:
    program = "import sys, famulus; print([m for m in sys.modules if m.startswith(('famulus.', 'trio'))])"
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
