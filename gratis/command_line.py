"""Reads a command line into a dataclass; what is wrong with it becomes one line (GratisError).

tyro parses, and would print a box of several lines. It hands each error to a hook first
(`tyro._errors`, private: pyproject.toml bounds tyro's version)."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import islice, takewhile
from typing import TYPE_CHECKING, TypeVar, get_type_hints

from gratis.errors import GratisError

if TYPE_CHECKING:
    from tyro._arguments import ArgumentDefinition
    from tyro._errors import ParseErrorEvent

Parsed = TypeVar("Parsed")
KINDS = {"INT": "a whole number", "FLOAT": "a number"}
SIMILAR = 0.7  # difflib's ratio from which an option is proposed for one that does not exist


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
    from tyro._errors import on_parse_error

    def stop(event: ParseErrorEvent) -> None:
        message = _message(event, arguments, kind)
        joint = "" if message.endswith("?") else ";"
        raise GratisError(f"{message}{joint} {program} --help says more")

    with on_parse_error(stop):
        return tyro.cli(
            kind,
            args=arguments,
            prog=program,
            description=description or kind.__doc__,
            default=tyro.MISSING_NONPROP if default is None else default,
        )


def check_ranges(options: object, ranges: dict[str, tuple[int, int]]) -> None:
    """GratisError for the first field whose value is outside its range (least, most); None is
    always allowed."""
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            option = name.replace("_", "-")
            raise GratisError(f"--{option} {value}: between {least:,} and {most:,}")


def _message(event: ParseErrorEvent, arguments: Sequence[str], kind: type) -> str:
    from tyro import _errors

    match event:
        # among missing ones too: perhaps what is missing, misspelled
        case (
            _errors.UnrecognizedArgs(tokens=tokens)
            | _errors.MissingArgs(unrecognized_tokens=[_, *_] as tokens)
        ):
            return _unknown(tokens, kind)
        case _errors.MissingArgs(missing_arguments=missing):
            return f"missing {', '.join(_description(one.arg) for one in missing)}"
        case _errors.InvalidChoice(argument=argument, value=value, choices=choices):
            allowed = " or ".join(sorted({*choices} - {"None"}))
            return f"{argument.display_name()} {value}: it may be {allowed}"
        case _errors.BadValue(argument=argument):
            return f"{argument.display_name()} has no value"
        case _errors.InstantiationFailure(argument=argument) if argument:
            return _wrong_value(argument, arguments)
    return " ".join(str(getattr(event, "message", event)).split())


def _unknown(tokens: list[str], kind: type) -> str:
    near = [option for token in tokens for option in _similar(token, [*_options(kind)])]
    way_out = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    return f"not understood: {', '.join(tokens)}{way_out}"


def _similar(token: str, options: list[str]) -> list[str]:
    name = token.partition("=")[0]
    if not name.startswith("--"):
        return []
    longer = [option for option in options if option.startswith(name)]
    return longer or difflib.get_close_matches(name, options, cutoff=SIMILAR)


def _options(kind: type) -> Iterator[str]:
    """Of a dataclass, and of those among its fields, whose options have no prefix."""
    types = get_type_hints(kind)
    for field in fields(kind):
        inner = types[field.name]
        if isinstance(inner, type) and is_dataclass(inner):
            yield from _options(inner)
        else:
            yield f"--{field.name.replace('_', '-')}"


def _description(argument: ArgumentDefinition) -> str:
    """An option's name and type; what a positional argument is."""
    text = argument.field.helptext
    if argument.is_positional() and (text := text() if callable(text) else text):
        return text.rstrip(".")
    return f"{argument.display_name()} {argument.lowered.metavar}"


def _wrong_value(argument: ArgumentDefinition, arguments: Sequence[str]) -> str:
    name, count = argument.display_name(), argument.lowered.nargs
    given = ""
    for number, token in enumerate(arguments, start=1):
        option, equals, value = token.partition("=")
        if option.replace("_", "-") == name:
            values = takewhile(lambda word: not word.startswith("--"), arguments[number:])
            most = count if isinstance(count, int) else None
            given = value if equals else " ".join(islice(values, most))
    if not given:
        return f"{name} has no value"
    expected = str(argument.lowered.metavar).removeprefix("{None}|").strip("{}")
    return f"{name} {given}: it takes {KINDS.get(expected, expected)}"
