"""`gratis preview SHARDS --out preview.png`: a picture of what the trainer will see: one batch,
augmented, with normalisation taken back, under class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gratis.command_line import parse
from gratis.dataset import read_manifest
from gratis.errors import GratisError
from gratis.loader.config import LoaderConfig
from gratis.loader.loader import Loader
from gratis.loader.views.normaliser import scale

COLUMNS, CAPTION = 6, 14  # tiles in a row; pixels under each for the class name
TILES = 24


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Draws augmented images as training would get them, normalisation taken back, with their class
    names."""

    shards: Annotated[str, tyro.conf.Positional]
    """Folder of the dataset."""
    out: Path = Path("preview.png")
    """File to draw to."""
    split: str = "train"
    crop: int | None = None
    """Side of the crop. Default: 7/8 of the image's, as 224 of 256."""
    threads: int | None = None
    """Of the decoder. Default: one per core that this process may use."""
    seed: int = 0
    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        if "://" in self.shards:
            raise GratisError(
                f"{self.shards}: this reads local folders; copy the dataset first, or give its "
                f"mount"
            )
        if self.device.split(":")[0] not in ("cpu", "cuda"):
            raise GratisError(f"--device {self.device}; take cpu or cuda")


def main(arguments: Sequence[str]) -> None:
    options = parse(Preview, arguments, "gratis preview")
    if options.device != "cpu" and not torch.cuda.is_available():
        raise GratisError(f"--device {options.device}, but there is no GPU here; take --device cpu")
    crop = (
        read_manifest(Path(options.shards)).image_size * 7 // 8
        if options.crop is None
        else options.crop
    )
    config = LoaderConfig(batch_size=TILES, seed=options.seed, crop=crop, threads=options.threads)
    with Loader(
        options.shards, options.split, config, device=torch.device(options.device)
    ) as loader:
        print(f"{options.out}: {draw_preview(loader, options.out)} images")


def draw_preview(loader: Loader, path: Path) -> int:
    """Draws the next epoch's first batch to a file; returns how many tiles. GratisError if it
    cannot be written."""
    images, labels, ids = next(iter(loader))
    loader.close()
    shown = [i for i in range(len(ids)) if ids[i] >= 0]
    crop, rows = loader.config.crop, -(-len(shown) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * crop, rows * (crop + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, i in enumerate(shown):
        left, top = place % COLUMNS * crop, place // COLUMNS * (crop + CAPTION)
        sheet.paste(
            Image.fromarray(_pixels(loader, images[i].float().cpu().numpy(), int(ids[i]))),
            (left, top),
        )
        words = loader.classes[int(labels[i])].words.split(",")[0]
        pen.text(
            (left + 2, top + crop + 1),
            words[: crop // 6].encode("latin-1", "replace").decode("latin-1"),
            "black",
        )
    write_picture(path, sheet.save)
    return len(shown)


def write_picture(path: Path, save: Callable[[Path], object]) -> None:
    """Whole or not at all: a picture that was there stays where the new one cannot be written
    (GratisError)."""
    advice = "name a .png file in an existing folder with room"
    if not path.suffix:
        raise GratisError(f"{path} has no ending that says its format; {advice}")
    # of that suffix: it says what format is meant
    part = path.parent / f"{path.stem}.tmp{path.suffix}"
    try:
        save(part)
        part.replace(path)
    except (OSError, ValueError) as error:
        with suppress(OSError):
            part.unlink()
        why = getattr(error, "strerror", None) or error  # without the other path
        raise GratisError(f"{path} cannot be written ({why}); {advice}") from None


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
