"""Fields of event records, read so that nothing a file may hold can raise.

A missing or absurd field reads as None or 0: a line written by another program can never become an
error of its reader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]

_SANE = 1e15  # no count of ours in one interval comes near; beyond it JSON numbers stop being exact
_NUMBERS = (float, int)  # not bool; asked for tens of times in each record
_PATH = re.compile(
    r"(?<![\w:/.])(?:[A-Za-z]:)?(?:\.{0,2}|~)/(?:[^\s/:'\",;()]+/)*([^\s/:'\",;()]*)"
)

# who may read an address, and with which key: neither is for others
_SECRETS = re.compile(r"(\w+://)(?:[^\s/@?'\"]*@)?([^\s?'\"]*)(\?[^\s'\"]*)?")


def number(record: Record, key: str) -> float | None:
    """The field if it is a finite number of sane size."""
    value: Any = record.get(key)
    return float(value) if type(value) in _NUMBERS and -_SANE < value < _SANE else None


def count(record: Record, key: str) -> float:
    """The field as a non-negative number; 0 where it is missing or not a number."""
    value: Any = record.get(key)
    return float(value) if type(value) in _NUMBERS and 0 < value < _SANE else 0.0


def integer(record: Record, key: str) -> int | None:
    """The field if it is a whole, non-negative number."""
    whole: Any = record.get(key)
    if type(whole) is int and 0 <= whole < _SANE:  # as nearly always
        return whole
    value = number(record, key)
    return int(value) if value is not None and value >= 0 and value == int(value) else None


def share(record: Record, key: str) -> float | None:
    """The field as a share, in [0, 1]."""
    value = number(record, key)
    return None if value is None else min(max(value, 0.0), 1.0)


def section(record: Record, key: str) -> Record:
    """The field if it is an object of further fields; else an empty one."""
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def text(record: Record, key: str) -> str | None:
    """The field as one line of at most 300 characters, its paths cut down to their last part.

    Error messages quote paths, and clients of the status server need not learn them."""
    line = _line(record, key)
    return None if line is None else _PATH.sub(lambda match: match[1] or "...", line)[:300]


def command(record: Record, key: str) -> str | None:
    """The field as a command of at most 1,000 characters; what its paths lack is marked: `.../name`
    for an absolute one and what is outside the working directory."""
    line = _line(record, key)
    return line and _PATH.sub(lambda match: f".../{match[1]}", line)[:1000]


def _line(record: Record, key: str) -> str | None:
    """The field as one line, without the user, the password and the query of addresses."""
    value = record.get(key)
    if not isinstance(value, str):
        return None
    line = " ".join(value.encode("utf-8", "replace").decode().split())
    return _SECRETS.sub(lambda match: match[1] + match[2] + ("?..." if match[3] else ""), line)
