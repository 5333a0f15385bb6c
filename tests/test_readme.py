"""Every command that the README gives exists: its module or target, its subcommand, its options and variables."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from preprocess.__main__ import COMMANDS as PREPROCESS
from train.options import COMMANDS as TRAIN

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
SUBCOMMANDS = {"preprocess": set(PREPROCESS), "train": set(TRAIN), "loader": {"explain"}, "server": {"top"}}
# indented lines, a backslash joining two of them, and what stands between single backticks
GIVEN = [line.strip().split(" #")[0] for line in re.findall(r"^    \S.*$", TEXT.replace("\\\n", ""), re.MULTILINE)]
GIVEN += [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", TEXT)]
PYTHON = sorted({one[one.index("python -m ") :] for one in GIVEN if re.search(r"python -m \w", one)})
MAKE = sorted({one for one in GIVEN if re.match(r"make [a-z]", one)})


def options_of(room: str) -> set[str]:
    """Of its commands, which are the fields of its dataclasses."""
    found = set()
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(one) for one in node.decorator_list):
                fields = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
                found |= {"--" + one.id.replace("_", "-") for one in fields if isinstance(one, ast.Name)}
    return found


def flags(words: str) -> set[str]:
    return set(re.findall(r"(?<!\S)'?(--[a-z][a-z0-9-]*)", words)) - {"--help"}


def test_commands_were_found() -> None:
    assert len(PYTHON) > 25
    assert len(MAKE) > 25


@pytest.mark.parametrize("command", PYTHON)
def test_a_python_command_exists(command: str) -> None:
    module, *words = command.removeprefix("python -m ").split()
    assert find_spec(module), module
    if words and module in SUBCOMMANDS and re.fullmatch(r"[a-z][a-z0-9-]*", words[0]):
        assert words[0] in SUBCOMMANDS[module]
    assert flags(command) <= options_of(module.split(".")[0])


@pytest.mark.parametrize("command", MAKE)
def test_a_make_command_exists(command: str) -> None:
    target = command.split()[1]
    rule = re.search(rf"^{target}:.*\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert rule, target
    for variable in re.findall(r"\b([A-Z_]+)=", command):
        assert re.search(rf"[,(]{variable}\)", rule[1]), f"{target} knows no {variable}"
    if words := re.search(r"ARGS='(.*)'", command):
        module = re.search(r"-m (\w+)", rule[1])
        options = options_of(module[1]) if module else {"--remove", "--extra"}  # docker/'s own parsers
        assert flags(words[1]) <= options
