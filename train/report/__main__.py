"""Proves and measures on this machine what the README claims: `python -m train.report`, `make report PART=2`.

Five parts, each within minutes: correctness on the device, the loader alone, training alone, the free ratio, whole
trainings. Each goes on where it was stopped, and all merge into OUT/report.json and OUT/report.md. Without network;
without a GPU the CPU's part, on a smaller network.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from preprocess.errors import UserError, guard, parsed


@dataclass(frozen=True, kw_only=True)
class Report:
    """Measures what this machine can do, and writes it down."""

    part: Literal[1, 2, 3, 4, 5] | None = None
    """1 correctness, 2 loader, 3 training, 4 free ratio, 5 whole trainings. Default: one after the other."""
    out: Path = Path("report")
    """Folder of the result, and of datasets and runs that are made for it."""
    shards: Path | None = None
    """Folder of a JPEG dataset to measure on. Default: made from --src."""
    src: str | None = None
    """Where images come from, as for `python -m preprocess shards`. Default: a sample is drawn."""
    size: int | None = None
    """Pixels per side of the dataset that is made. Default: 256 on a GPU, else 128."""
    seconds: float = 420.0
    """That a part may take; what is then missing, the next call measures."""

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise UserError(f"--seconds {self.seconds} must be above 0")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is not a folder; choose another")


def main(arguments: list[str] | None = None) -> int:
    options = parsed(lambda: tyro.cli(Report, args=arguments, prog="python -m train.report", description=__doc__))
    import torch

    from train.report import correctness, free, loading, training, whole
    from train.report.book import Book, OutOfTime
    from train.report.machine import describe
    from train.report.page import page
    from train.report.setting import about, prepare

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    setting = prepare(options.out, device, shards=options.shards, src=options.src, size=options.size)
    book = Book.opened(options.out / "report.json", describe() | about(setting), options.seconds)
    parts = {1: correctness.run, 2: loading.run, 3: training.run, 4: free.run, 5: whole.run}
    for number in [options.part] if options.part else parts:
        book.begin()
        book.unfinished = [part for part in book.unfinished if part != str(number)]
        try:
            parts[number](setting, book)
            print(f"part {number} is complete", flush=True)
        except OutOfTime:
            book.unfinished.append(str(number))
            print(f"part {number}: its time is over; --part {number} goes on where it is", flush=True)
        finally:
            book.write()
            (options.out / "report.md").write_text(page(book))
    print(f"report: {options.out / 'report.md'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
