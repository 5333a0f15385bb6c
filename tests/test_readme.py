"""Every command that the documentation gives exists: its verb or target, its options and
variables."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from benchmarks.command import BENCHMARKS
from gratis.cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "gratis").rglob("*.md")]
OTHERS = {"--remove", "--extra", "--runs", "--shards", "--port"}  # of the doctor and the installer
PYTEST = {"test", "quick", "prove", "check"}


def given(text: str) -> list[str]:
    """Commands: indented lines and fenced ones, a backslash joining two, and what stands between
    single backticks."""
    joined = text.replace("\\\n", "")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", joined, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^    +\S.*$", joined, re.MULTILINE)
    found = [line.strip().removeprefix("$ ").split(" #")[0].strip() for line in lines]
    return found + [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", joined)]


GIVEN = [one for page in PAGES if page.name != "CHANGELOG.md" for one in given(page.read_text())]
GRATIS = sorted(
    {
        one[one.index("gratis ") :]
        for one in GIVEN
        if re.match(r"(\.venv/bin/|[A-Z_]+=\S+ |python -m )*gratis [a-z]", one)
    }
)
MAKE = sorted({one for one in GIVEN if re.match(r"make [a-z]", one)})


def options_of_dataclasses() -> set[str]:
    found = set(OTHERS)
    for path in (path for top in ("gratis", "benchmarks") for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(
                "dataclass" in ast.unparse(one) for one in node.decorator_list
            ):
                fields = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
                names = [one.id for one in fields if isinstance(one, ast.Name)]
                found |= {"--" + name.replace("_", "-") for name in names}
    return found


OPTIONS = options_of_dataclasses()


def flags(words: str) -> set[str]:
    return set(re.findall(r"(?<!\S)'?(--[a-z][a-z0-9-]*)", words)) - {"--help", "--version"}


def test_commands_were_found() -> None:
    assert len(GRATIS) > 15
    assert len(MAKE) > 10


def test_no_page_gives_a_command_that_is_gone() -> None:
    gone = re.compile(r"python3? -m (preprocess|loader|train|server)\b|make serve\b")
    assert [one for one in GIVEN if gone.search(one)] == []


@pytest.mark.parametrize("command", GRATIS)
def test_a_gratis_command_exists(command: str) -> None:
    verb, *words = command.removeprefix("gratis ").split()
    if verb == "is":  # prose: `make X` is `gratis X`
        return
    assert verb in VERBS
    if verb == "bench" and words:
        assert words[0] in {*BENCHMARKS, "WHAT"}
    assert flags(command) <= OPTIONS


@pytest.mark.parametrize("command", MAKE)
def test_a_make_command_exists(command: str) -> None:
    target = command.split()[1]
    rule = re.search(rf"^{target}:.*\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert rule, target
    for variable in re.findall(r"\b([A-Z_]+)=", command):
        assert re.search(rf"[,(]{variable}\)", rule[1]), f"{target} knows no {variable}"
    if target not in PYTEST and (words := re.search(r"ARGS='(.*)'", command)):
        assert flags(words[1]) <= OPTIONS
