"""Proves and measures on this machine what the README claims, within some minutes: `gratis report
--minutes 8`.

The order is that of worth: does it run and is it right, the loader by route, the network, the free
ratio, two ranks, a training, a profile; then larger and smaller sizes. Each row is written as soon
as it is known, into OUT/report.json and OUT/report.md; each is bounded, in a process of its own
that is ended if need be, and one that fails is a row that says so. The same call again measures
what is missing or failed. Without a GPU the CPU's smallest form of each."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gratis.atomic import exclusive
from gratis.command_line import parse
from gratis.errors import GratisError

if TYPE_CHECKING:  # torch takes two seconds, which --help need not
    from benchmarks.report.plan import Measurement
    from benchmarks.report.results import ResultFile
    from benchmarks.report.setting import Setting


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Measures what this machine can do, and writes it down."""

    minutes: float = 8.0
    """That all of it may take. What does not fit is left out, and named."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: a GPU where there is one."""
    plan: bool = False
    """Prints the order, what each row needs and the seconds expected of it; measures nothing."""
    only: str | None = None
    """Sections, as bd: a correctness, b loader, c network, d free ratio, e two ranks, f training,
    g profile. Default: all."""
    out: Path = Path("report")
    """Folder of the result, and of datasets and runs that are made for it."""
    shards: Path | None = None
    """Folder of a JPEG dataset to measure on. Default: made from --src."""
    src: str | None = None
    """Where images come from, as for `gratis shards`. Default: a sample is drawn."""
    size: int | None = None
    """Pixels per side of the dataset that is made. Default: 256 on a GPU, else 128."""
    train_shards: Path | None = None
    """Folder of tiny100's shards at 128 px, for section f. Default: the drawn sample."""

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise GratisError(f"--minutes {self.minutes:g} must be above 0")
        if self.out.exists() and not self.out.is_dir():
            raise GratisError(f"--out {self.out} is not a folder; choose another")
        if unknown := set(self.only or "") - set("abcdefg"):
            raise GratisError(
                f"--only {self.only}: {min(unknown)!r} is none of the sections a to g"
            )


def main(arguments: list[str]) -> int:
    began = time.monotonic()
    options = parse(ReportOptions, arguments, "gratis report", description=__doc__)
    import torch

    from benchmarks.report.plan import measurements, table
    from benchmarks.report.setting import Setting, check_shards
    from gratis.signals import terminate_exits

    if options.device == "cuda" and not torch.cuda.is_available():
        raise GratisError("--device cuda: torch sees no CUDA device; `gratis doctor` says why")
    cuda = options.device != "cpu" and torch.cuda.is_available()
    rows = measurements(cuda=cuda)
    rows = [row for row in rows if options.only is None or row.section in options.only]
    if options.plan:
        print(table(rows))
        return 0
    if options.shards:
        check_shards(options.shards)
    setting = Setting(
        device=torch.device("cuda", 0) if cuda else torch.device("cpu"),
        out=options.out,
        shards=options.shards,
        src=options.src,
        size=options.size,
        train_shards=options.train_shards,
    )
    terminate_exits()
    if not cuda:  # OpenMP's threads spin while they wait, which beside other work is most they do
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with exclusive(options.out, f"--out {options.out}"):
        report(setting, rows, began + 60 * options.minutes)
    return 0


def report(setting: Setting, rows: list[Measurement], ends: float) -> ResultFile:
    """Measures what is missing and fits before `ends`, by time.monotonic, and writes each row as
    it comes."""
    from benchmarks.report.machine import describe
    from benchmarks.report.page import page
    from benchmarks.report.results import ResultFile, describe_entry, failure, publish
    from benchmarks.report.worker import Worker

    results = ResultFile.open(setting.out / "report.json", describe(setting))
    worker, path = Worker(setting), setting.out / "report.md"
    publish(path, page(results, rows, setting))
    try:
        for row in rows:
            left = ends - time.monotonic()
            known = results.entries.get(row.key)
            if (known and not failure(known)) or left < row.seconds:
                continue
            entry = worker.measure(row, row.bound(cuda=setting.cuda), left)
            results.entries[row.key] = entry
            results.write()
            publish(path, page(results, rows, setting))
            print(f"{entry['wall_s']:6} s  {row.key}: {describe_entry(entry)}", flush=True)
    finally:
        worker.end()
    missing = [row for row in rows if row.key not in results.entries]
    if missing:
        print(f"no time was left for {len(missing)} of {len(rows)} rows; the same call goes on")
    print(f"report: {path}", flush=True)
    return results
