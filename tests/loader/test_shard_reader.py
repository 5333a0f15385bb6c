"""Samples' bytes by id: which shards are open meanwhile, and what is said of one that is not as
published."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from handmade import encode, picture, write_dataset

from gratis.dataset import read_index, read_manifest
from gratis.errors import GratisError
from gratis.loader.reading import shard_reader
from gratis.loader.reading.shard_reader import ShardReader


def reader_of(root: Path) -> ShardReader:
    return ShardReader(root, read_manifest(root).splits["train"], read_index(root, "train"))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_shard_that_is_cut_while_it_is_open_is_named(jpeg_dataset: Path, tmp_path: Path) -> None:
    """The rest of the buffer would be another batch's bytes."""
    root = Path(shutil.copytree(jpeg_dataset, tmp_path / "cut"))
    reader, index = reader_of(root), read_index(root, "train")
    reader.read(np.array([0]))
    os.truncate(root / "train-00000.tar", int(index.offset[9]) + 10)
    reader.read(np.array([8]))
    with pytest.raises(GratisError, match=r"train-00000\.tar ends inside a sample"):
        reader.read(np.array([8, 9]))
    reader.close()


def test_a_shard_that_is_refused_is_not_left_open(jpeg_dataset: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(jpeg_dataset, tmp_path / "longer"))
    with (root / "train-00001.tar").open("ab") as file:
        file.write(bytes(512))
    reader = reader_of(root)
    reader.read(np.array([0]))
    before = open_files()
    for _ in range(3):
        with pytest.raises(GratisError, match=r"train-00001\.tar has"):
            reader.read(np.array([10]))
    assert open_files() == before
    reader.close()
    assert open_files() == before - 1


def test_a_shard_of_other_samples_is_not_left_open(raw_dataset: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(raw_dataset, tmp_path / "swapped"))
    shutil.copy(root / "train-00002.tar", root / "train-00001.tar")
    reader, before = reader_of(root), open_files()
    for _ in range(3):
        with pytest.raises(GratisError, match="holds other samples or labels"):
            reader.read(np.array([10]))
    assert open_files() == before


def test_no_more_shards_are_open_than_allowed(
    jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_reader, "max_open_files", lambda wanted: 2)
    reader, before, held = reader_of(jpeg_dataset), open_files(), []
    for sample in (0, 10, 20, 30, 0, 31, 100):  # of the first, second, third, fourth ... shard
        reader.read(np.array([sample]))
        held.append(open_files() - before)
    assert held == [1, 2, 2, 2, 2, 2, 2]
    reader.close()
    assert open_files() == before


def shards_held() -> set[str]:
    links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
    return {Path(link).stem for link in links if link.endswith(".tar")}


def test_the_shard_that_was_used_longest_ago_is_closed(
    jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_reader, "max_open_files", lambda wanted: 2)
    before, reader = shards_held(), reader_of(jpeg_dataset)
    for sample in (0, 10, 1, 20):
        reader.read(np.array([sample]))
    assert shards_held() - before == {"train-00000", "train-00002"}
    reader.close()


def test_a_shard_that_is_not_there_is_named(jpeg_dataset: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(jpeg_dataset, tmp_path / "less"))
    shard = root / "train-00001.tar"
    shard.unlink()
    with pytest.raises(GratisError) as caught:
        reader_of(root).read(np.array([0, 10]))
    expected = "cannot be read (No such file or directory); verify the copy of the dataset"
    assert str(caught.value) == f"{shard} {expected}"


def test_without_a_file_left_the_limit_is_named(jpeg_dataset: Path) -> None:
    reader = reader_of(jpeg_dataset)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # of those that are open already
    try:
        with pytest.raises(GratisError) as caught:
            reader.read(np.array([0]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert str(caught.value) == (
        f"{jpeg_dataset}/train-00000.tar cannot be opened: this process has its 3 files open; "
        "raise that limit (`ulimit -n 4096`)"
    )


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (b"n0/a.b.jpg", "a.b"),
        (b"k" * 96 + b".jpg", "k" * 96),  # as long as a name may be
        (b"k" * 100, "k" * 100),
        (b"caf\xe9.jpg", "caf\ufffd"),
        (b"a\x07b.jpg", "a?b"),
    ],
)
def test_a_sample_is_described_by_its_tars_header(tmp_path: Path, name: bytes, key: str) -> None:
    root = write_dataset(tmp_path / "named", [picture(i) for i in range(3)])
    offset = int(read_index(root, "train").offset[2])
    with (root / "train-00000.tar").open("r+b") as file:
        file.seek(offset - 512)
        file.write(name.ljust(100, b"\0"))
    reader = reader_of(root)
    described = f"shard {root}/train-00000.tar, key {key}, offset {offset}"
    assert reader.describe(2) == described
    assert reader.key(1) == "s_1"
    reader.close()


def test_a_buffer_is_used_again_where_the_bytes_fit(jpeg_dataset: Path) -> None:
    reader, sizes = reader_of(jpeg_dataset), read_index(jpeg_dataset, "train").size
    few, all_of_it = np.arange(5), np.arange(30)
    parts, buffer = reader.read(few)
    assert sizes[:5].sum() < len(buffer) <= sizes[:5].sum() * 5 // 4
    exact = np.empty(sizes[:30].sum(), np.uint8)
    assert reader.read(all_of_it, exact)[1] is exact
    larger = reader.read(all_of_it, exact[:-1])[1]
    assert larger.base is not exact
    assert len(larger) >= len(exact)
    again, same = reader.read(few, larger)
    assert same is larger
    places = [part.ctypes.data - larger.ctypes.data for part in again]
    assert places == [0, *np.cumsum(sizes[:4]).tolist()]
    assert [part.tobytes() for part in again] == [part.tobytes() for part in parts]
    assert [part.tobytes() for part in parts] == [encode(picture(i), "jpeg") for i in range(5)]
    reader.close()
