"""What happens when DALI cannot decode a batch: which of its samples are bad, and what is decoded
in its place."""

from __future__ import annotations

from typing import Any

import torch

from gratis.loader.decoding.crop_graph import crop_pipeline, dali_samples, rectangles
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.reading.batch_reader import BatchReader, EncodedBatch

SHORT_OF = 1 << 30  # bytes free on a device: what nvJPEG takes for a batch is less


def replace_bad_samples(
    reader: BatchReader, error: RuntimeError, batches: list[EncodedBatch], plan: EpochPlan
) -> list[EncodedBatch]:
    """The batches that DALI could not decode, read again without the samples that broke them, which
    go to the quarantine. GratisError naming shard, key and offset, where that is the policy; the
    error itself if no sample is bad."""
    bad = [reader.reject(one.wanted, one.ids, undecodable(one, plan)) for one in batches]
    if not any(bad):
        raise device_error(error, plan.device)
    return [reader.read(plan, batch.wanted) for batch in batches]


def device_error(error: RuntimeError, device: torch.device) -> RuntimeError:
    """The error of a batch all of whose samples can be decoded, as the CPU has shown: the device's.
    nvJPEG's decoder says of memory that it does not get that a sample failed."""
    if device.type != "cuda":
        return error
    free, total = torch.cuda.mem_get_info(device)
    if free > SHORT_OF:
        return error
    left = f"{free / 1e6:.0f} of {total / 1e6:.0f} MB are free"
    message = f"out of memory on {device} ({left}), where DALI decodes: {error}"
    return RuntimeError(message)


def undecodable(batch: EncodedBatch, plan: EpochPlan) -> list[int]:
    """Rows whose sample fails by itself, of as much of it as the batch decodes: on a GPU that is
    always the whole."""
    if plan.manifest.codec == "raw":
        return []  # the reader has checked them
    whole = plan.config.views > 1 or plan.device.type == "cuda"
    side = plan.manifest.image_size if whole else plan.config.crop
    rectangle = rectangles(batch, plan, whole=whole)
    inputs: list[Any] = [dali_samples(batch, plan), *rectangle]
    pipeline, bad, row = None, [], 0

    def feed() -> tuple[Any, ...]:
        return tuple(values[row : row + 1] for values in inputs)

    for row in range(len(batch.ids)):
        pipeline = pipeline or crop_pipeline(feed, plan, 1, side, rows=1, lockstep=True)
        try:
            pipeline.run()
        except RuntimeError:
            bad.append(row)
            pipeline = None
    return bad
