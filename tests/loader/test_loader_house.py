"""The loader's room: its sub-rooms stand in one order, and its README names what is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOM = Path(__file__).resolve().parents[2] / "gratis" / "loader"
ORDER = ["engine", "views", "epoch", "reading", "decoding", "pipeline", "inspect"]
# of the files at the door, those that a sub-room may import
DOOR = {"augmentations", "batch", "config", "mixing", "plan"}


@pytest.mark.parametrize("name", ORDER)
def test_a_sub_room_imports_only_those_before_it(name: str) -> None:
    before = set(ORDER[: ORDER.index(name) + 1]) | DOOR
    before |= {"loader"} if name == "inspect" else set()
    for path in (ROOM / name).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                if parts[:2] == ["gratis", "loader"]:
                    names = parts[2:3] or [alias.name for alias in node.names]
                    assert set(names) <= before, f"{path} imports {node.module}"


def test_every_folder_is_in_the_order() -> None:
    folders = {path.parent.name for path in ROOM.glob("*/*.py")}
    assert folders == set(ORDER)


def test_the_readme_names_what_is_there() -> None:
    text = (ROOM / "README.md").read_text()
    assert len(text.splitlines()) <= 60
    names = set(re.findall(r"`([\w/]+\.(?:py|md))`", text))
    assert len(names) > 10
    for name in names:
        assert (ROOM / name).exists() or (ROOM.parent.parent / name).exists(), name
    for function in re.findall(r"`(test_\w+)`", text):
        tests = (path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
        assert any(f"def {function}(" in each for each in tests), function
