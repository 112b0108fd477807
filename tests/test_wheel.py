"""What is built is what a user needs, and it runs from anywhere without the checkout."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(path.parent for path in ROOT.glob("*/__init__.py"))

pytestmark = [pytest.mark.slow, pytest.mark.hard_timeout(240)]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(source: Path, into: Path, what: str) -> Path:
    """Build a wheel or an sdist of `source` with the hatchling of this environment, so without a network."""
    command = ("-P", "-m", "build", "--no-isolation", f"--{what}", "--outdir", into, source)
    run(sys.executable, *command, cwd=into.parent)
    (built,) = into.iterdir()
    return built


def wheel_files(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("built") / "wheel", "wheel")


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, place / "built", "sdist")) as archive:
        archive.extractall(place, filter="data")
    (unpacked,) = place.glob("famulus-*")
    return unpacked


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    of_the_package = [name for name in wheel_files(wheel) if ".dist-info/" not in name]
    sources = [path for folder in FOLDERS for path in folder.rglob("*.py")]
    expected = [ROOT / "__init__.py", ROOT / "__main__.py", ROOT / "py.typed", *sources]
    assert [name for name in of_the_package if name.endswith((".py", ".typed"))] == sorted(
        f"famulus/{path.relative_to(ROOT).as_posix()}" for path in expected
    )
    assert [name for name in of_the_package if not name.startswith("famulus/")] == []


def test_the_wheel_has_its_licence_and_its_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        (entry_points,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        assert b"The Famulus developers" in archive.read(licence)
        assert b"famulus = famulus.cli:main" in archive.read(entry_points)


def test_the_sdist_holds_all_one_needs_to_work_on_it(unpacked_sdist: Path) -> None:
    top = {path.name for path in unpacked_sdist.iterdir()}
    assert {"tests", "examples", "benchmarks", "docs", "pyproject.toml", "Makefile", "README.md"} <= top
    assert {"LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"} <= top
    assert (unpacked_sdist / "tests" / "test_wheel.py").is_file()
    assert "src" not in top  # the view is for checkouts


def test_a_wheel_built_from_the_sdist_is_the_same(wheel: Path, unpacked_sdist: Path, tmp_path: Path) -> None:
    again = build(unpacked_sdist, tmp_path / "again", "wheel")
    assert wheel_files(again) == wheel_files(wheel)


def test_the_installed_wheel_runs_hello_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    """Its dependencies come from the package index, as a user's do."""
    place = tmp_path / "environment"
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    run(python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=tmp_path)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "hello.py").write_bytes((ROOT / "examples" / "hello.py").read_bytes())
    assert "42" in run(python, "-I", "hello.py", cwd=elsewhere)
    where = run(python, "-I", "-c", "import famulus; print(famulus.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(place)
    assert "worker" in run(place / "bin" / "famulus", "--help", cwd=elsewhere)
