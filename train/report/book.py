"""The result of all parts: one JSON file, grown by one measurement at a time, so that any part may be cut short."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Value: TypeAlias = "float | str | list[float]"
Result = dict[str, Value]


class OutOfTime(Exception):
    """The part's time is over; what is missing is measured by the next call."""


@dataclass(kw_only=True)
class Book:
    """Results by part and name. A name that is there is not measured again, unless it failed."""

    path: Path
    seconds: float  # that a part may take
    entries: dict[str, dict[str, dict[str, object]]] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)  # parts whose time was over before they were
    ends: float = 0.0

    @classmethod
    def opened(cls, path: Path, machine: dict[str, str], seconds: float) -> Book:
        """The one at this path if it is of this machine and these versions, else an empty one."""
        book = cls(path=path, machine=machine, seconds=seconds)
        if path.exists():
            raw = json.loads(path.read_text())
            if raw["machine"] == machine:
                book.entries, book.unfinished = raw["parts"], raw["unfinished"]
            else:
                path.rename(path.with_suffix(".other.json"))
                print(f"{path} is of another machine or other versions: kept as {path.with_suffix('.other.json').name}")
        return book

    @property
    def mark(self) -> str:
        """Differs where machine, versions or data do: runs of one book are not taken for another's."""
        return hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()[:8]

    def begin(self) -> None:
        """Of a part: its time starts."""
        self.ends = time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        """Seconds that the part still has."""
        return self.ends - time.monotonic()

    def measure(self, part: int, name: str, command: str, make: Callable[[], Result], *, needs: float = 10) -> None:
        """Unless it is there. needs: seconds; OutOfTime where the part has fewer. An error is an entry too."""
        known = self.entries.setdefault(str(part), {})
        if name in known and "error" not in known[name]:
            return
        if self.left < needs:
            raise OutOfTime
        began, entry = time.monotonic(), dict[str, object](command=command, load=round(os.getloadavg()[0], 1))
        try:
            entry |= {"result": make()}
        except (RuntimeError, OSError, ValueError, AssertionError) as error:  # the others can still be measured
            entry |= {"error": (str(error).strip() or type(error).__name__).splitlines()[0]}
        entry["wall_s"] = round(time.monotonic() - began, 1)
        known[name] = entry
        self.write()
        print(f"part {part}, {name}: {described(entry)}", flush=True)

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        whole = {"machine": self.machine, "unfinished": self.unfinished, "parts": self.entries}
        draft.write_text(json.dumps(whole, indent=1) + "\n")
        os.replace(draft, self.path)


def described(entry: dict[str, object]) -> str:
    """An entry's result in one line: medians with the extremes of n."""
    if "error" in entry:
        return f"failed: {entry['error']}"
    result = entry["result"]
    assert isinstance(result, dict)
    return "; ".join(f"{name} {shown(value)}" for name, value in result.items())


def shown(value: Value) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return number(value)
    if len(value) == 1:
        return number(value[0])
    return f"{number(statistics.median(value))} [{number(min(value))}..{number(max(value))}] (n = {len(value)})"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
