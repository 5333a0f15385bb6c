"""What the documentation names exists: verbs, targets, options, variables, files and pages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
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
        text = path.read_text()
        for node in ast.parse(text).body if "@dataclass" in text else ():
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


WRITTEN = [page for page in PAGES if page.name != "CHANGELOG.md"]
TOPS = "gratis|docs|examples|tests|benchmarks|docker|preprocess|loader|train|server"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """In backticks, from the top of the checkout or, in a room's page, from there."""
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text()):
        if re.fullmatch(rf"({TOPS})/([\w./-]*(/|\.\w+))?", span):
            assert (ROOT / span).exists() or (page.parent / span).exists(), span


def test_the_readme_is_short_and_in_order() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 160
    order = (
        "install, thirty seconds, use it, your imagenet, headline, alexnet, watch, where, limits"
    )
    headings = [one.lower() for one in re.findall(r"^## (.+)$", text, re.MULTILINE)]
    assert len(headings) == 10
    for heading, beginning in zip(headings, [*order.split(", "), "contributing"], strict=True):
        assert heading.startswith(beginning)


def test_every_verb_and_target_is_on_some_page() -> None:
    """A verb in the reference of options, a target in the README or beside it."""
    options = (ROOT / "docs/options.md").read_text()
    for verb in VERBS.keys() - {"bench"}:
        assert f"\n## gratis {verb}\n" in options
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):.* ## ", makefile, re.MULTILINE))
    assert targets - {"help"} <= {command.split()[1] for command in MAKE}


@pytest.mark.starts
def test_the_reference_of_options_is_what_the_commands_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/make_options.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_exit_codes_are_those_of_the_code() -> None:
    from gratis import errors

    page = (ROOT / "docs/commands.md").read_text()
    for code in (errors.USER_ERROR, errors.PREEMPTED, errors.INTERRUPTED, errors.UNREAD):
        assert re.search(rf"^\| {code} \| ", page, re.MULTILINE)


def test_every_environment_variable_that_is_read_is_on_the_page() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    read = set()
    for path in (ROOT / "gratis").rglob("*.py"):
        call = r"environ(?:\.get\(|\.setdefault\(|\[)\s*\"([A-Z_]+)\""
        read |= set(re.findall(call, path.read_text()))
    assert "GRATIS_TOKEN" in read
    ours = {"COLUMNS"}  # set for a moment
    wild = [one.removesuffix("*") for one in re.findall(r"`([A-Z_]+\*)`", page)]
    for name in read - ours:
        assert f"`{name}`" in page or any(name.startswith(one) for one in wild), name
