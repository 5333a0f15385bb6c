"""The program that kills and resumes loaders: what its cells mean, and that its pictures are read
back. What it finds in others' loaders is on docs/loaders.md."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.resume.adapters import ADAPTERS
from benchmarks.resume.data import write_data
from benchmarks.resume.pictures import SAMPLES, UNKNOWN, damaged, decoded_id, id_of, picture
from benchmarks.resume.run import SCENARIOS, Place, cell, scenario

ROOT = Path(__file__).resolve().parents[2]


def test_every_picture_says_which_sample_it_is() -> None:
    assert [decoded_id(picture(sample)) for sample in range(SAMPLES)] == list(range(SAMPLES))
    assert id_of(np.zeros((64, 64, 3))) == UNKNOWN
    assert id_of(np.full((64, 64), 255)) == UNKNOWN
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(damaged(picture(7))))


def test_cells_say_what_is_missing_and_what_comes_twice() -> None:
    every = list(range(SAMPLES))
    assert cell([{"ids": every}, {"ids": every[::-1]}]) == "0, 0"
    assert cell([{"ids": every[5:]}, {"ids": [*every[:-7], 0, 1, 1]}]) == "5 to 7, 0 to 3"
    assert cell([{"ids": [*every[1:], UNKNOWN]}]) == "1, 0, 1 other pictures"
    assert cell([{"ids": every}, {"ids": [], "error": "KeyError: a\n|b"}]) == (
        "error: KeyError: a /b"
    )
    assert cell([{"ids": [3], "cannot": "no state"}]) == "no state"


@pytest.mark.slow
def test_ours_loses_nothing_by_the_program_that_measures_the_others(tmp_path: Path) -> None:
    """Killed and resumed by another number of ranks; three seeds each."""
    write_data(tmp_path / "data", with_damage=False)
    place = Place("gratis", sys.executable, tmp_path)
    for title in ("killed, resumed", "2 ranks, then 1"):
        assert cell(scenario(place, *SCENARIOS[title])) == "0, 0", title


def test_the_page_has_every_loader_and_every_way_to_resume() -> None:
    page = (ROOT / "docs" / "loaders.md").read_text()
    table = page[page.index("| loader |") :].partition("\n\n")[0]
    lines = [line.strip("|").split("|") for line in table.split("\n")]
    header, _, *rows = [[text.strip() for text in line] for line in lines]
    assert header == ["loader", *SCENARIOS]
    assert all(len(row) == len(header) for row in rows)
    assert len(rows) == len(ADAPTERS)
    assert all(row[0].startswith(name) for row, name in zip(rows, ADAPTERS, strict=True))
