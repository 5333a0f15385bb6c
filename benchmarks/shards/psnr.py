"""The quality of tools' images for `gratis bench shards`: PSNR against a full decode and Lanczos
filter.

Tools cut out the central square by conventions of their own, and half a pixel of shift costs more
than any filter. So each output is compared with the nearest of the conventions in use. Pictures
that have to be enlarged are compared with both filters in use for that: cubic, of the 2012 sources
and of this stage, and Lanczos.

This stage over 500 ILSVRC photographs: 37.80 dB, where the reference itself keeps 37.80 through
quality 95; with the 50 of them that are enlarged compared with Lanczos, 37.53 of 37.78."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from gratis import image
from gratis.errors import GratisError
from gratis.preprocess.codecs import encode_jpeg
from gratis.preprocess.sources.listing import make_key

SIZE = 256
LANCZOS = Pillow.Resampling.LANCZOS


def ceiling(judged: list[Path]) -> float:
    """dB that the reference itself keeps through a JPEG of quality 95."""
    references = (reference(Pillow.open(path).convert("RGB")) for path in judged)
    scores = [psnr(image.decode(encode_jpeg(pixels, 95)), pixels) for pixels in references]
    return float(np.mean(scores))


def quality(out: Path, judged: list[Path]) -> float:
    """Mean dB of what a tool wrote under `out`. GratisError if one of the judged images is not
    there."""
    written = dict(_outputs(out))
    # this stage's; others keep the stem
    keys = {path.stem: make_key(path.name, path.parent.name) for path in judged}
    images = {stem: written.get(stem) or written.get(key) for stem, key in keys.items()}
    made = {stem: data for stem, data in images.items() if data}
    missing = [path.name for path in judged if path.stem not in made]
    if missing:
        counts = f"{len(missing)} of the {len(judged)} images that are judged"
        raise GratisError(f"{out.name} lacks {counts}: {missing[0]}, ...")
    scores = []
    for path in judged:
        pixels = image.decode(made[path.stem])
        scores.append(max(psnr(pixels, reference) for reference in conventions(path.read_bytes())))
    return float(np.mean(scores))


def _outputs(out: Path) -> Iterator[tuple[str, bytes]]:
    """(stem of the source file, JPEG). img2dataset renames: its JSON has the source."""
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member) for member in tar}
            members = {name: file.read() for name, file in files.items() if file}
        for name, data in members.items():
            stem = name.removesuffix(".jpg")
            if stem != name:
                facts = members.get(f"{stem}.json")
                yield Path(json.loads(facts)["url"]).stem if facts else stem, data


def conventions(data: bytes) -> list[NDArray[np.uint8]]:
    """The central square of a full decode, ours first, then as others round; where it is enlarged,
    by both filters."""
    whole = Pillow.open(io.BytesIO(data)).convert("RGB")
    filters = (LANCZOS, Pillow.Resampling.BICUBIC) if min(whole.size) < SIZE else (LANCZOS,)
    return [reference(whole), *(one for method in filters for one in _squares(whole, method))]


def reference(whole: Pillow.Image) -> NDArray[np.uint8]:
    """Our convention: the window that the 2012 sources cut out; by a Lanczos filter, or enlarged by
    a cubic one."""
    method = LANCZOS if min(whole.size) > SIZE else Pillow.Resampling.BICUBIC
    return np.asarray(whole.resize((SIZE, SIZE), method, box=image.central_box(*whole.size, SIZE)))


def _squares(whole: Pillow.Image, method: Pillow.Resampling) -> Iterator[NDArray[np.uint8]]:
    width, height = whole.size
    side: int = min(width, height)
    boxes: list[tuple[float, float, float, float]] = [image.central_box(width, height, SIZE)]
    boxes.append(((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2))
    for shift in (-1, 0, 1):
        left, top = (min(max((d - side) // 2 + shift, 0), d - side) for d in (width, height))
        boxes.append((left, top, left + side, top + side))
    for box in boxes:
        yield np.asarray(whole.resize((SIZE, SIZE), method, box=box))
    for rounding in (0.5, 0.0, 1 - 1e-9):  # to the nearest, down, up
        wide, high = (max(SIZE, int(d * SIZE / side + rounding)) for d in (width, height))
        resized = whole.resize((wide, high), method)
        for up in (0, 1):
            left, top = ((d - SIZE + up) // 2 for d in (wide, high))
            yield np.asarray(resized.crop((left, top, left + SIZE, top + SIZE)))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return 10 * math.log10(255**2 / max(1e-9, error))
