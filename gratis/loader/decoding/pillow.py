"""JPEGs decoded by Pillow, where DALI cannot be imported (it has no package for macOS or Windows):
the same libjpeg-turbo pixels for a few times the CPU time, of what the engine refuses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gratis.image import Reject, decode_or_reject
from gratis.loader.decoding.dali_runner import DaliRunner
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.reading.batch_reader import EncodedBatch


def dali_is_here() -> bool:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return False
    return True


def stored_by_pillow(
    batches: Iterator[EncodedBatch], plan: EpochPlan, runner: DaliRunner
) -> Iterator[EncodedBatch]:
    """The batches as if their samples had been stored as pixels. Bad samples are replaced."""
    side, reader = plan.manifest.image_size, runner.reader
    for first in batches:
        batch = first
        with runner.timer.time("decode_s"):
            pixels, bad = decode_by_pillow(batch, side)
            while reader.reject(batch.wanted, batch.ids, bad):
                batch = reader.read(plan, batch.wanted)
                pixels, bad = decode_by_pillow(batch, side)
        rows = list(pixels.reshape(len(pixels), -1))
        yield batch._replace(parts=rows, buffer=pixels.reshape(-1))


def decode_by_pillow(batch: EncodedBatch, side: int) -> tuple[NDArray[np.uint8], list[int]]:
    """uint8 [n,side,side,3], and the rows that cannot be decoded."""
    pixels, bad = np.zeros((len(batch.ids), side, side, 3), np.uint8), []
    for row, part in enumerate(batch.parts):
        try:
            pixels[row] = decode_or_reject(part.tobytes())
        except (Reject, ValueError):  # ValueError: of another size
            bad.append(row)
    return pixels, bad
