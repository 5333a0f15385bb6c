"""The tensors of a batch: images in its layout, padding, labels and ids."""

from __future__ import annotations

import numpy as np
import torch

from gratis.loader.batch import IGNORE
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.pipeline.buffer_pool import Memory
from gratis.loader.plan import PAD, Ids
from gratis.loader.views.draw_mixing import Mix

ALIGNMENT = 64  # bytes: a line of the cache


def image_bytes(plan: EpochPlan) -> int:
    """That a whole batch's images take, and the sample of another rank that mixing needs."""
    config = plan.config
    return plan.decoded_rows * config.views * 3 * config.crop**2 * config.dtype.itemsize


def images_in(memory: torch.Tensor, plan: EpochPlan) -> torch.Tensor:
    """A whole batch's images in memory uint8 [image_bytes], in their shape, type and layout:
    [decoded_rows,...]."""
    config, rows, side = plan.config, plan.decoded_rows * plan.config.views, plan.config.crop
    shape = (rows, side, side, 3) if config.interleaved else (rows, 3, side, side)
    images = memory.view(config.dtype).view(shape)
    images = images.permute(0, 3, 1, 2) if config.layout == "channels_last" else images
    return images.view(-1, config.views, *images.shape[1:]) if config.views > 1 else images


def new_memory(plan: EpochPlan) -> Memory:
    """For a batch's images on the CPU. NumPy asks for pages of 2 MB (madvise), which torch does
    not. Writing the buffers through then costs the loader 6 % less CPU time (paired, n = 16,
    quartiles -1 and 11, on a busy machine). Such pages for all that is allocated, DALI's buffers
    too, gained no more.

    It begins at a multiple of ALIGNMENT, so that the engine can write around the caches: ten views
    for half the CPU time (0.33 against 0.63 ms an image)."""
    memory = np.zeros(image_bytes(plan) + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + image_bytes(plan)]


def blank_images(plan: EpochPlan) -> torch.Tensor:
    """Zeros, as a whole batch's images on the plan's device."""
    zeros = torch.zeros(image_bytes(plan), dtype=torch.uint8, device=plan.device)
    return images_in(zeros, plan)[: plan.rows]


def pad_images(images: torch.Tensor, plan: EpochPlan) -> torch.Tensor:
    """The images, with rows of zeros up to a whole batch where it is padded, in the batch's memory
    layout, which torch.cat would lose."""
    if not plan.padding(len(images)):
        return images
    whole = blank_images(plan)
    whole[: len(images)] = images
    return whole


def labels_and_ids(plan: EpochPlan, ids: Ids) -> tuple[torch.Tensor, torch.Tensor]:
    """Int64 [b] each, on the CPU, padded where the batch is."""
    rows = len(ids) + plan.padding(len(ids))
    all_ids, labels = np.full(rows, PAD, np.int64), np.full(rows, IGNORE, np.int64)
    all_ids[: len(ids)], labels[: len(ids)] = ids, plan.index.label[ids]
    return torch.from_numpy(labels), torch.from_numpy(all_ids)


def soft_labels(plan: EpochPlan, ids: Ids, before: int, mix: Mix | None) -> torch.Tensor:
    """Of samples and of the one before the first, float32 [b,classes] on the CPU: zeros where a row
    is padding. Rounded as torchvision does it."""
    rows, one = np.arange(len(ids)), np.float32(1)
    soft = np.zeros((len(ids) + plan.padding(len(ids)), len(plan.manifest.classes)), np.float32)
    lam, rest = (one, 0 * one) if mix is None else (np.float32(mix.lam), np.float32(1 - mix.lam))
    soft[rows, plan.index.label[ids]] = lam
    soft[rows, plan.index.label[np.append(before, ids[:-1])]] += rest
    return torch.from_numpy(soft)
