"""The table of docs/loaders.md: what its cells mean, and that it is what the program measures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.jpeg.agreement import COLUMNS, difference, worst
from benchmarks.jpeg.decoders import DECODERS
from benchmarks.jpeg.kinds import photograph

ROOT = Path(__file__).resolve().parents[2]


def rows(text: str) -> list[list[str]]:
    """Of the first table in it: cells, the header first."""
    text = "\n" + text
    first = text[text.index("\n|") :].partition("\n\n")[0]
    lines = [line for line in first.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells[0], *cells[2:]]


def test_cells_say_what_differs() -> None:
    picture = photograph()
    nearby = picture.copy()
    nearby[3, 4, 1] -= 7
    assert difference(nearby, picture) == "7"
    assert difference(255 - picture, picture) == "other"
    assert difference(np.rot90(picture), picture) == "turned"
    assert difference(picture[..., 0], picture) == "1 channel"
    assert difference(np.concatenate([picture, picture[..., :1]], axis=2), picture) == "4 channels"
    assert worst(["0", "12", "3"]) == "12"
    assert worst(["0", "other", "3"]) == "other"


def test_the_page_has_every_decoder_and_every_column() -> None:
    header, *decoders = rows((ROOT / "docs" / "loaders.md").read_text())
    assert header == ["decoder", *COLUMNS]
    assert len(decoders) == len(DECODERS)
    assert all(len(row) == len(header) for row in decoders)


@pytest.mark.prove
def test_the_page_is_what_is_measured(tmp_path: Path) -> None:
    """In pinned environments that are made here, those of one gigabyte. Decoders that interpolate
    in ways of their own may round otherwise on another processor: their numbers are left out."""
    names = ["Pillow", "OpenCV", "simplejpeg", "imagecodecs", "datago", "gratis (DALI)"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.jpeg.agreement", str(tmp_path), "--only", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
        check=True,
    )
    measured = rows(done.stdout)[1:]
    page = {row[0].split(" ")[0]: row[1:] for row in rows((ROOT / "docs/loaders.md").read_text())}
    assert [row[0].split(" ")[0] for row in measured] == [name.split(" ")[0] for name in names]
    for row in measured:
        known = page[row[0].split(" ")[0]]
        words = [re.sub(r"^[1-9]\d*$", "some", cell) for cell in row[1:]]
        assert words == [re.sub(r"^[1-9]\d*$", "some", cell) for cell in known]
