"""A sample's class number: its `.cls` member, or a field of its `.json`. Both may be there, and
must agree.

    x.cls     3
    x.json    {"label": 3}, or "cls", "class_id", "Class-Index" ... ; "3" and 3.0 are 3

A text in such a field, or in "class_name" and the like, is the class's name.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import NamedTuple

from gratis import addresses
from gratis.errors import GratisError
from gratis.preprocess.sources.tar import Member, extension_of

LONGEST_LABEL = 16 << 20  # bytes of a .cls or .json member
# five times all of ImageNet's; the manifest lists every number up to the largest
MOST_CLASSES = 100_000
SHOWN = 5  # members in a message
LONGEST_NAME = 200  # characters of a class's name
# letters alone, in small: "Class-Index" and "classIndex" are "classindex"
LABEL_FIELDS = frozenset(
    """label cls class target classid classidx classindex classlabel classno classnumber labelid
    labelidx labelindex labelno labelnumber targetid clsid clsidx""".split()
)
# the first one that is there names the class
NAME_FIELDS = tuple("classname labelname labeltext class label cls wnid synset".split())
WNID = re.compile(r"n\d{8}(?=_)")


class Label(NamedTuple):
    """A class number, and the class's name where the sample tells it."""

    number: int
    name: str | None


class NoLabelError(GratisError):
    """The sample has no label."""


def read_label(archive: addresses.Bytes, path: str, key: str, parts: list[Member]) -> Label:
    """The label of the sample of this key and these members. NoLabelError, which says what there is
    instead, if it has none; GratisError for what is no class number, and for two that disagree."""
    numbers: dict[int, str] = {}  # and the member that says so
    others: list[object] = []
    name = None
    for member in parts:
        ending = label_ending(member.name)
        if not ending or member.size > LONGEST_LABEL:
            continue
        data = archive.read(member.offset, member.size)
        if ending == "cls":
            values: list[object] = [_value(data)]
        else:
            fields = _fields(data)
            label_fields, name_fields = _known_fields(tuple(fields))
            values = [fields[field] for field in label_fields]
            name = name or _name(fields, name_fields)
        for value in values:
            number = value if type(value) is int else whole_number(value)
            if number is not None:
                numbers.setdefault(number, member.name)
            elif value is not None:
                others.append(value)
    if len(numbers) == 1:
        number = next(iter(numbers))
        if not 0 <= number < MOST_CLASSES:
            raise _no_number(path, key, number)
        return Label(number, name)
    if numbers:
        told = " and ".join(f"{number} in {where[:200]!r}" for number, where in numbers.items())
        raise GratisError(f"{path}: the labels of {key[:200]!r} disagree, {told}; mend one")
    if others:
        raise _no_number(path, key, others[0])
    raise NoLabelError(f"{path}: {key[:200]!r} has no label: {_found_instead(archive, parts)}")


def label_ending(name: str) -> str:
    """The extension, "cls" or "json", of a member that may hold a label; "" for all others."""
    if name[-3:] in ("jpg", "png", "txt"):  # most are, and what follows takes longer
        return ""
    ending = extension_of(name).lower()
    return ending if ending in ("cls", "json") else ""


def _no_number(path: str, key: str, value: object) -> GratisError:
    wrong = f"the label of {key[:200]!r} is {str(value)[:50]!r}"
    return GratisError(
        f"{path}: {wrong}, no class number from 0 to {MOST_CLASSES - 1:,}; mend it, or go without "
        f"labels: --unlabelled"
    )


def _value(data: bytes) -> object:
    """Of a .cls member."""
    text = data.strip()
    if text.isdigit() and len(text) < 20:  # 03 is no JSON
        return int(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.decode(errors="replace")


def _fields(data: bytes) -> dict[str, object]:
    """Of a .json member; {} if it is no object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@lru_cache(maxsize=1024)
def _known_fields(fields: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Which of these fields hold a label, and which a class's name, the best first."""
    letters = {field: "".join(filter(str.isalpha, field)).lower() for field in fields}
    names = [field for field in fields if letters[field] in NAME_FIELDS]
    names.sort(key=lambda field: NAME_FIELDS.index(letters[field]))
    return [field for field in fields if letters[field] in LABEL_FIELDS], names


def whole_number(value: object) -> int | None:
    """A whole number, also as text or as 3.0; None for anything else, and for True."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,20}(\.0*)?\s*", value):
        return int(value.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _name(fields: dict[str, object], name_fields: list[str]) -> str | None:
    for field in name_fields:
        value = fields[field]
        if isinstance(value, str) and whole_number(value) is None:
            name = " ".join(value.split())[:LONGEST_NAME]
            if name and name == name.encode(errors="replace").decode():  # no lone surrogates
                return name
    return None


def _found_instead(archive: addresses.Bytes, parts: list[Member]) -> str:
    """What a sample without a label has: its members in order."""
    shown = ", ".join(f"{part.name[-200:]!r} ({part.size:,} B)" for part in parts[:SHOWN])
    more = f" and {len(parts) - SHOWN:,} more" if len(parts) > SHOWN else ""
    reasons = [reason for part in parts if (reason := _why_no_label(archive, part))]
    why = reasons[0] if reasons else "none is a .cls or .json"
    return f"of its members in order, {shown}{more}, {why}"


def _why_no_label(archive: addresses.Bytes, part: Member) -> str | None:
    ending = label_ending(part.name)
    if ending and part.size > LONGEST_LABEL:
        return f"the .{ending} is longer than {LONGEST_LABEL:,} bytes, the most that is read"
    if ending == "json":
        fields = _fields(archive.read(part.offset, part.size))
        there = ", ".join(repr(field[:50]) for field in list(fields)[:SHOWN])
        return f"the .json has no field label, cls or class_id but {there or 'none at all'}"
    if ending == "cls":
        return "the .cls holds none"
    if label_ending("x." + part.name.rpartition(".")[2]):
        last = extension_of(part.name)
        return f"none is a .cls or .json: a key ends at its first dot, so that one is a .{last}"
    return None


class ClassNames:
    """What the classes of a source are called, as its samples tell it: by a field of their .json,
    or by the folder or the wnid in their keys (`n01440764_10026`)."""

    def __init__(self) -> None:
        self._told: dict[int, str] | None = {}
        self._in_keys: dict[int, str] | None = {}

    def add(self, label: Label, key: str) -> None:
        number, name = label
        if name and self._told is not None and self._told.setdefault(number, name) != name:
            self._told = None  # a class of several names: they are not the classes'
        if self._in_keys is not None:
            name = _name_in_key(key)
            if not name or self._in_keys.setdefault(number, name) != name:
                self._in_keys = None

    def names(self) -> dict[int, str]:
        """By class number; {} where samples tell none, or contradict each other."""
        if self._told:
            return self._told
        names = self._in_keys or {}
        # one folder for all is no class
        return names if len(names) > 1 and len(set(names.values())) == len(names) else {}


def _name_in_key(key: str) -> str | None:
    folder, _, stem = key.rpartition("/")
    if wnid := WNID.match(stem):
        return wnid[0]
    name = folder.rpartition("/")[2]
    return name if name.isprintable() and name != "." else None
