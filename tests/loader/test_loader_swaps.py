"""Shards that were swapped or replaced by others of one size: an error, never a wrong label."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batches import assert_same, epoch
from handmade import encode, picture, write_dataset

from gratis.atomic import sha256_file
from gratis.dataset import MANIFEST, Index, read_index, read_manifest, write_index
from gratis.errors import GratisError
from gratis.loader import Loader, LoaderConfig

CONFIG = LoaderConfig(batch_size=10, crop=48, threads=1)
SWAPPED = r"train-0000\d\.tar holds other samples or labels than the index says"


def swap(root: Path, one: int = 1, other: int = 3) -> None:
    paths = [root / f"train-{number:05d}.tar" for number in (one, other)]
    paths[0].rename(root / "aside")
    paths[1].rename(paths[0])
    (root / "aside").rename(paths[1])


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_swapped_shards_are_an_error(tmp_path: Path, codec: str) -> None:
    """Raw ones have one size. The JPEGs here are all of one picture, so theirs have too."""
    same = codec == "jpeg"
    images = [picture(0 if same else number) for number in range(50)]
    root = write_dataset(tmp_path / "data", images, codec=codec)
    with Loader(root, "train", CONFIG) as loader:
        assert len(epoch(loader)) == 5
    swap(root)
    sizes = {path.stat().st_size for path in root.glob("train-0000[13].tar")}
    assert len(sizes) == 1
    with Loader(root, "train", CONFIG) as loader, pytest.raises(GratisError, match=SWAPPED):
        epoch(loader)


def relabelled(root: Path, labels: np.ndarray, order: str) -> None:
    """The dataset anew as others write theirs: `.cls` before the image or behind, in folders, and
    with these labels."""
    manifest, index = read_manifest(root), read_index(root, "train")
    rows, shards = [], []
    for number, shard in enumerate(manifest.splits["train"].shards):
        with tarfile.open(root / shard.name, "w", format=tarfile.GNU_FORMAT) as tar:
            for row in np.flatnonzero(index.shard == number):
                parts = {"ppm": encode(picture(int(row)), "raw"), "cls": b"%d\n" % labels[row]}
                for ending in order.split():
                    info = tarfile.TarInfo(f"some/folder/{row:04d}.{ending}")
                    info.size = len(parts[ending])
                    if ending == "ppm":
                        rows.append((number, tar.offset + 512, info.size, labels[row]))
                    tar.addfile(info, io.BytesIO(parts[ending]))
        path = root / shard.name
        shards.append(replace(shard, bytes=path.stat().st_size, sha256=sha256_file(path)))
    columns = np.array(rows).T
    kinds = (np.int32, np.int64, np.int32, np.int32)
    whole = Index(*(column.astype(kind) for column, kind in zip(columns, kinds, strict=True)))
    sha256 = write_index(root, "train", whole)
    split = replace(manifest.splits["train"], shards=tuple(shards), index_sha256=sha256)
    (root / MANIFEST).write_bytes(replace(manifest, splits={"train": split}).to_json())


@pytest.mark.parametrize("order", ["cls ppm", "ppm cls"])
def test_a_single_sample_of_a_rare_class_tells(tmp_path: Path, order: str) -> None:
    """99 of 100 samples are of one class, which no draw of a few would tell apart."""
    root = write_dataset(
        tmp_path / "d", [picture(i) for i in range(200)], codec="raw", per_shard=100
    )
    labels = np.zeros(200, np.int64)
    labels[37] = 1
    relabelled(root, labels, order)
    expected = epoch(Loader(root, "train", CONFIG))
    swap(root, 0, 1)
    with pytest.raises(GratisError, match=SWAPPED):
        epoch(Loader(root, "train", CONFIG))
    swap(root, 0, 1)
    assert_same(epoch(Loader(root, "train", CONFIG)), expected)


def test_what_has_no_labels_is_read_as_it_is(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", [picture(i) for i in range(30)], codec="raw")
    manifest, index = read_manifest(root), read_index(root, "train")
    sha256 = write_index(root, "train", index._replace(label=np.full_like(index.label, -1)))
    split = replace(manifest.splits["train"], index_sha256=sha256)
    changed = replace(manifest, classes=(), splits={"train": split})
    (root / MANIFEST).write_bytes(changed.to_json())
    assert len(epoch(Loader(root, "train", CONFIG))) == 3


def test_a_header_that_rots_is_no_swap(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", [picture(i) for i in range(30)], codec="raw")
    expected = epoch(Loader(root, "train", CONFIG))
    with (root / "train-00001.tar").open("r+b") as file:
        file.write(b"?")
    assert_same(epoch(Loader(root, "train", CONFIG)), expected)
