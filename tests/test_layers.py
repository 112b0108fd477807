"""Who may import whom: arrows point down only (DESIGN, "Layers and files"; docs/architecture.md).

Every import counts, also one inside a function or under `TYPE_CHECKING`.
"""

import ast
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From top to bottom. A folder may import those on lower lines, and itself.
LAYERS = [
    ["cli", "web"],
    ["app"],
    ["actors"],
    ["tables"],
    ["kafka"],
    ["channels"],
    ["models", "supervision"],
]
LEVEL = {folder: level for level, folders in enumerate(LAYERS) for folder in folders}

# `App.main()` is in app/ and has to reach the command line and the web server: here, when called, only.
UPWARD = "app/entry.py"
UPWARD_TO = {"cli", "web"}

# Outside libraries with one door: a file, or a folder with all that is in it.
DOORS = {"trio_asyncio": "kafka/bridge.py", "aiokafka": "kafka/", "tractor": "actors/isolated.py"}

# Decisions are pure: these may not import trio.
PURE = [
    "channels/ledger.py",
    "channels/letters.py",
    "channels/memory_log.py",
    "channels/partitioner.py",
    "channels/sqlite/codec.py",
    "channels/sqlite/log.py",
    "channels/sqlite/silence.py",
    "channels/sqlite/url.py",
    "kafka/assignor.py",
    "models/",
    "supervision/backoff.py",
    "supervision/plans.py",
    "supervision/specs.py",
    "supervision/strategies.py",
    "supervision/tree_tables.py",
    "supervision/trees.py",
    "supervision/window.py",
    "tables/windows.py",
]
IO = {"trio", "trio_asyncio", "aiokafka"}


def within(file: str, place: str) -> bool:
    return file.startswith(place) if place.endswith("/") else file == place


Import = tuple[int, str, Literal["module", "function", "types"]]


def imports(file: str, source: str) -> list[Import]:
    """`(line, module, where)` for each import; modules of ours begin with a dot: `.channels.topic`.

    `from ..channels import topic` counts as `.channels`, and so does `from .. import channels`.
    """
    package = Path(file).parent.parts
    found: list[Import] = []

    def visit(node: ast.AST, where: Literal["module", "function", "types"]) -> None:
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, node.module or "", where))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            path = [*base, *(node.module or "").split(".")] if node.module else [*base]
            names = [".".join(path)] if path else [alias.name for alias in node.names]
            found.extend((node.lineno, f".{name}", where) for name in names)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = "function"
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            where = "types"
        for child in ast.iter_child_nodes(node):
            visit(child, where)

    visit(ast.parse(source, file), "module")
    return found


def complaints(file: str, source: str) -> list[str]:
    """What `file` (its path below the root) imports against the rules, one sentence each."""
    folder = file.split("/")[0]
    told: list[str] = []

    def complain(line: int, module: str, rule: str) -> None:
        told.append(f"{file}:{line}: imports {module}: {rule}")

    for line, module, where in imports(file, source):
        if module.startswith("."):
            target = module[1:].split(".")[0]
            if folder == target or folder == "testing":
                continue
            if target not in LEVEL and target != "testing":
                complain(line, module, "the face of the package is for users; import the module itself")
            elif target == "testing":
                complain(line, module, "nobody imports testing")
            elif file == UPWARD and target in UPWARD_TO and where == "function":
                continue
            elif file == UPWARD and target in UPWARD_TO:
                complain(line, module, f"{UPWARD} may do so inside a function only")
            elif LEVEL[target] <= LEVEL[folder]:
                complain(line, module, f"{target} is no layer below {folder}; only {UPWARD} may reach up")
            continue
        library = module.split(".")[0]
        door = DOORS.get(library)
        if door and not within(file, door):
            complain(line, module, f"only {door} may")
        if library in IO and any(within(file, place) for place in PURE):
            complain(line, module, "this module is pure: it decides, others do the I/O")
    return told


def sources() -> list[str]:
    folders = sorted(path.parent for path in ROOT.glob("*/__init__.py"))
    return [str(path.relative_to(ROOT)) for folder in folders for path in sorted(folder.rglob("*.py"))]


def test_every_folder_has_its_layer() -> None:
    assert {file.split("/")[0] for file in sources()} <= {*LEVEL, "testing"}


@pytest.mark.parametrize("file", sources())
def test_imports_point_down(file: str) -> None:
    assert complaints(file, (ROOT / file).read_text(encoding="utf-8")) == []


def test_pure_modules_stay_pure_through_what_they_import() -> None:
    """What a pure module loads of ours loads no trio either."""
    reached: dict[str, str] = {}
    waiting = [file for file in sources() if any(within(file, place) for place in PURE)]
    came = {file: file for file in waiting}
    while waiting:
        file = waiting.pop()
        source = (ROOT / file).read_text(encoding="utf-8")
        for line, module, where in imports(file, source):
            if where != "module":
                continue
            if module.split(".")[0] in IO:
                reached[f"{file}:{line}"] = f"imports {module}; reached from {came[file]}"
            stem = module[1:].replace(".", "/")
            if module.startswith(".") and f"{stem}.py" in sources() and f"{stem}.py" not in came:
                came[f"{stem}.py"] = came[file]
                waiting.append(f"{stem}.py")
    assert reached == {}


# The rules themselves, on made-up files.

ALLOWED = [
    ("app/app.py", "from ..channels.topic import Topic"),
    ("app/deep/inner.py", "from ...channels import topic"),
    ("app/app.py", "from . import settings"),
    ("cli/main.py", "from .. import app"),
    ("actors/agent.py", "from ..supervision.specs import ChildSpec"),
    ("testing/app.py", "from ..cli import main"),
    (UPWARD, "def main():\n    from ..cli import main"),
    ("kafka/bridge.py", "import trio_asyncio"),
    ("kafka/transport.py", "from aiokafka import AIOKafkaConsumer"),
    ("channels/conductor.py", "import trio"),
]

FORBIDDEN = [
    ("channels/topic.py", "from ..app.app import App", "app is no layer below channels"),
    ("channels/topic.py", "from .. import kafka", "kafka is no layer below channels"),
    ("channels/topic.py", "def f():\n    from ..actors import agent", "actors is no layer below channels"),
    ("channels/topic.py", "if TYPE_CHECKING:\n    from ..app import App", "app is no layer below channels"),
    ("models/record.py", "from ..supervision import specs", "supervision is no layer below models"),
    ("cli/main.py", "from ..web import server", "web is no layer below cli"),
    ("app/app.py", "def main():\n    from ..cli import main", "cli is no layer below app"),
    (UPWARD, "from ..cli import main", "inside a function only"),
    (UPWARD, "def main():\n    from ..testing import clock", "nobody imports testing"),
    ("app/app.py", "from .. import App", "the face of the package"),
    ("channels/topic.py", "import trio_asyncio", "only kafka/bridge.py may"),
    ("kafka/transport.py", "import trio_asyncio.adapter", "only kafka/bridge.py may"),
    ("channels/topic.py", "from aiokafka import errors", "only kafka/ may"),
    ("actors/agent.py", "import tractor", "only actors/isolated.py may"),
    ("channels/ledger.py", "import trio", "this module is pure"),
    ("models/record.py", "from trio import Path", "this module is pure"),
]


@pytest.mark.parametrize(("file", "source"), ALLOWED)
def test_an_arrow_down_is_allowed(file: str, source: str) -> None:
    assert complaints(file, source) == []


@pytest.mark.parametrize(("file", "source", "rule"), FORBIDDEN)
def test_an_arrow_up_is_named_with_its_line_and_rule(file: str, source: str, rule: str) -> None:
    (told,) = complaints(file, source)
    assert told.startswith(f"{file}:{len(source.splitlines())}: imports ")
    assert rule in told
