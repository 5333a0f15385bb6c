"""Peers on the same shards: DALI by the graph of its own example, and torchvision's decode_jpeg."""

from __future__ import annotations

import itertools
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gratis.loader.config import IMAGENET
from gratis.loader.plan import boxes

SHUFFLE = 1000  # samples in DALI's shuffle buffer
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
MEAN, STD = ([255 * value for value in values] for values in IMAGENET)


def stock_dali(
    shards: Path, *, batch: int, crop: int, device: torch.device, resized: bool
) -> Iterator[Tensor]:
    """Endless float32 [batch,3,crop,crop] on the device.

    The graph of create_dali_pipeline in DALI's docs/examples/use_cases/pytorch/resnet50/main.py,
    with its webdataset reader in its file reader's place. resized: its training pass, a random part
    resized; else a crop at a random place of the image as it is decoded, by crop_mirror_normalize.
    """
    from nvidia.dali import Pipeline, fn, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIClassificationIterator

    tars = sorted(str(path) for path in shards.glob("train-*.tar"))
    on_gpu = device.type == "cuda"
    gpu, threads = (device.index or 0) if on_gpu else None, len(os.sched_getaffinity(0))
    where = {"device": "mixed" if on_gpu else "cpu", "output_type": types.RGB}
    pipeline = Pipeline(batch, threads, gpu, seed=1, prefetch_queue_depth=2)
    with pipeline:
        data, label = fn.readers.webdataset(  # type: ignore[misc]
            paths=tars,
            index_paths=[tar.removesuffix(".tar") + ".idx" for tar in tars],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=SHUFFLE,
            name="reader",
        )
        place: dict[str, Any] = {}
        if resized:
            images = fn.decoders.image_random_crop(
                data, random_aspect_ratio=list(RATIO), random_area=list(AREA), **where
            )
            filtered = types.INTERP_TRIANGULAR
            images = fn.resize(images, resize_x=crop, resize_y=crop, interp_type=filtered)
        else:
            images = fn.decoders.image(data, **where)
            for axis in "xy":
                place[f"crop_pos_{axis}"] = fn.random.uniform(range=(0.0, 1.0))
        done = fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT,
            output_layout="CHW",
            crop=(crop, crop),
            mean=MEAN,
            std=STD,
            mirror=fn.random.coin_flip(probability=0.5),
            **place,
        )
        label = fn.pad(label)  # of 1 to 3 digits; a batch is one tensor
        pipeline.set_outputs(done, label.gpu() if on_gpu else label)
    pipeline.build()
    iterator = DALIClassificationIterator(
        pipeline, reader_name="reader", auto_reset=True, last_batch_policy=LastBatchPolicy.DROP
    )
    while True:
        for (output,) in iterator:
            yield output["data"]


def torchvision_jpeg(
    shards: Path, *, batch: int, crop: int, device: torch.device, resized: bool
) -> Iterator[Tensor]:
    """The same by torchvision: decode_jpeg of a batch's files, which are in memory, on the device;
    then crop or resized crop, mirror and normalisation by torch. ImportError without it."""
    from torchvision.io import decode_jpeg
    from torchvision.transforms.v2 import functional

    files = jpegs(shards, 4 * batch)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
    rng = np.random.default_rng(1)
    for number in itertools.count():
        ids = rng.integers(len(files), size=batch)
        images = decode_jpeg([files[k] for k in ids], device=device)
        side = min(images[0].shape[-2:])
        if resized:
            y, x, height, width = boxes(1, number, ids, side, AREA, RATIO)
        else:
            y, x = (rng.integers(side - crop + 1, size=batch) for _ in range(2))
            height = width = np.full(batch, crop)
        parts = []
        for k, image in enumerate(images):
            top, left, high, wide = (int(values[k]) for values in (y, x, height, width))
            part = image[:, top : top + high, left : left + wide]
            parts.append(functional.resize(part, [crop, crop]) if resized else part)
        whole = torch.stack(parts).float()
        flip = torch.from_numpy(rng.random(batch) < 0.5).to(device)[:, None, None, None]
        yield (torch.where(flip, whole.flip(-1), whole) - mean) / std


def jpegs(shards: Path, most: int) -> list[Tensor]:
    """Files of the training split, uint8 [bytes] each."""
    found: list[Tensor] = []
    for path in sorted(shards.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg") and (file := tar.extractfile(member)):
                    found.append(torch.frombuffer(bytearray(file.read()), dtype=torch.uint8))
                if len(found) == most:
                    return found
    return found
