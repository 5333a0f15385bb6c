"""Bytes to normalised batches on a GPU, all in one DALI graph: decode, crop, mirror, mean, colour
noise, layout.

With device="cpu" the same graph runs on the CPU, where tests hold it against the reference; on a
GPU it has yet to run. JPEGs are decoded whole, then cut. Decoding a region spares little, as the
bits before it have to be read anyway, and before its release 13.3 nvJPEG had the borders of
interpolated regions wrong (CUDA 13.3 release notes)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gratis.errors import GratisError
from gratis.loader.config import shown
from gratis.loader.decoding.crop_graph import Feed, dali_samples, empty_pipeline, rectangles
from gratis.loader.decoding.dali_runner import DaliRunner
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.plan import ten_views
from gratis.loader.reading.batch_reader import EncodedBatch
from gratis.loader.views.colour_noise import colour_shift, scale
from gratis.loader.views.normalisation import normalisation
from gratis.loader.views.torch_views import finish_crops

GPU_DECODER: dict[str, Any] = {  # arguments of a decoder on the GPU; one on the CPU ignores them
    # libjpeg-turbo's chroma upsampling; nvJPEG's own repeats pixels, tens of levels away at the
    # edges of 4:2:0 images
    "jpeg_fancy_upsampling": True,
    # Not the hardware engine: it rounds otherwise than CUDA cores, and DALI gives it the samples
    # that stand first in a batch, so many as the first batch had: pixels would depend on the mesh
    # and on where a run was resumed. What it would be worth `gratis report` measures.
    "hw_decoder_load": 0.0,
    # DALI ties its threads to the first cores otherwise, in every rank to the same
    "affine": False,
}


def device_of(named: object) -> torch.device:
    """The device that is meant, with its number; GratisError for one that no batch can come to."""
    if isinstance(named, bool) or not isinstance(named, (str, int, torch.device)):
        raise GratisError(f"device is {shown(named)}; it must be cpu or cuda")
    try:
        device = torch.device(named)
    except RuntimeError:
        raise GratisError(f"device is {named}; it must be cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise GratisError(f"device is {device}; it must be cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= (present := torch.cuda.device_count()):
        raise GratisError(f"device is {device}; torch sees {present} CUDA devices here")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def decode_views(
    batches: Iterator[EncodedBatch], plan: EpochPlan, runner: DaliRunner, threads: int
) -> Generator[tuple[EncodedBatch, Any], None, None]:
    """Each batch with its DALI tensor, float32 [n,3,crop,crop] or [n,10,3,crop,crop], or with the
    channels last; where there are operations, uint8 as it was cut out and mirrored, with the
    channels last. Valid until the next is taken."""
    # constants of the graph: when noise ends, or the crop changes, another graph is built
    config = plan.config
    resized = (config.crop, config.interpolation, config.antialias)
    key = (scale(config, plan.epoch), plan.decoded_rows, bool(config.operations), *resized)

    build, inputs = partial(view_pipeline, plan=plan, threads=threads), partial(_inputs, plan=plan)
    for batch, images in runner.run(batches, plan, build, inputs, key=key):
        yield batch, images.as_tensor()
        del images


def to_torch(tensor: Any, plan: EpochPlan, batch: EncodedBatch) -> torch.Tensor:
    """A copy that torch owns, in the type and layout of the configuration; on the current stream.
    The copy (0.3 ms for 256 images on a device with 1 TB/s) frees the batch from DALI's buffers.
    """
    images: torch.Tensor = torch.utils.dlpack.from_dlpack(tensor)
    if program := plan.program(batch.wanted):
        stats, config, epoch = plan.stats, plan.config, plan.epoch
        mean = torch.from_numpy(normalisation(stats, config, epoch).mean).to(images.device)
        crops = images.flatten(0, 1) if config.views > 1 else images
        return finish_crops(crops, batch.draws, mean, stats, config, epoch, program)
    images = images.to(plan.config.dtype, copy=True)
    return images.movedim(-1, -3) if plan.config.layout == "channels_last" else images


def stacked(images: Any) -> torch.Tensor:
    """A decoder's own output as one tensor, copied on the current stream: of images of one shape,
    which need not lie in one piece."""
    return torch.stack([torch.utils.dlpack.from_dlpack(one) for one in images])


def view_pipeline(feed: Feed, plan: EpochPlan, threads: int) -> Any:
    """The graph, from `_inputs` to normalised images; built when it is first run."""
    from nvidia.dali import fn, types

    bytes_dims = 3 if plan.manifest.codec == "raw" else 1
    pipeline = empty_pipeline(plan.decoded_rows, threads, plan.device.index)
    with pipeline:
        if plan.config.shorter_side(whole=plan.whole) is not None:
            done = _resized_evaluation(feed, plan, bytes_dims)
        elif plan.config.views == 10 and not plan.config.augment:  # no sample differs from others
            (data,) = fn.external_source(
                source=feed, num_outputs=1, batch=True, dtype=types.UINT8, ndim=bytes_dims
            )
            images = _whole(data, plan)
            crop, views = [plan.config.crop] * 2, ten_views(plan.positions)
            normalised = []
            for y, x, flip in zip(views.y, views.x, views.flip, strict=True):
                corner = [int(y), int(x)]
                part = _cut(images, corner, crop)
                normalised.append(_apply_view(part, corner, int(flip), None, plan))
            done = fn.stack(*normalised)
        else:
            kinds = [(types.UINT8, bytes_dims), (types.INT32, 1), (types.INT32, 2)]
            kinds += [(types.INT32, 2)] if plan.resizes else []
            kinds += [] if plan.config.operations else [(types.FLOAT, 4)]
            data, flip, anchor, *others = fn.external_source(
                source=feed,
                num_outputs=len(kinds),
                batch=True,
                dtype=[kind for kind, _ in kinds],
                ndim=[dims for _, dims in kinds],
            )
            images, done = _whole(data, plan), []
            for view in range(plan.config.views):
                shape = others[0][view] if plan.resizes else [plan.config.crop] * 2
                part = _cut(images, anchor[view], shape)
                part = resize(part, [plan.config.crop] * 2, plan) if plan.resizes else part
                if plan.config.operations:  # torch goes on from here
                    done.append(fn.flip(part, horizontal=flip[view]))
                    continue
                shift = others[-1].gpu() if plan.device.type == "cuda" else others[-1]
                done.append(_apply_view(part, anchor[view], flip[view], shift[view], plan))
            done = fn.stack(*done) if plan.config.views > 1 else done[0]
        pipeline.set_outputs(done)
    return pipeline


def _resized_evaluation(feed: Feed, plan: EpochPlan, bytes_dims: int) -> Any:
    """The centre or the ten views of images that are resized first."""
    from nvidia.dali import fn, types

    data, size, corners = fn.external_source(
        source=feed,
        num_outputs=3,
        batch=True,
        dtype=[types.UINT8, types.FLOAT, types.INT32],  # DALI 2.4 takes no other sizes
        ndim=[bytes_dims, 1, 2],
    )
    images = resize(_whole(data, plan), size, plan)
    crop, normalised = [plan.config.crop] * 2, []
    for view in range(plan.config.views):
        part = _cut(images, corners[view], crop)
        normalised.append(_apply_view(part, None, int(view >= 5), None, plan))
    return fn.stack(*normalised) if plan.config.views > 1 else normalised[0]


def image_pipeline(feed: Feed, plan: EpochPlan, threads: int) -> Any:
    """A graph from bytes to whole images on the device, uint8 [S,S,3], that is fed when it is run,
    and built then."""
    from nvidia.dali import fn, types

    pipeline = empty_pipeline(plan.rows + 1, threads, plan.device.index, lockstep=True)
    with pipeline:
        (data,) = fn.external_source(
            source=feed, num_outputs=1, batch=True, dtype=types.UINT8, ndim=1
        )
        pipeline.set_outputs(_whole(data, plan))
    return pipeline


def _whole(data: Any, plan: EpochPlan) -> Any:
    """uint8 [S,S,3] on the plan's device."""
    from nvidia.dali import fn, types

    if plan.manifest.codec == "raw":
        return data.gpu() if plan.device.type == "cuda" else data
    device = "mixed" if plan.device.type == "cuda" else "cpu"
    return fn.decoders.image(
        data, device=device, output_type=types.RGB, adjust_orientation=False, **GPU_DECODER
    )


def _cut(images: Any, anchor: Any, extent: Any) -> Any:
    from nvidia.dali import fn

    return fn.slice(images, start=anchor, shape=extent, axes=[0, 1])


def _apply_view(images: Any, anchor: Any, flip: Any, shift: Any, plan: EpochPlan) -> Any:
    """Cropped uint8 HWC to normalised images; `gratis.loader.views.reference` in DALI's
    operators."""
    from nvidia.dali import fn, types

    device = "gpu" if plan.device.type == "cuda" else "cpu"
    crop = plan.config.crop
    mean, factor = normalisation(plan.stats, plan.config, plan.epoch)
    centre = (len(mean) - crop) // 2
    if plan.config.mean == "offset":
        minus = _cut(types.Constant(mean, device=device), anchor, [crop] * 2)
        images = fn.cast(images, dtype=types.FLOAT) - minus
    images = fn.flip(images, horizontal=flip)
    if plan.config.mean == "central":
        part = slice(centre, centre + crop)
        region = np.ascontiguousarray(mean[part, part])
        images = fn.cast(images, dtype=types.FLOAT) - types.Constant(region, device=device)
    if shift is not None:
        images += shift
    images *= types.Constant(factor.astype(np.float32)[None, None], device=device)
    return images if plan.config.interleaved else fn.transpose(images, perm=[2, 0, 1])


def _inputs(batch: EncodedBatch, plan: EpochPlan) -> tuple[Any, ...]:
    """Bytes; and of each view mirror int32 [n,views], what is cut out, int32 [n,views,2] each, and,
    if torch does not add it, colour shift float32 [n,views,1,1,3]; of an evaluation that resizes
    height and width float32 [n,2], and corners int32 [n,views,2]."""
    if plan.config.shorter_side(whole=plan.whole) is not None:
        return dali_samples(batch, plan), *_windows(batch, plan)
    if not plan.config.augment and plan.config.views == 10:
        return (dali_samples(batch, plan),)
    draws, shape = batch.draws, (len(batch.ids), plan.config.views)
    places = [place.reshape(*shape, 2) for place in rectangles(batch, plan)]
    views = dali_samples(batch, plan), draws.flip.astype(np.int32).reshape(shape), *places
    if plan.config.operations:
        return views
    shift = colour_shift(plan.stats, plan.config, plan.epoch, draws.normals)
    return *views, shift.astype(np.float32).reshape(*shape, 1, 1, 3)


def _windows(batch: EncodedBatch, plan: EpochPlan) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Height and width that each image is resized to, and the corners of its views there."""
    views, crop, sizes = plan.config.views, plan.config.crop, plan.sizes(batch.ids).T
    corners, made = np.stack([batch.draws.y, batch.draws.x], axis=1), sizes
    if batch.targets is not None and batch.extents is not None:
        kept = np.concatenate([batch.extents, batch.targets], axis=1) == [crop] * 4 + [0, 0]
        as_stored = kept.all(axis=1)[:, None]
        made = np.where(as_stored[::views], sizes, batch.targets[::views, :2])
        corners = np.where(as_stored, corners, batch.targets[:, 2:])
    # DALI takes no strided input, as a transposed one is
    dense = np.ascontiguousarray(made, np.float32)
    return dense, corners.astype(np.int32).reshape(-1, views, 2)


def resize(images: Any, size: Any, plan: EpochPlan) -> Any:
    """DALI: to that height and width. Its filters are tables: docs/augmentations.md has the levels
    between it and the CPU's."""
    from nvidia.dali import fn, types

    cubic = plan.config.interpolation == "bicubic"
    kind = types.INTERP_CUBIC if cubic else types.INTERP_LINEAR
    return fn.resize(images, size=size, interp_type=kind, antialias=plan.config.antialias)
