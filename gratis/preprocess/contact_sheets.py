"""Pictures of a dataset for the inspect command, drawn with Pillow alone.

mean.png          the mean image, beside it the same with its contrast stretched
components.png    three strips: the mean colour moved along each principal direction, -3 to +3
                  deviations
classes.png       images per class, by label, one panel a split
montage.png       originals with the part outlined that is kept, beside the images they became
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from gratis import image
from gratis.dataset import Stats

WHITE, INK, BAR, LINE = (255, 255, 255), (20, 20, 20), (52, 101, 164), (220, 30, 30)
STRIP = (640, 64)  # pixels of a component's strip
PANEL = (1000, 240)  # of a split's histogram
TILE = 256  # of the montage
GAP = 16


def draw_mean(stats: Stats, path: Path) -> None:
    plain = stats.mean.round().astype(np.uint8)
    low, high = stats.mean.min(), stats.mean.max()
    stretched = ((stats.mean - low) * (255 / max(1e-6, float(high - low)))).round().astype(np.uint8)
    Pillow.fromarray(np.concatenate([plain, stretched], axis=1)).save(path)


def draw_components(stats: Stats, cosines: Sequence[float], path: Path) -> None:
    """cosines: of each direction with the published one."""
    width, height = STRIP
    sheet = Pillow.new("RGB", (width + 2 * GAP, 3 * (height + 2 * GAP) + GAP), WHITE)
    pen = ImageDraw.Draw(sheet)
    colour, _ = stats.channels
    steps = np.linspace(-3, 3, width)[:, None]
    for k in range(3):
        deviation = float(np.sqrt(stats.eigenvalues[k]))
        shades = colour + steps * deviation * stats.eigenvectors[:, k]
        strip = np.broadcast_to(shades.clip(0, 255).astype(np.uint8), (height, width, 3))
        top = k * (height + 2 * GAP) + GAP
        direction = ", ".join(f"{value:+.3f}" for value in stats.eigenvectors[:, k])
        text = (
            f"component {k + 1}: deviation {deviation:.2f}, direction ({direction}), |cos| "
            f"{cosines[k]:.4f}"
        )
        pen.text((GAP, top), text, fill=INK)
        sheet.paste(Pillow.fromarray(np.ascontiguousarray(strip)), (GAP, top + GAP))
    sheet.save(path)


def draw_classes(counts: dict[str, NDArray[np.int64]], path: Path) -> None:
    """counts: images of each label, by split."""
    width, height = PANEL
    sheet = Pillow.new("RGB", (width + 2 * GAP, len(counts) * (height + 3 * GAP)), WHITE)
    pen = ImageDraw.Draw(sheet)
    for panel, (split, images) in enumerate(counts.items()):
        base = (panel + 1) * (height + 3 * GAP) - GAP
        most = max(1, int(images.max()))
        pen.text(
            (GAP, base - height - GAP),
            f"{split}: {len(images):,} classes, at most {most:,} images",
            fill=INK,
        )
        # a column a pixel: with more classes than pixels it shows the least of those that share it
        edges = np.linspace(0, len(images), width + 1)
        gap = width // len(images) >= 4  # room for a line between classes
        for x in range(width):
            if gap and int(edges[x]) != int(edges[x + 1]):
                continue
            shared = images[int(edges[x]) : max(int(edges[x]) + 1, int(edges[x + 1]))]
            pen.line(
                [(GAP + x, base), (GAP + x, base - int(shared.min()) * height // most)], fill=BAR
            )
    sheet.save(path)


def draw_montage(
    pairs: Sequence[tuple[bytes, NDArray[np.uint8]]],
    path: Path,
    size: int,
    whole: image.Whole | None,
) -> None:
    """pairs: a source file's bytes and the image [height,width,3] that it became, by these
    settings."""
    columns = 3
    rows = -(-len(pairs) // columns)
    cell = (2 * TILE + 3 * GAP, TILE + GAP)
    sheet = Pillow.new("RGB", (columns * cell[0], rows * cell[1] + GAP), WHITE)
    for k, (data, pixels) in enumerate(pairs):
        left, top = (k % columns) * cell[0] + GAP, (k // columns) * cell[1] + GAP
        original = _outlined(data, size, whole)
        sheet.paste(
            original, (left + (TILE - original.width) // 2, top + (TILE - original.height) // 2)
        )
        became = Pillow.fromarray(pixels)
        became = became.resize(_fitted(became))
        sheet.paste(became, (left + TILE + GAP, top + (TILE - became.height) // 2))
    sheet.save(path)


def _fitted(picture: Pillow.Image) -> tuple[int, int]:
    """Width and height of the picture where its longer side is TILE."""
    scale = TILE / max(picture.size)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _outlined(data: bytes, size: int, whole: image.Whole | None) -> Pillow.Image:
    try:
        picture = Pillow.open(io.BytesIO(data)).convert("RGB")
    except OSError:  # an odd file, gzip around it perhaps: what came of it, then
        return Pillow.fromarray(image.to_image(data, TILE).pixels)
    box = image.central_box(*picture.size, size)
    if whole:
        _, box = image.whole_box(*picture.size, size, whole)
    scale = TILE / max(picture.size)
    small = picture.resize(_fitted(picture))
    left, top, right, bottom = (round(edge * scale) for edge in box)
    ImageDraw.Draw(small).rectangle(
        (left, top, max(left, right - 1), max(top, bottom - 1)), outline=LINE, width=2
    )
    return small
