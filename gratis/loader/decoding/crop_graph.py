"""What DALI is given on the CPU: the graph that decodes a crop (ROI), and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gratis.loader.decoding.exit_order import dali_is_imported
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.reading.batch_reader import EncodedBatch

DEPTH = 2  # batches inside DALI: one being decoded, one behind it

Feed = Callable[[], tuple[Any, ...]]


def crop_pipeline(
    feed: Feed, plan: EpochPlan, threads: int, side: int, *, rows: int, lockstep: bool = False
) -> Any:
    """A DALI pipeline from (bytes, corner, extent) to uint8 [side,side,3], or of that extent,
    without the rotation that EXIF may ask for."""
    from nvidia.dali import fn, types

    raw = plan.manifest.codec == "raw"
    pipeline = empty_pipeline(rows, threads, None, lockstep=lockstep)
    with pipeline:
        inputs = 3 if plan.config.area else 2
        data, anchor, *extent = fn.external_source(
            source=feed,
            num_outputs=inputs,
            batch=True,
            no_copy=True,
            dtype=[types.UINT8, types.INT32, types.INT32][:inputs],
            ndim=[3 if raw else 1, 1, 1][:inputs],
        )
        images = crop(data, anchor, *(extent or [[side, side]]), raw=raw)
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline


def empty_pipeline(
    rows: int, threads: int, device_id: int | None, *, lockstep: bool = False
) -> Any:
    """lockstep: a batch is fed when it is asked for, so that an error is its own."""
    from nvidia.dali import Pipeline

    dali_is_imported()
    return Pipeline(
        batch_size=rows,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=1 if lockstep else DEPTH,
        exec_pipelined=not lockstep,
        exec_async=not lockstep,
    )


def crop(data: Any, anchor: Any, extent: Any, *, raw: bool) -> Any:
    """DALI: uint8 HWC of the rectangle; of raw samples a slice, of JPEGs what is decoded at all."""
    from nvidia.dali import fn, types

    if raw:
        return fn.slice(data, start=anchor, shape=extent, axes=[0, 1])
    return fn.decoders.image_slice(
        data,
        start=anchor,
        shape=extent,
        axes=[0, 1],
        device="cpu",
        output_type=types.RGB,
        adjust_orientation=False,
    )


def dali_samples(batch: EncodedBatch, plan: EpochPlan) -> list[Any]:
    """What DALI gets of each sample: a JPEG's bytes, or a raw sample's pixels [S,S,3]."""
    size = plan.manifest.image_size
    if plan.manifest.codec == "jpeg":
        return list(batch.parts)
    return [part[-3 * size * size :].reshape(size, size, 3) for part in batch.parts]


def rectangles(batch: EncodedBatch, *, whole: int = 0) -> list[NDArray[np.int32]]:
    """What is cut out of each sample, on a CPU while it is decoded: corner (y, x) and, where they
    differ between samples, height and width, int32 [n,2] each. whole: all of images of that
    side."""
    draws, extents = batch.draws, batch.extents
    corner = np.stack([draws.y, draws.x], axis=1)
    if whole:
        corner = np.zeros((len(batch.ids), 2), np.int64)
        extents = None if extents is None else np.full_like(corner, whole)
    places = [corner] if extents is None else [corner, extents]
    return [place.astype(np.int32) for place in places]
