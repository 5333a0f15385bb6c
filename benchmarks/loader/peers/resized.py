"""Peers that make random-resized crops (0.08 to 1 of the area, aspect 3/4 to 4/3) of 224 px, mirror
at random, take ImageNet's mean off and divide by its standard deviation: float32 NCHW torch
batches. Each as its own documentation says for the CPU; uint8 leaves those that have no quicker
way, and NumPy finishes it in the parent, as for plain crops."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loader.peers.common import (
    BATCH,
    SHUFFLE,
    Batches,
    ImagenetNormaliser,
    crop_of,
    tars_of,
    torchvision,
)
from benchmarks.loader.peers.workers import map_loader
from gratis.loader.config import IMAGENET

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def dali_resized(root: Path, threads: int, scratch: Path) -> Batches:
    from nvidia.dali import types

    return dali(root, threads, types.INTERP_LINEAR)


def dali(root: Path, threads: int, interpolation: Any, augment: Any = None) -> Batches:
    """readers.webdataset, decoders.image_random_crop, resize (antialiased), an automatic
    augmentation where one is given."""
    from nvidia.dali import fn, pipeline_def, types

    crop = crop_of(root)
    tars = [str(path) for path in tars_of(root)]

    @pipeline_def(enable_conditionals=augment is not None)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        data, label = fn.readers.webdataset(  # type: ignore[misc]
            paths=tars,
            index_paths=[tar.replace(".tar", ".idx") for tar in tars],
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=SHUFFLE,
            missing_component_behavior="error",
        )
        parts = fn.decoders.image_random_crop(
            data, output_type=types.RGB, random_area=AREA, random_aspect_ratio=RATIO
        )
        images = fn.resize(parts, size=(crop, crop), interp_type=interpolation)
        images = fn.flip(images, horizontal=fn.random.coin_flip())
        return (augment(images, shape=(crop, crop)) if augment else images), label

    pipeline = graph(
        batch_size=BATCH, num_threads=threads, device_id=None, prefetch_queue_depth=2, seed=1
    )
    pipeline.build()
    normalise = ImagenetNormaliser(crop)
    while True:
        yield normalise(np.asarray(pipeline.run()[0].as_tensor()))


def tfdata(root: Path, threads: int, scratch: Path) -> Batches:
    """sample_distorted_bounding_box, decode_and_crop_jpeg, resize, as TensorFlow's own ResNet."""
    tf: Any = import_module("tensorflow")
    crop = crop_of(root)

    def sample(data: Any) -> Any:
        first, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros((1, 0, 4)),
            area_range=AREA,
            aspect_ratio_range=RATIO,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([first[:2], size[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_ACCURATE")
        image = tf.image.resize(image, (crop, crop), antialias=True)
        image = tf.image.random_flip_left_right(image)
        return tf.cast(image + 0.5, tf.uint8)

    files = tf.data.Dataset.list_files(str(scratch / "*.tfrecord"))
    records = files.interleave(tf.data.TFRecordDataset, cycle_length=4)
    samples = records.shuffle(SHUFFLE).repeat()
    samples = samples.map(sample, num_parallel_calls=threads, deterministic=False)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    normalise = ImagenetNormaliser(crop)
    batches = samples.batch(BATCH, drop_remainder=True).prefetch(2).with_options(options)
    for batch in batches.as_numpy_iterator():
        yield normalise(batch)


def turboloader(root: Path, threads: int, scratch: Path) -> Batches:
    """Its fused pass train_aug, into its ring of buffers. Its threads are one per core."""
    library: Any = import_module("turboloader")
    loader = library.DataLoader(
        str(scratch / "data.tar"),
        batch_size=BATCH,
        image_size=crop_of(root),
        output_format="pytorch",
        transform=library.ImageNetNormalize(),
        shuffle=True,
        train_aug=True,
        pin_memory=True,
        drop_last=True,
    )
    for epoch in count():
        loader.set_epoch(epoch)
        yield from (images for images, _ in loader)


def ffcv(root: Path, threads: int, scratch: Path) -> Batches:
    """RandomResizedCropRGBImageDecoder (not antialiased) and NormalizeImage, compiled."""
    decoders, transforms = import_module("ffcv.fields.decoders"), import_module("ffcv.transforms")
    library: Any = import_module("ffcv.loader")
    crop = crop_of(root)
    mean, std = (np.array(three) * 255 for three in IMAGENET)
    image = [
        decoders.RandomResizedCropRGBImageDecoder((crop, crop), scale=AREA, ratio=RATIO),
        transforms.RandomHorizontalFlip(),
        transforms.NormalizeImage(mean, std, np.float32),
        transforms.ToTensor(),
        transforms.ToTorchImage(channels_last=False),
    ]
    loader = library.Loader(
        str(scratch / "data.beton"),
        batch_size=BATCH,
        num_workers=threads,
        order=library.OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": image, "label": [decoders.IntDecoder(), transforms.ToTensor()]},
    )
    while True:
        yield from (images for images, _ in loader)


def imagefolder(root: Path, threads: int, scratch: Path) -> Batches:
    """torchvision's ImageFolder and second transforms on Pillow's images, in a DataLoader."""
    torchvision()
    folders: Any = import_module("torchvision.datasets")
    v2: Any = import_module("torchvision.transforms.v2")
    crop = crop_of(root)
    cutting = [v2.RandomResizedCrop(crop), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    samples = folders.ImageFolder(str(scratch.parent / "folder"), v2.Compose(cutting))
    return _finished(map_loader(samples, threads), crop)


def _finished(loader: Any, crop: int) -> Iterator[torch.Tensor]:
    normalise = ImagenetNormaliser(crop)
    for batch, _ in loader:
        yield normalise(batch.permute(0, 2, 3, 1).numpy())
