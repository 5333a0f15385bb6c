"""DALI's stock pipeline as a peer: its webdataset reader, its random numbers,
crop_mirror_normalize, its iterator."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["host", "raw", "region", "whole"]

SHUFFLE = 1000  # samples in its shuffle buffer
MEAN = (122.0, 116.0, 104.0)


def stock(
    kind: Kind,
    shards: Path,
    *,
    batch: int,
    crop: int,
    device: torch.device,
    load: float | None = None,
) -> Iterator[Tensor]:
    """Endless float32 [batch,3,crop,crop] on the device.

    host: the region is decoded on the CPU and finished on the device; raw: the same of PPMs;
    region: nvJPEG decodes the region; whole: nvJPEG and the hardware decoder (`load` of each batch,
    if given) decode whole images."""
    from nvidia.dali import Pipeline, fn, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIClassificationIterator

    tars = sorted(str(path) for path in shards.glob("train-*.tar"))
    index = [tar.replace(".tar", ".idx") for tar in tars]
    members = ["ppm" if kind == "raw" else "jpg", "cls"]
    reading: dict[str, Any] = {"random_shuffle": True, "initial_fill": SHUFFLE, "name": "reader"}
    on_gpu = device.type == "cuda"
    gpu, threads = (device.index or 0) if on_gpu else None, len(os.sched_getaffinity(0))
    pipeline = Pipeline(batch, threads, gpu, seed=1, prefetch_queue_depth=2)
    with pipeline:
        data, label = fn.readers.webdataset(  # type: ignore[misc]
            paths=tars,
            index_paths=index,
            ext=members,
            missing_component_behavior="error",
            **reading,
        )
        x, y = fn.random.uniform(range=(0.0, 1.0)), fn.random.uniform(range=(0.0, 1.0))
        cut: dict[str, Any] = {"crop": (crop, crop), "crop_pos_x": x, "crop_pos_y": y}
        if kind == "whole":
            share: dict[str, Any] = {} if load is None else {"hw_decoder_load": load}
            images = fn.decoders.image(data, device="mixed", output_type=types.RGB, **share)
            images = fn.crop(images, **cut)
        else:
            where = "mixed" if kind == "region" else "cpu"
            images = fn.decoders.image_crop(data, device=where, output_type=types.RGB, **cut)
            images = images.gpu() if on_gpu and where == "cpu" else images
        scale: dict[str, Any] = {"mean": list(MEAN), "std": [1.0] * 3, "dtype": types.FLOAT}
        mirror = fn.random.coin_flip()
        done = fn.crop_mirror_normalize(images, mirror=mirror, output_layout="CHW", **scale)
        label = fn.pad(label)  # of 1 to 3 digits; a batch is one tensor
        pipeline.set_outputs(done, label.gpu() if on_gpu else label)
    pipeline.build()
    iterator = DALIClassificationIterator(
        pipeline, reader_name="reader", auto_reset=True, last_batch_policy=LastBatchPolicy.DROP
    )
    while True:
        for (output,) in iterator:
            yield output["data"]
