"""Says what this machine has and what that means for gratis: `gratis doctor`, or `make doctor`.

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
from gratis.memory import available_bytes

GB = 1e9
# 500 ILSVRC photographs as 256 px JPEGs of quality 95 made a shard of 16.5 MB
BYTES_AN_IMAGE = 33_000
IMAGENET = 1_331_167  # images, both splits
# the first that runs CUDA 13, which the wheels of torch and DALI are built with
CUDA_13_DRIVER = 580
# the prefix of AVX2 instructions such as vpmovzxbw: absent from an SSE-only build
VEX_256_0F38 = b"\xc4\xe2\x7d"
ASK_PILLOW = (
    "from PIL import features as f; print(*(n for n in ('webp', 'libtiff') if not f.check(n)))"
)
CHECKOUT = (Path(__file__).parents[1] / "Makefile").is_file()  # else installed by pip
SPLITS = ("train", "val")  # of a plan; any other name would be a path that somebody else chose
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")  # packages
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
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="gratis doctor", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--runs", type=Path, default=Path("runs"), help="folder of all runs; default: runs")
    shown = "folders to look at; default: ./shards* and sample/shards"
    add("--shards", type=Path, nargs="*", help=shown)
    add("--port", type=int, default=8000, help="of the status server; default: 8000")
    removed = "an old run or abandoned shards"
    add("--remove", type=Path, action="append", default=[], help=removed)
    options = parser.parse_args(arguments)
    shards = options.shards or [*Path().glob("shards*"), Path("sample/shards")]
    left = [*old_runs(options.runs), *abandoned_shards(shards)]
    if options.remove:
        return remove(options.remove, left)
    findings = [*cpu(), *python(), *pillow(), *gpus_and_torch(), *dali(), *engine()]
    findings += disk_and_memory()
    for finding in [*findings, port(options.port)]:
        print(f"{finding.level:<5} {finding.what}: {finding.meaning}")
    for leftover in left:
        print(f"left  {leftover}")
    if left:
        print("      remove what you do not need by gratis doctor --remove PATH")
    return int(any(finding.level == "bad" for finding in findings))


def install_hint(package: str) -> str:
    return f"`{'make install' if CHECKOUT else f'pip install {package!r}'}` brings it"


def cpu() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    level: Level = "good" if cores > 1 else "note"
    yield Finding(level, f"{cores} CPU cores", "as many threads decode images")
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    flags = set(text.split())
    name = model[1] if model else platform.machine()
    if "avx2" in flags:
        wide = ", AVX-512 too" if "avx512f" in flags else ""
        yield Finding("good", f"{name} with AVX2{wide}", "resizing and decoding use it")
    else:
        means = "everything works; making shards takes about twice the time"
        yield Finding("note", f"{name} without AVX2", means)


def python() -> Iterator[Finding]:
    present = sys.version_info[:2]
    level: Level = "good" if present >= (3, 11) else "note" if present >= (3, 10) else "bad"
    another = "give another one by PYTHON=..." if CHECKOUT else "make an environment of that"
    means = {
        "good": "new enough",
        "note": f"gratis runs; the locked versions need 3.11 or later: {another}",
        "bad": f"gratis needs 3.10 or later: {another}",
    }[level]
    yield Finding(level, f"Python {platform.python_version()}", means)


def pillow() -> Iterator[Finding]:
    simd, plain = version("pillow-simd"), version("pillow")
    spec = importlib.util.find_spec("PIL._imaging") if importlib.util.find_spec("PIL") else None
    if spec is None or spec.origin is None:
        yield Finding("bad", "no Pillow", install_hint("pillow>=11"))
        return
    if simd and plain:
        again = "`make install`" if CHECKOUT else "`pip install pillow`"
        means = f"same files, one lost: `pip uninstall pillow pillow-simd`, {again}"
        yield Finding("bad", f"Pillow {plain} over pillow-simd {simd}", means)
    elif not simd:
        headers = "apt install gcc python3-dev libjpeg-dev zlib1g-dev libwebp-dev libtiff-dev"
        build = f"{headers}, then `make install`" if CHECKOUT else "a source checkout builds it"
        slower = "shards take longer than with pillow-simd, and half a per cent of their values"
        means = f"{slower} differ from its by up to 2 levels: {build}"
        yield Finding("note", f"Pillow {plain}", means)
    elif VEX_256_0F38 in Path(spec.origin).read_bytes():
        what = f"pillow-simd {simd}, compiled with AVX2"
        yield Finding("good", what, "the fastest resize there is on a CPU")
    else:
        what = f"pillow-simd {simd} without AVX2"
        yield Finding("note", what, "resizing takes about twice the time")
    if lacking := ask(sys.executable, "-c", ASK_PILLOW).split():
        again = "apt install libwebp-dev libtiff-dev, then `make install`"
        again = again if CHECKOUT else "`pip install --force-reinstall pillow`"
        means = f"shards cannot be made of such images: {again}"
        yield Finding("note", f"Pillow is built without {' and '.join(lacking)}", means)


def gpus_and_torch() -> Iterator[Finding]:
    query = "--query-gpu=name,driver_version,memory.total"
    gpus = ask("nvidia-smi", query, "--format=csv,noheader").splitlines()
    for number, line in enumerate(gpus):
        name, driver, memory = line.split(", ")
        major = driver.partition(".")[0]
        old = major.isdecimal() and int(major) < CUDA_13_DRIVER
        what = f"GPU {number} {name}, {memory}, driver {driver}"
        if old:
            means = f"too old for CUDA 13: install {CUDA_13_DRIVER} or later"
            yield Finding("bad", what, means)
        else:
            yield Finding("good", what, "CUDA 13 runs on it")
    if len(gpus) % 2 and len(gpus) > 1:
        means = f"towers come in pairs: {len(gpus) - 1} are used"
        yield Finding("note", f"{len(gpus)} GPUs", means)
    if not gpus:
        means = "everything runs on the CPU, which is for trying things out"
        yield Finding("note", "no GPU", means)
    if version("torch") is None:
        means = f"{install_hint('torch>=2.8,<2.15')}; shards and status need none"
        yield Finding("bad", "no torch", means)
        return
    answer = ask(sys.executable, "-c", ASK_TORCH).split()
    if len(answer) != 3:
        again = "rm -r .venv, then `make install`"
        again = again if CHECKOUT else "`pip install --force-reinstall torch`"
        yield Finding("bad", f"torch {version('torch')}", f"cannot be imported: {again}")
        return
    build, cuda, seen = answer
    if cuda == "None" and gpus:
        means = "it sees no GPU: install the build for CUDA 13"
        yield Finding("bad", f"torch {build}, built for CPUs", means)
    elif cuda == "None":
        means = "right for a machine without a GPU"
        yield Finding("good", f"torch {build}, built for CPUs", means)
    elif int(seen) < len(gpus):
        means = f"sees {seen} of {len(gpus)} GPUs: driver or container?"
        yield Finding("bad", f"torch {build}, CUDA {cuda}", means)
    else:
        yield Finding("good", f"torch {build}, CUDA {cuda}", f"sees {seen} GPUs")


def dali() -> Iterator[Finding]:
    for name in DALI:
        if build := version(name):
            means = "decodes on CPUs, and on GPUs where there are some"
            yield Finding("good", f"{name} {build}", means)
            return
    means = f"{install_hint('nvidia-dali-cuda130>=2')} (Linux on x86-64 or aarch64)"
    yield Finding("bad", "no DALI", means)


def engine() -> Iterator[Finding]:
    if Path(__file__).with_name("loader").joinpath("engine/libgratis_engine.native.so").is_file():
        yield Finding("good", "the loader's engine is compiled", "decodes JPEGs on CPUs")
        return
    instead = "DALI decodes on CPUs, for about twice the time"
    if not any(map(version, DALI)):
        instead = "Pillow decodes, for several times the time"
    means = f"{instead}: `make install` with a C compiler"
    yield Finding("note", "the loader's engine is not compiled", means)


def disk_and_memory() -> Iterator[Finding]:
    need, free = BYTES_AN_IMAGE * IMAGENET / GB, shutil.disk_usage(".").free / GB
    means = f"ImageNet's shards take about {need:.0f} GB"
    level: Level = "good" if free > need else "note" if free > 1 else "bad"
    yield Finding(level, f"{free:.0f} GB of disk free here", means)
    available = available_bytes() / GB
    means = "a rank needs 1 to 2 GB; what is left keeps shards in memory"
    level = "good" if available > 4 else "note"
    yield Finding(level, f"{available:.0f} GB of memory available", means)
    shared = shutil.disk_usage("/dev/shm").total / GB if Path("/dev/shm").exists() else 0.0
    if shared < 0.5:
        means = "processes exchange through it: give a container --ipc=host"
        yield Finding("note", f"{shared:.2f} GB of /dev/shm", means)


def port(number: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OverflowError:
            return Finding("note", f"port {number} is none", "a port is a number from 0 to 65535")
        except OSError:
            other = f"gratis status wants --port {number + 1}"
            means = f"gratis train takes the next free one, {other}"
            return Finding("note", f"port {number} is taken", means)
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


def abandoned_shards(folders: list[Path]) -> Iterator[Leftover]:
    for folder in folders:
        # without a plan it is no work of the shards command, and the tars are somebody's own
        work = folder / ".work"
        begun = (work / "plan.json").is_file() and not (folder / "manifest.json").exists()
        if begun and not locked(work / "lock"):
            what = "shards begun and not finished (the command that began them goes on)"
            yield leftover(folder, what, work)


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
            way_out = "nothing was removed of it"
            message = f"error: {path} is no old run and no abandoned shards; {way_out}"
            print(message, file=sys.stderr)
            return 2
        target = known.pop(path.resolve())
        # the folder may hold other things: only what the shard stage wrote goes
        if (path / ".work").is_dir():
            for name in planned_files(path / ".work" / "plan.json"):
                (path / name).unlink(missing_ok=True)
            shutil.rmtree(path / ".work")
            if not any(path.iterdir()):
                path.rmdir()
        else:
            shutil.rmtree(path)
        print(f"removed {target}")
    return 0


def planned_files(plan: Path) -> Iterator[str]:
    """The files that the shards command may have written by its plan
    (gratis.preprocess.stages.plan); none if it cannot be read."""
    try:
        content = json.loads(plan.read_text())
        per_shard = content["draft"]["samples_per_shard"]
        counts = {name: content["counts"][name] for name in SPLITS if name in content["counts"]}
        shards = {split: range(-(-count // per_shard)) for split, count in counts.items()}
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError):
        return
    yield from ("stats.npz", "rejects.jsonl")
    for split, numbers in shards.items():
        yield f"{split}.index.npz"
        for number in numbers:
            yield from (f"{split}-{number:05d}.tar", f"{split}-{number:05d}.idx")


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
