"""What a trained network takes your pictures for: `gratis predict cat.jpg dog.png [--run R]`.

Each file goes the way of the dataset's images (shorter side resized, centre cut out), then ten
views; printed are the five classes of the highest mean probability. Other than a dataset's, a
picture is turned upright by its EXIF orientation, and transparency is laid on white; what was
converted is shown behind its name. A file that is no picture costs one message and, at the end,
exit code 2."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from gratis.atomic import open_nonblocking
from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.image import MAX_BYTES, Image, Reject, to_image_as_seen
from gratis.train.analysis.run_options import RunOptions

if TYPE_CHECKING:  # torch takes two seconds, which --help need not
    from gratis.train.analysis.trained_network import TrainedNetwork

TOP = 5
SHOWN = {  # of gratis.image's conversions; the others change no pixel
    "exif-rotated": "turned upright",
    "exif-corrupt": "EXIF unreadable, not turned",
    "alpha": "transparency on white",
    "greyscale": "grey",
    "cmyk": "CMYK to RGB",
    "ycck": "YCCK to RGB",
    "palette": "palette to RGB",
    "1-bit": "1 bit to 8",
    "16-bit": "16 bits to 8",
    "float": "float clipped to 0-255",
    "one-pixel": "stretched from one pixel",
}


@dataclass(frozen=True, kw_only=True)
class Predict(RunOptions):
    """Prints the five most probable classes of your own image files."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files: JPEG, PNG, GIF, BMP, WebP, TIFF, PPM; they are turned upright by their EXIF."""

    def __post_init__(self) -> None:
        if not self.images:
            raise GratisError("predict needs at least one image file: gratis predict cat.jpg")


def main(arguments: list[str]) -> None:
    options = parse(Predict, arguments, "gratis predict")
    shown, there = 0, [path for path in options.images if opens(path)]
    if there:
        from gratis.train.analysis.trained_network import load

        trained = load(options)
        step, classes = trained.state.step, trained.state.classes
        print(f"run {trained.folder}, step {step}: {classes} classes, ten views", flush=True)
        for path in there:
            if image := read(path, trained.manifest.image_size):
                show(path, image, trained)
                shown += 1
    if failed := len(options.images) - shown:
        raise GratisError(f"{failed} of {len(options.images)} images could not be read")


def opens(path: Path) -> bool:
    """Whether it can be opened, checked before anything is loaded; a message on stderr if not."""
    try:
        with open(path, "rb", opener=open_nonblocking) as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        complain(path, error.strerror or str(error))
        return False
    if not stat.S_ISREG(status.st_mode):
        complain(path, "not a regular file")
    elif status.st_size > MAX_BYTES:  # before it is in memory
        complain(path, f"{status.st_size:,} bytes; the limit is {MAX_BYTES:,}")
    else:
        return True
    return False


def read(path: Path, size: int) -> Image | None:
    """The image at the dataset's size, or None after a message that says why not."""
    try:
        return to_image_as_seen(path.read_bytes(), size)
    except Reject as reject:
        reason = str(reject)
    except OSError as error:
        reason = error.strerror or str(error)
    complain(path, reason)
    return None


def complain(path: Path, reason: str) -> None:
    print(f"{path}: {reason}", file=sys.stderr, flush=True)


def show(path: Path, image: Image, trained: TrainedNetwork) -> None:
    probabilities = trained.probabilities([image.pixels])[0]
    converted = [SHOWN[kind] for kind in image.conversions if kind in SHOWN]
    print(f"{path} ({', '.join(converted)})" if converted else path)
    for label in np.argsort(-probabilities, kind="stable")[:TOP].tolist():
        print(f"  {probabilities[label]:6.1%}  {trained.name(label)}", flush=True)
