"""What is done to a batch when all of its images are finished, whoever decoded them: erasing,
mixing, soft labels. On the CPU by the engine's passes, else (on a GPU, or where the engine is not
compiled) by torch; the numbers are `gratis.loader.views.draw_mixing`'s."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gratis.loader.decoding.native import TYPES
from gratis.loader.engine.batch_passes import AT_ONCE, BatchPasses, Rows
from gratis.loader.engine.library import load
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.pipeline.batch_tensors import labels_and_ids, soft_labels
from gratis.loader.plan import ERASE_NOISE, Ids, of_views
from gratis.loader.views.draw_mixing import Box, Erased, Mix, draw_erasing
from gratis.loader.views.torch_mixing import erase_views, mix_rows


class BatchOperations:
    """For one thread at a time."""

    def __init__(self, threads: int, device: torch.device) -> None:
        library = load() if device.type == "cpu" else None
        self._passes = BatchPasses(library, threads) if library else None

    def close(self) -> None:
        """Ends the threads; they are not needed for what comes after."""
        if self._passes:
            self._passes.close()

    def erase(self, images: Tensor, wanted: Ids, plan: EpochPlan) -> None:
        """In place, images of samples by their draw ids [n,...]."""
        if plan.config.erasing is None:
            return
        views = of_views(wanted, plan.config.views)
        erased = draw_erasing(plan.config, plan.epoch, views)
        if not len(erased.boxes):
            return
        rows = images.flatten(0, 1) if plan.config.views > 1 else images
        if self._passes is None:
            planes = rows.movedim(-1, 1) if plan.config.layout == "nhwc" else rows
            mode, seed = plan.config.erasing.mode, plan.config.seed
            erase_views(planes, erased, mode, seed, plan.epoch, views)
        else:
            _erase(self._passes, rows, erased, views, plan)

    def mix(self, images: Tensor, samples: int, mix: Mix | None, plan: EpochPlan) -> None:
        """In place, the first `samples` images; what precedes the first follows them, or is the
        last of them where nothing does."""
        if mix is None:
            return
        own, before = images[:samples], images[samples] if len(images) > samples else None
        if self._passes is None:
            nhwc = plan.config.layout == "nhwc"
            planes = own.movedim(-1, -3) if nhwc else own
            mix_rows(planes, before.movedim(-1, -3) if nhwc and before is not None else before, mix)
            return
        segments = mixed_segments(plan, mix.box)
        address = None if before is None else before.data_ptr()
        lam = mix.lam if mix.box is None else 0.0
        self._passes.mix(_rows(own), address, segments, lam, TYPES[plan.config.dtype])


def labels_of(
    plan: EpochPlan, ids: Ids, samples: int, mix: Mix | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and ids of a batch, padded where it is. ids int64 [n]: of `samples` samples, then,
    where there is one, of what precedes the first."""
    labels, padded = labels_and_ids(plan, ids[:samples])
    if plan.soft_labels:
        labels = soft_labels(plan, ids[:samples], int(ids[-1]) if len(ids) else -1, mix)
    return labels, padded


def mixed_segments(
    plan: EpochPlan, box: Box | None
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Which elements of a row of the batch are mixed: from which one on and how many, int64
    [n,2]."""
    side, views = plan.config.crop, plan.config.views
    if box is None:
        begins, length = np.zeros(1, np.int64), views * 3 * side * side
    else:
        y, x, height, width = box
        lines = (np.arange(y, y + height) * side + x)[None]
        if plan.config.interleaved:
            begins, length = np.arange(views)[:, None] * (side * side) + lines, 3 * width
            begins *= 3
        else:
            begins, length = np.arange(3 * views)[:, None] * (side * side) + lines, width
    parts = np.arange(0, max(length, 1), AT_ONCE)
    counts = np.minimum(AT_ONCE, length - parts)
    every = begins.reshape(-1, 1) + parts
    segments = np.stack([every, np.broadcast_to(counts, every.shape)], axis=-1).reshape(-1, 2)
    return np.ascontiguousarray(segments[segments[:, 1] > 0], np.int64)


def _erase(passes: BatchPasses, rows: Tensor, erased: Erased, views: Ids, plan: EpochPlan) -> None:
    config = plan.config
    assert config.erasing is not None
    colours = None
    if config.erasing.mode != "pixel":
        colours = (erased.normals * (config.erasing.mode == "rand")).astype(np.float32)
    counters = np.stack([views & 0xFFFFFFFF, views >> 32], axis=1).astype(np.uint32)
    passes.erase(
        _rows(rows),
        erased.first,
        erased.boxes,
        colours,
        (counters, config.seed, plan.epoch, ERASE_NOISE),
        (config.crop, config.crop),
        TYPES[config.dtype],
        channels_last=config.interleaved,
    )


def _rows(images: Tensor) -> Rows:
    return Rows(images.data_ptr(), len(images), images.stride(0) * images.element_size())
