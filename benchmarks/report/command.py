"""Proves and measures on this machine what the README claims: `gratis report`, `make report
PART=2`.

Five parts, each within minutes: correctness on the device, the loader alone, training alone, the
free ratio, trainings of the whole network and with one part switched off. Each goes on where it was
stopped, and all merge into OUT/report.json and OUT/report.md. Without network; without a GPU the
CPU's part, on a smaller network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gratis.atomic import exclusive
from gratis.command_line import parse
from gratis.errors import GratisError


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Measures what this machine can do, and writes it down."""

    part: Literal[1, 2, 3, 4, 5] | None = None
    """1 correctness, 2 loader, 3 training, 4 free ratio, 5 ablations. Default: one after the
    other."""
    out: Path = Path("report")
    """Folder of the result, and of datasets and runs that are made for it."""
    shards: Path | None = None
    """Folder of a JPEG dataset to measure on. Default: made from --src."""
    src: str | None = None
    """Where images come from, as for `gratis shards`. Default: a sample is drawn."""
    size: int | None = None
    """Pixels per side of the dataset that is made. Default: 256 on a GPU, else 128."""
    seconds: float = 420.0
    """That a part may take; what is then missing, the next call measures."""

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise GratisError(f"--seconds {self.seconds:g} must be above 0")
        if self.out.exists() and not self.out.is_dir():
            raise GratisError(f"--out {self.out} is not a folder; choose another")


def main(arguments: list[str]) -> int:
    options = parse(ReportOptions, arguments, "gratis report", description=__doc__)
    from gratis.signals import terminate_exits

    terminate_exits()
    with exclusive(options.out, f"--out {options.out}"):
        print(f"report: {report(options)}", flush=True)
    return 0


def report(options: ReportOptions) -> Path:
    """Measures what is asked for and missing; the page's path."""
    import torch

    from benchmarks.report.machine import describe
    from benchmarks.report.page import page
    from benchmarks.report.plan import PARTS, for_a_gpu
    from benchmarks.report.results import OutOfTime, ResultFile, failure, publish
    from benchmarks.report.setting import prepare
    from gratis.train.mesh.mesh import full_float32

    full_float32()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    setting = prepare(options.out, device, options.shards, options.src, options.size)
    results = ResultFile.open(options.out / "report.json", describe(setting), options.seconds)
    missing, path = for_a_gpu(setting), options.out / "report.md"
    for number in [options.part] if options.part else PARTS:
        results.begin()
        results.complete = [part for part in results.complete if part != str(number)]
        try:
            for results.again in (False, True):
                for measurement in PARTS[number][1](setting, results):
                    results.measure(number, measurement)
            results.complete.append(str(number))
            entries = results.entries[str(number)]
            failed = [name for name, entry in entries.items() if failure(entry)]
            failures = f", but failed: {', '.join(failed)}" if failed else ""
            print(f"part {number} is complete{failures}", flush=True)
        except OutOfTime:
            print(f"part {number}: its time is over; --part {number} goes on", flush=True)
        finally:  # however it ends
            results.write()
            publish(path, page(results, missing))
    return path
