"""The loader beside its peers, an older checkout of itself, and bare libjpeg-turbo: one run,
alternating rounds, medians, paired ratios.

gratis bench loader shards
gratis bench loader shards --peers FOLDER --older CHECKOUT --photographs FOLDER
gratis bench loader shards --only ours dali --works crop --rounds 9

All read the same images and yield batches of the same shape and type (`peers.common.Work`), with
the same number of threads or worker processes. `ours` reads what `gratis shards` writes (fitted
Huffman tables, a restart marker at each row of MCUs), `ours-usual` and every peer that reads JPEG
files with the standard's tables and no markers, of the same pixels; `dali-fitted` is DALI on our
files, `ours-q90` reads what --quality 90 writes (28 % fewer bytes; 35.3 dB instead of 37.4),
`ours-raw` and `ffcv-raw` pixels, `older` what its version wrote, `older-usual` the usual files.
Every measurement is a process of its own over an endless stream. The first batches are not counted,
so queues are full at both ends of the window; CPU is user and system time of the whole process tree
in it.

--peers names a folder in which the peers' environments are made, pinned (`ENVIRONMENTS` in
peers/table.py: 3 GB), beside this one. Without it the peers that are installed here are measured,
the others left out. FFCV is compiled: it needs a compiler, libopencv-dev and libturbojpeg0-dev.
SPDL needs ffmpeg's libraries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.environments import python_of
from benchmarks.loader.peers.common import WORKS, Files, Work, crop_of, tars_of
from benchmarks.loader.peers.datasets import write_datasets
from benchmarks.loader.peers.table import ENVIRONMENTS, PEERS, STAGES
from benchmarks.loader.shard_stage import shard_stage
from benchmarks.loader.tables import LIMITS, Key, Record, Records, report
from gratis.command_line import parse
from gratis.dataset import read_manifest, require_split, require_square
from gratis.errors import GratisError

LIMIT_S = 2.0
TIMEOUT_S = 900
CHECKOUT = Path(__file__).resolve().parents[2]
OLDER: dict[str, Files] = {"older": "older", "older-usual": "usual"}
OLDER_WORKS: tuple[Work, ...] = ("crop", "resized", "views", "bfloat16")

Command = list[str]


@dataclass(frozen=True, kw_only=True)
class LoaderBench:
    """Measures the loader and its peers in alternating rounds."""

    shards: Annotated[Path, tyro.conf.Positional]
    """Folder of a JPEG dataset; 256 px, quality 95 for figures that compare with the published
    ones."""
    peers: Path | None = None
    """Folder for the peers' environments, which are made there once. Default: only the peers that
    are installed here."""
    older: Path | None = None
    """Checkout of an older version, measured by its own code under this Python."""
    photographs: Path | None = None
    """Source for `gratis shards`, whose CPU time and bytes are measured too. Default: they are
    not."""
    scratch: Path | None = None
    """Folder for a new folder of up to 4 GB with the images in all peers' formats. Default: the
    system's."""
    works: tuple[Work, ...] = WORKS
    """What is done with the images. trivial, mixup and vit: on request."""
    rounds: int = 5
    """In each, every peer is measured once at every work that it can do."""
    batches: int = 26
    """Of 256 images (32 for ten views), in each measurement."""
    threads: int | None = None
    """Of each decoder, or worker processes. Default: one per core."""
    only: tuple[str, ...] = ()
    """Peers to measure. Default: all that are installed."""
    without: tuple[str, ...] = ()
    """Measurements to leave out, as work:name, such as resized:ffcv."""
    records: Path | None = None
    """File for every measurement as a line of JSON. Default: none."""

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in PEERS:
                raise GratisError(f"there is no peer {name!r}; there are {', '.join(PEERS)}")


def main(arguments: list[str]) -> int:
    options = parse(LoaderBench, arguments, "gratis bench loader")
    manifest = read_manifest(options.shards)
    require_split(options.shards, manifest, "train")
    require_square(options.shards, manifest, "bench loader")
    if manifest.codec != "jpeg":
        raise GratisError(f"{options.shards} holds {manifest.codec} samples; the peers read JPEG")
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        forms: set[Files] = {"usual", "fitted", "older"}
        forms |= {PEERS[name].files for name in options.only or PEERS}
        write_datasets(options.shards, Path(scratch), forms)
        commands = _commands(options, Path(scratch))
        records = _rounds(commands, options, Path(scratch))
    title = f"n = {options.rounds} alternating rounds, {_threads(options)} threads"
    report(records, title)
    return 0


def _commands(options: LoaderBench, scratch: Path) -> dict[Key, Command]:
    """By work and peer, ours first; the peers' data are written by then."""
    commands: dict[Key, Command] = {}
    numbers = _threads(options), options.batches
    for name, python in _usable_peers(options, scratch).items():
        for work in PEERS[name].streams:
            commands[work, name] = _measure(python, name, work, scratch, *numbers)
    for stage in STAGES:
        commands["crop", stage] = _measure(sys.executable, stage, "crop", scratch, *numbers)
    if options.older:
        program = Path(__file__).with_name("older.py")
        for name, files in OLDER.items():
            for work in OLDER_WORKS if name == "older" else OLDER_WORKS[:2]:
                root = scratch / files
                arguments = options.older.absolute(), work, root, crop_of(root), *numbers
                commands[work, name] = [sys.executable, str(program), *map(str, arguments)]
    if limit := _compile_limit(scratch):
        tars = tars_of(scratch / "usual")
        for name in LIMITS:
            settings = name, crop_of(scratch / "usual"), numbers[0], LIMIT_S, *tars
            commands["crop", name] = [str(limit), *map(str, settings)]
    left_out = {tuple(pair.split(":")) for pair in options.without}
    return {
        key: command
        for key, command in commands.items()
        if key[0] in options.works and key not in left_out
    }


def _usable_peers(options: LoaderBench, scratch: Path) -> dict[str, str]:
    """Those that can be measured here, ours first, with the Python of each; their data written."""
    usable = {"ours": sys.executable}
    for name in [name for name in options.only or PEERS if name != "ours"]:
        try:
            python = _python(options, PEERS[name].environment)
            done = _run(_measure(python, name, "write", scratch))
            message = "" if done.returncode == 0 else _last_line(done.stderr)
        except subprocess.CalledProcessError as error:
            message = _last_line(error.stderr)
        if not message:
            usable[name] = python
        elif options.only:
            raise GratisError(f"{name} cannot be used here: {message}")
        else:
            print(f"{name} is left out: {message}", file=sys.stderr, flush=True)
    return usable


def _python(options: LoaderBench, environment: str) -> str:
    if options.peers is None:
        return sys.executable
    options.peers.mkdir(parents=True, exist_ok=True)
    return python_of(options.peers, environment, ENVIRONMENTS[environment], beside=True)


def _rounds(commands: dict[Key, Command], options: LoaderBench, scratch: Path) -> Records:
    """Every other round goes the other way, so that a slow minute meets all alike."""
    records: Records = defaultdict(list)
    for number in range(options.rounds):
        for key in [*commands][:: 1 if number % 2 == 0 else -1]:
            done = _run(commands[key])
            if done.returncode:
                raise GratisError(f"{' '.join(key)} failed: {_last_line(done.stderr)}")
            _note(records, options, number, key, json.loads(done.stdout.strip().splitlines()[-1]))
        if options.photographs:
            older = options.older and options.older.absolute()
            for name, record in shard_stage(options.photographs.absolute(), older, scratch).items():
                _note(records, options, number, ("shards", name), record)
    return records


def _note(records: Records, options: LoaderBench, number: int, key: Key, record: Record) -> None:
    records[key].append(record)
    values = ", ".join(f"{name} {value:,.3f}" for name, value in record.items())
    print(f"round {number + 1} {' '.join(key)}: {values}", file=sys.stderr, flush=True)
    if options.records:
        whole = {"round": number + 1, "work": key[0], "name": key[1], **record}
        with options.records.open("a") as file:
            file.write(json.dumps(whole) + "\n")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=CHECKOUT
        )
    except subprocess.TimeoutExpired:
        raise GratisError(f"{' '.join(command[2:5])} took more than {TIMEOUT_S} s") from None


def _last_line(text: str) -> str:
    return (text.strip() or "no message").splitlines()[-1]


def _measure(python: str, name: str, what: str, scratch: Path, *numbers: object) -> list[str]:
    command = [python, "-m", "benchmarks.loader.measure", name, what, scratch, *numbers]
    return [str(part) for part in command]


def _compile_limit(scratch: Path) -> Path | None:
    """None without a C compiler or libjpeg's headers."""
    if not (compiler := shutil.which("cc")):
        return None
    source, program = Path(__file__).with_name("libjpeg_turbo.c"), scratch / "limit"
    command = [compiler, "-O3", "-march=native", source, "-o", program, "-ljpeg", "-lpthread"]
    done = _run([str(part) for part in command])
    return program if done.returncode == 0 else None


def _threads(options: LoaderBench) -> int:
    return options.threads or len(os.sched_getaffinity(0))
