"""The engine's views are those of today's batches, which DALI decodes and Numba normalises, to the
bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_cases import needs_library

from gratis import Loader, LoaderConfig
from gratis.dataset import read_index, read_manifest, read_stats
from gratis.loader.engine.decoder import NativeDecoder, ViewBatch, addresses
from gratis.loader.plan import draws
from gratis.loader.views.colour_noise import colour_shift, scale

CROP = 48


@needs_library
@pytest.mark.parametrize("noise", ["off", "sqrt"])
def test_they_equal_the_loader_s_batches(jpeg_dataset: Path, noise: Any) -> None:
    manifest, index = read_manifest(jpeg_dataset), read_index(jpeg_dataset, "train")
    stats, config = read_stats(jpeg_dataset), LoaderConfig(batch_size=32, crop=CROP, noise=noise)
    size = manifest.image_size
    shards = [(jpeg_dataset / shard.name).read_bytes() for shard in manifest.splits["train"].shards]
    factor = np.float32(scale(config, 0))
    mean = np.ascontiguousarray((stats.mean * factor).transpose(2, 0, 1))
    corner = (size - CROP) // 2
    seen = 0
    with Loader(str(jpeg_dataset), "train", config) as loader, NativeDecoder() as decoder:
        for images, _, padded in loader:
            ids = padded.numpy()[padded.numpy() >= 0]
            views = draws(config.seed, 0, ids, size - CROP + 1, None)
            count, out = len(ids), np.empty((len(ids), 3, CROP, CROP), np.float32)
            files = [
                np.frombuffer(shards[index.shard[i]], np.uint8, int(index.size[i]), index.offset[i])
                for i in ids
            ]
            sides = np.full(count, CROP)
            boxes = np.stack([views.y, views.x, sides, sides], 1).astype(np.int32)
            plus = colour_shift(stats, config, 0, views.normals) * scale(config, 0)
            begin = mean.ctypes.data + 4 * corner * (size + 1)
            status = decoder(
                ViewBatch(
                    data=addresses(files),
                    size=np.array([file.size for file in files], np.int64),
                    rectangles=boxes[:, None].copy(),
                    out=addresses(list(out))[:, None].copy(),
                    height=CROP,
                    width=CROP,
                    flip=views.flip.astype(np.uint8)[:, None].copy(),
                    scale=np.full(3, factor, np.float32),
                    plus=plus.astype(np.float32)[:, None].copy(),
                    minus=np.full((count, 1), begin, np.uint64),
                    minus_row=size,
                    minus_plane=size * size,
                )
            )
            assert not status.any()
            np.testing.assert_array_equal(images.numpy()[:count], out)
            seen += count
    assert seen == len(index.label)
