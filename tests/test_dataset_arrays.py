"""Index and statistics of a dataset: what is written comes back, and what is none is named."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_dataset_format import SQUARE, WAY_OUT

from gratis.dataset import (
    Index,
    Stats,
    index_name,
    read_index,
    read_manifest,
    read_stats,
    write_index,
    write_stats,
)
from gratis.errors import GratisError


def index_of(count: int, *, whole: bool) -> Index:
    rows = np.arange(count)
    sizes = (rows + 20, rows + 10) if whole else ()
    columns = (rows // 2, 512 * rows, rows + 1, rows % 3, *sizes)
    types = (np.int32, np.int64, np.int32, np.int32, np.int32, np.int32)
    return Index(*(column.astype(kind) for column, kind in zip(columns, types, strict=False)))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_an_index_comes_back(tmp_path: Path, count: int, whole: bool) -> None:
    index = index_of(count, whole=whole)
    sha256 = write_index(tmp_path, "val", index)
    assert index_name("val") == "val.index.npz"
    path = tmp_path / "val.index.npz"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    for given in (None, sha256):
        back = read_index(tmp_path, "val", given)
        for column, other in zip(back, index, strict=True):
            assert (column is None) == (other is None)
            if column is not None and other is not None:
                assert column.dtype == other.dtype
                assert column.tolist() == other.tolist()
    height, width = index.sizes(SQUARE)
    assert height.tolist() == [k + 10 if whole else 64 for k in range(count)]
    assert width.tolist() == [k + 20 if whole else 64 for k in range(count)]
    height, width = index._replace(width=None).sizes(SQUARE)  # which no file may hold
    assert height.tolist() == width.tolist() == [64] * count
    few = index.rows(slice(1, 3))
    assert few.size.tolist() == index.size.tolist()[1:3]
    assert (few.width is None) != whole
    with pytest.raises(GratisError) as caught:
        read_index(tmp_path, "val", "0" * 64)
    assert str(caught.value) == (
        f"{path} is not the one the manifest names (its sha256 differs); copy the dataset again, "
        "or make the shards again"
    )


def test_half_of_the_sizes_is_no_index(tmp_path: Path) -> None:
    for index in (
        index_of(3, whole=True)._replace(width=None),
        index_of(3, whole=True)._replace(height=None),
        index_of(3, whole=False)._replace(size=np.zeros(2, np.int32)),
        index_of(3, whole=False)._replace(size=np.zeros((3, 1), np.int32)),
        index_of(3, whole=False)._replace(label=np.zeros(3, np.float32)),  # type: ignore[arg-type]
    ):
        write_index(tmp_path, "train", index)
        with pytest.raises(GratisError) as caught:
            read_index(tmp_path, "train")
        what = f"is damaged (not rows of whole numbers){WAY_OUT}"
        assert str(caught.value) == f"{tmp_path}/train.index.npz {what}"
    with pytest.raises(GratisError) as caught:
        read_index(tmp_path, "val")
    assert str(caught.value) == f"{tmp_path}/val.index.npz is missing{WAY_OUT}"


MEAN = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
VALUES, VECTORS = np.array([9.0, 4.0, 1.0]), np.eye(3)[:, [2, 0, 1]]


def test_statistics_come_back(tmp_path: Path) -> None:
    """Of square images with the channels' own from mean image and components; of whole ones with
    those that were measured."""
    sha256 = write_stats(tmp_path, Stats(MEAN, VALUES, VECTORS, 5))
    assert hashlib.sha256((tmp_path / "stats.npz").read_bytes()).hexdigest() == sha256
    stats = read_stats(tmp_path, sha256)
    assert (stats.num_images, type(stats.num_images)) == (5, int)
    assert (stats.mean == MEAN).all()
    assert (stats.channel_mean, stats.channel_std) == (None, None)
    mean, std = stats.channels
    assert mean.tolist() == [4.5, 5.5, 6.5]
    assert std.tolist() == [2.0, 1.0, 3.0]
    none = np.empty((0, 0, 3), np.float32)
    write_stats(tmp_path, Stats(none, VALUES, VECTORS, 5, np.ones(3), np.full(3, 2.0)))
    with np.load(tmp_path / "stats.npz") as arrays:
        assert "mean" not in arrays
    stats = read_stats(tmp_path)
    assert (stats.mean.shape, stats.mean.dtype) == ((0, 0, 3), np.float32)
    assert [part.tolist() for part in stats.channels] == [[1.0] * 3, [2.0] * 3]
    with pytest.raises(GratisError, match="not the one the manifest names"):
        read_stats(tmp_path, sha256)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"eigenvalues": np.zeros(2)}, "eigenvalues is float64 (2,)"),
        ({"eigenvectors": np.zeros((3, 2))}, "eigenvectors is float64 (3, 2)"),
        ({"eigenvectors": np.zeros((3, 3), np.int64)}, "eigenvectors is int64 (3, 3)"),
        ({"num_images": np.float64(5)}, "num_images is float64 ()"),
        ({"mean": np.zeros((2, 3, 3), np.float32)}, "mean is float32 (2, 3, 3)"),
        ({"mean": np.zeros((2, 2, 3), np.uint8)}, "mean is uint8 (2, 2, 3)"),
        ({"mean": None}, "mean is missing"),
        ({"mean": None, "channel_mean": np.zeros(3)}, "channel_std is missing"),
        ({"channel_mean": np.zeros(2), "channel_std": np.zeros(3)}, "channel_mean is float64 (2,)"),
        (
            dict.fromkeys(("channel_mean", "channel_std", "eigenvalues"), np.zeros(3))
            | {"num_images": np.zeros(1, int)},
            "num_images is int64 (1,)",
        ),
    ],
)
def test_odd_statistics_are_named(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    arrays = Stats(MEAN, VALUES, VECTORS, 5)._asdict() | changes
    present = {name: array for name, array in arrays.items() if array is not None}
    np.savez(tmp_path / "stats.npz", **present)
    with pytest.raises(GratisError) as caught:
        read_stats(tmp_path)
    assert str(caught.value) == f"{tmp_path}/stats.npz is damaged ({what}){WAY_OUT}"


class Harmful:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_no_pickle_is_read(tmp_path: Path) -> None:
    harmful = np.array([Harmful(tmp_path / "harm")], dtype=object)
    np.savez(tmp_path / "stats.npz", **Stats(MEAN, harmful, VECTORS, 5)._asdict())
    with pytest.raises(GratisError, match=r"is damaged \(Object arrays cannot be loaded"):
        read_stats(tmp_path)
    write_index(tmp_path, "train", index_of(1, whole=False)._replace(label=harmful))
    with pytest.raises(GratisError) as caught:
        read_index(tmp_path, "train")
    path = tmp_path / "train.index.npz"
    assert str(caught.value) == f"{path} is damaged (it holds objects){WAY_OUT}"
    assert not (tmp_path / "harm").exists()


def test_an_index_of_another_form_of_numpy_s(tmp_path: Path) -> None:
    """Version 2 of its format, whose headers may be longer."""
    index = index_of(5, whole=False)
    with zipfile.ZipFile(tmp_path / "val.index.npz", "w") as archive:
        for name, column in zip(Index._fields[:4], index[:4], strict=True):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(column), version=(2, 0))
    back = read_index(tmp_path, "val")
    assert [column.tolist() for column in back[:4]] == [column.tolist() for column in index[:4]]


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stats.npz")
    with pytest.raises(GratisError, match=r"stats.npz is damaged"):
        read_stats(tmp_path)
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(GratisError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == f"{tmp_path}/manifest.json is not a manifest{WAY_OUT}"


def test_a_compressed_index_is_read_by_nobody(tmp_path: Path) -> None:
    """It could not lie in its file."""
    np.savez_compressed(tmp_path / "train.index.npz", shard=np.zeros(1), offset=np.zeros(1))
    with pytest.raises(GratisError, match="is damaged"):
        read_index(tmp_path, "train")
    arrays = {k: v for k, v in index_of(3, whole=False)._asdict().items() if v is not None}
    np.savez_compressed(tmp_path / "train.index.npz", **arrays)
    with pytest.raises(GratisError) as caught:
        read_index(tmp_path, "train")
    assert str(caught.value) == (
        f"{tmp_path}/train.index.npz is damaged (it is compressed){WAY_OUT}"
    )


def test_a_flipped_bit_of_an_index_is_named_by_its_array(tmp_path: Path) -> None:
    write_index(tmp_path, "train", index_of(50, whole=False))
    path = tmp_path / "train.index.npz"
    data = bytearray(path.read_bytes())
    at = data.index(b"label.npy") + 9 + 128  # behind the header of the array
    data[at + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(GratisError) as caught:
        read_index(tmp_path, "train")
    assert str(caught.value) == f"{path} is damaged (the sum of label.npy differs){WAY_OUT}"
