"""What happens when DALI cannot decode a batch: which of its samples are bad, and what is decoded
in its place."""

from __future__ import annotations

from typing import Any

from gratis.loader.decoding.crop_graph import crop_pipeline, dali_samples, rectangles
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.reading.batch_reader import BatchReader, EncodedBatch


def replace_bad_samples(
    reader: BatchReader, error: Exception, batches: list[EncodedBatch], plan: EpochPlan
) -> list[EncodedBatch]:
    """The batches that DALI could not decode, read again without the samples that broke them, which
    go to the quarantine. GratisError naming shard, key and offset, where that is the policy; the
    error itself if no sample is bad."""
    bad = [reader.reject(one.wanted, one.ids, undecodable(one, plan)) for one in batches]
    if not any(bad):
        raise error
    return [reader.read(plan, batch.wanted) for batch in batches]


def undecodable(batch: EncodedBatch, plan: EpochPlan) -> list[int]:
    """Rows whose sample fails by itself, of as much of it as the batch decodes: on a GPU that is
    always the whole."""
    if plan.manifest.codec == "raw":
        return []  # the reader has checked them
    whole = plan.config.views > 1 or plan.device.type == "cuda"
    side = plan.manifest.image_size if whole else plan.config.crop
    rectangle = rectangles(batch, whole=side if whole else 0)
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
