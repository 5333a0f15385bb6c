"""The house holds: who may import whom, empty package files, and what the top level is."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["preprocess", "loader", "train", "server"]  # data flows from left to right
CONTRACTS = {
    "preprocess": {
        "preprocess.arguments",
        "preprocess.dataset",
        "preprocess.durable",
        "preprocess.errors",
        "preprocess.events",
        "preprocess.image",
        "preprocess.typed",
    },
    "loader": {"loader"},
    "train": {"train.events"},
    "server": set(),
}
STDLIB_AND = {
    "preprocess/arguments.py": set(),
    "preprocess/dataset.py": {"numpy"},
    "preprocess/durable.py": set(),
    "preprocess/events.py": set(),
    "preprocess/errors.py": set(),
    "preprocess/image.py": {"numpy", "PIL"},
    "preprocess/typed.py": set(),
    "train/events.py": set(),
}
TORCH_FREE = ["preprocess", "server"]


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module a file imports, at its top or in a function; `from a import b` is a.b where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            found |= {f"{base}.{a.name}" if (ROOT / base.replace(".", "/") / f"{a.name}.py").exists() else base
                      for a in node.names}  # fmt: skip
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_left_and_through_contracts(package: str) -> None:
    for path in sources(package):
        for module in imported(path):
            other = module.split(".")[0]
            if other not in PACKAGES or other == package:
                continue
            assert PACKAGES.index(other) < PACKAGES.index(package), f"{path} imports {module}, to its right"
            assert module in CONTRACTS[other], f"{path} imports {module}, which is no contract"


@pytest.mark.parametrize("name", STDLIB_AND)
def test_contract_modules_are_light(name: str) -> None:
    for module in imported(ROOT / name):
        top = module.split(".")[0]
        assert top in sys.stdlib_module_names | STDLIB_AND[name] or module in CONTRACTS["preprocess"], (
            f"{name}: {module}"
        )


@pytest.mark.parametrize("package", ["preprocess", "train", "server"])
def test_package_files_are_empty(package: str) -> None:
    assert (ROOT / package / "__init__.py").read_text() == ""


@pytest.mark.parametrize("package", TORCH_FREE)
def test_package_runs_without_torch_and_dali(package: str) -> None:
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in sources(package) if p.stem != "__main__"]
    code = f"import importlib, sys; [importlib.import_module(m.removesuffix('.__init__')) for m in {modules}]; "
    code += "print(sorted({'torch', 'nvidia'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_top_level_holds_what_it_says() -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    files = {"Makefile", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"}
    locks = {"requirements.lock", "requirements-extra.lock"}
    assert {name for name in top if not name.startswith(".")} == {*PACKAGES, "docker", "tests"} | files | locks
