"""The result of all parts: one JSON file, grown by one measurement at a time, so that any part may
be cut short."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from gratis.atomic import atomic_output
from gratis.errors import GratisError

Value: TypeAlias = "float | str | list[float]"
Result = dict[str, Value]
Entry = dict[str, object]
SHOWN_ONLY = "commit"  # of the machine's facts: results of one code under two commits are alike
EXPECTED = (RuntimeError, OSError, ValueError, AssertionError, ImportError)


class OutOfTime(Exception):
    """The part's time is over; what is missing is measured by the next call."""


class Measurement(NamedTuple):
    """One of a part, which measures nothing before `make` is called.

    command: how, for the page. needs: seconds at least. stops: it ends with the part's time by
    itself."""

    name: str
    command: str
    make: Callable[[], Result]
    needs: float = 10
    stops: bool = False


@dataclass(kw_only=True)
class ResultFile:
    """Results by part and name. What is there is not measured again; what failed is once a call,
    after all else."""

    path: Path
    seconds: float  # that a part may take
    entries: dict[str, dict[str, Entry]] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    complete: list[str] = field(default_factory=list)  # parts of which everything has been tried
    again: bool = False  # try what failed before this call
    ends: float = 0.0
    tried: set[str] = field(default_factory=set)  # in this call's part

    @classmethod
    def open(cls, path: Path, machine: dict[str, str], seconds: float) -> ResultFile:
        """The results of this machine, code and data, perhaps empty ones; another's are kept beside
        them by their mark."""
        results = cls(path=path, machine=machine, seconds=seconds)
        if path.exists():
            there = results._read()
            if there.mark == results.mark:
                return there
            os.replace(path, there._aside())
            print(f"{path} is of another machine, code or data: kept as {there._aside().name}")
        if results._aside().exists():
            os.replace(results._aside(), path)
            return results._read()
        return results

    def _read(self) -> ResultFile:
        try:
            raw = json.loads(self.path.read_text())
            machine, entries = dict(raw["machine"]), raw["parts"]
            complete = list(raw.get("complete", []))
            for entry in (entry for part in entries.values() for entry in part.values()):
                describe_entry(entry), entry["command"]
                float(entry["load"]), float(entry["wall_s"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            why = f"{type(error).__name__} {error}".splitlines()[0]
            raise GratisError(
                f"{self.path} cannot be read ({why}); move it away to measure anew"
            ) from None
        if _identity(machine) == _identity(self.machine):
            machine = self.machine
        return replace(self, entries=entries, machine=machine, complete=complete)

    def _aside(self) -> Path:
        return self.path.with_name(f"{self.path.stem}-{self.mark}{self.path.suffix}")

    @property
    def mark(self) -> str:
        """Differs where machine, code or data do."""
        identity = json.dumps(_identity(self.machine), sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:8]

    @property
    def runs(self) -> Path:
        """Folder of trainings that belong to these results and to no others."""
        return self.path.parent / "runs" / self.mark

    def begin(self) -> None:
        """Of a part: its time starts."""
        self.ends, self.tried = time.monotonic() + self.seconds, set()

    @property
    def left(self) -> float:
        """Seconds that the part still has."""
        return self.ends - time.monotonic()

    def measure(self, part: int, measurement: Measurement) -> None:
        """Unless it is there. An error is an entry too. OutOfTime where the part has less time
        than it needs, or than its longest measurement took so far."""
        name, command, make, needs, stops = measurement
        known = self.entries.setdefault(str(part), {})
        if name in known and (name in self.tried or not (self.again and failure(known[name]))):
            return
        walls = [float(str(entry["wall_s"])) for entry in known.values()]
        longest = 0.0 if stops else max(walls, default=0.0)
        if self.left < max(needs, min(longest, 0.8 * self.seconds)):
            raise OutOfTime
        self.tried.add(name)
        began, entry = time.monotonic(), Entry(command=command, load=round(os.getloadavg()[0], 1))
        try:
            entry |= {"result": make()}
        except EXPECTED as error:  # the others can be measured
            entry |= {"error": (str(error).strip() or type(error).__name__).splitlines()[0]}
        except (GratisError, OutOfTime):
            raise
        except Exception as error:  # a defect, as a device never met before may show
            traceback.print_exc()
            entry |= {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        entry["wall_s"] = round(time.monotonic() - began, 1)
        known[name] = entry
        self.write()
        print(f"part {part}, {name}: {describe_entry(entry)}", flush=True)

    def write(self) -> None:
        whole = {"machine": self.machine, "complete": self.complete, "parts": self.entries}
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
