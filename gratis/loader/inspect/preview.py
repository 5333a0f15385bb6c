"""`gratis preview SHARDS --out preview.png`: a picture of what the trainer will see, one batch,
augmented, with normalisation taken back, under class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gratis.command_line import parse
from gratis.dataset import class_words, read_manifest
from gratis.errors import GratisError
from gratis.loader.config import LoaderConfig
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.inspect.pictures import PictureOptions, write_picture
from gratis.loader.loader import Loader
from gratis.loader.views.normalisation import normalisation

COLUMNS, CAPTION = 6, 14  # tiles in a row; pixels under each for the class name
TILES = 24


@dataclass(frozen=True, kw_only=True)
class Preview(PictureOptions):
    """Draws augmented images as training would get them, normalisation taken back, with their class
    names."""

    config: Literal["alexnet", "imagenet"] | None = None
    """alexnet: as `gratis train` gets them (LoaderConfig.alexnet()). imagenet: random parts that
    are resized, no colour noise (LoaderConfig.imagenet()). Default: alexnet; of whole images
    imagenet."""
    out: Path = Path("preview.png")
    """File to draw to."""
    threads: int | None = None
    """Of the decoder. Default: one per core that this process may use."""
    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device.split(":")[0] not in ("cpu", "cuda"):
            raise GratisError(f"--device {self.device}; take cpu or cuda")


def main(arguments: Sequence[str]) -> None:
    options = parse(Preview, arguments, "gratis preview")
    if options.device != "cpu" and not torch.cuda.is_available():
        raise GratisError(f"--device {options.device}, but there is no GPU here; take --device cpu")
    crop = options.crop_side
    whole = read_manifest(Path(options.shards)).shape == "whole"
    name = options.config or ("imagenet" if whole else "alexnet")
    named = {"alexnet": LoaderConfig.alexnet, "imagenet": LoaderConfig.imagenet}[name]
    config = named(batch_size=TILES, seed=options.seed, crop=crop, threads=options.threads)
    with Loader(options.shards, options.split, config, device=options.device) as loader:
        print(f"{options.out}: {draw_preview(loader, options.out)} images")


def draw_preview(loader: Loader, path: Path) -> int:
    """Draws the first batch of the loader's epoch to a file; returns how many tiles. GratisError if
    it cannot be written."""
    plan = loader.epoch_plan(loader.epoch)
    loader.set_epoch(plan.epoch)
    images, labels, ids = next(iter(loader))
    loader.close()
    rows = [i for i in range(len(ids)) if ids[i] >= 0]
    crop, lines = plan.config.crop, -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * crop, lines * (crop + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, i in enumerate(rows):
        left, top = place % COLUMNS * crop, place // COLUMNS * (crop + CAPTION)
        image = images[i] if loader.config.layout == "nhwc" else images[i].movedim(0, -1)
        pixels = _pixels(plan, image.float().cpu().numpy(), int(ids[i]))
        sheet.paste(Image.fromarray(pixels), (left, top))
        words = class_words(loader.classes, int(labels[i]))[: crop // 6]
        caption = words.encode("latin-1", "replace").decode("latin-1")  # all that the font has
        pen.text((left + 2, top + crop + 1), caption, "black")
    write_picture(path, sheet.save)
    return len(rows)


def _pixels(plan: EpochPlan, image: NDArray[np.float32], sample: int) -> NDArray[np.uint8]:
    """uint8 [crop,crop,3] of [crop,crop,3]: division and mean taken back, the colour noise left
    in."""
    crop, flip = plan.config.crop, False
    whole, factor = normalisation(plan.stats, plan.config, plan.epoch)
    y = x = (len(whole) - crop) // 2
    if plan.config.mean == "offset":
        drawn = plan.draws(np.array([sample])).draws
        y, x, flip = int(drawn.y[0]), int(drawn.x[0]), bool(drawn.flip[0])
    mean = whole[y : y + crop, x : x + crop]
    mean = mean[:, ::-1] if flip else mean
    pixels = image / factor + mean
    visible: NDArray[np.uint8] = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    return visible
