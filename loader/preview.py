"""A picture of what the trainer will see: one batch, augmented, with normalisation taken back, under class names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from loader.finish import scale
from loader.loader import Loader
from preprocess.errors import UserError

COLUMNS, CAPTION = 6, 14  # tiles in a row; pixels under each for the class name


def draw_preview(loader: Loader, path: Path) -> int:
    """Draws the next epoch's first batch to a file; returns how many tiles. UserError if it cannot be written."""
    images, labels, ids = next(iter(loader))
    loader.close()
    shown = [i for i in range(len(ids)) if ids[i] >= 0]
    crop, rows = loader.config.crop, -(-len(shown) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * crop, rows * (crop + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, i in enumerate(shown):
        left, top = place % COLUMNS * crop, place // COLUMNS * (crop + CAPTION)
        sheet.paste(Image.fromarray(_pixels(loader, images[i].float().cpu().numpy(), int(ids[i]))), (left, top))
        words = loader.classes[int(labels[i])].words.split(",")[0]
        pen.text((left + 2, top + crop + 1), words[: crop // 6].encode("latin-1", "replace").decode("latin-1"), "black")
    write_picture(path, sheet.save)
    return len(shown)


def write_picture(path: Path, save: Callable[[Path], object]) -> None:
    """Whole or not at all: a picture that was there stays where the new one cannot be written (UserError)."""
    advice = "name a .png file in an existing folder with room"
    if not path.suffix:
        raise UserError(f"{path} has no ending that says its format; {advice}")
    part = path.parent / f"{path.stem}.tmp{path.suffix}"  # of that suffix: it says what format is meant
    try:
        save(part)
        part.replace(path)
    except (OSError, ValueError) as error:
        with suppress(OSError):
            part.unlink()
        why = getattr(error, "strerror", None) or error  # without the other path
        raise UserError(f"{path} cannot be written ({why}); {advice}") from None


def _pixels(loader: Loader, image: NDArray[np.float32], sample: int) -> NDArray[np.uint8]:
    """uint8 [crop,crop,3]: division and mean taken back, the colour noise left in."""
    job, crop = loader.job(loader.epoch), loader.config.crop
    y = x = (job.positions - 1) // 2
    mean = loader.stats.mean[y : y + crop, x : x + crop]
    if loader.config.mean == "offset":
        drawn, _ = job.draws(np.array([sample]))
        y, x = int(drawn.y[0]), int(drawn.x[0])
        mean = loader.stats.mean[y : y + crop, x : x + crop]
        mean = mean[:, ::-1] if drawn.flip[0] else mean
    pixels = image.transpose(1, 2, 0) / scale(loader.config, job.epoch) + mean
    shown: NDArray[np.uint8] = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    return shown
