"""Bytes to pixels on the CPU. DALI decodes the crop alone (ROI), uint8; raw samples need only
arithmetic.

DALI gets bytes and crop corners and holds no state of its own. Its executor works on the next batch
in its own threads while this one is normalised. Per 1,000 images, 224 of 256 px at quality 95 on a
shared 2-core EPYC, n = 5 alternating rounds of `gratis bench loader`: 0.285 CPU s; libjpeg-turbo
2.1 in a bare C loop 0.247, its entropy decoding alone 0.205. In a profile the difference is copies
of rows and DALI's executor; no page is faulted in after the first batches."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gratis.loader.decoding.crop_graph import Feed, crop_pipeline, dali_samples, rectangles
from gratis.loader.decoding.dali_runner import DaliRunner
from gratis.loader.decoding.pillow import dali_is_here, stored_by_pillow
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.reading.batch_reader import EncodedBatch
from gratis.loader.views.normaliser import Crops
from gratis.loader.views.resize import resized

BatchCrops = Generator[tuple[EncodedBatch, Crops], None, None]


def decode(
    batches: Iterator[EncodedBatch], plan: EpochPlan, runner: DaliRunner, threads: int
) -> BatchCrops:
    """Each batch with its crops, by DALI where there is something to decode; valid until the next
    is taken."""
    size, whole = plan.manifest.image_size, plan.config.views > 1
    if plan.manifest.codec == "raw":
        yield from _stored(batches, plan, runner.timer)
        return
    if not dali_is_here():
        yield from _stored(stored_by_pillow(batches, plan, runner), plan, runner.timer)
        return
    side = size if whole else plan.config.crop

    def build(feed: Feed) -> Any:
        return crop_pipeline(feed, plan, threads, side, rows=plan.decoded_rows)

    def inputs(batch: EncodedBatch) -> tuple[Any, ...]:
        return dali_samples(batch, plan), *rectangles(batch, whole=size if whole else 0)

    for batch, images in runner.run(batches, plan, build, inputs, key=side):
        if plan.config.area:
            decoded = (np.asarray(images.at(row)) for row in range(len(batch.ids)))
            parts = _cut_parts(batch, decoded, plan.config.views) if whole else decoded
            yield batch, _resized_crops(batch, parts, plan, runner.timer)
        else:
            pixels = np.asarray(images.as_tensor())
            begins = np.arange(len(batch.ids)) * (3 * side * side)
            yield batch, crops_of(batch, pixels.reshape(-1), begins, plan, side=side, corner=whole)
            del pixels
        del images


def _stored(batches: Iterator[EncodedBatch], plan: EpochPlan, timer: StageTimer) -> BatchCrops:
    """Of samples that are stored as pixels, which are where the reader put them, behind a short
    header."""
    size = plan.manifest.image_size
    for batch in batches:
        if plan.config.area:
            stored = (part[-3 * size * size :].reshape(size, size, 3) for part in batch.parts)
            parts = _cut_parts(batch, stored, plan.config.views)
            yield batch, _resized_crops(batch, parts, plan, timer)
            continue
        begins = batch.begins + np.array([len(part) for part in batch.parts]) - 3 * size * size
        yield batch, crops_of(batch, batch.buffer, begins, plan, side=size, corner=True)


def _cut_parts(
    batch: EncodedBatch, images: Iterator[NDArray[np.uint8]], views: int
) -> Iterator[NDArray[np.uint8]]:
    """The parts of whole images that views are resized from."""
    assert batch.extents is not None
    boxes = np.column_stack([batch.draws.y, batch.draws.x, batch.extents]).reshape(-1, views, 4)
    for image, of_image in zip(images, boxes.tolist(), strict=True):
        for y, x, height, width in of_image:
            yield image[y : y + height, x : x + width]


def _resized_crops(
    batch: EncodedBatch, parts: Iterable[NDArray[np.uint8]], plan: EpochPlan, timer: StageTimer
) -> Crops:
    side = plan.config.crop
    with timer.time("decode_s"):
        pixels = resized(parts, len(batch.draws.y), plan.config).reshape(-1)
    draws, begins = batch.draws, np.arange(len(batch.draws.y)) * (3 * side * side)
    return Crops(pixels, 3 * side, begins, draws.y, draws.x, draws.flip, draws.normals)


def crops_of(
    batch: EncodedBatch,
    pixels: NDArray[np.uint8],
    begins: NDArray[np.int64],
    plan: EpochPlan,
    *,
    side: int,
    corner: bool,
) -> Crops:
    """Every view of every sample; begins [n] is where its decoded pixels begin, whole (corner) or
    cropped already."""
    draws, start = batch.draws, np.repeat(begins, plan.config.views)
    if corner:
        start = start + 3 * (draws.y * side + draws.x)
    return Crops(pixels, 3 * side, start, draws.y, draws.x, draws.flip, draws.normals)
