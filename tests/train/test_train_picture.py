"""The picture of augmented images: the tiles are the images, it is small, whole at any moment, and
seldom made."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import picture, write_dataset
from PIL import Image

from gratis.choices import NoiseForm
from gratis.loader import Batch, Loader, LoaderConfig
from gratis.train.latest_batch import NAME, renew, sheet

CROP = 56  # of 64 pixels


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many tiles as there are, and two more."""
    root = tmp_path_factory.mktemp("pictures") / "shards"
    return write_dataset(root, [picture(i) for i in range(26)])


def test_a_tile_is_its_image(shards: Path) -> None:
    """Three rows of eight."""
    config = LoaderConfig.alexnet(batch_size=26, crop=CROP, augment=False)
    with Loader(shards, "train", config) as loader:
        images, _, _ = next(iter(loader))
        drawn = np.asarray(sheet(images, loader, 0)).astype(float)
        few = sheet(images[:9], loader, 0)
    assert drawn.shape == (3 * CROP, 8 * CROP, 3)
    mean = loader.stats.mean[4:60, 4:60]
    for index, top, left in ((0, 0, 0), (9, 1, 1), (23, 2, 7)):
        expected = np.clip(images[index].numpy().transpose(1, 2, 0) + mean, 0, 255)
        rows, columns = (slice(CROP * at, CROP * (at + 1)) for at in (top, left))
        assert np.abs(drawn[rows, columns] - expected).max() <= 0.51
    assert few.size == (8 * CROP, 2 * CROP)


def test_a_tile_has_at_most_112_pixels_a_side(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "shards", [picture(i, 128) for i in range(3)])
    config = LoaderConfig.alexnet(batch_size=3, crop=120, augment=False)
    with Loader(root, "train", config) as loader:
        assert sheet(next(iter(loader)).images, loader, 0).size == (3 * 112, 112)


@pytest.mark.parametrize(
    ("noise", "epoch", "scale"), [("sqrt", 0, 1.1), ("sqrt", 2, 1.0), ("printed", 0, 1.0)]
)
def test_scale_is_taken_back(shards: Path, noise: NoiseForm, epoch: int, scale: float) -> None:
    """Of the released noise alone, as long as there is any."""
    config = LoaderConfig.alexnet(batch_size=1, crop=CROP, noise=noise, noise_until=2)
    with Loader(shards, "train", config) as loader:
        images, _, _ = next(iter(loader))
        drawn = np.asarray(sheet(images, loader, epoch)).astype(float)
    mean = loader.stats.mean[4:60, 4:60]
    expected = np.clip(images[0].numpy().transpose(1, 2, 0) * scale + mean, 0, 255)
    assert drawn.shape == (CROP, CROP, 3)
    assert np.abs(drawn - expected).max() <= 0.51


def test_it_is_renewed_once_in_a_while_and_stays_small(shards: Path, tmp_path: Path) -> None:
    with Loader(shards, "train", LoaderConfig.alexnet(batch_size=26, crop=CROP)) as loader:
        batch = next(iter(loader))
        begin = time.perf_counter()
        assert renew(tmp_path, batch, loader, 0)
        print(f"a picture in {(time.perf_counter() - begin) * 1e3:.0f} ms")
        first = (tmp_path / NAME).read_bytes()
        assert len(first) < 1 << 20
        with Image.open(io.BytesIO(first)) as drawn:
            drawn.load()
            assert drawn.size == (8 * CROP, 3 * CROP)
        assert not renew(tmp_path, batch, loader, 0)
        for age, renewed in ((50, False), (61, True)):  # seconds
            os.utime(tmp_path / NAME, (time.time() - age,) * 2)
            assert renew(tmp_path, batch, loader, 0) is renewed
        ids = batch.ids.clone().fill_(-1)
        ids[:2] = torch.tensor([0, 7])
        (tmp_path / NAME).unlink()
        assert renew(tmp_path, Batch(batch.images, batch.labels, ids), loader, 0)
        with Image.open(tmp_path / NAME) as drawn:
            assert drawn.size == (2 * CROP, CROP)
        assert not renew(tmp_path / "no folder", batch, loader, 0)
        assert not renew(
            tmp_path / "none", Batch(batch.images, batch.labels, batch.ids * 0 - 1), loader, 0
        )
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
