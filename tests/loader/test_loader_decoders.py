"""`gratis verify` says who decodes a dataset's images, and holds the engine's pixels against those
of another decoder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_cases import decoded, jpeg, needs_library, photo
from handmade import picture, write_dataset
from test_loader_engine import mixed

from gratis.dataset import read_index
from gratis.errors import GratisError
from gratis.loader.engine import library
from gratis.loader.inspect.decoders import EngineCheck, WholeImages
from gratis.preprocess.verify import VerifyConfig, verify_dataset

# of 60 images every fourth is progressive, and of the others every seventh is 4:2:2
SAID = (
    "decoders: the engine decodes 39 of 60 images, all to the pixels of {0}; {0} decodes the "
    "others: 15 progressive, or coded in another rare way, 6 another sampling of colour than 4:2:0 "
    "and 4:4:4"
)


def with_idx(root: Path) -> Path:
    """With DALI's index of each archive."""
    for path in root.glob("*.tar"):
        with tarfile.open(path) as tar:
            fields = [
                f"{one.name.rpartition('.')[2]} {one.offset_data} {one.size} {one.name}"
                for one in tar.getmembers()
            ]
        lines = [" ".join(pair) for pair in zip(fields[::2], fields[1::2], strict=True)]
        path.with_suffix(".idx").write_text("\n".join([f"v1.2 {len(lines)}", *lines, ""]))
    return root


@needs_library
def test_who_decodes_what_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify_dataset(VerifyConfig(shards=str(with_idx(mixed(tmp_path)))), EngineCheck)
    assert SAID.format("DALI") in capsys.readouterr().out.splitlines()


@needs_library
def test_without_dali_pillow_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    verify_dataset(VerifyConfig(shards=str(with_idx(mixed(tmp_path)))), EngineCheck)
    assert SAID.format("Pillow") in capsys.readouterr().out.splitlines()


@needs_library
def test_another_pixel_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a decoder that reads one file three levels darker, and cannot read another."""
    root = with_idx(write_dataset(tmp_path / "a", [picture(number) for number in range(30)]))
    index = read_index(root, "train")
    files = [(root / f"train-{shard:05d}.tar").read_bytes() for shard in range(3)]

    def data_of(sample: int) -> bytes:
        begin = int(index.offset[sample])
        return files[index.shard[sample]][begin : begin + int(index.size[sample])]

    darker, broken = data_of(17), data_of(21)

    def other(data: bytes) -> Any:
        if data == broken:
            raise RuntimeError
        pixels = decoded(data).copy()
        pixels[5, 5] -= np.minimum(pixels[5, 5], 3 if data == darker else 0)
        return pixels

    with pytest.raises(GratisError, match="2 findings"):
        verify_dataset(VerifyConfig(shards=str(root)), lambda: EngineCheck(other))
    said = capsys.readouterr().out
    where = f"train-00001.tar: sample 17, 's_17.jpg' at byte {index.offset[17]}, is decoded "
    assert f"{where}otherwise by the engine than by DALI, by up to 3 levels" in said
    assert (
        f"sample 21, 's_21.jpg' at byte {index.offset[21]}, is decoded by the engine, and not"
        in said
    )
    assert "the engine decodes 30 of 30 images, 2 otherwise than DALI" in said


@needs_library
def test_images_of_any_size_are_compared() -> None:
    whole, check = WholeImages(), EngineCheck()
    for number, size in enumerate([(64, 48), (5, 7), (33, 70), (256, 256)]):
        data = jpeg(photo(*size, number), subsampling="4:2:0")
        np.testing.assert_array_equal(whole(data), decoded(data))
        assert check.difference(data, decoded(data)) is None
    assert check.summary.startswith("decoders: the engine decodes 4 of 4 images, all")


def test_without_the_engine_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = with_idx(mixed(tmp_path))
    monkeypatch.setattr(library, "FILE", tmp_path / "none.so")
    library.load.cache_clear()
    try:
        verify_dataset(VerifyConfig(shards=str(root)), EngineCheck)
        monkeypatch.setitem(sys.modules, "nvidia.dali", None)
        assert EngineCheck().summary.endswith("not compiled here; Pillow decodes all")
    finally:
        library.load.cache_clear()
    assert "the engine is not compiled here; DALI decodes all" in capsys.readouterr().out


def verify(root: Path, **environment: str) -> str:
    command = [sys.executable, "-m", "gratis", "verify", str(root)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@needs_library
@pytest.mark.starts
def test_the_command_asks_the_loader_where_it_is_installed(tmp_path: Path) -> None:
    root = with_idx(mixed(tmp_path))
    assert SAID.format("DALI") in verify(root)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "torch.py").write_text("raise ImportError('no torch here')")
    without = verify(root, PYTHONPATH=str(tmp_path / "blocked"))
    assert "60 samples are as they were published" in without
    assert "decoders" not in without
