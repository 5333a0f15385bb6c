"""The index command says of which JPEGs loaders show other pictures."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from benchmarks.jpeg.kinds import ADOBE, Form, photograph, planes_of, write, ycc
from gratis import dataset
from gratis.errors import GratisError
from gratis.preprocess.index import IndexConfig, index_tars

pytestmark = pytest.mark.starts

PICTURE = photograph(32, 32)
PLAIN = write(ycc(PICTURE), Form())
RGB = write(planes_of(PICTURE), Form(markers=ADOBE + b"\0"))
APART = write(ycc(PICTURE), Form(apart=True))


def tar(path: Path, images: list[bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, data in enumerate(images):
            for name, content in ((f"{number}.jpg", data), (f"{number}.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def test_jpegs_that_loaders_disagree_on_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar(tmp_path / "train-0.tar", [PLAIN, RGB, RGB, PLAIN])
    tar(tmp_path / "train-1.tar", [APART, RGB])
    manifest = index_tars(IndexConfig(tars=str(tmp_path), workers=1))
    lines = [line for line in capsys.readouterr().out.splitlines() if "disagree" in line]
    assert [line.partition(";")[0] for line in lines] == [
        "loaders disagree on 3 images: RGB with subsampled colour",
        "loaders disagree on 1 image: subsampled colour, in a scan for each component",
    ]
    assert "FFmpeg" in lines[0]
    assert "datago" in lines[1]
    # what is written is as before: nothing of it was converted
    assert manifest.splits["train"].conversions == {}
    assert "disagree" not in json.dumps(json.loads((tmp_path / dataset.MANIFEST).read_text()))


def test_of_others_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar(tmp_path / "train-0.tar", [PLAIN, PLAIN])
    index_tars(IndexConfig(tars=str(tmp_path), workers=1))
    assert "disagree" not in capsys.readouterr().out


def test_a_format_that_is_not_read_is_named(tmp_path: Path) -> None:
    avif = b"\0\0\0\x1cftypavif\0\0\0\0mif1miaf" + bytes(100)
    tar(tmp_path / "train-0.tar", [avif, avif])
    with pytest.raises(GratisError, match=r"0\.jpg: it is AVIF, which is not read here"):
        index_tars(IndexConfig(tars=str(tmp_path), workers=1))
