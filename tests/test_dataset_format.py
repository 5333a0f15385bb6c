"""Which formats of a dataset a reader takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gratis.dataset import read_manifest
from gratis.errors import GratisError


def with_format(root: Path, number: int, to: Path) -> Path:
    raw = json.loads((root / "manifest.json").read_bytes())
    (to / "manifest.json").write_text(json.dumps(raw | {"format": number}))
    return to


@pytest.mark.parametrize("number", [1, 2])
def test_a_reader_takes_its_format_and_the_one_before(
    jpeg_dataset: Path, tmp_path: Path, number: int
) -> None:
    assert read_manifest(with_format(jpeg_dataset, number, tmp_path)).format == number


@pytest.mark.parametrize("number", [0, 3])
def test_another_format_is_refused(jpeg_dataset: Path, tmp_path: Path, number: int) -> None:
    root = with_format(jpeg_dataset, number, tmp_path)
    with pytest.raises(
        GratisError, match=rf"has format {number}; this version reads 1 and 2: make"
    ):
        read_manifest(root)
