"""What `gratis preview` and `gratis explain` share: options, and the picture's file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gratis.dataset import read_manifest
from gratis.errors import GratisError


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """The options of both. GratisError for an address."""

    shards: Annotated[str, tyro.conf.Positional]
    """Folder of the dataset."""
    split: str = "train"
    crop: int | None = None
    """Side of the crop. Default: 7/8 of the image's, as 224 of 256."""
    seed: int = 0

    def __post_init__(self) -> None:
        if "://" in self.shards:
            advice = "copy the dataset first, or give its mount"
            raise GratisError(f"{self.shards}: this reads local folders; {advice}")

    @property
    def crop_side(self) -> int:
        chosen = self.crop
        return read_manifest(Path(self.shards)).image_size * 7 // 8 if chosen is None else chosen


def write_picture(path: Path, save: Callable[[Path], object]) -> None:
    """Whole or not at all: a picture that was there stays where the new one cannot be written
    (GratisError)."""
    advice = "name a .png file in an existing folder with room"
    if not path.suffix:
        raise GratisError(f"{path} has no ending that says its format; {advice}")
    # its suffix says what format is meant
    part = path.parent / f"{path.stem}.tmp{path.suffix}"
    try:
        save(part)
        part.replace(path)
    except (OSError, ValueError) as error:
        with suppress(OSError):
            part.unlink()
        reason = getattr(error, "strerror", None) or error  # without the other path
        raise GratisError(f"{path} cannot be written ({reason}); {advice}") from None
