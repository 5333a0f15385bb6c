"""The latest augmented images, `runs/<name>/latest.jpg`, for the status page: from a batch that was
just trained on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from gratis.loader import Batch, Loader

NAME = "latest.jpg"
EVERY_S = 60.0  # a picture takes about 10 ms of rank 0's time: under 0.02 % of this
TILES, COLUMNS = 24, 8
SIDE = 112  # pixels of a tile at most: 8 x 3 of them make a JPEG of some 60 kB


def renew(folder: Path, batch: Batch, loader: Loader, epoch: int) -> bool:
    """Writes the picture if the run has none of the last EVERY_S seconds; whether it did.

    batch: as it was trained on, padding left out of the picture. On a disk that fails nothing
    happens."""
    path, real = folder / NAME, int((batch.ids >= 0).sum())
    try:
        if not real or (path.exists() and time.time() - path.stat().st_mtime < EVERY_S):
            return False
        fresh = path.with_suffix(".tmp")
        sheet(batch.images[:real], loader, epoch).save(fresh, "JPEG", quality=85)
        os.replace(fresh, path)  # the server never meets half a picture
    except OSError:
        return False
    return True


def sheet(images: Tensor, loader: Loader, epoch: int) -> Image.Image:
    """The first TILES of the images side by side: scale and mean taken back, crop, mirror and
    colour noise left in.

    The mean is the central region's for all; where the loader subtracted that of each crop's own
    place, the tiles are off by the difference, which on a mean image nobody sees."""
    crop = images.shape[-1]
    margin = (loader.manifest.image_size - crop) // 2
    mean = loader.stats.mean[margin : margin + crop, margin : margin + crop]
    scale = 1.1 if loader.config.noise == "sqrt" and loader.config.noisy(epoch) else 1.0
    pixels = images[:TILES].float().cpu().permute(0, 2, 3, 1).numpy() * scale + mean
    tiles = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    side = min(crop, SIDE)
    whole = Image.new("RGB", (min(len(tiles), COLUMNS) * side, -(-len(tiles) // COLUMNS) * side))
    for place, tile in enumerate(tiles):
        small = Image.fromarray(tile).resize((side, side), Image.Resampling.BILINEAR)
        whole.paste(small, (place % COLUMNS * side, place // COLUMNS * side))
    return whole
