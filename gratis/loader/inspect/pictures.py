"""What the two commands that draw share: the folder that they read, the crop, and the picture's
file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gratis.dataset import read_manifest
from gratis.errors import GratisError


def require_folder(shards: str) -> None:
    """GratisError for an address."""
    if "://" in shards:
        raise GratisError(
            f"{shards}: this reads local folders; copy the dataset first, or give its mount"
        )


def crop_side(shards: str, chosen: int | None) -> int:
    """What was chosen, else 7/8 of the image's side, as 224 of 256."""
    return read_manifest(Path(shards)).image_size * 7 // 8 if chosen is None else chosen


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
