"""The picture of augmented images: the tiles are the images, it is small, whole at any moment, and
seldom made."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from gratis.loader import Batch, Loader, LoaderConfig
from gratis.train.latest_batch import COLUMNS, EVERY_S, NAME, TILES, renew, sheet


def test_a_tile_is_its_image(sample_shards: Path) -> None:
    config = LoaderConfig.alexnet(batch_size=32, crop=112, augment=False)
    with Loader(sample_shards, "train", config) as loader:
        images, _, _ = next(iter(loader))
        drawn = np.asarray(sheet(images, loader, 0)).astype(float)
    assert drawn.shape == (TILES // COLUMNS * 112, COLUMNS * 112, 3)
    index = 9  # second row, second place
    mean = loader.stats.mean[8:120, 8:120]
    expected = np.clip(images[index].numpy().transpose(1, 2, 0) + mean, 0, 255)
    assert np.abs(drawn[112:224, 112:224] - expected).max() <= 0.51


def test_scale_is_taken_back(sample_shards: Path) -> None:
    with Loader(
        sample_shards, "train", LoaderConfig.alexnet(batch_size=32, crop=112, noise="sqrt")
    ) as loader:
        images, _, _ = next(iter(loader))
        drawn = np.asarray(sheet(images[:1], loader, 0)).astype(float)
    mean = loader.stats.mean[8:120, 8:120]
    expected = np.clip(images[0].numpy().transpose(1, 2, 0) * 1.1 + mean, 0, 255)
    assert drawn.shape == (112, 112, 3)
    assert np.abs(drawn - expected).max() <= 0.51


def test_it_is_renewed_once_in_a_while_and_stays_small(sample_shards: Path, tmp_path: Path) -> None:
    with Loader(sample_shards, "train", LoaderConfig.alexnet(batch_size=32, crop=112)) as loader:
        batch = next(iter(loader))
        begin = time.perf_counter()
        assert renew(tmp_path, batch, loader, 0)
        print(f"a picture in {(time.perf_counter() - begin) * 1e3:.0f} ms")
        first = (tmp_path / NAME).read_bytes()
        assert len(first) < 1 << 20
        Image.open(io.BytesIO(first)).load()
        assert not renew(tmp_path, batch, loader, 0)
        old = time.time() - EVERY_S - 1
        os.utime(tmp_path / NAME, (old, old))
        assert renew(tmp_path, batch, loader, 0)
        assert not renew(tmp_path / "no folder", batch, loader, 0)
        assert not renew(
            tmp_path / "none", Batch(batch.images, batch.labels, batch.ids * 0 - 1), loader, 0
        )
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
