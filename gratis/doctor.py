"""Says what this machine has and what that means for gratis: `make doctor`, or `gratis doctor`.

Lists old runs and abandoned shards too; `--remove PATH` removes one of those, and nothing else.
It needs the standard library alone, so that it also runs where nothing could be installed. Exit
code 1 if something keeps gratis from working."""

from __future__ import annotations

import argparse
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from gratis.history import read_attempt

GB = 1e9
BYTES_AN_IMAGE = (
    33_000  # 500 ILSVRC photographs as 256 px JPEGs of quality 95 made a shard of 16.5 MB
)
IMAGENET = 1_331_167  # images, both splits
CUDA_13_DRIVER = (
    580  # the first that runs CUDA 13, which the wheels of torch and DALI are built with
)
# the prefix of AVX2 instructions such as vpmovzxbw: absent from an SSE-only build
VEX_256_0F38 = b"\xc4\xe2\x7d"
ASK_TORCH = "import torch as t; print(t.__version__, t.version.cuda, t.cuda.device_count())"

Level = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """`bad` keeps gratis from working, `note` makes it slower or surprises."""

    level: Level
    what: str
    meaning: str


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help says more\n")


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="gratis doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of all runs; default: runs"
    )
    parser.add_argument(
        "--shards",
        type=Path,
        nargs="*",
        help="folders to look at; default: ./shards* and sample/shards",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="of the status server; default: 8000"
    )
    parser.add_argument(
        "--remove", type=Path, action="append", default=[], help="an old run or abandoned shards"
    )
    options = parser.parse_args(arguments)
    shards = options.shards or [*Path().glob("shards*"), Path("sample/shards")]
    left = [*old_runs(options.runs), *abandoned(shards)]
    if options.remove:
        return remove(options.remove, left)
    found = [*cpu(), *python(), *pillow(), *torch_and_gpus(), *dali(), *room(), port(options.port)]
    for finding in found:
        print(f"{finding.level:<5} {finding.what}: {finding.meaning}")
    for leftover in left:
        print(f"left  {leftover}")
    if left:
        print(
            "      remove what you do not need by --remove PATH (make doctor ARGS='--remove PATH')"
        )
    return int(any(finding.level == "bad" for finding in found))


def cpu() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    yield Finding(
        "good" if cores > 1 else "note", f"{cores} CPU cores", "as many threads decode images"
    )
    text = read("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", text)
    flags = set(text.split())
    name = model[1] if model else platform.machine()
    if "avx2" in flags:
        wide = ", AVX-512 too" if "avx512f" in flags else ""
        yield Finding("good", f"{name} with AVX2{wide}", "resizing and decoding use it")
    else:
        yield Finding(
            "note",
            f"{name} without AVX2",
            "everything works; making shards takes about twice the time",
        )


def python() -> Iterator[Finding]:
    present = sys.version_info[:2]
    level: Level = "good" if present >= (3, 11) else "note" if present >= (3, 10) else "bad"
    means = {
        "good": "new enough",
        "note": "gratis runs; make install needs 3.11 or later: give another one by PYTHON=...",
        "bad": "gratis needs 3.10 or later: give another one by PYTHON=...",
    }[level]
    yield Finding(level, f"Python {platform.python_version()}", means)


def pillow() -> Iterator[Finding]:
    simd, plain = version("pillow-simd"), version("pillow")
    spec = importlib.util.find_spec("PIL._imaging") if importlib.util.find_spec("PIL") else None
    if spec is None or spec.origin is None:
        yield Finding("bad", "no Pillow", "`make install` brings it")
    elif simd and plain:
        yield Finding(
            "bad",
            f"Pillow {plain} over pillow-simd {simd}",
            "same files, one lost: `pip uninstall pillow pillow-simd`, `make install`",
        )
    elif not simd:
        yield Finding(
            "note",
            f"Pillow {plain}",
            "same pixels as pillow-simd's, slower: apt install gcc python3-dev "
            "libjpeg-dev zlib1g-dev, then `make install`",
        )
    elif VEX_256_0F38 in Path(spec.origin).read_bytes():
        yield Finding(
            "good",
            f"pillow-simd {simd}, compiled with AVX2",
            "the fastest resize there is on a CPU",
        )
    else:
        yield Finding(
            "note", f"pillow-simd {simd} without AVX2", "resizing takes about twice the time"
        )


def torch_and_gpus() -> Iterator[Finding]:
    gpus = ask(
        "nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"
    ).splitlines()
    for number, line in enumerate(gpus):
        name, driver, memory = line.split(", ")
        major = driver.partition(".")[0]
        old = major.isdecimal() and int(major) < CUDA_13_DRIVER
        means = (
            f"too old for CUDA 13: install {CUDA_13_DRIVER} or later"
            if old
            else "CUDA 13 runs on it"
        )
        yield Finding(
            "bad" if old else "good", f"GPU {number} {name}, {memory}, driver {driver}", means
        )
    if len(gpus) % 2 and len(gpus) > 1:
        yield Finding(
            "note", f"{len(gpus)} GPUs", f"towers come in pairs: {len(gpus) - 1} are used"
        )
    if not gpus:
        yield Finding(
            "note", "no GPU", "everything runs on the CPU, which is for trying things out"
        )
    if version("torch") is None:
        yield Finding("bad", "no torch", "`make install` brings it; shards and status need none")
        return
    said = ask(sys.executable, "-c", ASK_TORCH).split()
    if len(said) != 3:
        yield Finding(
            "bad",
            f"torch {version('torch')}",
            "cannot be imported: rm -r .venv, then `make install`",
        )
        return
    build, cuda, seen = said
    if cuda == "None":
        means = (
            "it sees no GPU: install the build for CUDA 13"
            if gpus
            else "right for a machine without a GPU"
        )
        yield Finding("bad" if gpus else "good", f"torch {build}, built for CPUs", means)
    elif int(seen) < len(gpus):
        yield Finding(
            "bad",
            f"torch {build}, CUDA {cuda}",
            f"sees {seen} of {len(gpus)} GPUs: driver or container?",
        )
    else:
        yield Finding("good", f"torch {build}, CUDA {cuda}", f"sees {seen} GPUs")


def dali() -> Iterator[Finding]:
    for name in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
        if build := version(name):
            yield Finding(
                "good", f"{name} {build}", "decodes on CPUs, and on GPUs where there are some"
            )
            return
    yield Finding("bad", "no DALI", "`make install` brings it (Linux on x86-64 or aarch64)")


def room() -> Iterator[Finding]:
    need, free = BYTES_AN_IMAGE * IMAGENET / GB, shutil.disk_usage(".").free / GB
    means = f"ImageNet's shards take about {need:.0f} GB"
    yield Finding(
        "good" if free > need else "note" if free > 1 else "bad",
        f"{free:.0f} GB of disk free here",
        means,
    )
    memory = {
        key: int(kb) / 1e6 for key, kb in re.findall(r"(\w+):\s+(\d+) kB", read("/proc/meminfo"))
    }
    available = memory.get("MemAvailable", 0.0)
    means = "a rank needs 1 to 2 GB; what is left keeps shards in memory"
    yield Finding(
        "good" if available > 4 else "note", f"{available:.0f} GB of memory available", means
    )
    shared = shutil.disk_usage("/dev/shm").total / GB if Path("/dev/shm").exists() else 0.0
    if shared < 0.5:
        yield Finding(
            "note",
            f"{shared:.2f} GB of /dev/shm",
            "processes exchange through it: give a container --ipc=host",
        )


def port(number: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OverflowError:
            return Finding("note", f"port {number} is none", "a port is a number from 0 to 65535")
        except OSError:
            way_out = f"`make train` takes the next free one, `make serve` wants PORT={number + 1}"
            return Finding("note", f"port {number} is taken", way_out)
    return Finding("good", f"port {number} is free", "the status page will be there")


@dataclass(frozen=True)
class Leftover:
    """What nobody writes to at present."""

    path: Path
    what: str
    days: float
    size: float  # bytes

    def __str__(self) -> str:
        return f"{self.path}: {self.what}, {self.days:.0f} days old, {self.size / GB:.2f} GB"


def old_runs(runs: Path) -> Iterator[Leftover]:
    for events in sorted(runs.glob("*/rank-0.jsonl")):
        if not any(locked(events.parent / name) for name in ("starter", "lock")):  # gratis.locks
            end = read_attempt(events).outcome or "broken off"
            yield leftover(events.parent, f"run, {end}", events)
    # no lock tells whether one that has no end still lives
    for events in sorted(runs.glob("*/shards.jsonl")):
        over = read_attempt(events).outcome
        if over and not (events.parent / "rank-0.jsonl").exists():
            yield leftover(events.parent, f"the shard stage's events, {over}", events)


def abandoned(folders: list[Path]) -> Iterator[Leftover]:
    for folder in folders:
        # without a plan it is no work of the shards command, and the tars are somebody's own
        work = folder / ".work"
        if (
            (work / "plan.json").is_file()
            and not (folder / "manifest.json").exists()
            and not locked(work / "lock")
        ):
            yield leftover(
                folder, "shards begun and not finished (the command that began them goes on)", work
            )


def leftover(path: Path, what: str, dated: Path) -> Leftover:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Leftover(path, what, (time.time() - dated.stat().st_mtime) / 86_400, size)


def locked(path: Path) -> bool:
    """Whether a living process holds it."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def remove(asked: list[Path], left: list[Leftover]) -> int:
    known = {leftover.path.resolve(): leftover for leftover in left}
    for path in asked:
        if path.is_symlink() or path.resolve() not in known:
            print(
                f"error: {path} is no old run and no abandoned shards; nothing was removed of it",
                file=sys.stderr,
            )
            return 2
        target = known.pop(path.resolve())
        if (
            path / ".work"
        ).is_dir():  # the folder may hold other things: only what the shard stage wrote goes
            for name in planned(path / ".work" / "plan.json"):
                (path / name).unlink(missing_ok=True)
            shutil.rmtree(path / ".work")
            if not any(path.iterdir()):
                path.rmdir()
        else:
            shutil.rmtree(path)
        print(f"removed {target}")
    return 0


def planned(plan: Path) -> Iterator[str]:
    """The files that the shards command may have written by its plan
    (gratis.preprocess.stages.plan); none if it cannot be read."""
    try:
        said = json.loads(plan.read_text())
        shards = {
            split: -(-count // said["draft"]["samples_per_shard"])
            for split, count in said["counts"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return
    yield from ("stats.npz", "rejects.jsonl")
    for split, count in shards.items():
        yield f"{split}.index.npz"
        yield from (
            f"{split}-{number:05d}.{kind}" for number in range(count) for kind in ("tar", "idx")
        )


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def ask(*command: str) -> str:
    """What a command prints; nothing if there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
