"""A command line's mistakes in one line: what tyro draws as a box becomes GratisError.

A contract module (standard library alone). It knows tyro by its words (`WORDS`); those it does not
know are passed on as they are, and a test holds each one against the tyro that is installed."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from gratis.errors import GratisError

Parsed = TypeVar("Parsed")
COLOUR = re.compile("\x1b\\[[0-9;]*m")  # tyro's, on a terminal
KINDS = {"INT": "a whole number", "FLOAT": "a number"}


def parse(
    kind: type[Parsed],
    arguments: Sequence[str],
    program: str,
    *,
    description: str | None = None,
    default: Parsed | None = None,
) -> Parsed:
    """`arguments` as a `kind`, a dataclass whose fields are the options; GratisError for what is
    wrong with them.

    program: what was typed, for --help and hints. description: for --help; the dataclass's
    docstring unless given. default: where fields begin."""
    import tyro

    return parsed(
        lambda: tyro.cli(
            kind,
            args=arguments,
            prog=program,
            description=description or kind.__doc__,
            default=tyro.MISSING_NONPROP if default is None else default,
        )
    )


def parsed(parse: Callable[[], Parsed]) -> Parsed:
    """What a parser of the command line returns; all that it finds wrong there is one line
    (GratisError).

    The parser is tyro, which draws a box of several lines for it. It is asked again for one that
    breaks no word."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = parse()
    except SystemExit as end:
        if not end.code:  # --help
            raise
    else:
        if warnings := said.getvalue():  # on a terminal that is gone, writing nothing fails too
            sys.stderr.write(warnings)
        return found
    box, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        with contextlib.redirect_stderr(box), contextlib.suppress(SystemExit):
            parse()
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    raise GratisError(_line(COLOUR.sub("", box.getvalue())))


def _line(box: str) -> str:
    """Of a title, then paragraphs between rules: what is wrong, perhaps hints, and which --help to
    read."""
    lines = [line.strip("│|")[1:].rstrip() for line in box.splitlines()][1:-1]
    rules = [
        -1,
        *(number for number, line in enumerate(lines) if line and not line.strip("─-")),
        len(lines),
    ]
    parts = [lines[one + 1 : two] for one, two in pairwise(rules)]
    told, hints, footer = (
        " ".join(parts[0]),
        parts[1:-1],
        " ".join(line.strip() for line in parts[-1]),
    )
    found = next(
        ((words, match) for start, words in WORDS.items() if (match := re.match(start, told))), None
    )
    line = found[0](found[1], parts[0], hints) if found else told.rstrip(".")
    program = re.sub(r"^For full helptext, (run:?|see) | --help$", "", footer)
    return f"{line}{'' if line.endswith('?') else ';'} {program} --help says more"


Hints = list[list[str]]


def _missing(_: re.Match[str], lines: list[str], __: Hints) -> str:
    """Of each argument its name, or what it is if it has none: names are indented by four, what
    follows by eight."""
    found: list[str] = []
    for line in lines[1:]:
        if not line.startswith(" " * 8):
            found.append(line.strip())
        elif not found[-1].startswith("-"):
            found[-1] = line.strip().removesuffix("(required)").rstrip(" .")
    return f"missing {', '.join(found)}"


def _no_choice(match: re.Match[str], _: list[str], __: Hints) -> str:
    choices = sorted(set(re.findall(r"'(.*?)'", match[3])) - {"None"})
    return f"{match[2]} {match[1]}: it may be {' or '.join(choices)}"


def _no_value(match: re.Match[str], _: list[str], hints: Hints) -> str:
    if several := re.match(
        r"no type matching \{None\}\|\{(.*?)\} could be instantiated from (\[.*?\])\.", match[2]
    ):
        given = " ".join(re.findall(r"'(.*?)'", several[2]))
        return f"{match[1]} {given}: it takes {several[1]}" if given else f"{match[1]} has no value"
    kind = hints[0][1].rpartition(" ")[2].removeprefix("{None}|") if hints else ""
    value = re.search(r"from \['(.*?)'\]|: '(.*)'$", match[2])
    if value and kind in KINDS:
        return f"{match[1]} {value[1] or value[2] or ''}: it takes {KINDS[kind]}"
    return f"{match[1]}: {match[2]}"


def _unknown(match: re.Match[str], _: list[str], hints: Hints) -> str:
    near = [
        line.split()[0].rstrip(",") for hint in hints for line in hint if line.startswith("    --")
    ]
    known = [
        hint[0].removeprefix("Available subcommands: ")
        for hint in hints
        if hint[0].startswith("Available")
    ]
    way_out = (
        f"; did you mean {' or '.join(dict.fromkeys(near))}?"
        if near
        else f"; there are {known[0]}"
        if known
        else ""
    )
    return f"not understood: {match[1]}{way_out}"


# how tyro begins -> what is said instead: the offending value, then what is taken; other words of
# its stay
WORDS: dict[str, Callable[[re.Match[str], list[str], Hints], str]] = {
    r"Missing from ": _missing,
    r"Missing value for argument '(.*?)'": lambda match, _, __: f"{match[1]} has no value",
    r"invalid choice '(.*)' for argument '(.*?)'\. Expected one of \((.*)\)": _no_choice,
    r"Error parsing (.*?): (.*)": _no_value,
    r"Unrecognized options: (.*)": _unknown,
    r"Expected one of \{(.*)\}": lambda match, _, __: f"no command is given; there are {match[1]}",
}
