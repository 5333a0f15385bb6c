"""How a rank's OpenMP threads should wait, on a CPU: real trainings of the sample, in turns.

    python -m benchmarks.train.spinning [--rounds 3] [--epochs 4]

Three ways: GNU's default (300,000 turns of a loop, some milliseconds, before a thread sleeps), what
gratis gives its ranks (`gratis.processes.SPINS`), and none (`OMP_WAIT_POLICY=passive`).
Each alone, and beside one process that computes all the time. From the ranks' own records, without
the start-up: milliseconds of a step, and its CPU time. Medians with the extremes of n rounds, in
which all of them take turns. 18 trainings: five minutes on two quiet cores."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gratis.history import records
from gratis.rates import attempt_counters

WAYS: dict[str, Mapping[str, str]] = {
    "default": {"GOMP_SPINCOUNT": "300000"},
    "gratis": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
BESIDE = ("alone", "beside")


class Cost(NamedTuple):
    """Of a step of training."""

    wall_ms: float
    cpu_ms: float


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    code = [sys.executable, "-c", "while True: pass"]
    beside = [subprocess.Popen(code) for _ in range(processes)]
    try:
        yield
    finally:
        for process in beside:
            process.kill()
            process.wait()


def train(folder: Path, name: str, epochs: int, way: Mapping[str, str]) -> Cost:
    """Trains in a folder in which the sample is drawn if it is not there yet."""
    clean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT",)}
    clean.pop("OMP_WAIT_POLICY", None)
    given = f"-m gratis train --runs runs --run {name} --port 0 --epochs {epochs}".split()
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, *given],
        cwd=folder,
        env=clean | {"PYTHONPATH": root} | dict(way),
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        sys.exit(f"training failed: {ended.stderr}")
    rest = attempt_counters(records(folder / "runs" / name), 1).rest
    return Cost(1e3 * rest.wall_s / rest.steps, 1e3 * rest.cpu_s / rest.steps)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} [{min(values):.1f}..{max(values):.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    costs: dict[tuple[str, str], list[Cost]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        train(folder, "untimed", 1, {})
        for number in range(options.rounds):
            for beside in BESIDE:
                for way, environment in WAYS.items():
                    with busy(beside == "beside"):
                        name = f"{way}-{beside}-{number}"
                        cost = train(folder, name, options.epochs, environment)
                    costs.setdefault((beside, way), []).append(cost)
                    print(f"{name}: {cost.wall_ms:.1f} ms, {cost.cpu_ms:.1f} CPU ms", flush=True)
    print(f"\na step of the sample on {os.cpu_count()} cores, n = {options.rounds}\n")
    print("| | ms | CPU ms |\n|---|---|---|")
    for (beside, way), known in costs.items():
        walls, cpus = ([*values] for values in zip(*known, strict=True))
        print(f"| {way}, {beside} | {spread(walls)} | {spread(cpus)} |")


if __name__ == "__main__":
    main()
