"""Bytes to finished batches on a GPU, all in one DALI graph: decode, crop, mirror, mean, colour
noise, layout.

With device="cpu" the same graph runs on the CPU, where tests hold it against the reference; on a
GPU it has yet to run. JPEGs are decoded whole, then cut. Decoding a region spares little, as the
bits before it have to be read anyway, and before its release 13.3 nvJPEG had the borders of
interpolated regions wrong (CUDA 13.3 release notes)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gratis.errors import GratisError
from gratis.loader import plan
from gratis.loader.decoding.cpu import DEPTH, Feed, Runner, encoded, rectangles, resized
from gratis.loader.pipeline.work import Job, Work
from gratis.loader.views.normaliser import colour_shift, scale

GPU_DECODER: dict[str, Any] = {  # what a decoder on the GPU is told; one on the CPU takes no notice
    # libjpeg-turbo's chroma upsampling; nvJPEG's own repeats pixels, tens of levels away at the
    # edges of 4:2:0 images
    "jpeg_fancy_upsampling": True,
    # Not the hardware engine: it rounds otherwise than CUDA cores, and DALI gives it the samples
    # that stand first in a batch, so many as the first batch had: pixels would depend on the mesh
    # and on where a run was resumed. What it would be worth is in `benchmarks.report`'s part 2.
    "hw_decoder_load": 0.0,
    # DALI ties its threads to the first cores otherwise, in every rank to the same
    "affine": False,
}


def device_of(named: object) -> torch.device:
    """The device that is meant, with its number; GratisError for one that no batch can come to."""
    if isinstance(named, bool) or not isinstance(named, (str, int, torch.device)):
        raise GratisError(f"device is {named!r}; it must be cpu or cuda")
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


def decode_and_finish(
    works: Iterator[Work], job: Job, runner: Runner, threads: int
) -> Generator[tuple[Work, Any], None, None]:
    """Each work with its DALI tensor, float32 [n,3,crop,crop] or [n,10,3,crop,crop], channels last
    on request.

    Valid until the next is taken.
    """
    # a constant of the graph: when noise ends, another graph is built
    factor = scale(job.config, job.epoch)

    def build(feed: Feed) -> Any:
        return finishing_pipeline(feed, job, threads)

    for work, images in runner.run(works, job, build, lambda work: _inputs(work, job), key=factor):
        yield work, images.as_tensor()
        del images


def to_torch(tensor: Any, job: Job) -> torch.Tensor:
    """A copy that torch owns, in the type and layout of the configuration; on the current stream.

    The copy (0.3 ms for 256 images on a device with 1 TB/s) frees the batch from DALI's buffers.
    """
    images: torch.Tensor = torch.utils.dlpack.from_dlpack(tensor)
    images = images.to(job.config.dtype, copy=True)
    return images.movedim(-1, -3) if job.config.channels_last else images


def finishing_pipeline(feed: Feed, job: Job, threads: int) -> Any:
    """The graph, from `_inputs` to finished images; built when it is first run."""
    from nvidia.dali import Pipeline, fn, types

    bytes_dims = 3 if job.manifest.codec == "raw" else 1
    pipeline = Pipeline(
        batch_size=job.rows,
        num_threads=threads,
        device_id=job.device.index,
        prefetch_queue_depth=DEPTH,
    )
    with pipeline:
        if job.config.views == 10:  # evaluation: nothing differs between samples
            (data,) = fn.external_source(
                source=feed, num_outputs=1, batch=True, dtype=types.UINT8, ndim=bytes_dims
            )
            images = _whole(data, job)
            crop = [job.config.crop] * 2
            done = fn.stack(
                *(
                    _finish(_cut(images, corner, crop), corner, flip, None, job)
                    for corner, flip in _views(job)
                )
            )
        else:
            kinds = [
                (types.UINT8, bytes_dims),
                (types.INT32, 0),
                (types.FLOAT, 3),
                (types.INT32, 1),
                (types.INT32, 1),
            ]
            kinds = kinds if job.config.area else kinds[:4]
            data, flip, shift, anchor, *extent = fn.external_source(
                source=feed,
                num_outputs=len(kinds),
                batch=True,
                dtype=[k for k, _ in kinds],
                ndim=[n for _, n in kinds],
            )
            shift = shift.gpu() if job.device.type == "cuda" else shift
            (shape,) = extent or [[job.config.crop] * 2]
            part = resized(_cut(_whole(data, job), anchor, shape), job)
            done = _finish(part, anchor, flip, shift, job)
        pipeline.set_outputs(done)
    return pipeline


def image_pipeline(feed: Feed, job: Job, threads: int) -> Any:
    """A graph from bytes to whole images on the device, uint8 [S,S,3], that is fed when it is run,
    and built then."""
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(
        batch_size=job.rows,
        num_threads=threads,
        device_id=job.device.index,
        prefetch_queue_depth=1,
        exec_pipelined=False,
        exec_async=False,
    )
    with pipeline:
        (data,) = fn.external_source(
            source=feed, num_outputs=1, batch=True, dtype=types.UINT8, ndim=1
        )
        pipeline.set_outputs(_whole(data, job))
    return pipeline


def finish(store: Tensor, ids: Tensor, draws: plan.Draws, mean: Tensor, job: Job) -> Tensor:
    """Crop, mirror, mean, colour noise and type of samples `ids` of a store uint8 [N,S,S,3], on its
    device.

    [n,3,crop,crop] or [n,10,3,crop,crop], in the configuration's type and layout;
    `gratis.loader.views.reference.finish`."""
    config, device = job.config, store.device
    count, crop = config.views, config.crop

    def there(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)

    span = torch.arange(crop, device=device)
    flip = there(draws.flip)[:, None]
    y = there(draws.y)[:, None] + span
    x = there(draws.x)[:, None] + torch.where(flip, crop - 1 - span, span)
    sample = ids.to(device).repeat_interleave(count)[:, None, None]
    images = store[sample, y[:, :, None], x[:, None, :]].float()
    if config.mean == "offset":
        images -= mean[y[:, :, None], x[:, None, :]]
    else:
        centre = (job.positions - 1) // 2
        images -= mean[centre : centre + crop, centre : centre + crop]
    if config.views == 1:
        shift = colour_shift(job.stats, config, job.epoch, draws.normals).astype(np.float32)
        images = (images + there(shift)[:, None, None]) * float(
            np.float32(scale(config, job.epoch))
        )
    images = images.to(config.dtype).movedim(-1, 1)
    if not config.channels_last:
        images = images.contiguous()
    return images.view(-1, count, *images.shape[1:]) if count > 1 else images


def _whole(data: Any, job: Job) -> Any:
    """uint8 [S,S,3] on the job's device."""
    from nvidia.dali import fn, types

    if job.manifest.codec == "raw":
        return data.gpu() if job.device.type == "cuda" else data
    device = "mixed" if job.device.type == "cuda" else "cpu"
    return fn.decoders.image(
        data, device=device, output_type=types.RGB, adjust_orientation=False, **GPU_DECODER
    )


def _cut(images: Any, anchor: Any, extent: Any) -> Any:
    from nvidia.dali import fn

    return fn.slice(images, start=anchor, shape=extent, axes=[0, 1])


def _views(job: Job) -> list[tuple[list[int], int]]:
    """Corner (y, x) and mirror of each of the ten views."""
    views = plan.ten_views(job.positions)
    return [
        ([int(y), int(x)], int(flip))
        for y, x, flip in zip(views.y, views.x, views.flip, strict=True)
    ]


def _finish(images: Any, anchor: Any, flip: Any, shift: Any, job: Job) -> Any:
    """Cropped uint8 HWC to finished images; `gratis.loader.views.reference.finish` in DALI's
    operators."""
    from nvidia.dali import fn, types

    device = "gpu" if job.device.type == "cuda" else "cpu"
    crop, centre = job.config.crop, (job.positions - 1) // 2
    if job.config.mean == "offset":
        mean = _cut(types.Constant(job.stats.mean, device=device), anchor, [crop] * 2)
        images = fn.cast(images, dtype=types.FLOAT) - mean
    images = fn.flip(images, horizontal=flip)
    if job.config.mean == "central":
        region = np.ascontiguousarray(
            job.stats.mean[centre : centre + crop, centre : centre + crop]
        )
        images = fn.cast(images, dtype=types.FLOAT) - types.Constant(region, device=device)
    if shift is not None:
        images = (images + shift) * np.float32(scale(job.config, job.epoch))
    return images if job.config.channels_last else fn.transpose(images, perm=[2, 0, 1])


def _inputs(work: Work, job: Job) -> tuple[Any, ...]:
    """Bytes; and for one view mirror int32 [n], colour shift float32 [n,1,1,3], and what is cut
    out."""
    if job.config.views == 10:
        return (encoded(work, job),)
    shift = colour_shift(job.stats, job.config, job.epoch, work.draws.normals).astype(np.float32)
    flip = work.draws.flip.astype(np.int32)
    return encoded(work, job), flip, shift[:, None, None], *rectangles(work)
