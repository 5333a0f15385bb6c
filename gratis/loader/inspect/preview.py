"""`gratis preview SHARDS --out preview.png`: a picture of what the trainer will see, one batch,
augmented, with normalisation taken back, under class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gratis.command_line import parse
from gratis.dataset import ImageClass, class_words, read_manifest
from gratis.errors import GratisError
from gratis.loader.config import LoaderConfig
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.inspect.config_file import read_config
from gratis.loader.inspect.pictures import PictureOptions, write_picture
from gratis.loader.loader import Loader
from gratis.loader.views.normalisation import normalisation

COLUMNS, CAPTION = 6, 14  # tiles in a row; pixels under each for the class name
TILES = 24
NAMED = {"alexnet": LoaderConfig.alexnet, "imagenet": LoaderConfig.imagenet}


@dataclass(frozen=True, kw_only=True)
class Preview(PictureOptions):
    """Draws augmented images as training would get them, normalisation taken back, with their class
    names."""

    config: str | None = None
    """alexnet: as `gratis train` gets them (LoaderConfig.alexnet()). imagenet: random parts that
    are resized, no colour noise (LoaderConfig.imagenet()). Or a JSON file of LoaderConfig's fields,
    or of a recipe (examples/recipes), with all that it does to an image and to a batch. Default:
    alexnet; of whole images imagenet."""
    epoch: int = 0
    """Whose draws, and whose crop and operations where a schedule changes them."""
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
        if self.epoch < 0:
            raise GratisError(f"--epoch {self.epoch}; the first is 0")

    @property
    def loader_config(self) -> LoaderConfig:
        changes: dict[str, Any] = {"batch_size": TILES, "seed": self.seed, "threads": self.threads}
        name = self.config
        if name is None:
            whole = read_manifest(Path(self.shards)).shape == "whole"
            name = "imagenet" if whole else "alexnet"
        if name in NAMED:
            return NAMED[name](**changes, crop=self.crop_side)
        if not name.endswith(".json"):
            raise GratisError(f"--config {name}; take alexnet, imagenet or a .json file")
        changes |= {"remainder": "short", "decoded": "none"}
        changes |= {} if self.crop is None else {"crop": self.crop}
        return read_config(Path(name), self.split, **changes)


def main(arguments: Sequence[str]) -> None:
    options = parse(Preview, arguments, "gratis preview")
    if options.device != "cpu" and not torch.cuda.is_available():
        raise GratisError(f"--device {options.device}, but there is no GPU here; take --device cpu")
    config = options.loader_config
    with Loader(options.shards, options.split, config, device=options.device) as loader:
        loader.set_epoch(options.epoch)
        print(f"{options.out}: {draw_preview(loader, options.out)} images")


def draw_preview(loader: Loader, path: Path) -> int:
    """Draws the first batch of the loader's epoch to a file, all views of its samples; returns how
    many. GratisError if it cannot be written."""
    plan = loader.epoch_plan(loader.epoch)
    loader.set_epoch(plan.epoch)
    images, labels, ids = next(iter(loader))
    loader.close()
    views = plan.config.views
    images = images if views > 1 else images[:, None]
    tiles = [(i, view) for i in range(len(ids)) if ids[i] >= 0 for view in range(views)]
    crop, lines = plan.config.crop, -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * crop, lines * (crop + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (i, view) in enumerate(tiles):
        left, top = place % COLUMNS * crop, place // COLUMNS * (crop + CAPTION)
        image = images[i, view]
        image = image if plan.config.layout == "nhwc" else image.movedim(0, -1)
        pixels = _pixels(plan, image.float().cpu().numpy(), int(ids[i]), view)
        sheet.paste(Image.fromarray(pixels), (left, top))
        words = _words(loader.classes, labels[i])[: crop // 6]
        caption = words.encode("latin-1", "replace").decode("latin-1")  # all that the font has
        pen.text((left + 2, top + crop + 1), caption, "black")
    write_picture(path, sheet.save)
    return len(tiles)


def _words(classes: tuple[ImageClass, ...], label: torch.Tensor) -> str:
    """Of a class, or of those that are mixed, the larger share first: "63 % cat, 37 % dog"."""
    if not label.ndim:
        return class_words(classes, int(label))
    shares, found = label.sort(descending=True)
    mixed = [(f"{s:.0%}", int(c)) for s, c in zip(shares.tolist(), found, strict=True) if s > 0]
    if len(mixed) == 1:
        return class_words(classes, mixed[0][1])
    return ", ".join(f"{share} {class_words(classes, number)}" for share, number in mixed)


def _pixels(
    plan: EpochPlan, image: NDArray[np.float32], sample: int, view: int
) -> NDArray[np.uint8]:
    """uint8 [crop,crop,3] of [crop,crop,3]: division and mean taken back (of a mixed one its own),
    the colour noise left in."""
    crop, flip = plan.config.crop, False
    whole, factor = normalisation(plan.stats, plan.config, plan.epoch)
    y = x = (len(whole) - crop) // 2
    if plan.config.mean == "offset":
        drawn = plan.draws(np.array([sample])).draws
        y, x, flip = int(drawn.y[view]), int(drawn.x[view]), bool(drawn.flip[view])
    mean = whole[y : y + crop, x : x + crop]
    mean = mean[:, ::-1] if flip else mean
    pixels = image / factor + mean
    visible: NDArray[np.uint8] = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    return visible
