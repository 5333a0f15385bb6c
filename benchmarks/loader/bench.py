"""The loader beside its peers and beside bare libjpeg-turbo: one run, alternating rounds, medians,
paired ratios.

gratis bench loader shards
gratis bench loader shards --only ours dali --rounds 9

All read the same images with the same settings, as JPEGs with the standard's Huffman tables;
`ours-fitted` reads what `preprocess` writes (tables fitted to each image, the same pixels),
`ours-q90` what it writes with --quality 90 (28 % fewer bytes; 35.3 dB instead of 37.4, as the table
in preprocess/codecs.py says), `ours-raw` and `ffcv-raw` pixels. Every measurement is a process of
its own over an endless stream. The first batches are not counted, so queues are full at both ends
of the window; CPU is user and system time of the whole process tree in it. Peers that are not
installed are left out: `pip install tensorflow-cpu grain simplejpeg litdata mosaicml-streaming
spdl` and `pip install --no-deps torchvision ffcv` bring those that are not here anyway (SPDL needs
ffmpeg's libraries; FFCV a compiler, libopencv-dev and libturbojpeg0-dev, and
opencv-python-headless, terminaltables, pytorch_pfn_extras, fastargs, assertpy)."""

from __future__ import annotations

import json
import operator
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.loader.peers.common import BATCH, Files, crop_of, tars_of
from benchmarks.loader.peers.datasets import write_datasets
from benchmarks.loader.peers.table import PEERS, STAGES
from gratis.command_line import parse
from gratis.dataset import read_manifest, require_split, require_square
from gratis.errors import GratisError

LIMITS = ("crop", "huffman")
LIMIT_S = 2.0
TIMEOUT_S = 900

Record = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LoaderBench:
    """Measures the loader and its peers in alternating rounds."""

    shards: Annotated[Path, tyro.conf.Positional]
    """Folder of a JPEG dataset; 256 px, quality 95 for figures that compare with the published
    ones."""
    scratch: Path | None = None
    """Folder for a new folder of up to 4 GB with the images in all peers' formats. Default: the
    system's."""
    rounds: int = 5
    """In each, every peer is measured once."""
    batches: int = 26
    """Of 256 images, in each measurement."""
    threads: int | None = None
    """Of our decoder and FFCV's; other peers get one more, which was better for each. Default: one
    per core."""
    only: tuple[str, ...] = ()
    """Peers to measure. Default: all that are installed."""

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
        forms: set[Files] = {"usual", *(PEERS[name].files for name in options.only or PEERS)}
        write_datasets(options.shards, Path(scratch), forms)
        names = _usable_peers(options, Path(scratch))
        records = _rounds(names, options, Path(scratch))
    _report(records, options)
    return 0


def _usable_peers(options: LoaderBench, scratch: Path) -> list[str]:
    """Those that can be measured here, ours first, their data written."""
    names = ["ours"]
    for name in [name for name in options.only or PEERS if name != "ours"]:
        done = _run(_measure(name, scratch, "write"))
        if done.returncode == 0:
            names.append(name)
        elif options.only:
            raise GratisError(f"{name} cannot be used here: {_last_line(done)}")
        else:
            print(f"{name} is left out: {_last_line(done)}", file=sys.stderr, flush=True)
    return names


def _rounds(names: list[str], options: LoaderBench, scratch: Path) -> dict[str, list[Record]]:
    """Every other round goes the other way, so that a slow minute meets all alike."""
    limit = _compile_limit(scratch)
    every = [*names, *STAGES, *(LIMITS if limit else ())]
    records: dict[str, list[Record]] = {name: [] for name in every}
    for number in range(options.rounds):
        for name in every if number % 2 == 0 else every[::-1]:
            if name in LIMITS:
                usual = scratch / "usual"
                numbers = crop_of(usual), _threads(options), LIMIT_S
                command = [str(part) for part in (limit, name, *numbers, *tars_of(usual))]
            else:
                command = _measure(name, scratch, _threads(options), options.batches)
            done = _run(command)
            if done.returncode:
                raise GratisError(f"{name} failed: {_last_line(done)}")
            records[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
            rate, cost = records[name][-1]["rate"], records[name][-1]["cost"]
            message = f"{name}: {rate:,.0f} images/s, {cost:.3f} CPU s per 1,000"
            print(f"round {number + 1} {message}", file=sys.stderr, flush=True)
    return records


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise GratisError(f"{' '.join(command[2:4])} took more than {TIMEOUT_S} s") from None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or "no message").splitlines()[-1]


def _report(records: dict[str, list[Record]], options: LoaderBench) -> None:
    images = f"{options.rounds} alternating rounds of {options.batches * BATCH:,} images"
    title = (
        f"{images}, {_threads(options)} threads; ratios are ours over the row's, paired by round"
    )
    mine = [name for name in PEERS if name.startswith("ours") and name in records]
    ratio_columns = [f"{name}: CPU, rate" for name in mine]
    table = Table("", "images/s [min..max]", "CPU s per 1,000", *ratio_columns, "first s", "MB")
    table.title = title
    for name in sorted(set(records) & set(PEERS), key=lambda name: _median(records[name], "cost")):
        its = records[name]
        rate, cost = _spread(its, "rate", ",.0f"), _spread(its, "cost", ".3f")
        pairs = [(_ratio(records[own], its, k) for k in ("cost", "rate")) for own in mine]
        ratios = [" ".join(f"{ratio:.2f}" for ratio in pair) for pair in pairs]
        first, megabytes = _median(its, "first"), _median(its, "megabytes")
        table.add_row(name, rate, cost, *ratios, f"{first:.2f}", f"{megabytes:,.0f}")
    Console(width=150).print(table, _stages(records))


def _ratio(mine: list[Record], its: list[Record], key: str) -> float:
    return statistics.median(a[key] / b[key] for a, b in zip(mine, its, strict=True))


def _stages(records: dict[str, list[Record]]) -> Table:
    """Each stage's CPU seconds, by subtraction within a round."""
    title = "where our time goes, beside bare libjpeg-turbo"
    table = Table("stage", "CPU s per 1,000", title=title)
    costs = {name: [record["cost"] for record in each] for name, each in records.items()}
    rows = {
        "read": costs["read"],
        "decode, finish and hand-over": list(map(operator.sub, costs["ours"], costs["read"])),
        "whole": costs["ours"],
        "beside it, DALI's decode alone": list(map(operator.sub, costs["decode"], costs["read"])),
    }
    for name in LIMITS:
        if name in costs:
            rows[f"libjpeg-turbo of this system: {name}"] = costs[name]
    for stage, values in rows.items():
        table.add_row(stage, _range(values, ".3f"))
    return table


def _measure(name: str, scratch: Path, *arguments: object) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.loader.measure", name, scratch, *arguments]
    return [str(part) for part in command]


def _compile_limit(scratch: Path) -> Path | None:
    """None without a C compiler or libjpeg's headers."""
    if not (compiler := shutil.which("cc")):
        return None
    source, binary = Path(__file__).with_name("libjpeg_turbo.c"), scratch / "limit"
    flags, libraries = ["-O3", "-march=native", "-o"], ["-ljpeg", "-lpthread"]
    command = [compiler, *flags, str(binary), str(source), *libraries]
    return binary if subprocess.run(command, capture_output=True).returncode == 0 else None


def _threads(options: LoaderBench) -> int:
    return options.threads or len(os.sched_getaffinity(0))


def _median(records: list[Record], key: str) -> float:
    return statistics.median(record[key] for record in records)


def _spread(records: list[Record], key: str, form: str) -> str:
    return _range([record[key] for record in records], form)


def _range(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}..{max(values):{form}}]"
