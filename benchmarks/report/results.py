"""The results: one JSON file, grown by one measurement at a time, so that whatever ends the report
leaves what it knew."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from gratis.atomic import atomic_output
from gratis.errors import GratisError

Value: TypeAlias = "float | str | list[float]"
Result = dict[str, Value]
Entry = dict[str, object]
SHOWN_ONLY = "commit"  # of the machine's facts: results of one code under two commits are alike


@dataclass(kw_only=True)
class ResultFile:
    """Results by key, of one machine, code and data. What is there and did not fail is not measured
    again."""

    path: Path
    machine: dict[str, str] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, machine: dict[str, str]) -> ResultFile:
        """Those that are there, if they are of this machine, code and data; others are kept beside
        it. GratisError for a file that cannot be read."""
        results = cls(path=path, machine=machine)
        if not path.exists():
            return results
        there = results._read()
        if _identity(there.machine) == _identity(machine):
            results.entries = there.entries
            return results
        aside = path.with_name(f"{path.stem}-{there.mark}{path.suffix}")
        os.replace(path, aside)
        print(f"{path} is of another machine, code or data: kept as {aside.name}")
        return results

    def _read(self) -> ResultFile:
        try:
            raw = json.loads(self.path.read_text())
            there = ResultFile(path=self.path, machine=dict(raw["machine"]), entries=raw["entries"])
            for entry in there.entries.values():
                describe_entry(entry)
                float(str(entry["wall_s"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            why = f"{type(error).__name__} {error}".splitlines()[0]
            raise GratisError(
                f"{self.path} cannot be read ({why}); move it away to measure anew"
            ) from None
        return there

    @property
    def mark(self) -> str:
        """Differs where machine, code or data do."""
        identity = json.dumps(_identity(self.machine), sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:8]

    def write(self) -> None:
        whole = {"machine": self.machine, "entries": self.entries}
        publish(self.path, json.dumps(whole, indent=1) + "\n")


def publish(path: Path, text: str) -> None:
    """Whoever reads it, or ends this, finds one state or the other."""
    with atomic_output(path, "make room, or choose another --out") as draft:
        draft.write_text(text)


def _identity(machine: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in machine.items() if name != SHOWN_ONLY}


def failure(entry: Entry) -> str | None:
    """What went wrong, in words: it could not be measured, or tests of it failed."""
    if "error" in entry:
        return str(entry["error"])
    failed = result_of(entry).get("failed")
    return str(failed) if failed else None


def describe_entry(entry: Entry) -> str:
    """An entry's result in one line: medians with the extremes of n."""
    if "error" in entry:
        return f"failed: {entry['error']}"
    return "; ".join(f"{name} {format_value(value)}" for name, value in result_of(entry).items())


def result_of(entry: Entry) -> Result:
    """Of an entry without an error."""
    result = entry["result"]
    assert isinstance(result, dict)
    return result


def format_value(value: Value) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return format_number(value)
    if len(value) == 1:
        return format_number(value[0])
    middle, low, high = map(format_number, (statistics.median(value), min(value), max(value)))
    return f"{middle} [{low}..{high}] (n = {len(value)})"


def format_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
