"""The house: one import name, who may import whom, and what the top level is.

The law has two clauses. A file of the ground floor (`gratis/*.py`) imports the standard library,
NumPy and the ground floor. A file of a room imports the ground floor, its own room, the public
names of the room before it, and the libraries that are the room's.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["preprocess", "loader", "train", "server"]
# the ground floor's only other imports: the libraries that a file of it is about, where it uses
# them (gratis.image decodes with Pillow, gratis.addresses opens URLs with fsspec, the command line
# is tyro's, gratis.jit is Numba's), and what the verbs and the public names are loaded from when
# they are asked for
ABOUT = {
    "image.py": {"PIL"},
    "addresses.py": {"fsspec", "aiohttp"},
    "command_line.py": {"tyro"},
    "jit.py": {"numba"},
    "output.py": {"_typeshed"},
    "__init__.py": {"gratis.loader"},
}
FACE = "torch"  # gratis/torch.py, a client of the loader: a room of one file
PUBLIC = {"train": {"gratis.loader"}, FACE: {"gratis.loader"}}  # of other rooms, by room
TORCH_FREE = ["", "preprocess", "server"]  # the ground floor and these rooms
COMPILED = {"gratis.jit", "gratis.jpeg_check"}  # by Numba; loaded when something is to be checked
HEAVY = {"torch", "torchvision", "nvidia", "numba", "matplotlib"}


def ours() -> list[Path]:
    return sorted((ROOT / "gratis").rglob("*.py"))


MAY_ASK = [ROOT / "gratis" / name for name in ("__init__.py", "cli.py", "extras.py")]


@cache
def nodes(path: Path) -> list[ast.Import | ast.ImportFrom | ast.Call]:
    """Of a file, what the tests here look at."""
    tree = ast.walk(ast.parse(path.read_text()))
    return [node for node in tree if isinstance(node, (ast.Import, ast.ImportFrom, ast.Call))]


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports, at its top or in a function; `from a import b` is a.b where
    that is a module."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            for alias in node.names:
                inside = ROOT / base.replace(".", "/") / alias.name
                is_module = inside.with_suffix(".py").exists() or inside.is_dir()
                yield f"{base}.{alias.name}" if is_module else base


def place(module: str) -> str:
    """The room of one of our modules; empty for the ground floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in [*ROOMS, FACE] else ""


def room_of(path: Path) -> str:
    return place(".".join(path.relative_to(ROOT).with_suffix("").parts))


def in_graph(module: str, graph: dict[str, set[str]], seen: set[str]) -> None:
    """Adds to `seen` whatever the module imports, by others too."""
    for other in graph[module] - seen:
        seen.add(other)
        in_graph(other, graph, seen)


@pytest.mark.parametrize("path", ours(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_obey_the_law(path: Path) -> None:
    room = room_of(path)
    for module in imported(path):
        top = module.split(".")[0]
        assert top not in ROOMS, f"{path} imports {module} by a room's bare name"
        assert top not in ("benchmarks", "tests", "docker"), f"{path} imports {module}"
        if not room and module not in ABOUT.get(path.name, set()):
            light = top in sys.stdlib_module_names | {"numpy", *ABOUT.get(path.name, set())}
            assert light or (top == "gratis" and not place(module)), f"{path} imports {module}"
        elif room and top == "gratis" and (other := place(module)) not in ("", room):
            assert module in PUBLIC.get(room, set()), f"{path} imports {module} of room {other}"
        # the public names are for users: what they are loaded from is a room's
        assert module != "gratis" or path in MAY_ASK, f"{path} imports from gratis itself"
        if room in TORCH_FREE and module not in ABOUT.get(path.name, set()):
            assert top not in HEAVY, f"{path} imports {module}"


@pytest.mark.parametrize("path", ours(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_imported_by_statements(path: Path) -> None:
    """By its name as a string only what is not known before: the verb, a public name, an extra."""
    for node in nodes(path):
        called = node.func if isinstance(node, ast.Call) else None
        name = getattr(called, "attr", getattr(called, "id", ""))
        if isinstance(node, ast.Call) and name in ("import_module", "__import__"):
            asked = ast.unparse(node.args[0])
            foreign = asked.startswith("'") and not asked.startswith("'gratis")
            assert foreign or path in MAY_ASK, f"{path} imports {asked} by a string"


IMPORT = re.compile(r"^ *(?:from|import) ([\w.]+)", re.MULTILINE)


def test_nothing_else_in_the_tree_imports_by_a_bare_name() -> None:
    for top in ("benchmarks", "examples", "tests", "docker"):
        for path in (ROOT / top).rglob("*.py"):
            for module in IMPORT.findall(path.read_text()):
                assert module.split(".")[0] not in ["", *ROOMS], f"{path} imports {module}"


def test_no_modules_need_each_other() -> None:
    graph = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): {
            module for module in imported(path) if module.startswith("gratis.")
        }
        for path in ours()
        if path.name != "__init__.py"
    }
    graph = {module: others & graph.keys() for module, others in graph.items()}
    for module in graph:
        reached: set[str] = set()
        in_graph(module, graph, reached)
        assert module not in reached, f"{module} is needed by what it imports"


@pytest.mark.parametrize("room", ROOMS)
def test_the_name_at_the_top_level_is_a_link_to_the_room(room: str) -> None:
    assert (ROOT / room).is_symlink()
    assert (ROOT / room).resolve() == ROOT / "gratis" / room


@pytest.mark.parametrize("room", TORCH_FREE)
@pytest.mark.starts
def test_it_runs_without_torch_and_dali(room: str) -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ours()}
    modules = sorted(
        name.removesuffix(".__init__")
        for name in names - COMPILED
        if place(name) == room and not name.endswith("__main__")
    )
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {modules}]; "
        "print(sorted({'torch', 'nvidia', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.starts
def test_top_level_holds_what_it_says() -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    folders = {"gratis", *ROOMS, "docker", "benchmarks", "examples", "docs", "tests", "findings"}
    files = {"Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "setup.py"}
    files |= {"pyproject.toml", "requirements.lock", "requirements-extra.lock"}
    assert {name for name in top if not name.startswith(".")} <= folders | files
