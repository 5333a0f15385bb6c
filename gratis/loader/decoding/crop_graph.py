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
    """A DALI pipeline from (bytes, corner) to uint8 [side,side,3], or, where images are resized,
    from (bytes, corner, extent) to that extent, without the rotation that EXIF may ask for."""
    from nvidia.dali import fn, types

    raw = plan.manifest.codec == "raw"
    pipeline = empty_pipeline(rows, threads, None, lockstep=lockstep)
    with pipeline:
        inputs = 3 if plan.resizes else 2
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
    """What DALI gets of each sample: a JPEG's bytes, or a raw sample's pixels [height,width,3]."""
    return list(batch.parts) if plan.manifest.codec == "jpeg" else stored_pixels(batch, plan)


def stored_pixels(batch: EncodedBatch, plan: EpochPlan) -> list[NDArray[np.uint8]]:
    """Those of raw samples, [height,width,3], where the reader put them, behind a short header."""
    sizes = plan.sizes(batch.ids).T.tolist()
    return [
        part[-3 * h * w :].reshape(h, w, 3) for part, (h, w) in zip(batch.parts, sizes, strict=True)
    ]


def rectangles(
    batch: EncodedBatch, plan: EpochPlan, *, whole: bool = False
) -> list[NDArray[np.int32]]:
    """What is cut out of each sample, on a CPU while it is decoded: corner (y, x) and, where images
    are resized, height and width, int32 [n,2] each. whole: all of the image."""
    draws = batch.draws
    corner = np.zeros((len(batch.ids), 2)) if whole else np.stack([draws.y, draws.x], axis=1)
    extents = plan.sizes(batch.ids).T if whole else batch.extents
    places = [corner, extents] if plan.resizes and extents is not None else [corner]
    return [np.ascontiguousarray(place, np.int32) for place in places]
