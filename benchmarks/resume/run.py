"""What of an epoch is lost, and what comes twice, when loaders are killed and resumed: the second
table of docs/loaders.md.

    python -m benchmarks.resume.run FOLDER                  # makes an environment and data there
    python -m benchmarks.resume.run FOLDER --only litdata gratis

307 pictures that say which sample they are, read from their pixels; batches of 8, two workers. A
process takes 7, 13 or 20 batches (seeds 0, 1, 2: n = 3), saves the loader's state as its
documentation says, and is killed with all that it started; another process loads the state, changed
or not, and reads the epoch to its end. A cell is: samples of the epoch that nobody got, samples
that came once too often; ranges where seeds differ; or the error. With ranks each saves and
loads its own state; where their number changes all load rank 0's, and batches are smaller or
larger, so that all ranks together still take 8."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

from benchmarks.environments import Requirements, python_of
from benchmarks.resume.adapters import ADAPTERS
from benchmarks.resume.pictures import SAMPLES, UNKNOWN
from benchmarks.resume.worker import SEEDS

CHECKOUT = Path(__file__).resolve().parents[2]
REQUIREMENTS: Requirements = (
    ("turboloader==2.39.0", "datago==2026.10.1", "torchdata==0.11.0", "webdataset==1.0.2"),
    ("litdata==0.2.76", "mosaicml-streaming==0.13.0", "grain==0.2.18", "torchvision==0.28.0"),
)
BATCH, WORKERS, STOPS = 8, 2, "7,13,20"
TIMEOUT_S = 240


@dataclass(frozen=True)
class Place:
    """Where a loader is tried: its name, the Python that has it, the folder with the data."""

    loader: str
    python: str
    folder: Path


@dataclass(frozen=True)
class Run:
    """Of all ranks together batches of `batch`."""

    batch: int = BATCH
    workers: int = WORKERS
    world: int = 1
    damaged: bool = False


SCENARIOS: dict[str, tuple[Run | None, Run]] = {  # what is killed, or None; what goes on
    "killed, resumed": (Run(), Run()),
    "with 3 workers": (Run(), Run(workers=3)),
    "with batches of 6": (Run(), Run(batch=6)),
    "by 2 ranks, resumed": (Run(world=2), Run(world=2)),
    "2 ranks, then 1": (Run(world=2), Run()),
    "1 rank, then 2": (Run(), Run(world=2)),
    "whole epoch, 2 ranks": (None, Run(world=2)),
    "one sample damaged": (None, Run(damaged=True)),
}
Outcome = dict[str, Any]  # ids, and error or cannot


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=list(ADAPTERS), metavar="LOADER")
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    python = python_of(folder, "loaders", REQUIREMENTS, beside=True)
    for name, argument in (("data", []), ("damaged", ["damaged"])):
        if not (folder / name).exists():
            made = folder / f"{name}.part"
            command = [python, "-m", "benchmarks.resume.data", made, *argument]
            subprocess.run([*map(str, command)], check=True, cwd=CHECKOUT)
            made.rename(folder / name)
    print("| loader | " + " | ".join(SCENARIOS) + " |\n" + "|---" * (len(SCENARIOS) + 1) + "|")
    notes: list[str] = []
    for loader in options.only:
        cells = [f"{loader} {_version(python, loader)}".replace(" ,", ",")]
        for title, (killed, resumed) in SCENARIOS.items():
            text = cell(scenario(Place(loader, python, folder), killed, resumed))
            print(f"{loader}, {title}: {text}", file=sys.stderr, flush=True)
            if text.startswith("error: "):
                message = text.removeprefix("error: ").replace(str(folder), "FOLDER")
                if message not in notes:
                    notes.append(message)
                text = f"error [{notes.index(message) + 1}]"
            cells.append(text)
        print("| " + " | ".join(cells) + " |", flush=True)
    for number, message in enumerate(notes, 1):
        print(f"[{number}] {message}")
    return 0


def _version(python: str, loader: str) -> str:
    package = ADAPTERS[loader][0]
    if package == "gratis":
        return ", this checkout"
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip()


def scenario(place: Place, killed: Run | None, resumed: Run) -> list[Outcome]:
    """For each seed, both processes' ids together."""
    out = place.folder / "out"
    out.mkdir(exist_ok=True)
    for file in out.iterdir():
        file.unlink()
    first: list[Outcome] = [{"ids": []}] * SEEDS
    if killed:
        first = _processes(place, killed, out / "first", None, STOPS)
        if any(len(one) > 1 for one in first):
            return first
    states = (out / "first", killed.world) if killed else None
    second = _processes(place, resumed, out / "second", states, "-")
    return [a | b | {"ids": a["ids"] + b["ids"]} for a, b in zip(first, second, strict=True)]


def _processes(
    place: Place, run: Run, out: Path, states: tuple[Path, int] | None, stops: str
) -> list[Outcome]:
    """All ranks at once; for each seed what they took together."""
    data = place.folder / ("damaged" if run.damaged else "data")
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"RENDEZVOUS": f"file://{out}.rendezvous"}
    started = []
    for rank in range(run.world):
        state = "-"
        if states:
            state = f"{states[0]}{rank if states[1] == run.world else 0}"
        numbers = run.batch // run.world, run.workers, rank, run.world, state, stops
        command = [place.python, "-m", "benchmarks.resume.worker", place.loader, data]
        command += [f"{out}{rank}", *numbers]
        with open(f"{out}{rank}.log", "w") as log:
            started.append(
                subprocess.Popen(
                    [*map(str, command)],
                    cwd=CHECKOUT,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    ranks = [_outcomes(process, Path(f"{out}{rank}")) for rank, process in enumerate(started)]
    together = []
    for seed in range(SEEDS):
        merged: Outcome = {}
        for outcomes in ranks:
            merged |= outcomes[seed]
        together.append(merged | {"ids": [i for one in ranks for i in one[seed]["ids"]]})
    return together


def _outcomes(process: subprocess.Popen[bytes], out: Path) -> list[Outcome]:
    """What the rank wrote for each seed; what it left behind is ended."""
    message = ""
    try:
        process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        message = "hangs"
    with suppress(ProcessLookupError):
        os.killpg(process.pid, SIGKILL)
    process.wait()
    lines = out.read_text().splitlines() if out.exists() else []
    outcomes: list[Outcome] = [json.loads(line) for line in lines]
    left = {"ids": [], "error": message or f"the process ends with {process.returncode}"}
    return outcomes + [left] * (SEEDS - len(outcomes))


def cell(outcomes: list[Outcome]) -> str:
    """Missing, twice, over the seeds; or what happened instead."""
    for key in ("cannot", "error"):
        for one in outcomes:
            if key in one:
                text = " ".join(one[key].strip(": ").split()).replace("|", "/")
                return text if key == "cannot" else f"error: {text}"
    counts = [counted(one["ids"]) for one in outcomes]
    parts = [_range([count[k] for count in counts]) for k in range(3)]
    unknown = "" if parts[2] == "0" else f", {parts[2]} other pictures"
    return f"{parts[0]}, {parts[1]}{unknown}"


def counted(ids: list[int]) -> tuple[int, int, int]:
    """Samples missing, deliveries too many, pictures that are none of the samples."""
    known = [one for one in ids if one != UNKNOWN]
    return SAMPLES - len(set(known)), len(known) - len(set(known)), len(ids) - len(known)


def _range(values: list[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)} to {max(values)}"


if __name__ == "__main__":
    sys.exit(main())
