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
    reader = runner.reader
    for first in batches:
        batch = first
        with runner.timer.time("decode_s"):
            pixels, parts, bad = decode_by_pillow(batch, plan)
            while reader.reject(batch.wanted, batch.ids, bad):
                batch = reader.read(plan, batch.wanted)
                pixels, parts, bad = decode_by_pillow(batch, plan)
        yield batch._replace(parts=parts, buffer=pixels)


def decode_by_pillow(
    batch: EncodedBatch, plan: EpochPlan
) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]], list[int]]:
    """All pixels, flat; those of each sample; and the rows that cannot be decoded."""
    sizes = plan.sizes(batch.ids)
    ends = np.cumsum(3 * sizes[0] * sizes[1])
    pixels, bad = np.zeros(int(ends[-1]), np.uint8), []
    parts = np.split(pixels, ends[:-1])
    for row, (part, size) in enumerate(zip(batch.parts, sizes.T.tolist(), strict=True)):
        try:
            parts[row].reshape(*size, 3)[:] = decode_or_reject(part.tobytes())
        except (Reject, ValueError):  # ValueError: of another size
            bad.append(row)
    return pixels, parts, bad
